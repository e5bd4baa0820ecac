//! The order in which a matvec reads a matrix, and the distance of its prefetch: block row by block
//! row, as one forward stream.

use super::shim::prefetch_all;
use crate::layout::{Matrix, ROW_INTERLEAVE};

/// Distance from a block to the one that is prefetched meanwhile: about the bytes that a core has
/// in flight while memory answers.
const PREFETCH_BYTES: usize = 1024;

/// The blocks that a call reads.
pub(super) struct BlockStream<'a, const BLOCK: usize> {
    blocks: &'a [[u8; BLOCK]],
    /// Blocks in a row.
    len: usize,
}

impl<'a, const BLOCK: usize> BlockStream<'a, BLOCK> {
    const AHEAD: usize = PREFETCH_BYTES.div_ceil(BLOCK);

    /// `n` rows from `first_row` on. Prefetches the first blocks, which no block before them
    /// prefetches.
    #[inline(always)]
    pub(super) fn new(w: &Matrix<'a>, first_row: usize, n: usize) -> Self {
        let (len, first) = (w.col_blocks(), first_row / ROW_INTERLEAVE);
        let (blocks, _) = w.data().as_chunks();
        let blocks = &blocks[first * len..][..n.div_ceil(ROW_INTERLEAVE) * len];
        blocks.iter().take(Self::AHEAD).for_each(|block| prefetch_all(block));
        Self { blocks, len }
    }

    /// The blocks of each block row, each with the block to prefetch meanwhile. That one lies
    /// [`PREFETCH_BYTES`] later. At the end it is the block itself.
    #[inline(always)]
    pub(super) fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = [&'a [u8; BLOCK]; 2]>> {
        let blocks = self.blocks;
        (0..blocks.len()).step_by(self.len).map(move |first| {
            let row = &blocks[first..];
            row.iter()
                .take(self.len)
                .enumerate()
                .map(move |(i, block)| [block, row.get(i + Self::AHEAD).unwrap_or(block)])
        })
    }
}

//! The order in which a matvec walks a matrix: several block rows side by side, each a stream of its own.

use super::memory::prefetch;
use crate::layout::{LINE_BYTES, Matrix};

/// Block rows side by side in the main loop. Several read streams use more of the memory's bandwidth than one.
pub(super) const STREAMS: usize = 4;

/// How far ahead of its use a weight is asked for.
const PREFETCH_BYTES: usize = 2048;

/// `N` neighbouring block rows of blocks of `BLOCK` bytes.
pub(super) struct Streams<'a, const N: usize, const BLOCK: usize> {
    /// All blocks from the first of these rows to the last one of the call.
    blocks: &'a [[u8; BLOCK]],
    /// Blocks in a row.
    len: usize,
}

impl<'a, const N: usize, const BLOCK: usize> Streams<'a, N, BLOCK> {
    /// Starts at block row `first`; `end` is the first block row that is not asked for.
    pub(super) fn new(w: &Matrix<'a>, first: usize, end: usize) -> Self {
        let len = w.col_blocks();
        Self { blocks: &w.data().as_chunks().0[first * len..end * len], len }
    }

    /// Block `i` of stream `n`, and the one to ask for meanwhile: [`PREFETCH_BYTES`] behind it, going on in the row
    /// that is the stream's next. Where that is not part of the call, the block itself.
    ///
    /// The walk is fastest if the lines of a block are asked for one by one, between the loads of those at hand.
    #[inline]
    pub(super) fn block(&self, n: usize, i: usize) -> [&'a [u8; BLOCK]; 2] {
        let ahead = const { PREFETCH_BYTES.div_ceil(BLOCK) };
        let at = n * self.len + i;
        let later = at + ahead + if i + ahead < self.len { 0 } else { (N - 1) * self.len };
        let block = &self.blocks[at];
        [block, self.blocks.get(later).unwrap_or(block)]
    }
}

/// Asks for the start of the streams from block row `first` on, which no block before them has asked for.
pub(super) fn start(w: &Matrix<'_>, first: usize, end: usize) {
    let rows: [&[u8]; STREAMS] =
        core::array::from_fn(|n| if first + n < end { w.block_row(first + n) } else { &[] });
    let lines = PREFETCH_BYTES.next_multiple_of(w.dtype().block_bytes()) / LINE_BYTES;
    for line in 0..lines {
        for row in rows {
            if let Some(line) = row.as_chunks::<LINE_BYTES>().0.get(line) {
                prefetch(line);
            }
        }
    }
}

/// Cuts rows into runs of [`STREAMS`] block rows and calls `$kernel::<N>(out, w, first, end, x)` for each, with
/// `first` and `end` counting block rows. (A macro, as a generic function could not name `N`.)
macro_rules! by_streams {
    ($kernel:ident, $out:expr, $w:expr, $first_row:expr, $x:expr) => {{
        let first = $first_row / ROW_INTERLEAVE;
        let end = first + $out.len().div_ceil(ROW_INTERLEAVE);
        start($w, first, end);
        for (i, out) in $out.chunks_mut(STREAMS * ROW_INTERLEAVE).enumerate() {
            let first = first + STREAMS * i;
            match out.len().div_ceil(ROW_INTERLEAVE) {
                1 => $kernel::<1>(out, $w, first, end, $x),
                2 => $kernel::<2>(out, $w, first, end, $x),
                3 => $kernel::<3>(out, $w, first, end, $x),
                _ => $kernel::<STREAMS>(out, $w, first, end, $x),
            }
        }
    }};
}
pub(super) use by_streams;

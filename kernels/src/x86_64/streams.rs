//! The order in which a matvec walks a matrix: several block rows side by side, each a stream of its own.

use crate::layout::Matrix;

use super::memory::prefetch;

/// Block rows side by side in the main loop. Several read streams use more of the memory's bandwidth than one.
pub(super) const STREAMS: usize = 4;

/// How far ahead of its use a weight is asked for.
const PREFETCH_BYTES: usize = 2048;

/// `N` neighbouring block rows, cut into blocks of `BLOCK` bytes.
pub(super) struct Streams<'a, const N: usize, const BLOCK: usize> {
    blocks: [&'a [[u8; BLOCK]]; N],
    /// The block rows that come next.
    next: [&'a [[u8; BLOCK]]; N],
}

impl<'a, const N: usize, const BLOCK: usize> Streams<'a, N, BLOCK> {
    /// Starts at block row `first`; `end` is the first block row that is not asked for.
    pub(super) fn new(w: &Matrix<'a>, first: usize, end: usize) -> Self {
        let blocks = |i: usize| if i < end { w.block_row(i).as_chunks().0 } else { &[] };
        Self {
            blocks: core::array::from_fn(|n| blocks(first + n)),
            next: core::array::from_fn(|n| blocks(first + N + n)),
        }
    }

    /// Block `i` of stream `n`; asks for the one that is [`PREFETCH_BYTES`] behind it.
    #[inline]
    pub(super) fn block(&self, n: usize, i: usize) -> &'a [u8; BLOCK] {
        let blocks = self.blocks[n];
        let ahead = i + PREFETCH_BYTES.div_ceil(BLOCK);
        if let Some(block) = blocks.get(ahead).or_else(|| self.next[n].get(ahead - blocks.len())) {
            prefetch(block);
        }
        &blocks[i]
    }
}

/// Cuts rows into runs of [`STREAMS`] block rows and calls `$kernel::<N>(out, w, first, end, x)` for each, with
/// `first` and `end` counting block rows. (A macro, as a generic function could not name `N`.)
macro_rules! by_streams {
    ($kernel:ident, $out:expr, $w:expr, $first_row:expr, $x:expr) => {{
        let first = $first_row / ROW_INTERLEAVE;
        let end = first + $out.len().div_ceil(ROW_INTERLEAVE);
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

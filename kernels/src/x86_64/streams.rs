//! The order in which a matvec reads a matrix, and the distance of its prefetch.
//!
//! ```text
//! prefetch the first blocks of the first run         no block before them did
//! for each run of N block rows                       N is 4 or 1
//!     for each column block i
//!         for each block row n of the run            a stream of its own
//!             multiply block (n, i)
//!             prefetch the block that lies prefetch_bytes later in this stream,
//!                 one line between the loads of two lines
//! ```
//!
//! Decoding reads every weight once, so its speed is that of memory, and memory is fast only while
//! a core has many lines in flight. Most processors have more of them in flight with several
//! streams. Others follow a single stream by themselves, and lose it if it is left after every
//! block. So vendor and family choose the pattern (`docs/DESIGN.md`, One stream or four). Where a
//! stream ends, its prefetch goes on in the row that the stream reads next, so that no row starts
//! with a cold cache.
//!
//! Rows do not depend on each other, so the pattern changes no bit.

use core::arch::x86_64::__cpuid;
use std::sync::OnceLock;

use super::memory::prefetch;
use crate::layout::{LINE_BYTES, Matrix};

/// The largest number of block rows side by side.
pub(super) const STREAMS: usize = 4;

/// How a matvec reads a matrix.
#[derive(Clone, Copy)]
pub(super) struct ReadPattern {
    /// Block rows side by side, 1 or [`STREAMS`].
    streams: usize,
    /// Distance from a block to the one that is prefetched meanwhile.
    prefetch_bytes: usize,
}

impl ReadPattern {
    /// For processors that read several streams faster than one: most.
    pub(super) const SIDE_BY_SIDE: Self = Self { streams: STREAMS, prefetch_bytes: 2048 };
    /// For AMD's up to Zen 4, which are faster with a shorter distance.
    const SIDE_BY_SIDE_CLOSE: Self = Self { streams: STREAMS, prefetch_bytes: 1024 };
    /// For AMD's from Zen 5 on, which prefetch one stream by themselves, and much less if it is
    /// left for another after every block.
    const ONE_BY_ONE: Self = Self { streams: 1, prefetch_bytes: 4096 };

    /// The pattern that is fastest on this processor when memory is the bound.
    pub(super) fn here() -> Self {
        static FOUND: OnceLock<ReadPattern> = OnceLock::new();
        #[cfg(test)]
        if let Some(forced) = tests::FORCED.get() {
            return forced;
        }
        *FOUND.get_or_init(|| match amd_family() {
            None => Self::SIDE_BY_SIDE,
            Some(..=0x19) => Self::SIDE_BY_SIDE_CLOSE,
            Some(_) => Self::ONE_BY_ONE,
        })
    }

    pub(super) fn streams(self) -> usize {
        self.streams
    }

    /// Prefetches the start of the first block rows, which no block before them prefetches.
    pub(super) fn start(self, w: &Matrix<'_>, first: usize, end: usize) {
        let rows: [&[u8]; STREAMS] = core::array::from_fn(|n| {
            if n < self.streams && first + n < end { w.block_row(first + n) } else { &[] }
        });
        let lines = self.prefetch_bytes.next_multiple_of(w.dtype().block_bytes()) / LINE_BYTES;
        for line in 0..lines {
            for row in rows {
                if let Some(line) = row.as_chunks::<LINE_BYTES>().0.get(line) {
                    prefetch(line);
                }
            }
        }
    }
}

/// The family of an AMD processor: 0x17 is Zen 1 and 2, 0x19 Zen 3 and 4, 0x1a Zen 5.
fn amd_family() -> Option<u32> {
    if cfg!(miri) {
        return None;
    }
    #[allow(unused_unsafe, reason = "not an unsafe function in newer compilers")]
    // SAFETY: every x86-64 processor has CPUID.
    let [vendor, version] = [0, 1].map(|leaf| unsafe { __cpuid(leaf) });
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    // The extended family counts if the base family is 15, as in all AMD processors of 64 bits.
    let family = (version.eax >> 8 & 0xf) + (version.eax >> 20 & 0xff);
    (name.as_flattened() == b"AuthenticAMD").then_some(family)
}

/// `N` neighbouring block rows of blocks of `BLOCK` bytes.
pub(super) struct Streams<'a, const N: usize, const BLOCK: usize> {
    /// All blocks from the first of these rows to the last one of the call.
    blocks: &'a [[u8; BLOCK]],
    /// Blocks in a row.
    len: usize,
    /// Blocks between one and the one to prefetch meanwhile.
    ahead: usize,
}

impl<'a, const N: usize, const BLOCK: usize> Streams<'a, N, BLOCK> {
    /// Starts at block row `first`. `end` is the first block row after those of the call.
    pub(super) fn new(w: &Matrix<'a>, pattern: ReadPattern, first: usize, end: usize) -> Self {
        let len = w.col_blocks();
        let ahead = pattern.prefetch_bytes.div_ceil(BLOCK);
        Self { blocks: &w.data().as_chunks().0[first * len..end * len], len, ahead }
    }

    /// Block `i` of stream `n`, and the block to prefetch meanwhile. That one lies
    /// [`ReadPattern::prefetch_bytes`] later, if need be in the stream's next row. Where it is not
    /// part of the call, it is block `i` itself.
    ///
    /// Prefetching is fastest line by line, between the loads of the block at hand.
    #[inline]
    pub(super) fn block(&self, n: usize, i: usize) -> [&'a [u8; BLOCK]; 2] {
        let at = n * self.len + i;
        let later = at + self.ahead + if i + self.ahead < self.len { 0 } else { (N - 1) * self.len };
        let block = &self.blocks[at];
        [block, self.blocks.get(later).unwrap_or(block)]
    }
}

/// Cuts rows into runs of as many block rows as `$pattern` has side by side, and the rest into
/// single ones. Calls `$kernel::<N>(out, w, pattern, first, end, x)` for each; `first` and `end`
/// count block rows. (A macro, as a generic function could not name `N`.)
macro_rules! by_streams {
    ($kernel:ident, $pattern:expr, $out:expr, $w:expr, $first_row:expr, $x:expr) => {{
        let pattern = $pattern;
        let streams = pattern.streams();
        let first = $first_row / ROW_INTERLEAVE;
        let end = first + $out.len().div_ceil(ROW_INTERLEAVE);
        pattern.start($w, first, end);
        for (i, out) in $out.chunks_mut(streams * ROW_INTERLEAVE).enumerate() {
            let first = first + streams * i;
            if out.len() > (STREAMS - 1) * ROW_INTERLEAVE {
                $kernel::<STREAMS>(out, $w, pattern, first, end, $x);
            } else {
                for (i, out) in out.chunks_mut(ROW_INTERLEAVE).enumerate() {
                    $kernel::<1>(out, $w, pattern, first + i, end, $x);
                }
            }
        }
    }};
}
pub(super) use by_streams;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{ReadPattern, amd_family};
    use crate::layout::{ActivationMut, DType, GROUP_SIZE, Matrix, matrix_bytes};
    use crate::{Isa, Kernels};

    thread_local! {
        /// The pattern of this thread instead of the processor's.
        pub(super) static FORCED: Cell<Option<ReadPattern>> = const { Cell::new(None) };
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_family_is_what_linux_says() {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let field = |name| {
            let line = cpu_info.lines().find(|line| line.starts_with(name)).unwrap();
            line.split(": ").nth(1).unwrap()
        };
        let family = field("cpu family").parse().unwrap();
        assert_eq!(amd_family(), (field("vendor_id") == "AuthenticAMD").then_some(family));
    }

    #[test]
    fn the_pattern_changes_no_bit() {
        const COLS: usize = 320;
        let (mut values, mut codes) = ([0.0; COLS], [0; COLS]);
        let (mut scales, mut sums) = ([0.0; COLS / GROUP_SIZE], [0; COLS / GROUP_SIZE]);
        values.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 199) as f32 - 99.0);
        let mut x =
            ActivationMut { values: &mut values, codes: &mut codes, scales: &mut scales, sums: &mut sums };
        Kernels::best().quantize(&mut x);
        // Any bytes are weights; the scales among them are finite, as no byte has all bits of an
        // exponent.
        let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 16) as u8 & 0xbb;
        let patterns = [ReadPattern::ONE_BY_ONE, ReadPattern::SIDE_BY_SIDE, ReadPattern::SIDE_BY_SIDE_CLOSE];
        for dtype in [DType::Int8, DType::Int4] {
            for rows in [1, 16, 17, 64, 65, 100, 128, 147] {
                let data: Vec<u8> = (0..matrix_bytes(dtype, rows, COLS).unwrap()).map(byte).collect();
                let w = Matrix::new(dtype, rows, COLS, 0.5, &data).unwrap();
                for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
                    let products = patterns.map(|pattern| {
                        FORCED.set(Some(pattern));
                        let mut out = vec![0.0; rows];
                        kernels.matvec(&mut out, &w, 0, x.view());
                        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    });
                    FORCED.set(None);
                    assert!(products.iter().all(|p| *p == products[0]), "{dtype} {rows} {}", kernels.isa());
                }
            }
        }
    }
}

//! The order in which a matvec reads a matrix: one block row after the other, or several side by side, each a stream of
//! its own. Rows do not depend on each other, so the pattern changes no bit.

use core::arch::x86_64::__cpuid;
use std::sync::OnceLock;

use super::memory::prefetch;
use crate::layout::{LINE_BYTES, Matrix};

/// Most block rows side by side.
pub(super) const STREAMS: usize = 4;

/// How a matrix is walked.
#[derive(Clone, Copy)]
pub(super) struct ReadPattern {
    /// Block rows side by side, 1 or [`STREAMS`].
    streams: usize,
    /// How far ahead of its use a weight is asked for.
    prefetch_bytes: usize,
}

impl ReadPattern {
    /// Most processors read several streams faster than one.
    pub(super) const SIDE_BY_SIDE: Self = Self { streams: STREAMS, prefetch_bytes: 2048 };
    /// AMD's up to Zen 4 too, if less is asked for at a time.
    const SIDE_BY_SIDE_CLOSE: Self = Self { streams: STREAMS, prefetch_bytes: 1024 };
    /// AMD's from Zen 5 on fetch ahead of one stream by themselves, and much less so if it is left for another after
    /// every block.
    const ONE_BY_ONE: Self = Self { streams: 1, prefetch_bytes: 4096 };

    /// The pattern that is fastest on this processor if it is bound by memory.
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

    /// Asks for the start of the block rows that the pattern begins with, which no block before them has asked for.
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

/// The family of a processor of AMD: 0x17 is Zen 1 and 2, 0x19 Zen 3 and 4, 0x1a Zen 5.
fn amd_family() -> Option<u32> {
    if cfg!(miri) {
        return None;
    }
    #[allow(unused_unsafe, reason = "not an unsafe function in newer compilers")]
    // SAFETY: every x86-64 processor has CPUID.
    let [vendor, version] = [0, 1].map(|leaf| unsafe { __cpuid(leaf) });
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    // The extended family counts if the first is full, as it is since the first processor of 64 bits.
    let family = (version.eax >> 8 & 0xf) + (version.eax >> 20 & 0xff);
    (name.as_flattened() == b"AuthenticAMD").then_some(family)
}

/// `N` neighbouring block rows of blocks of `BLOCK` bytes.
pub(super) struct Streams<'a, const N: usize, const BLOCK: usize> {
    /// All blocks from the first of these rows to the last one of the call.
    blocks: &'a [[u8; BLOCK]],
    /// Blocks in a row.
    len: usize,
    /// Blocks between one and that to ask for meanwhile.
    ahead: usize,
}

impl<'a, const N: usize, const BLOCK: usize> Streams<'a, N, BLOCK> {
    /// Starts at block row `first`; `end` is the first block row that is not asked for.
    pub(super) fn new(w: &Matrix<'a>, pattern: ReadPattern, first: usize, end: usize) -> Self {
        let len = w.col_blocks();
        let ahead = pattern.prefetch_bytes.div_ceil(BLOCK);
        Self { blocks: &w.data().as_chunks().0[first * len..end * len], len, ahead }
    }

    /// Block `i` of stream `n`, and the one to ask for meanwhile: [`ReadPattern::prefetch_bytes`] behind it, going on in the row
    /// that is the stream's next. Where that is not part of the call, the block itself.
    ///
    /// The pattern is fastest if the lines of a block are asked for one by one, between the loads of those at hand.
    #[inline]
    pub(super) fn block(&self, n: usize, i: usize) -> [&'a [u8; BLOCK]; 2] {
        let at = n * self.len + i;
        let later = at + self.ahead + if i + self.ahead < self.len { 0 } else { (N - 1) * self.len };
        let block = &self.blocks[at];
        [block, self.blocks.get(later).unwrap_or(block)]
    }
}

/// Cuts rows into runs of as many block rows as `$pattern` has side by side and single ones, and calls
/// `$kernel::<N>(out, w, pattern, first, end, x)` for each, with `first` and `end` counting block rows. (A macro, as a generic
/// function could not name `N`.)
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
        /// The pattern of this thread, instead of what suits the processor.
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
    fn the_walk_changes_no_bit() {
        const COLS: usize = 320;
        let (mut values, mut codes) = ([0.0; COLS], [0; COLS]);
        let (mut scales, mut sums) = ([0.0; COLS / GROUP_SIZE], [0; COLS / GROUP_SIZE]);
        values.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 199) as f32 - 99.0);
        let mut x =
            ActivationMut { values: &mut values, codes: &mut codes, scales: &mut scales, sums: &mut sums };
        Kernels::best().quantize(&mut x);
        // Any bytes are weights; the scales among them are finite, as no byte has all bits of an exponent.
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

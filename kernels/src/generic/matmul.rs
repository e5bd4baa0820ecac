//! Products of a matrix with several vectors: the loops that all levels share.
//!
//! ```text
//! for each block row                                 16 rows
//!     for each run of up to 64 vectors
//!         sums = 0                                   16 rows for each vector
//!         for each slice of column blocks
//!             decode the slice into the panel        once for the run; the panel stays in L1
//!             for each tile of vectors
//!                 prefetch a share of the slice that follows
//!                 sums += panel * tile               sums of integers stay in registers
//!         outputs = sums * tensor scale
//! ```
//!
//! A level gives `decode` and `tile`. A tile knows the panel alone, so it does not matter how the
//! file encodes the weights. The sums of a row are those of the numeric contract: one `fma` a
//! group, groups in ascending order, whatever the slices, runs and tiles.

use core::array::from_fn;
use core::hint::black_box;

use super::block::GROUPS;
use crate::layout::{Activation, GROUP_SIZE, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// Vectors that share a decoded panel. Their sums take 4 KiB.
pub(crate) const RUN: usize = 64;

/// Column blocks in a panel with a byte for each weight. With the codes of a tile it fits an L1
/// cache of 32 KiB.
pub(crate) const BYTE_PANEL: usize = 16;

/// Column blocks in a panel of float weights.
pub(crate) const FLOAT_PANEL: usize = 4;

/// The sums of 16 rows.
pub(crate) type RowSums = [f32; ROW_INTERLEAVE];

/// A decoded block of quantized weights, with `LINES` lines for each group. The lines stand for
/// codes + `OFFSET`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct IntBlock<const LINES: usize, const OFFSET: i32> {
    /// Bytes of 16 rows of 4 columns in each line.
    pub(crate) lines: [[[u8; LINE_BYTES]; LINES]; GROUPS],
    /// Scales of 16 rows.
    pub(crate) scales: [RowSums; GROUPS],
}

impl<const LINES: usize, const OFFSET: i32> IntBlock<LINES, OFFSET> {
    pub(crate) const ZERO: Self =
        Self { lines: [[[0; LINE_BYTES]; LINES]; GROUPS], scales: [[0.0; ROW_INTERLEAVE]; GROUPS] };
}

/// A byte for each weight.
pub(crate) type ByteBlock<const OFFSET: i32> = IntBlock<8, OFFSET>;

/// A decoded block of Int4n for levels whose 16-bit sums have no room for shifted codes. The bytes
/// stand for codes of the table + `OFFSET`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct ShiftedBlock<const OFFSET: i32> {
    pub(crate) block: ByteBlock<OFFSET>,
    /// The shifts of 16 rows, minus `OFFSET`. Their products with sums of a vector's codes are
    /// exact, and so are those added to the sums of products.
    pub(crate) shifts: [RowSums; GROUPS],
}

impl<const OFFSET: i32> ShiftedBlock<OFFSET> {
    pub(crate) const ZERO: Self = Self { block: ByteBlock::ZERO, shifts: [[0.0; ROW_INTERLEAVE]; GROUPS] };
}

/// A decoded block of float weights: 16 rows in each column.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct FloatBlock(pub(crate) [[RowSums; GROUP_SIZE]; GROUPS]);

impl FloatBlock {
    pub(crate) const ZERO: Self = Self([[[0.0; ROW_INTERLEAVE]; GROUP_SIZE]; GROUPS]);
}

/// The columns that a panel covers of the vectors of a tile, block by block.
#[derive(Clone, Copy)]
pub(crate) struct IntColumns<'a> {
    pub(crate) codes: &'a [[[[i8; 4]; GROUP_SIZE / 4]; GROUPS]],
    pub(crate) scales: &'a [[f32; GROUPS]],
    pub(crate) sums: &'a [[i32; GROUPS]],
}

/// The columns of `blocks` column blocks from `first` on, of each vector of a tile.
#[inline(always)]
pub(crate) fn int_columns<'a, const T: usize>(
    xs: &[Activation<'a>; T],
    first: usize,
    blocks: usize,
) -> [IntColumns<'a>; T] {
    from_fn(|t| IntColumns {
        codes: &xs[t].codes.as_chunks().0.as_chunks().0.as_chunks().0[first..][..blocks],
        scales: &xs[t].scales.as_chunks().0[first..][..blocks],
        sums: &xs[t].sums.as_chunks().0[first..][..blocks],
    })
}

/// What turns sums of products with codes + `OFFSET` into those with codes: the sum of each group
/// of a vector, times `-OFFSET`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn corrections<const T: usize, const LINES: usize, const OFFSET: i32>(
    xs: &[IntColumns<'_>; T],
    _panel: &[IntBlock<LINES, OFFSET>],
) -> [[[i32; GROUPS]; BYTE_PANEL]; T] {
    let mut corrections = [[[0; GROUPS]; BYTE_PANEL]; T];
    for (corrections, x) in corrections.iter_mut().zip(xs) {
        for (correction, sum) in corrections.as_flattened_mut().iter_mut().zip(x.sums.as_flattened()) {
            *correction = sum.wrapping_mul(-OFFSET);
        }
    }
    corrections
}

/// The columns of `blocks` column blocks from `first` on, of each vector of a tile.
#[inline(always)]
pub(crate) fn float_columns<'a, const T: usize>(
    xs: &[Activation<'a>; T],
    first: usize,
    blocks: usize,
) -> [&'a [[[f32; GROUP_SIZE]; GROUPS]]; T] {
    from_fn(|t| &xs[t].values.as_chunks().0.as_chunks().0[first..][..blocks])
}

/// The number of equal steps of a loop that must stay one.
///
/// A compiler that knows the number unrolls all steps of all vectors of a tile. Then it does one
/// vector after the other, and moves the weights to the stack in between.
#[inline(always)]
pub(crate) fn steps(n: usize) -> usize {
    black_box(n)
}

/// A share of the bytes that follow a slice, for each tile that the slice is multiplied with.
struct Ahead<'a> {
    lines: &'a [[u8; LINE_BYTES]],
    each: usize,
}

impl<'a> Ahead<'a> {
    fn new(bytes: &'a [u8], tiles: usize) -> Self {
        let (lines, _) = bytes.as_chunks();
        Self { lines, each: lines.len().div_ceil(tiles) }
    }

    fn next(&mut self) -> &'a [u8] {
        let (share, rest) = self.lines.split_at(self.each.min(self.lines.len()));
        self.lines = rest;
        share.as_flattened()
    }
}

/// Defines the product `$matmul` of a level with tiles of up to `$size` vectors; `$count` are all
/// numbers up to `$size`.
///
/// `$decode(block, decoded)` decodes a block for the panel, `[$block; $panel]`.
/// `$tile(panel, i, xs, sums)` adds the products of the panel, which begins with column block `i`,
/// to the sums of the vectors `xs`, an array. `$prefetch` prefetches bytes that the next panel has.
macro_rules! matmul {
    (
        $features:literal, $matmul:ident, $dtype:expr, [$block:ty; $panel:expr], $prefetch:ident, $decode:ident,
        $tile:ident, $size:literal: [$($count:literal)*]
    ) => {
        #[target_feature(enable = $features)]
        pub(super) fn $matmul(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) {
            $crate::generic::by_panels::<_, { $dtype.block_bytes() }>(
                (outs, xs),
                w,
                first_row,
                &mut [<$block>::ZERO; $panel],
                $prefetch,
                |block, decoded| $decode(block, decoded),
                $size,
                |panel, i, xs, sums| match xs.len() {
                    $($count => if let (Some(xs), Some(sums)) = (xs.first_chunk::<$count>(), sums.first_chunk_mut()) {
                        $tile(panel, i, xs, sums);
                    })*
                    n => unreachable!("a tile of {n} vectors"),
                },
            );
        }
    };
}
pub(crate) use matmul;

/// The loops around `decode` and `tile`; see [`matmul!`](matmul).
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a product and the parts of a level")]
pub(crate) fn by_panels<B, const BLOCK: usize>(
    (outs, xs): (&mut [&mut [f32]], &[Activation<'_>]),
    w: &Matrix<'_>,
    first_row: usize,
    panel: &mut [B],
    prefetch: impl Fn(&[u8]),
    decode: impl Fn(&[u8; BLOCK], &mut B),
    tile_size: usize,
    tile: impl Fn(&[B], usize, &[Activation<'_>], &mut [RowSums]),
) {
    let rows = outs.first().map_or(0, |out| out.len());
    let (len, first) = (w.col_blocks(), first_row / ROW_INTERLEAVE);
    let all = &w.data().as_chunks::<BLOCK>().0[first * len..][..rows.div_ceil(ROW_INTERLEAVE) * len];
    for (row, start) in (0..rows).step_by(ROW_INTERLEAVE).enumerate() {
        let end = rows.min(start + ROW_INTERLEAVE);
        for (outs, xs) in outs.chunks_mut(RUN).zip(xs.chunks(RUN)) {
            let mut sums = [[0.0; ROW_INTERLEAVE]; RUN];
            let sums = &mut sums[..xs.len()];
            let tiles = xs.len().div_ceil(tile_size);
            for i in (0..len).step_by(panel.len()) {
                let blocks = panel.len().min(len - i);
                let here = &all[row * len + i..];
                let panel = &mut panel[..blocks];
                for (block, decoded) in here.iter().zip(&mut *panel) {
                    decode(block, decoded);
                }
                let following = &here[blocks..];
                let following = &following[..following.len().min(panel.len())];
                let mut ahead = Ahead::new(following.as_flattened(), tiles);
                for (xs, sums) in xs.chunks(tile_size).zip(sums.chunks_mut(tile_size)) {
                    prefetch(ahead.next());
                    tile(panel, i, xs, sums);
                }
            }
            for (out, sums) in outs.iter_mut().zip(sums) {
                let out = &mut out[start..end];
                let y: [f32; ROW_INTERLEAVE] = from_fn(|r| sums[r] * w.scale());
                out.copy_from_slice(&y[..out.len()]);
            }
        }
    }
}

//! Products of several vectors, on the panel of `generic`, which has the loops around them.
//!
//! The bytes of a panel are codes of any type: int4 loses its offset while it is decoded. A tile
//! multiplies each line, 16 rows of 4 columns, with four codes of each of its vectors. The integer
//! sums of a group stay in registers. The sums of floats stay in memory here: they take part once a
//! group.

use core::arch::aarch64::*;

use super::int::{Rows, load_line, multiply_add, nibbles, sums_of_fours};
use super::int4n;
use super::memory::{load, load_f16, load_f32, store_codes, store_f32};
use super::shim::{add_pairs, broadcast, in_step, prefetch_panel, shorts_in_step};
use crate::generic::{
    BYTE_PANEL, ByteBlock, FLOAT_PANEL, FloatBlock, GROUPS, Int4Lines, Int8Lines, Parts, RowSums,
    ShiftedBlock, float_columns, int_columns, matmul, steps,
};
use crate::layout::{Activation, DType, GROUP_SIZE, LINE_BYTES, Matrix};

// Two vectors have 16 registers of sums.
matmul!(
    "neon",
    matmul_int4,
    DType::Int4,
    [ByteBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int4,
    int4_tile,
    2: [1 2]
);
matmul!(
    "neon",
    matmul_int4n,
    DType::Int4n,
    [ShiftedBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int4n,
    int4n_tile,
    2: [1 2]
);
matmul!(
    "neon",
    matmul_int8,
    DType::Int8,
    [ByteBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int8,
    int8_tile,
    2: [1 2]
);
// Four vectors have 16 registers of sums.
matmul!(
    "neon",
    matmul_f16,
    DType::F16,
    [FloatBlock; FLOAT_PANEL],
    prefetch_panel,
    decode_f16,
    float_tile,
    4: [1 2 3 4]
);
matmul!(
    "neon",
    matmul_f32,
    DType::F32,
    [FloatBlock; FLOAT_PANEL],
    prefetch_panel,
    decode_f32,
    float_tile,
    4: [1 2 3 4]
);

/// The 32 bits of 1.5 * 2^23. Integers in ±2^22 that are added to them are added to the float.
///
/// Sums of codes times codes start here: [`value`] then needs a subtraction, which processors do
/// more often than a conversion. The sum of a group is within 32 * 128 * 127.
pub(super) const BIAS: i32 = 0x4B40_0000;

/// `f32(dot)` of [`BIAS`]` + dot`, exactly.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn value(biased: int32x4_t) -> float32x4_t {
    vsubq_f32(vreinterpretq_f32_s32(biased), vreinterpretq_f32_s32(vdupq_n_s32(BIAS)))
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn decode_int4(block: &[u8; DType::Int4.block_bytes()], decoded: &mut ByteBlock<0>) {
    let parts = Parts::<4>::of(block);
    for (lines, decoded) in parts.lines.iter().zip(&mut decoded.lines) {
        decode_lines(lines, decoded, |_, bytes| signed_nibbles(bytes));
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Codes of the table, and shifts.
#[target_feature(enable = "neon")]
#[inline]
fn decode_int4n(block: &[u8; DType::Int4n.block_bytes()], decoded: &mut ShiftedBlock<0>) {
    let parts = Parts::<4>::of(block);
    for (lines, decoded) in parts.lines.iter().zip(&mut decoded.block.lines) {
        decode_lines(lines, decoded, |_, bytes| int4n::codes(bytes));
    }
    let (shifts, _) = decoded.shifts.as_flattened_mut().as_chunks_mut::<4>().0.as_chunks_mut::<2>();
    for (scales, [first, second]) in parts.scales.as_flattened().as_chunks().0.iter().zip(shifts) {
        let shifts = int4n::shifts(scales);
        store_f32(first, vcvtq_f32_s32(vmovl_s16(vget_low_s16(shifts))));
        store_f32(second, vcvtq_f32_s32(vmovl_high_s16(shifts)));
    }
    decode_scales(parts.scales, &mut decoded.block.scales);
}

/// Stores the codes that `decode` makes of each register of a line, 4 rows: first of four columns,
/// then of the next four.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn decode_lines(
    lines: &Int4Lines,
    decoded: &mut Int8Lines,
    decode: impl Fn(usize, uint8x16_t) -> [int8x16_t; 2],
) {
    for (line, [first, second]) in lines.iter().zip(decoded.as_chunks_mut::<2>().0) {
        let halves = first.as_chunks_mut().0.iter_mut().zip(second.as_chunks_mut().0);
        for (rows, (bytes, (first, second))) in load_line(line).into_iter().zip(halves).enumerate() {
            let [low, high] = decode(rows, bytes);
            store_codes(first, low);
            store_codes(second, high);
        }
    }
}

/// The codes of the low nibbles of all bytes, and those of the high ones.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn signed_nibbles(bytes: uint8x16_t) -> [int8x16_t; 2] {
    nibbles(bytes).map(|nibbles| vsubq_s8(nibbles, vdupq_n_s8(8)))
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn decode_int8(block: &[u8; DType::Int8.block_bytes()], decoded: &mut ByteBlock<0>) {
    let parts = Parts::<8>::of(block);
    decoded.lines = *parts.lines;
    decode_scales(parts.scales, &mut decoded.scales);
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn decode_scales(scales: &[[u8; 32]; GROUPS], decoded: &mut [RowSums; GROUPS]) {
    store_halves(scales.as_flattened(), decoded.as_flattened_mut());
}

#[target_feature(enable = "neon")]
#[inline]
fn decode_f16(block: &[u8; DType::F16.block_bytes()], decoded: &mut FloatBlock) {
    store_halves(block, decoded.0.as_flattened_mut().as_flattened_mut());
}

/// The values of fp16 numbers, eight at a time.
#[target_feature(enable = "neon")]
#[inline]
fn store_halves(halves: &[u8], values: &mut [f32]) {
    let (values, _) = values.as_chunks_mut::<4>().0.as_chunks_mut::<2>();
    for (halves, [first, second]) in halves.as_chunks().0.iter().zip(values) {
        let [low, high] = load_f16(halves);
        store_f32(first, low);
        store_f32(second, high);
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn decode_f32(block: &[u8; DType::F32.block_bytes()], decoded: &mut FloatBlock) {
    let (decoded, _) = decoded.0.as_flattened_mut().as_flattened_mut().as_chunks_mut();
    for (values, decoded) in block.as_chunks().0.iter().zip(decoded) {
        store_f32(decoded, vreinterpretq_f32_u8(load(values)));
    }
}

/// The codes of a line.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_weights(line: &[u8; LINE_BYTES]) -> Rows<int8x16_t> {
    let [a, b, c, d] = load_line(line);
    [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)]
}

/// The values of 16 rows.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_rows(values: &RowSums) -> Rows<float32x4_t> {
    let (rows, _) = values.as_chunks();
    [load_f32(&rows[0]), load_f32(&rows[1]), load_f32(&rows[2]), load_f32(&rows[3])]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_rows(values: &mut RowSums, rows: Rows<float32x4_t>) {
    for (values, row) in values.as_chunks_mut().0.iter_mut().zip(rows) {
        store_f32(values, row);
    }
}

/// Adds the products of four lines of int4. A macro, as compilers call a function of this size, with
/// all registers in memory.
macro_rules! int4_half {
    ($dots:expr, $lines:expr, $codes:expr) => {{
        let (lines, codes) = ($lines, $codes);
        let dots = int4_line($dots, &lines[0], codes.map(|codes| codes[0]));
        let dots = int4_line(dots, &lines[1], codes.map(|codes| codes[1]));
        let dots = int4_line(dots, &lines[2], codes.map(|codes| codes[2]));
        int4_line(dots, &lines[3], codes.map(|codes| codes[3]))
    }};
}

/// The same of int8.
macro_rules! int8_half {
    ($dots:expr, $lines:expr, $codes:expr) => {{
        let (lines, codes) = ($lines.as_chunks::<2>().0, $codes);
        let dots = int8_lines($dots, &lines[0], codes.map(|codes| [codes[0], codes[1]]));
        int8_lines(dots, &lines[1], codes.map(|codes| [codes[2], codes[3]]))
    }};
}

/// A decoded block with signed codes.
trait SignedBlock {
    fn bytes(&self) -> &ByteBlock<0>;

    /// The shifts of 16 rows, which the codes of group `g` lack.
    fn shifts(&self, g: usize) -> Option<&RowSums>;
}

impl SignedBlock for ByteBlock<0> {
    #[inline(always)]
    fn bytes(&self) -> &ByteBlock<0> {
        self
    }

    #[inline(always)]
    fn shifts(&self, _: usize) -> Option<&RowSums> {
        None
    }
}

impl SignedBlock for ShiftedBlock<0> {
    #[inline(always)]
    fn bytes(&self) -> &ByteBlock<0> {
        &self.block
    }

    #[inline(always)]
    fn shifts(&self, g: usize) -> Option<&RowSums> {
        Some(&self.shifts[g])
    }
}

/// Defines `$tile`: adds the products of the panel of `$block` to the sums of `T` vectors. The macro
/// `$half` adds those of half a group to its sums, and `$dot` makes a register of 4 rows of them,
/// with their [`BIAS`].
macro_rules! tile {
    ($tile:ident, $block:ty, $zero:ident, $half:ident, $dot:expr) => {
        #[target_feature(enable = "neon")]
        #[inline]
        fn $tile<const T: usize>(
            panel: &[$block],
            first: usize,
            xs: &[Activation<'_>; T],
            sums: &mut [RowSums; T],
        ) {
            let xs = int_columns(xs, first, panel.len());
            for (i, block) in panel.iter().enumerate() {
                let bytes = block.bytes();
                for (g, (lines, scales)) in bytes.lines.iter().zip(&bytes.scales).enumerate() {
                    let halves = xs.each_ref().map(|x| x.codes[i][g].as_chunks::<4>().0);
                    let (lines, _) = lines.as_chunks::<4>();
                    let dots = [[[$zero(0); 2]; 4]; T];
                    let dots = $half!(dots, &lines[0], halves.map(|halves| broadcast(&halves[0])));
                    let dots = $half!(dots, &lines[1], halves.map(|halves| broadcast(&halves[1])));
                    for ((sums, dots), x) in sums.iter_mut().zip(dots).zip(&xs) {
                        let acc = load_rows(sums);
                        let mut values = dots.map($dot).map(|dot| value(dot));
                        if let Some(shifts) = block.shifts(g) {
                            for (value, shifts) in values.iter_mut().zip(load_rows(shifts)) {
                                *value = vfmaq_n_f32(*value, shifts, x.sums[i][g] as f32);
                            }
                        }
                        let acc = add_group(acc, load_rows(scales), x.scales[i][g], values);
                        store_rows(sums, acc);
                    }
                }
            }
        }
    };
}

// A 16-bit lane sums 8 products, and two lanes together reach 16 * 8 * 127 = 16256.
tile!(int4_tile, ByteBlock<0>, vdupq_n_s16, int4_half, |[a, b]| add_pairs(
    vdupq_n_s32(BIAS),
    vpaddq_s16(a, b)
));
// Eight products of codes of the table reach 8 * 32 * 127 = 32512, so lanes are added in 32 bits.
tile!(int4n_tile, ShiftedBlock<0>, vdupq_n_s16, int4_half, |dots| vaddq_s32(
    vdupq_n_s32(BIAS),
    sums_of_fours(dots)
));
tile!(int8_tile, ByteBlock<0>, vdupq_n_s32, int8_half, |[a, b]| vaddq_s32(
    vdupq_n_s32(BIAS),
    vpaddq_s32(a, b)
));

#[target_feature(enable = "neon")]
#[inline]
fn int4_line<const T: usize>(
    mut dots: [Rows<[int16x8_t; 2]>; T],
    line: &[u8; LINE_BYTES],
    codes: [int8x16_t; T],
) -> [Rows<[int16x8_t; 2]>; T] {
    let weights = load_weights(line);
    for (dots, codes) in dots.iter_mut().zip(codes) {
        for (dot, weights) in dots.iter_mut().zip(weights) {
            *dot = multiply_add(*dot, weights, codes);
            shorts_in_step(dot);
        }
    }
    dots
}

/// Two products in 16 bits, which hold 2 * 128 * 127, then in 32.
#[target_feature(enable = "neon")]
#[inline]
fn int8_lines<const T: usize>(
    mut dots: [Rows<[int32x4_t; 2]>; T],
    lines: &[[u8; LINE_BYTES]; 2],
    codes: [[int8x16_t; 2]; T],
) -> [Rows<[int32x4_t; 2]>; T] {
    let [first, second] = lines.each_ref().map(|line| line.as_chunks().0);
    for r in 0..4 {
        let (first, second) = (vreinterpretq_s8_u8(load(&first[r])), vreinterpretq_s8_u8(load(&second[r])));
        for (dots, [x, y]) in dots.iter_mut().zip(codes) {
            let products = [vmull_s8(vget_low_s8(first), vget_low_s8(x)), vmull_high_s8(first, x)];
            let [a, b] = multiply_add(products, second, y);
            dots[r] = [add_pairs(dots[r][0], a), add_pairs(dots[r][1], b)];
            in_step(&mut dots[r]);
        }
    }
    dots
}

/// `acc + scales * scale * dots`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add_group(
    mut acc: Rows<float32x4_t>,
    scales: Rows<float32x4_t>,
    scale: f32,
    dots: Rows<float32x4_t>,
) -> Rows<float32x4_t> {
    for ((acc, scales), dot) in acc.iter_mut().zip(scales).zip(dots) {
        *acc = vfmaq_f32(*acc, vmulq_n_f32(scales, scale), dot);
    }
    acc
}

#[target_feature(enable = "neon")]
#[inline]
fn float_tile<const T: usize>(
    panel: &[FloatBlock],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = float_columns(xs, first, panel.len());
    let quads = steps(GROUP_SIZE / 4);
    for (i, block) in panel.iter().enumerate() {
        for (g, columns) in block.0.iter().enumerate() {
            let mut partial = [[vdupq_n_f32(0.0); 4]; T];
            for (q, columns) in columns.as_chunks::<4>().0.iter().take(quads).enumerate() {
                let x = xs.map(|x| load_f32(&x[i][g].as_chunks().0[q]));
                partial = add_column::<0, T>(partial, &columns[0], x);
                partial = add_column::<1, T>(partial, &columns[1], x);
                partial = add_column::<2, T>(partial, &columns[2], x);
                partial = add_column::<3, T>(partial, &columns[3], x);
            }
            for (sums, partial) in sums.iter_mut().zip(partial) {
                for (sums, partial) in sums.as_chunks_mut().0.iter_mut().zip(partial) {
                    store_f32(sums, vaddq_f32(load_f32(sums), partial));
                }
            }
        }
    }
}

/// Adds the products of 16 rows with lane `LANE` of each `x`.
#[target_feature(enable = "neon")]
#[inline]
fn add_column<const LANE: i32, const T: usize>(
    mut sums: [Rows<float32x4_t>; T],
    column: &RowSums,
    x: [float32x4_t; T],
) -> [Rows<float32x4_t>; T] {
    let weights = load_rows(column);
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = vfmaq_laneq_f32::<LANE>(*sum, weights, x);
        }
    }
    sums
}

//! Products of quantized matrices: the loop that all levels share, and its parts for NEON.
//!
//! ```text
//! for each block row
//!     acc = 0                                        16 rows, a lane for each row
//!     for each column block                          64 columns: 2 groups
//!         for each group
//!             scales = weight scales * scale
//!             dot = sums of weight * code            integers, in lines of 16 rows x 4 columns,
//!                                                    with a prefetch of a later line for each
//!             acc = fma(scales, dot, acc)
//!     store acc * tensor scale
//! ```
//!
//! A lane belongs to a row, so no sum crosses lanes, and the floats are added in the order of the
//! numeric contract: group by group. The 16 rows are four registers, whose sums are independent.

use core::arch::aarch64::*;

use super::int4n;
use super::memory::{load, load_f16, store_f32};
use super::shim::{add_pairs, broadcast, prefetch};
use super::streams::BlockStream;
use crate::generic::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// 16 rows, 4 in each register.
pub(super) type Rows<T> = [T; 4];

/// The groups of each column block.
#[inline(always)]
pub(super) fn groups(x: Activation<'_>) -> impl Iterator<Item = [Group<'_>; GROUPS]> {
    let (codes, _) = x.codes.as_chunks::<4>().0.as_chunks().0.as_chunks::<GROUPS>();
    let (scales, _) = x.scales.as_chunks::<GROUPS>();
    let (sums, _) = x.sums.as_chunks::<GROUPS>();
    codes.iter().zip(scales).zip(sums).map(|((codes, scales), sums)| {
        [0, 1].map(|g| Group { codes: &codes[g], scale: scales[g], sum: sums[g] })
    })
}

/// Defines the product `$matvec` of a level.
///
/// `$dot(lines, scales, group, later)` multiplies the `$lines` of a group with a [`Group`], and
/// prefetches the lines of a later group. Only Int4n has codes that depend on the scales.
macro_rules! int_matvec {
    ($features:literal, $matvec:ident, $dtype:expr, $lines:ty, $dot:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $matvec(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
            const LINES: usize = size_of::<$lines>() / LINE_BYTES;
            let stream = BlockStream::<{ $dtype.block_bytes() }>::new(w, first_row, out.len());
            for (out, row) in out.chunks_mut(ROW_INTERLEAVE).zip(stream.rows()) {
                let mut acc = [vdupq_n_f32(0.0); 4];
                for ([block, later], groups) in row.zip(groups(x)) {
                    let (block, later) = (Parts::<LINES>::of(block), Parts::<LINES>::of(later));
                    prefetch::<0>(later.scales.as_flattened());
                    for (g, group) in groups.iter().enumerate() {
                        let scales = row_scales(&block.scales[g], group.scale);
                        let dot = $dot(&block.lines[g], &block.scales[g], group, &later.lines[g]);
                        acc = add_group(acc, scales, dot);
                    }
                }
                finish(out, acc, w.scale());
            }
        }
    };
}
pub(super) use int_matvec;

int_matvec!("neon", matvec_int4, DType::Int4, Int4Lines, int4_dot);
int_matvec!("neon", matvec_int4n, DType::Int4n, Int4Lines, int4n_dot);
int_matvec!("neon", matvec_int8, DType::Int8, Int8Lines, int8_dot);

/// The four registers of a line.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_line(line: &[u8; LINE_BYTES]) -> Rows<uint8x16_t> {
    let (rows, _) = line.as_chunks::<16>();
    [load(&rows[0]), load(&rows[1]), load(&rows[2]), load(&rows[3])]
}

/// The low nibbles of all bytes, and the high ones.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn nibbles(bytes: uint8x16_t) -> [int8x16_t; 2] {
    let low = vandq_u8(bytes, vdupq_n_u8(15));
    [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes))]
}

/// `sums` plus the products of all lanes, in 16 bits: those of the first eight lanes, then of the
/// others.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn multiply_add(sums: [int16x8_t; 2], a: int8x16_t, b: int8x16_t) -> [int16x8_t; 2] {
    [vmlal_s8(sums[0], vget_low_s8(a), vget_low_s8(b)), vmlal_high_s8(sums[1], a, b)]
}

/// Products of 16 rows with four columns, in 16 bits.
type Products = Rows<[int16x8_t; 2]>;

/// Sums of nibble times code, minus 8 times the sum of the codes. A 16-bit lane sums 8 products,
/// and two lanes together reach 16 * 15 * 127 = 30480.
#[target_feature(enable = "neon")]
#[inline]
fn int4_dot(lines: &Int4Lines, _: &[u8; 32], x: &Group<'_>, later: &Int4Lines) -> Rows<int32x4_t> {
    let [a, b, c, d] = int4_products(lines, x, later, |bytes| nibbles(bytes));
    let correction = vdupq_n_s32(x.sum.wrapping_mul(-8));
    [
        add_pairs(correction, vpaddq_s16(a[0], a[1])),
        add_pairs(correction, vpaddq_s16(b[0], b[1])),
        add_pairs(correction, vpaddq_s16(c[0], c[1])),
        add_pairs(correction, vpaddq_s16(d[0], d[1])),
    ]
}

/// Sums of table code times code, and of shift times code. A 16-bit lane sums 8 products and reaches
/// 8 * 32 * 127 = 32512, so lanes are added in 32 bits.
#[target_feature(enable = "neon")]
#[inline]
fn int4n_dot(lines: &Int4Lines, scales: &[u8; 32], x: &Group<'_>, later: &Int4Lines) -> Rows<int32x4_t> {
    let products = int4_products(lines, x, later, |bytes| int4n::codes(bytes));
    let mut dots = int4n::start(scales, x);
    for (dot, products) in dots.iter_mut().zip(products) {
        *dot = vaddq_s32(*dot, sums_of_fours(products));
    }
    dots
}

/// The sums of all four 16-bit lanes of each row.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn sums_of_fours([a, b]: [int16x8_t; 2]) -> int32x4_t {
    let none = vdupq_n_s32(0);
    vpaddq_s32(add_pairs(none, a), add_pairs(none, b))
}

/// Sums of products of codes, which `decode` makes of the low nibbles of bytes and of the high ones.
#[target_feature(enable = "neon")]
#[inline]
fn int4_products(
    lines: &Int4Lines,
    x: &Group<'_>,
    later: &Int4Lines,
    decode: impl Fn(uint8x16_t) -> [int8x16_t; 2] + Copy,
) -> Products {
    let (quads, later) = (x.codes.as_chunks::<4>().0, later.as_flattened());
    let sums = [[vdupq_n_s16(0); 2]; 4];
    let [q0, q1, q2, q3] = broadcast(&quads[0]);
    let sums = int4_line::<0>(sums, &lines[0], [q0, q1], later, decode);
    let sums = int4_line::<1>(sums, &lines[1], [q2, q3], later, decode);
    let [q4, q5, q6, q7] = broadcast(&quads[1]);
    let sums = int4_line::<2>(sums, &lines[2], [q4, q5], later, decode);
    int4_line::<3>(sums, &lines[3], [q6, q7], later, decode)
}

/// Adds the products of the codes of a line's low nibbles with the first quad, and of its high ones
/// with the second. Prefetches line `LINE` of `later`.
#[target_feature(enable = "neon")]
#[inline]
fn int4_line<const LINE: usize>(
    mut sums: Products,
    line: &[u8; LINE_BYTES],
    quads: [int8x16_t; 2],
    later: &[u8],
    decode: impl Fn(uint8x16_t) -> [int8x16_t; 2],
) -> Products {
    let weights = load_line(line);
    prefetch::<LINE>(later);
    for (sums, weights) in sums.iter_mut().zip(weights) {
        let [low, high] = decode(weights);
        *sums = multiply_add(multiply_add(*sums, low, quads[0]), high, quads[1]);
    }
    sums
}

/// Sums of code times code.
#[target_feature(enable = "neon")]
#[inline]
fn int8_dot(lines: &Int8Lines, _: &[u8; 32], x: &Group<'_>, later: &Int8Lines) -> Rows<int32x4_t> {
    let (quads, later) = (x.codes.as_chunks::<4>().0, later.as_flattened());
    let (lines, _) = lines.as_chunks::<2>();
    let sums = [[vdupq_n_s32(0); 2]; 4];
    let [q0, q1, q2, q3] = broadcast(&quads[0]);
    let sums = int8_lines::<0, 1>(sums, &lines[0], [q0, q1], later);
    let sums = int8_lines::<2, 3>(sums, &lines[1], [q2, q3], later);
    let [q4, q5, q6, q7] = broadcast(&quads[1]);
    let sums = int8_lines::<4, 5>(sums, &lines[2], [q4, q5], later);
    let [a, b, c, d] = int8_lines::<6, 7>(sums, &lines[3], [q6, q7], later);
    [vpaddq_s32(a[0], a[1]), vpaddq_s32(b[0], b[1]), vpaddq_s32(c[0], c[1]), vpaddq_s32(d[0], d[1])]
}

/// Adds the products of two lines with a quad each: first in 16 bits, which hold 2 * 128 * 127,
/// then in 32.
/// Prefetches lines `FIRST` and `SECOND` of `later`.
#[target_feature(enable = "neon")]
#[inline]
fn int8_lines<const FIRST: usize, const SECOND: usize>(
    mut sums: Rows<[int32x4_t; 2]>,
    lines: &[[u8; LINE_BYTES]; 2],
    quads: [int8x16_t; 2],
    later: &[u8],
) -> Rows<[int32x4_t; 2]> {
    let (first, second) = (load_line(&lines[0]), load_line(&lines[1]));
    prefetch::<FIRST>(later);
    prefetch::<SECOND>(later);
    for ((sums, first), second) in sums.iter_mut().zip(first).zip(second) {
        let (first, second) = (vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second));
        let products = [vmull_s8(vget_low_s8(first), vget_low_s8(quads[0])), vmull_high_s8(first, quads[0])];
        let products = multiply_add(products, second, quads[1]);
        *sums = [add_pairs(sums[0], products[0]), add_pairs(sums[1], products[1])];
    }
    sums
}

/// The fp16 scales of 16 rows, times the vector's.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn row_scales(scales: &[u8; 32], x_scale: f32) -> Rows<float32x4_t> {
    let (scales, _) = scales.as_chunks::<16>();
    let ([a, b], [c, d]) = (load_f16(&scales[0]), load_f16(&scales[1]));
    [vmulq_n_f32(a, x_scale), vmulq_n_f32(b, x_scale), vmulq_n_f32(c, x_scale), vmulq_n_f32(d, x_scale)]
}

/// `acc + scale * dot`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add_group(
    acc: Rows<float32x4_t>,
    scales: Rows<float32x4_t>,
    dot: Rows<int32x4_t>,
) -> Rows<float32x4_t> {
    [
        vfmaq_f32(acc[0], scales[0], vcvtq_f32_s32(dot[0])),
        vfmaq_f32(acc[1], scales[1], vcvtq_f32_s32(dot[1])),
        vfmaq_f32(acc[2], scales[2], vcvtq_f32_s32(dot[2])),
        vfmaq_f32(acc[3], scales[3], vcvtq_f32_s32(dot[3])),
    ]
}

/// Stores the sums times the tensor scale; the last rows may be padding.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn finish(out: &mut [f32], acc: Rows<float32x4_t>, scale: f32) {
    let mut rows = [[0.0; 4]; 4];
    for (rows, acc) in rows.iter_mut().zip(acc) {
        store_f32(rows, vmulq_n_f32(acc, scale));
    }
    out.copy_from_slice(&rows.as_flattened()[..out.len()]);
}

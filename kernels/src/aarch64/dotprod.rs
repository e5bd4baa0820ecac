//! Products of quantized matrices and records with dot products of bytes.

use core::arch::aarch64::*;

use super::int::{Rows, add_group, finish, groups, int_matvec, load_line, nibbles, row_scales};
use super::int4n;
use super::matmul::{
    BIAS, decode_int4, decode_int8, decode_lines, decode_scales, load_rows, load_weights, store_rows, value,
};
use super::memory::{load_codes, load_f32};
use super::shim::{broadcast_i32, floats_in_step, in_step, prefetch, prefetch_panel, sdot_rows};
use super::streams::BlockStream;
use crate::generic::{
    BYTE_PANEL, ByteBlock, Group, Int4Lines, Int8Lines, IntColumns, Parts, RowSums, int_columns, matmul,
};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

int_matvec!("neon,dotprod", matvec_int4, DType::Int4, Int4Lines, int4_dot);
int_matvec!("neon,dotprod", matvec_int4n, DType::Int4n, Int4Lines, int4n_dot);
int_matvec!("neon,dotprod", matvec_int8, DType::Int8, Int8Lines, int8_dot);

// Three vectors have 24 registers of sums.
matmul!(
    "neon,dotprod",
    matmul_int4,
    DType::Int4,
    [ByteBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int4,
    tile,
    3: [1 2 3]
);
matmul!(
    "neon,dotprod",
    matmul_int4n,
    DType::Int4n,
    [ByteBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int4n,
    tile,
    3: [1 2 3]
);
matmul!(
    "neon,dotprod",
    matmul_int8,
    DType::Int8,
    [ByteBlock<0>; BYTE_PANEL],
    prefetch_panel,
    decode_int8,
    tile,
    3: [1 2 3]
);

/// Shifted codes.
#[target_feature(enable = "neon")]
#[inline]
fn decode_int4n(block: &[u8; DType::Int4n.block_bytes()], decoded: &mut ByteBlock<0>) {
    let parts = Parts::<4>::of(block);
    for (g, (lines, decoded)) in parts.lines.iter().zip(&mut decoded.lines).enumerate() {
        let shifts = int4n::row_shifts(&parts.scales[g]);
        decode_lines(lines, decoded, |rows, bytes| {
            let [low, high] = int4n::codes(bytes);
            [vaddq_s8(low, shifts[rows]), vaddq_s8(high, shifts[rows])]
        });
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// The 32 codes of a group.
#[target_feature(enable = "neon")]
#[inline]
fn load_group(x: &Group<'_>) -> [int8x16_t; 2] {
    let (halves, _) = x.codes.as_flattened().as_chunks::<16>();
    [load_codes(&halves[0]), load_codes(&halves[1])]
}

/// Sums of nibble times code. They start as -8 times the sum of the codes.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4_dot(lines: &Int4Lines, _: &[u8; 32], x: &Group<'_>, later: &Int4Lines) -> Rows<int32x4_t> {
    let sums = [vdupq_n_s32(x.sum.wrapping_mul(-8)); 4];
    int4_products(sums, lines, x, later, |bytes| nibbles(bytes))
}

/// Sums of table code times code. They start as the shifts times the sum of the codes.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4n_dot(lines: &Int4Lines, scales: &[u8; 32], x: &Group<'_>, later: &Int4Lines) -> Rows<int32x4_t> {
    int4_products(int4n::start(scales, x), lines, x, later, |bytes| int4n::codes(bytes))
}

/// Adds products of codes, which `decode` makes of the low nibbles of bytes and of the high ones.
/// Each line is loaded before the line ahead of it is multiplied, as small cores wait for loads.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4_products(
    sums: Rows<int32x4_t>,
    lines: &Int4Lines,
    x: &Group<'_>,
    later: &Int4Lines,
    decode: impl Fn(uint8x16_t) -> [int8x16_t; 2] + Copy,
) -> Rows<int32x4_t> {
    let ([a, b], later) = (load_group(x), later.as_flattened());
    let (first, second) = (load_line(&lines[0]), load_line(&lines[1]));
    let sums = int4_line::<0, 0, 1>(sums, first, a, later, decode);
    let third = load_line(&lines[2]);
    let sums = int4_line::<1, 2, 3>(sums, second, a, later, decode);
    let fourth = load_line(&lines[3]);
    let sums = int4_line::<2, 0, 1>(sums, third, b, later, decode);
    int4_line::<3, 2, 3>(sums, fourth, b, later, decode)
}

/// Adds the products of the codes of a line's low nibbles with quad `LOW` of `x`, and of its high
/// ones with quad `HIGH`. Prefetches line `LINE` of `later`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4_line<const LINE: usize, const LOW: usize, const HIGH: usize>(
    sums: Rows<int32x4_t>,
    line: Rows<uint8x16_t>,
    x: int8x16_t,
    later: &[u8],
    decode: impl Fn(uint8x16_t) -> [int8x16_t; 2],
) -> Rows<int32x4_t> {
    prefetch::<LINE>(later);
    let [a, b, c, d] = line;
    let ([a, a_high], [b, b_high]) = (decode(a), decode(b));
    let ([c, c_high], [d, d_high]) = (decode(c), decode(d));
    let sums = sdot_rows::<LOW>(sums, [a, b, c, d], x);
    sdot_rows::<HIGH>(sums, [a_high, b_high, c_high, d_high], x)
}

/// Sums of code times code.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int8_dot(lines: &Int8Lines, _: &[u8; 32], x: &Group<'_>, later: &Int8Lines) -> Rows<int32x4_t> {
    let ([a, b], later) = (load_group(x), later.as_flattened());
    let sums = [vdupq_n_s32(0); 4];
    let sums = int8_line::<0, 0>(sums, &lines[0], a, later);
    let sums = int8_line::<1, 1>(sums, &lines[1], a, later);
    let sums = int8_line::<2, 2>(sums, &lines[2], a, later);
    let sums = int8_line::<3, 3>(sums, &lines[3], a, later);
    let sums = int8_line::<4, 0>(sums, &lines[4], b, later);
    let sums = int8_line::<5, 1>(sums, &lines[5], b, later);
    let sums = int8_line::<6, 2>(sums, &lines[6], b, later);
    int8_line::<7, 3>(sums, &lines[7], b, later)
}

/// Adds the products of a line with quad `QUAD` of `x`. Prefetches line `LINE` of `later`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int8_line<const LINE: usize, const QUAD: usize>(
    sums: Rows<int32x4_t>,
    line: &[u8; LINE_BYTES],
    x: int8x16_t,
    later: &[u8],
) -> Rows<int32x4_t> {
    let weights = load_weights(line);
    prefetch::<LINE>(later);
    sdot_rows::<QUAD>(sums, weights, x)
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn tile<const T: usize>(
    panel: &[ByteBlock<0>],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = int_columns(xs, first, panel.len());
    let mut acc = sums.each_ref().map(|sums| load_rows(sums));
    for (i, block) in panel.iter().enumerate() {
        acc = add_group_of::<0, T>(acc, block, &xs, i);
        acc = add_group_of::<1, T>(acc, block, &xs, i);
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        store_rows(sums, acc);
    }
}

/// Adds the products with group `G` of column block `i`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn add_group_of<const G: usize, const T: usize>(
    mut acc: [Rows<float32x4_t>; T],
    block: &ByteBlock<0>,
    xs: &[IntColumns<'_>; T],
    i: usize,
) -> [Rows<float32x4_t>; T] {
    let (first, second) = block.lines[G].split_at(4);
    let mut dots = [[vdupq_n_s32(0); 4]; T];
    for dot in dots.as_flattened_mut() {
        *dot = broadcast_i32(BIAS);
    }
    let codes = xs.each_ref().map(|x| load_codes(&x.codes[i][G].as_flattened().as_chunks().0[0]));
    let dots = add_line::<0, T>(dots, &first[0], codes);
    let dots = add_line::<1, T>(dots, &first[1], codes);
    let dots = add_line::<2, T>(dots, &first[2], codes);
    let dots = add_line::<3, T>(dots, &first[3], codes);
    let codes = xs.each_ref().map(|x| load_codes(&x.codes[i][G].as_flattened().as_chunks().0[1]));
    let dots = add_line::<0, T>(dots, &second[0], codes);
    let dots = add_line::<1, T>(dots, &second[1], codes);
    let dots = add_line::<2, T>(dots, &second[2], codes);
    let dots = add_line::<3, T>(dots, &second[3], codes);
    let (scales, _) = block.scales[G].as_chunks();
    let x_scales = xs.each_ref().map(|x| x.scales[i][G]);
    acc = add_register::<0, T>(acc, &scales[0], x_scales, &dots);
    acc = add_register::<1, T>(acc, &scales[1], x_scales, &dots);
    acc = add_register::<2, T>(acc, &scales[2], x_scales, &dots);
    add_register::<3, T>(acc, &scales[3], x_scales, &dots)
}

/// Adds `scales * x_scale * dot` to register `R` of each vector.
#[target_feature(enable = "neon")]
#[inline]
fn add_register<const R: usize, const T: usize>(
    mut acc: [Rows<float32x4_t>; T],
    scales: &[f32; 4],
    x_scales: [f32; T],
    dots: &[Rows<int32x4_t>; T],
) -> [Rows<float32x4_t>; T] {
    let scales = load_f32(scales);
    for ((acc, dots), x_scale) in acc.iter_mut().zip(dots).zip(x_scales) {
        acc[R] = vfmaq_f32(acc[R], vmulq_n_f32(scales, x_scale), value(dots[R]));
    }
    acc.iter_mut().for_each(|acc| floats_in_step(acc));
    acc
}

/// Adds the products of a line with quad `QUAD` of each vector.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn add_line<const QUAD: usize, const T: usize>(
    mut dots: [Rows<int32x4_t>; T],
    line: &[u8; LINE_BYTES],
    codes: [int8x16_t; T],
) -> [Rows<int32x4_t>; T] {
    let weights = load_weights(line);
    for (dots, codes) in dots.iter_mut().zip(codes) {
        *dots = sdot_rows::<QUAD>(*dots, weights, codes);
    }
    dots.iter_mut().for_each(|dots| in_step(dots));
    dots
}

//! Products of quantized matrices with several vectors by SMMLA.
//!
//! SMMLA multiplies two rows with two vectors, eight columns at a time: twice the products of SDOT
//! in an instruction. Vectors are taken in pairs. A vector that is left is a pair with itself.
//!
//! The layout of the weights is that of all kernels. A register has four columns of four rows. The
//! panel has it zipped with the register of the next four columns: eight columns of two rows.

use core::arch::aarch64::*;
use core::array::from_fn;

use super::int::Rows;
use super::int4n;
use super::matmul::{BIAS, load_rows, load_weights, signed_nibbles, store_rows, value};
use super::memory::{load, load_codes, load_f16, load_f32, load_scales, store_codes, store_f32};
use super::shim::{broadcast_i32, floats_in_step, in_step, prefetch_panel, smmla};
use crate::generic::{BYTE_PANEL, GROUPS, IntColumns, Parts, RowSums, int_columns, matmul};
use crate::layout::{Activation, DType, GROUP_SIZE, Matrix, ROW_INTERLEAVE};

/// Two rows in each register, or two rows of two vectors: `[row][vector]`.
type Pairs<T> = [T; ROW_INTERLEAVE / 2];

/// A decoded block for pairs of vectors.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct PairBlock {
    /// A code for each weight: 16 rows of 8 columns, two rows in each register.
    octets: [[Pairs<[u8; 16]>; GROUP_SIZE / 8]; GROUPS],
    /// Scales of 16 rows, each twice.
    scales: [Pairs<[f32; 4]>; GROUPS],
}

impl PairBlock {
    const ZERO: Self = Self {
        octets: [[[[0; 16]; ROW_INTERLEAVE / 2]; GROUP_SIZE / 8]; GROUPS],
        scales: [[[0.0; 4]; ROW_INTERLEAVE / 2]; GROUPS],
    };
}

// A pair has 16 registers of sums: a second one would have the sums of floats in memory, and their
// stores take turns of the units that multiply.
matmul!(
    "neon,i8mm",
    matmul_int4,
    DType::Int4,
    [PairBlock; BYTE_PANEL],
    prefetch_panel,
    decode_int4,
    tile,
    2: [1 2]
);
matmul!(
    "neon,i8mm",
    matmul_int4n,
    DType::Int4n,
    [PairBlock; BYTE_PANEL],
    prefetch_panel,
    decode_int4n,
    tile,
    2: [1 2]
);
matmul!(
    "neon,i8mm",
    matmul_int8,
    DType::Int8,
    [PairBlock; BYTE_PANEL],
    prefetch_panel,
    decode_int8,
    tile,
    2: [1 2]
);

#[target_feature(enable = "neon")]
#[inline]
fn decode_int4(block: &[u8; DType::Int4.block_bytes()], decoded: &mut PairBlock) {
    let parts = Parts::<4>::of(block);
    let lines = parts.lines.as_flattened();
    for (line, octet) in lines.iter().zip(decoded.octets.as_flattened_mut()) {
        let (rows, _) = line.as_chunks();
        let rows: Rows<_> = from_fn(|r| signed_nibbles(load(&rows[r])));
        zip_rows(rows.map(|[low, _]| low), rows.map(|[_, high]| high), octet);
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Shifted codes.
#[target_feature(enable = "neon")]
#[inline]
fn decode_int4n(block: &[u8; DType::Int4n.block_bytes()], decoded: &mut PairBlock) {
    let parts = Parts::<4>::of(block);
    for (g, (lines, octets)) in parts.lines.iter().zip(&mut decoded.octets).enumerate() {
        let shifts = int4n::row_shifts(&parts.scales[g]);
        for (line, octet) in lines.iter().zip(octets) {
            let (rows, _) = line.as_chunks();
            let rows: Rows<_> =
                from_fn(|r| int4n::codes(load(&rows[r])).map(|codes| vaddq_s8(codes, shifts[r])));
            zip_rows(rows.map(|[low, _]| low), rows.map(|[_, high]| high), octet);
        }
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

#[target_feature(enable = "neon")]
#[inline]
fn decode_int8(block: &[u8; DType::Int8.block_bytes()], decoded: &mut PairBlock) {
    let parts = Parts::<8>::of(block);
    let (lines, _) = parts.lines.as_flattened().as_chunks::<2>();
    for ([first, second], octet) in lines.iter().zip(decoded.octets.as_flattened_mut()) {
        zip_rows(load_weights(first), load_weights(second), octet);
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Stores rows of four columns and of the next four as rows of eight.
#[target_feature(enable = "neon")]
#[inline]
fn zip_rows(first: Rows<int8x16_t>, second: Rows<int8x16_t>, octet: &mut Pairs<[u8; 16]>) {
    let (octet, _) = octet.as_chunks_mut::<2>();
    for ((first, second), [low, high]) in first.into_iter().zip(second).zip(octet) {
        let (first, second) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second));
        store_codes(low, vreinterpretq_s8_s32(vzip1q_s32(first, second)));
        store_codes(high, vreinterpretq_s8_s32(vzip2q_s32(first, second)));
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn decode_scales(scales: &[[u8; 2 * ROW_INTERLEAVE]; GROUPS], decoded: &mut [Pairs<[f32; 4]>; GROUPS]) {
    let (scales, _) = scales.as_flattened().as_chunks();
    let (decoded, _) = decoded.as_flattened_mut().as_chunks_mut::<4>();
    for (scales, [a, b, c, d]) in scales.iter().zip(decoded) {
        let [low, high] = load_f16(scales);
        store_f32(a, vzip1q_f32(low, low));
        store_f32(b, vzip2q_f32(low, low));
        store_f32(c, vzip1q_f32(high, high));
        store_f32(d, vzip2q_f32(high, high));
    }
}

#[target_feature(enable = "neon,i8mm")]
#[inline]
fn tile<const T: usize>(
    panel: &[PairBlock],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    pair_tile(panel, first, &[xs[0], xs[T - 1]], sums);
}

/// Adds the products with a pair to the sums of both vectors, or of the first one.
#[target_feature(enable = "neon,i8mm")]
fn pair_tile(panel: &[PairBlock], first: usize, xs: &[Activation<'_>; 2], sums: &mut [RowSums]) {
    let pair = int_columns(xs, first, panel.len());
    let mut acc = zip_sums(&sums[0], &sums[sums.len() - 1]);
    for (i, block) in panel.iter().enumerate() {
        let [x, y] = pair.map(|x| load_scales(&x.scales[i]));
        let scales = vreinterpretq_f64_f32(vcombine_f32(vzip1_f32(x, y), vzip2_f32(x, y)));
        acc = add_group::<0>(acc, block, &pair, i, vreinterpretq_f32_f64(vdupq_laneq_f64::<0>(scales)));
        acc = add_group::<1>(acc, block, &pair, i, vreinterpretq_f32_f64(vdupq_laneq_f64::<1>(scales)));
    }
    unzip_sums(acc, sums);
}

/// Adds the products with group `G` of column block `i`, whose scales are those of each vector in
/// turn.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn add_group<const G: usize>(
    mut acc: Pairs<float32x4_t>,
    block: &PairBlock,
    pair: &[IntColumns<'_>; 2],
    i: usize,
    x_scales: float32x4_t,
) -> Pairs<float32x4_t> {
    let [x, y] = pair.each_ref().map(|x| x.codes[i][G].as_flattened().as_chunks().0);
    let [low, high] = [zip_codes(&x[0], &y[0]), zip_codes(&x[1], &y[1])];
    let octets = &block.octets[G];
    let mut dots = [vdupq_n_s32(0); ROW_INTERLEAVE / 2];
    dots.iter_mut().for_each(|dot| *dot = broadcast_i32(BIAS));
    add_octet(&mut dots, &octets[0], low[0]);
    add_octet(&mut dots, &octets[1], low[1]);
    add_octet(&mut dots, &octets[2], high[0]);
    add_octet(&mut dots, &octets[3], high[1]);
    for ((acc, scales), dot) in acc.iter_mut().zip(&block.scales[G]).zip(dots) {
        *acc = vfmaq_f32(*acc, vmulq_f32(load_f32(scales), x_scales), value(dot));
    }
    floats_in_step(&mut acc);
    acc
}

/// The first eight codes of each vector, and the last eight.
#[target_feature(enable = "neon")]
#[inline]
fn zip_codes(x: &[i8; 16], y: &[i8; 16]) -> [int8x16_t; 2] {
    let (x, y) = (vreinterpretq_s64_s8(load_codes(x)), vreinterpretq_s64_s8(load_codes(y)));
    [vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))]
}

/// Adds the products of eight columns.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn add_octet(dots: &mut Pairs<int32x4_t>, rows: &Pairs<[u8; 16]>, codes: int8x16_t) {
    for (dot, weights) in dots.iter_mut().zip(rows) {
        *dot = smmla(*dot, vreinterpretq_s8_u8(load(weights)), codes);
    }
    in_step(dots);
}

#[target_feature(enable = "neon")]
#[inline]
fn zip_sums(x: &RowSums, y: &RowSums) -> Pairs<float32x4_t> {
    let ([a, b, c, d], [e, f, g, h]) = (load_rows(x), load_rows(y));
    [
        vzip1q_f32(a, e),
        vzip2q_f32(a, e),
        vzip1q_f32(b, f),
        vzip2q_f32(b, f),
        vzip1q_f32(c, g),
        vzip2q_f32(c, g),
        vzip1q_f32(d, h),
        vzip2q_f32(d, h),
    ]
}

#[target_feature(enable = "neon")]
#[inline]
fn unzip_sums(acc: Pairs<float32x4_t>, sums: &mut [RowSums]) {
    let [a, b, c, d, e, f, g, h] = acc;
    let (x, y) = ([a, c, e, g], [b, d, f, h]);
    store_rows(&mut sums[0], from_fn(|r| vuzp1q_f32(x[r], y[r])));
    if let Some(sums) = sums.get_mut(1) {
        store_rows(sums, from_fn(|r| vuzp2q_f32(x[r], y[r])));
    }
}

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
use super::matmul::{BIAS, load_weights, signed_nibbles, value};
use super::memory::{load, load_codes, load_f16, load_f32, store_codes, store_f32};
use super::shim::{prefetch_panel, smmla};
use crate::generic::{BYTE_PANEL, GROUPS, Parts, RowSums, int_columns, matmul};
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

// Two pairs have 16 registers of sums.
matmul!(
    "neon,i8mm",
    matmul_int4,
    DType::Int4,
    [PairBlock; BYTE_PANEL],
    prefetch_panel,
    decode_int4,
    tile,
    4: [1 2 3 4]
);
matmul!(
    "neon,i8mm",
    matmul_int8,
    DType::Int8,
    [PairBlock; BYTE_PANEL],
    prefetch_panel,
    decode_int8,
    tile,
    4: [1 2 3 4]
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
    if T > 2 {
        pairs::<2>(panel, first, xs, sums);
    } else {
        pairs::<1>(panel, first, xs, sums);
    }
}

/// Adds the products with `P` pairs of vectors. The last one may have one vector.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn pairs<const P: usize>(panel: &[PairBlock], first: usize, xs: &[Activation<'_>], sums: &mut [RowSums]) {
    let last = xs.len() - 1;
    let pairs: [_; P] = from_fn(|p| int_columns(&[xs[2 * p], xs[last.min(2 * p + 1)]], first, panel.len()));
    let mut paired = [[[0.0; 4]; ROW_INTERLEAVE / 2]; P];
    for (paired, sums) in paired.iter_mut().zip(sums.chunks(2)) {
        zip_sums(paired, &sums[0], &sums[sums.len() - 1]);
    }
    for (i, block) in panel.iter().enumerate() {
        for (g, (octets, scales)) in block.octets.iter().zip(&block.scales).enumerate() {
            let mut dots = [[vdupq_n_s32(BIAS); ROW_INTERLEAVE / 2]; P];
            for (h, octets) in octets.as_chunks::<2>().0.iter().enumerate() {
                let codes = pairs.each_ref().map(|pair| {
                    let [x, y] = pair.map(|x| load_codes(&x.codes[i][g].as_flattened().as_chunks().0[h]));
                    let (x, y) = (vreinterpretq_s64_s8(x), vreinterpretq_s64_s8(y));
                    [vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))]
                });
                for (o, rows) in octets.iter().enumerate() {
                    for (r, weights) in rows.iter().enumerate() {
                        let weights = vreinterpretq_s8_u8(load(weights));
                        for (dots, codes) in dots.iter_mut().zip(&codes) {
                            dots[r] = smmla(dots[r], weights, codes[o]);
                        }
                    }
                }
            }
            for ((sums, dots), [x, y]) in paired.iter_mut().zip(dots).zip(&pairs) {
                let scale = vzip1_f32(vdup_n_f32(x.scales[i][g]), vdup_n_f32(y.scales[i][g]));
                let scale = vcombine_f32(scale, scale);
                for ((sums, scales), dot) in sums.iter_mut().zip(scales).zip(dots) {
                    let scales = vmulq_f32(load_f32(scales), scale);
                    store_f32(sums, vfmaq_f32(load_f32(sums), scales, value(dot)));
                }
            }
        }
    }
    for (paired, sums) in paired.iter().zip(sums.chunks_mut(2)) {
        unzip_sums(paired, sums);
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn zip_sums(paired: &mut Pairs<[f32; 4]>, x: &RowSums, y: &RowSums) {
    let (x, y) = (x.as_chunks().0, y.as_chunks().0);
    for ([low, high], (x, y)) in paired.as_chunks_mut::<2>().0.iter_mut().zip(x.iter().zip(y)) {
        let (x, y) = (load_f32(x), load_f32(y));
        store_f32(low, vzip1q_f32(x, y));
        store_f32(high, vzip2q_f32(x, y));
    }
}

/// The sums of one vector or two.
#[target_feature(enable = "neon")]
#[inline]
fn unzip_sums(paired: &Pairs<[f32; 4]>, sums: &mut [RowSums]) {
    for (v, sums) in sums.iter_mut().enumerate() {
        for (sums, pair) in sums.as_chunks_mut().0.iter_mut().zip(paired.as_chunks().0) {
            let [low, high] = pair;
            let (low, high) = (load_f32(low), load_f32(high));
            store_f32(sums, if v == 0 { vuzp1q_f32(low, high) } else { vuzp2q_f32(low, high) });
        }
    }
}

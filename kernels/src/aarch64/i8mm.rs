//! Products of quantized matrices with several vectors by SMMLA.
//!
//! SMMLA multiplies two rows with two vectors, eight columns at a time: twice the products of SDOT
//! in an instruction. Vectors are taken in pairs, two pairs at a time, so that weights are unpacked
//! once for four vectors. A vector that is left takes the product with one vector.
//!
//! The layout of the weights is that of all kernels. A register has four columns of four rows.
//! Zipping it with the register of the next four columns makes two registers with eight columns of
//! two rows.

use core::arch::aarch64::*;

use super::dotprod::{matvec_int4, matvec_int8};
use super::int::{load_line, nibbles};
use super::memory::{load_code_pair, load_f16, store_f32};
use super::shim::{prefetch_all, smmla};
use super::streams::BlockStream;
use crate::generic::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// Two rows with two vectors in each register: `[row][vector]`.
type Pairs<T> = [T; ROW_INTERLEAVE / 2];

/// A group of a pair of vectors.
type GroupPair<'a> = [Group<'a>; 2];

/// Defines the product `$matmul` of 16 rows at a time; `$dot(lines, pairs)` multiplies the `$lines`
/// of a group with a [`Group`] of each vector of `P` pairs, and `$matvec` is the product with one
/// vector.
macro_rules! matmul {
    ($matmul:ident, $pairs:ident, $dtype:expr, $lines:ty, $dot:ident, $matvec:ident) => {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        pub(super) fn $matmul(
            outs: &mut [&mut [f32]],
            w: &Matrix<'_>,
            first_row: usize,
            xs: &[Activation<'_>],
        ) {
            let rows = outs.first().map_or(0, |out| out.len());
            for start in (0..rows).step_by(ROW_INTERLEAVE) {
                let (range, row) = (start..rows.min(start + ROW_INTERLEAVE), first_row + start);
                for (outs, xs) in outs.chunks_mut(4).zip(xs.chunks(4)) {
                    let (pairs, xs_left) = xs.as_chunks::<2>();
                    let mut outs = outs.iter_mut().map(|out| &mut out[range.clone()]);
                    match pairs {
                        [first, second] => $pairs([*first, *second], w, row, &mut outs),
                        [pair] => $pairs([*pair], w, row, &mut outs),
                        _ => {}
                    }
                    outs.zip(xs_left).for_each(|(out, x)| $matvec(out, w, row, *x));
                }
            }
        }

        /// One block row with `P` pairs of vectors.
        #[target_feature(enable = "neon,i8mm")]
        #[inline]
        fn $pairs<'o, const P: usize>(
            xs: [[Activation<'_>; 2]; P],
            w: &Matrix<'_>,
            row: usize,
            outs: &mut impl Iterator<Item = &'o mut [f32]>,
        ) {
            const LINES: usize = size_of::<$lines>() / LINE_BYTES;
            let stream = BlockStream::<{ $dtype.block_bytes() }>::new(w, row, 1);
            let mut acc = [[vdupq_n_f32(0.0); ROW_INTERLEAVE / 2]; P];
            for (i, [block, later]) in stream.rows().flatten().enumerate() {
                let block = Parts::<LINES>::of(block);
                prefetch_all(later);
                for (g, (lines, scales)) in block.lines.iter().zip(block.scales).enumerate() {
                    let pairs = xs.map(|pair| pair.map(|x| Group::of(x, GROUPS * i + g)));
                    let (dots, scales) = ($dot(lines, &pairs), pair_scales(scales));
                    for ((acc, dot), pair) in acc.iter_mut().zip(dots).zip(&pairs) {
                        *acc = add_group(*acc, scales, dot, pair);
                    }
                }
            }
            for acc in acc {
                if let (Some(x), Some(y)) = (outs.next(), outs.next()) {
                    finish([x, y], acc, w.scale());
                }
            }
        }
    };
}

matmul!(matmul_int4, int4_pairs, DType::Int4, Int4Lines, int4_dot, matvec_int4);
matmul!(matmul_int8, int8_pairs, DType::Int8, Int8Lines, int8_dot, matvec_int8);

/// Sums of nibble times code. They start as -8 times the sums of the codes.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn int4_dot<const P: usize>(lines: &Int4Lines, pairs: &[GroupPair<'_>; P]) -> [Pairs<int32x4_t>; P] {
    let mut sums = [[vdupq_n_s32(0); ROW_INTERLEAVE / 2]; P];
    for (sums, [x, y]) in sums.iter_mut().zip(pairs) {
        let start = vzip1_s32(vdup_n_s32(x.sum.wrapping_mul(-8)), vdup_n_s32(y.sum.wrapping_mul(-8)));
        *sums = [vcombine_s32(start, start); ROW_INTERLEAVE / 2];
    }
    for (i, line) in lines.iter().enumerate() {
        let codes = eight_columns(pairs, i);
        for (r, weights) in load_line(line).into_iter().enumerate() {
            add_rows(&mut sums, r, nibbles(weights), codes);
        }
    }
    sums
}

/// Sums of code times code.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn int8_dot<const P: usize>(lines: &Int8Lines, pairs: &[GroupPair<'_>; P]) -> [Pairs<int32x4_t>; P] {
    let mut sums = [[vdupq_n_s32(0); ROW_INTERLEAVE / 2]; P];
    for (i, [low, high]) in lines.as_chunks::<2>().0.iter().enumerate() {
        let codes = eight_columns(pairs, i);
        for (r, (low, high)) in load_line(low).into_iter().zip(load_line(high)).enumerate() {
            add_rows(&mut sums, r, [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)], codes);
        }
    }
    sums
}

/// Codes `8 i..8 i + 8` of both vectors of each pair.
#[target_feature(enable = "neon")]
#[inline]
fn eight_columns<const P: usize>(pairs: &[GroupPair<'_>; P], i: usize) -> [int8x16_t; P] {
    let mut codes = [vdupq_n_s8(0); P];
    for (codes, pair) in codes.iter_mut().zip(pairs) {
        *codes = load_code_pair(pair.each_ref().map(|x| &x.codes.as_flattened().as_chunks::<8>().0[i]));
    }
    codes
}

/// Adds the products of rows `4 r..4 r + 4`. `low` has four columns of each, `high` the next four.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn add_rows<const P: usize>(
    sums: &mut [Pairs<int32x4_t>; P],
    r: usize,
    [low, high]: [int8x16_t; 2],
    codes: [int8x16_t; P],
) {
    let (low, high) = (vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(high));
    let first = vreinterpretq_s8_s32(vzip1q_s32(low, high));
    let second = vreinterpretq_s8_s32(vzip2q_s32(low, high));
    for (sums, codes) in sums.iter_mut().zip(codes) {
        sums[2 * r] = smmla(sums[2 * r], first, codes);
        sums[2 * r + 1] = smmla(sums[2 * r + 1], second, codes);
    }
}

/// The fp16 scales of 16 rows, each twice.
#[target_feature(enable = "neon")]
#[inline]
fn pair_scales(scales: &[u8; 2 * ROW_INTERLEAVE]) -> Pairs<float32x4_t> {
    let (scales, _) = scales.as_chunks::<16>();
    let ([a, b], [c, d]) = (load_f16(&scales[0]), load_f16(&scales[1]));
    [
        vzip1q_f32(a, a),
        vzip2q_f32(a, a),
        vzip1q_f32(b, b),
        vzip2q_f32(b, b),
        vzip1q_f32(c, c),
        vzip2q_f32(c, c),
        vzip1q_f32(d, d),
        vzip2q_f32(d, d),
    ]
}

/// `acc + scale * x.scale * dot`.
#[target_feature(enable = "neon")]
#[inline]
fn add_group(
    acc: Pairs<float32x4_t>,
    scales: Pairs<float32x4_t>,
    dot: Pairs<int32x4_t>,
    [x, y]: &GroupPair<'_>,
) -> Pairs<float32x4_t> {
    let x_scales = vzip1_f32(vdup_n_f32(x.scale), vdup_n_f32(y.scale));
    let x_scales = vcombine_f32(x_scales, x_scales);
    let mut acc = acc;
    for ((acc, scales), dot) in acc.iter_mut().zip(scales).zip(dot) {
        *acc = vfmaq_f32(*acc, vmulq_f32(scales, x_scales), vcvtq_f32_s32(dot));
    }
    acc
}

/// Stores the sums times the tensor scale; the last rows may be padding.
#[target_feature(enable = "neon")]
#[inline]
fn finish([x, y]: [&mut [f32]; 2], acc: Pairs<float32x4_t>, scale: f32) {
    let mut rows = [[[0.0; 4]; ROW_INTERLEAVE / 4]; 2];
    for (i, [first, second]) in acc.as_chunks::<2>().0.iter().enumerate() {
        store_f32(&mut rows[0][i], vmulq_n_f32(vuzp1q_f32(*first, *second), scale));
        store_f32(&mut rows[1][i], vmulq_n_f32(vuzp2q_f32(*first, *second), scale));
    }
    x.copy_from_slice(&rows[0].as_flattened()[..x.len()]);
    y.copy_from_slice(&rows[1].as_flattened()[..y.len()]);
}

//! Products of quantized matrices with several vectors by SMMLA, which multiplies two rows with two vectors, eight columns
//! at a time: twice the products of SDOT in an instruction.
//!
//! Vectors go by in pairs, and one that is left by itself. The weights lie as all kernels have them: of two registers with
//! four columns of four rows each, zipping makes registers with eight columns of two rows.

use core::arch::aarch64::*;

use super::dotprod::{matvec_int4, matvec_int8};
use super::int::{Group, Int4Lines, Int8Lines, Parts, groups, load_line, nibbles};
use super::memory::{load_code_pair, load_f16, store_f32};
use super::shim::{prefetch, smmla};
use super::walk::Walk;
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// Two rows with two vectors in each register: `[row][vector]`.
type Pairs<T> = [T; ROW_INTERLEAVE / 2];

/// Defines the product `$matmul` of 16 rows at a time; `$dot(lines, [group; 2])` multiplies the `$lines` of a group with a
/// [`Group`] of each vector of a pair, and `$matvec` is the product with one vector.
macro_rules! matmul {
    ($matmul:ident, $pair:ident, $dtype:expr, $lines:ty, $dot:ident, $matvec:ident) => {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        pub(super) fn $matmul(
            outs: &mut [&mut [f32]],
            w: &Matrix<'_>,
            first_row: usize,
            xs: &[Activation<'_>],
        ) {
            let rows = outs.first().map_or(0, |out| out.len());
            for start in (0..rows).step_by(ROW_INTERLEAVE) {
                let (end, row) = (rows.min(start + ROW_INTERLEAVE), first_row + start);
                for (outs, xs) in outs.chunks_mut(2).zip(xs.chunks(2)) {
                    match (outs, xs) {
                        ([a, b], &[x, y]) => $pair([&mut a[start..end], &mut b[start..end]], w, row, [x, y]),
                        ([out], &[x]) => $matvec(&mut out[start..end], w, row, x),
                        _ => {}
                    }
                }
            }
        }

        /// One block row with two vectors.
        #[target_feature(enable = "neon,i8mm")]
        #[inline]
        fn $pair(outs: [&mut [f32]; 2], w: &Matrix<'_>, row: usize, [x, y]: [Activation<'_>; 2]) {
            const LINES: usize = size_of::<$lines>() / LINE_BYTES;
            let walk = Walk::<{ $dtype.block_bytes() }>::new(w, row, outs[0].len());
            let mut acc = [vdupq_n_f32(0.0); ROW_INTERLEAVE / 2];
            for (([block, later], x), y) in walk.rows().flatten().zip(groups(x)).zip(groups(y)) {
                let block = Parts::<LINES>::of(block);
                later.chunks(LINE_BYTES).for_each(prefetch::<0>);
                for (g, (x, y)) in x.iter().zip(&y).enumerate() {
                    let dot = $dot(&block.lines[g], [x, y]);
                    acc = add_group(acc, &block.scales[g], dot, [x, y]);
                }
            }
            finish(outs, acc, w.scale());
        }
    };
}

matmul!(matmul_int4, int4_pair, DType::Int4, Int4Lines, int4_dot, matvec_int4);
matmul!(matmul_int8, int8_pair, DType::Int8, Int8Lines, int8_dot, matvec_int8);

/// Sums of nibble times code, from -8 times the sums of the codes.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn int4_dot(lines: &Int4Lines, x: [&Group<'_>; 2]) -> Pairs<int32x4_t> {
    let [first, second] = x.map(|x| vdup_n_s32(x.sum.wrapping_mul(-8)));
    let start = vzip1_s32(first, second);
    let mut sums = [vcombine_s32(start, start); ROW_INTERLEAVE / 2];
    for (i, line) in lines.iter().enumerate() {
        let codes = eight_columns(x, i);
        for (sums, weights) in sums.as_chunks_mut::<2>().0.iter_mut().zip(load_line(line)) {
            let [low, high] = nibbles(weights);
            *sums = add_rows(*sums, [low, high], codes);
        }
    }
    sums
}

/// Sums of code times code.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn int8_dot(lines: &Int8Lines, x: [&Group<'_>; 2]) -> Pairs<int32x4_t> {
    let mut sums = [vdupq_n_s32(0); ROW_INTERLEAVE / 2];
    for (i, [low, high]) in lines.as_chunks::<2>().0.iter().enumerate() {
        let codes = eight_columns(x, i);
        let weights = load_line(low).into_iter().zip(load_line(high));
        for (sums, (low, high)) in sums.as_chunks_mut::<2>().0.iter_mut().zip(weights) {
            *sums = add_rows(*sums, [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)], codes);
        }
    }
    sums
}

/// Codes `8 i..8 i + 8` of both vectors.
#[target_feature(enable = "neon")]
#[inline]
fn eight_columns([x, y]: [&Group<'_>; 2], i: usize) -> int8x16_t {
    load_code_pair([x, y].map(|group| &group.codes.as_flattened().as_chunks::<8>().0[i]))
}

/// Adds the products of four rows, given four columns of each and the next four.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn add_rows(sums: [int32x4_t; 2], [low, high]: [int8x16_t; 2], codes: int8x16_t) -> [int32x4_t; 2] {
    let (low, high) = (vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(high));
    let first = vreinterpretq_s8_s32(vzip1q_s32(low, high));
    let second = vreinterpretq_s8_s32(vzip2q_s32(low, high));
    [smmla(sums[0], first, codes), smmla(sums[1], second, codes)]
}

/// `acc + scale * x.scale * dot`, with fp16 scales of 16 rows.
#[target_feature(enable = "neon")]
#[inline]
fn add_group(
    acc: Pairs<float32x4_t>,
    scales: &[u8; 2 * ROW_INTERLEAVE],
    dot: Pairs<int32x4_t>,
    [x, y]: [&Group<'_>; 2],
) -> Pairs<float32x4_t> {
    let x_scales = vzip1_f32(vdup_n_f32(x.scale), vdup_n_f32(y.scale));
    let x_scales = vcombine_f32(x_scales, x_scales);
    let mut acc = acc;
    for ((acc, scales), dot) in acc.chunks_mut(4).zip(scales.as_chunks::<16>().0).zip(dot.chunks(4)) {
        let scales = load_f16(scales).map(|s| [vzip1q_f32(s, s), vzip2q_f32(s, s)]);
        for ((acc, scales), dot) in acc.iter_mut().zip(scales.as_flattened()).zip(dot) {
            *acc = vfmaq_f32(*acc, vmulq_f32(*scales, x_scales), vcvtq_f32_s32(*dot));
        }
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

//! Products of quantized matrices.

use core::arch::x86_64::*;

use super::memory::{broadcast, load, load_f16, store_f32};
use super::streams::{STREAMS, Streams, by_streams};
use crate::layout::{Activation, DType, GROUP_SIZE, K_BLOCK, LINE_BYTES, Matrix, ROW_INTERLEAVE};

const INT4_BLOCK: usize = DType::Int4.block_bytes();
const INT8_BLOCK: usize = DType::Int8.block_bytes();
const QUADS: usize = GROUP_SIZE / 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_streams!(int4_rows, out, w, first_row, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_streams!(int8_rows, out, w, first_row, x);
}

/// 16 rows, 8 in each register.
type Rows<T> = [T; 2];

/// What a group of the vector contributes to all rows.
struct Group<'a> {
    codes: &'a [[i8; 4]; QUADS],
    scale: f32,
    sum: i32,
}

/// Group `g` of column block `i`.
#[inline(always)]
fn group(x: Activation<'_>, i: usize, g: usize) -> Group<'_> {
    let (codes, _) = x.codes.as_chunks::<4>().0.as_chunks::<QUADS>();
    let g = i * (K_BLOCK / GROUP_SIZE) + g;
    Group { codes: &codes[g], scale: x.scales[g], sum: x.sums[g] }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_rows<const N: usize>(out: &mut [f32], w: &Matrix<'_>, first: usize, end: usize, x: Activation<'_>) {
    let streams = Streams::<N, INT4_BLOCK>::new(w, first, end);
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    for i in 0..w.col_blocks() {
        let groups = [group(x, i, 0), group(x, i, 1)];
        for (n, acc) in acc.iter_mut().enumerate() {
            let (lines, _) = streams.block(n, i).as_chunks::<LINE_BYTES>();
            let [scales, a, b, c, d, e, f, g, h] = lines else { continue };
            let (scales, _) = scales.as_chunks::<32>();
            *acc = add_group(*acc, &scales[0], int4_dot([a, b, c, d], &groups[0]), &groups[0]);
            *acc = add_group(*acc, &scales[1], int4_dot([e, f, g, h], &groups[1]), &groups[1]);
        }
    }
    finish(out, acc, w.scale());
}

/// Sums of nibble times code, minus 8 times the sum of the codes: 16-bit sums reach 8 * 2 * 15 * 127 = 30480.
#[target_feature(enable = "avx2")]
#[inline]
fn int4_dot(lines: [&[u8; LINE_BYTES]; 4], x: &Group<'_>) -> Rows<__m256i> {
    let low = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (line, quads) in lines.into_iter().zip(x.codes.as_chunks::<2>().0) {
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            let first = _mm256_and_si256(weights, low);
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), low);
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(first, quads[0]));
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(second, quads[1]));
        }
    }
    let ones = _mm256_set1_epi16(1);
    let correction = _mm256_set1_epi32(x.sum.wrapping_mul(-8));
    let [a, b] = sums;
    [
        _mm256_add_epi32(_mm256_madd_epi16(a, ones), correction),
        _mm256_add_epi32(_mm256_madd_epi16(b, ones), correction),
    ]
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int8_rows<const N: usize>(out: &mut [f32], w: &Matrix<'_>, first: usize, end: usize, x: Activation<'_>) {
    let streams = Streams::<N, INT8_BLOCK>::new(w, first, end);
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    for i in 0..w.col_blocks() {
        let groups = [group(x, i, 0), group(x, i, 1)];
        for (n, acc) in acc.iter_mut().enumerate() {
            let (scales, lines) = streams.block(n, i).split_at(LINE_BYTES);
            let scales = scales.as_chunks::<32>().0;
            let lines = lines.as_chunks::<LINE_BYTES>().0.as_chunks::<QUADS>().0;
            for ((scales, lines), group) in scales.iter().zip(lines).zip(&groups) {
                *acc = add_group(*acc, scales, int8_dot(lines, group), group);
            }
        }
    }
    finish(out, acc, w.scale());
}

/// Sums of code times code. The unsigned factor is `|w|`, at most 128, the signed one the vector's code with the
/// sign of `w`: two products reach 2 * 128 * 127, which 16 bits hold.
#[target_feature(enable = "avx2")]
#[inline]
fn int8_dot(lines: &[[u8; LINE_BYTES]; QUADS], x: &Group<'_>) -> Rows<__m256i> {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (line, quad) in lines.iter().zip(x.codes) {
        let quad = broadcast(quad);
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    sums
}

/// `acc + scale * x.scale * dot`, with fp16 scales of 16 rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_group(acc: Rows<__m256>, scales: &[u8; 32], dot: Rows<__m256i>, x: &Group<'_>) -> Rows<__m256> {
    let (scales, _) = scales.as_chunks::<16>();
    let scale = _mm256_set1_ps(x.scale);
    let low = _mm256_mul_ps(load_f16(&scales[0]), scale);
    let high = _mm256_mul_ps(load_f16(&scales[1]), scale);
    [
        _mm256_fmadd_ps(low, _mm256_cvtepi32_ps(dot[0]), acc[0]),
        _mm256_fmadd_ps(high, _mm256_cvtepi32_ps(dot[1]), acc[1]),
    ]
}

/// Stores the sums times the tensor scale; the last rows may be padding.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn finish<const N: usize>(out: &mut [f32], acc: [Rows<__m256>; N], scale: f32) {
    let scale = _mm256_set1_ps(scale);
    for (out, acc) in out.chunks_mut(ROW_INTERLEAVE).zip(acc) {
        let mut rows = [[0.0; 8]; 2];
        store_f32(&mut rows[0], _mm256_mul_ps(acc[0], scale));
        store_f32(&mut rows[1], _mm256_mul_ps(acc[1], scale));
        out.copy_from_slice(&rows.as_flattened()[..out.len()]);
    }
}

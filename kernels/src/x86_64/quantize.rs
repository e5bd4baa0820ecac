//! Quantization of vectors.

use core::arch::x86_64::*;

use super::memory::{load_f32, store_codes};
use crate::layout::{ActivationMut, GROUP_SIZE};
use crate::math::ZERO_BELOW;

#[target_feature(enable = "avx2")]
pub(super) fn quantize(x: &mut ActivationMut<'_>) {
    let (values, _) = x.values.as_chunks::<GROUP_SIZE>();
    let (codes, _) = x.codes.as_chunks_mut::<GROUP_SIZE>();
    let outputs = codes.iter_mut().zip(x.scales.iter_mut()).zip(x.sums.iter_mut());
    for (values, ((codes, scale), sum)) in values.iter().zip(outputs) {
        (*scale, *sum) = quantize_group(values, codes);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn quantize_group(values: &[f32; GROUP_SIZE], codes: &mut [i8; GROUP_SIZE]) -> (f32, i32) {
    let mut x = [_mm256_setzero_ps(); GROUP_SIZE / 8];
    for (x, values) in x.iter_mut().zip(values.as_chunks::<8>().0) {
        *x = load_f32(values);
    }
    quantize_registers(x, codes)
}

/// Stores the codes of a group. Returns its scale and the sum of its codes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn quantize_registers(x: [__m256; GROUP_SIZE / 8], codes: &mut [i8; GROUP_SIZE]) -> (f32, i32) {
    let amax = f32::from_bits(top_bits(x) as u32);
    if amax < ZERO_BELOW {
        codes.fill(0);
        return (0.0, 0);
    }
    let inverse = _mm256_set1_ps(127.0 / amax);
    let q = x.map(|x| round(_mm256_mul_ps(x, inverse)));
    let words = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
    let bytes = _mm256_packs_epi16(words[0], words[1]);
    store_codes(codes, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    let sums = _mm256_madd_epi16(_mm256_add_epi16(words[0], words[1]), _mm256_set1_epi16(1));
    (amax / 127.0, fold(sums, |a, b| _mm_add_epi32(a, b)))
}

/// The bits of the largest magnitude. As integers they order like magnitudes, with NaNs above all.
#[target_feature(enable = "avx2")]
#[inline]
fn top_bits(x: [__m256; GROUP_SIZE / 8]) -> i32 {
    let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)));
    fold(_mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d)), |a, b| _mm_max_epi32(a, b))
}

/// Clamped to ±127 and rounded to nearest even; -127 for a NaN.
#[target_feature(enable = "avx2")]
#[inline]
fn round(x: __m256) -> __m256i {
    let limit = _mm256_set1_ps(127.0);
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-127.0)), limit))
}

/// All lanes, combined by `op`.
#[target_feature(enable = "avx2")]
#[inline]
fn fold(x: __m256i, op: impl Fn(__m128i, __m128i) -> __m128i) -> i32 {
    let x = op(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = op(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    _mm_cvtsi128_si32(op(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
}

//! Encoding of weights.

use core::arch::x86_64::*;

use super::memory::{load_codes, load_f32};
use crate::layout::GROUP_SIZE;
use crate::quant::int4n::{CODES, FIRST_STEP, Fit, LAST_STEP, Values, encode_by};
use crate::quant::{Group, ScaleOverflow};

/// [`CODES`] in both halves of a register, each part of 16 xored with the part before. PSHUFB gives 0
/// where a half step lies before the part, so the xor of all is the code.
const PARTS: [[i8; 32]; CODES.len()] = {
    let mut parts = [[0; 32]; CODES.len()];
    let mut i = 0;
    while i < 32 * parts.len() {
        let (part, at) = (i / 32, i % 16);
        let before = if part > 0 { CODES[part - 1][at] } else { 0 };
        parts[part][i % 32] = CODES[part][at] ^ before;
        i += 1;
    }
    parts
};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn encode_int4n(
    values: &[f32; GROUP_SIZE],
    importance: &[f32; GROUP_SIZE],
    len: usize,
) -> Result<Group, ScaleOverflow> {
    encode_by(values, importance, len, |values, inverse, shift| fit(values, inverse, shift))
}

/// How well the codes of values times `inverse` match the values.
#[target_feature(enable = "avx2")]
#[inline]
fn fit(values: &Values<'_>, inverse: f32, shift: i32) -> Fit {
    let codes = codes(values.u, inverse, shift);
    let (mut dots, mut squares) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let factors = values.weighted.as_chunks().0.iter().zip(values.importance.as_chunks().0);
    // Moves the first four codes of each half to the highest bytes of its lanes.
    let mut spread =
        _mm256_broadcastsi128_si256(_mm_setr_epi32(0x0080_8080, 0x0180_8080, 0x0280_8080, 0x0380_8080));
    for (weighted, importance) in factors {
        let wide = _mm256_shuffle_epi8(codes, spread);
        spread = _mm256_add_epi32(spread, _mm256_set1_epi32(4 << 24));
        let code = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(wide));
        dots = _mm256_add_ps(dots, _mm256_mul_ps(load_f32(weighted), code));
        let product = _mm256_mul_ps(load_f32(importance), code);
        squares = _mm256_add_ps(squares, _mm256_mul_ps(product, code));
    }
    let [dots, squares] =
        [dots, squares].map(|x| _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
    // Two lanes of each.
    let both = _mm_add_ps(_mm_movelh_ps(dots, squares), _mm_movehl_ps(squares, dots));
    let sums = _mm_add_ps(both, _mm_movehdup_ps(both));
    Fit { dot: _mm_cvtss_f32(sums), square: _mm_cvtss_f32(_mm_movehl_ps(sums, sums)) }
}

/// The codes of values times `inverse`. Four codes of each eight values are in the first half, and
/// four in the second.
#[target_feature(enable = "avx2")]
#[inline]
fn codes(u: &[f32; GROUP_SIZE], inverse: f32, shift: i32) -> __m256i {
    let (factor, offset) = (_mm256_set1_ps(2.0 * inverse), _mm256_set1_ps((-2 * shift) as f32 - 0.5));
    let [first, last] = [FIRST_STEP, LAST_STEP].map(|step| _mm256_set1_ps(f32::from(step)));
    let mut steps = [_mm256_setzero_si256(); GROUP_SIZE / 8];
    for (steps, u) in steps.iter_mut().zip(u.as_chunks().0) {
        let x = _mm256_add_ps(_mm256_mul_ps(load_f32(u), factor), offset);
        *steps = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, first), last));
    }
    let halves = [_mm256_packs_epi32(steps[0], steps[1]), _mm256_packs_epi32(steps[2], steps[3])];
    let steps = _mm256_packs_epi16(halves[0], halves[1]);
    let mut index = _mm256_sub_epi8(steps, _mm256_set1_epi8(FIRST_STEP));
    let mut codes = _mm256_setzero_si256();
    for part in &PARTS {
        codes = _mm256_xor_si256(codes, _mm256_shuffle_epi8(load_codes(part), index));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    _mm256_add_epi8(codes, _mm256_set1_epi8(shift as i8))
}

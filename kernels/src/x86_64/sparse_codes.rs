//! How codes of two records are multiplied with their coefficients and added up.
//!
//! A 32-bit lane of a coefficient vector holds the coefficient of the first record in its low half and that of the
//! second in its high half. Codes are brought into pairs alike, for `vpmaddwd`.

use core::arch::x86_64::*;

use super::memory::load_i32;
use super::sparse::PairCoefficients;

/// The 16-bit words of `a` and `b` in pairs: the even ones, then the odd ones.
#[target_feature(enable = "avx2")]
#[inline]
fn pair_words(a: __m256i, b: __m256i) -> [__m256i; 2] {
    [
        _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b)),
        _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(a), b),
    ]
}

/// The coefficients of groups `2 chunk` and `2 chunk + 1`, in one half of the register each.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn spread_int4(pairs: &PairCoefficients, chunk: usize) -> __m256i {
    const SPREAD: [[i32; 8]; 4] = [
        [0, 0, 0, 0, 1, 1, 1, 1],
        [2, 2, 2, 2, 3, 3, 3, 3],
        [4, 4, 4, 4, 5, 5, 5, 5],
        [6, 6, 6, 6, 7, 7, 7, 7],
    ];
    _mm256_permutevar8x32_epi32(load_i32(&pairs[chunk / 4]), load_i32(&SPREAD[chunk % 4]))
}

/// Adds four nibbles of every word, even words first: nibble 3 alone, nibbles 2 and up, 1 and up, and 0 to 2.
///
/// Weighing higher nibbles along with lower ones saves masks. [`order_int4`] takes them apart again, which is exact,
/// as integers wrap: only the sum of a single nibble has to fit 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_int4(sums: [__m256i; 8], a: __m256i, b: __m256i, c: __m256i) -> [__m256i; 8] {
    let mut sums = sums;
    for (sums, words) in sums.as_chunks_mut::<4>().0.iter_mut().zip(pair_words(a, b)) {
        let nibbles = [
            _mm256_srli_epi16::<12>(words),
            _mm256_srli_epi16::<8>(words),
            _mm256_srli_epi16::<4>(words),
            _mm256_and_si256(words, _mm256_set1_epi16(0x0fff)),
        ];
        for (sum, nibbles) in sums.iter_mut().zip(nibbles) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(nibbles, c));
        }
    }
    sums
}

/// Takes the nibbles of [`add_int4`] apart and puts the outputs in order: four registers of the first group, then
/// four of the second.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn order_int4(sums: [__m256i; 8]) -> [__m256i; 8] {
    let [even, odd] =
        [split([sums[0], sums[1], sums[2], sums[3]]), split([sums[4], sums[5], sums[6], sums[7]])];
    // Nibbles 0 and 2 are the low ones of a byte, and bytes hold outputs 16 apart.
    let low = transpose([even[0], even[2], odd[0], odd[2]]);
    let high = transpose([even[1], even[3], odd[1], odd[3]]);
    [low[0], low[1], high[0], high[1], low[2], low[3], high[2], high[3]]
}

/// The sums of nibbles 0 to 3, given those of 3, of 2 + 16 * 3, of 1 + 16 * 2 + 256 * 3, and of 0 + 16 * 1 + 256 * 2.
#[target_feature(enable = "avx2")]
#[inline]
fn split([from_3, from_2, from_1, from_0]: [__m256i; 4]) -> [__m256i; 4] {
    let second = _mm256_sub_epi32(from_2, _mm256_slli_epi32::<4>(from_3));
    let first = _mm256_sub_epi32(from_1, _mm256_slli_epi32::<4>(from_2));
    let higher = _mm256_add_epi32(first, _mm256_slli_epi32::<4>(second));
    [_mm256_sub_epi32(from_0, _mm256_slli_epi32::<4>(higher)), first, second, from_3]
}

/// Both halves of the registers as 4x4 matrices, transposed; the first half's 16 numbers, then the second's.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    let (first, second) = (_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low));
    let (third, fourth) = (_mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high));
    [
        _mm256_permute2x128_si256::<0x20>(first, second),
        _mm256_permute2x128_si256::<0x20>(third, fourth),
        _mm256_permute2x128_si256::<0x31>(first, second),
        _mm256_permute2x128_si256::<0x31>(third, fourth),
    ]
}

/// Adds 32 codes, 8 in each register.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_int8(sums: [__m256i; 4], a: __m256i, b: __m256i, c: __m256i) -> [__m256i; 4] {
    let mut sums = sums;
    let halves = [
        [_mm256_castsi256_si128(a), _mm256_castsi256_si128(b)],
        [_mm256_extracti128_si256::<1>(a), _mm256_extracti128_si256::<1>(b)],
    ];
    for (sums, [a, b]) in sums.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
        let first = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
        let second = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(first, c));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(second, c));
    }
    sums
}

//! Products of quantized records with a sparse vector, in registers of 256 bits.

use core::arch::x86_64::*;

use super::memory::{load as load_codes, load_i32, store_f32, store_i32};
use super::sparse::{
    BLOCK_GROUPS, OutputBlock, PairCoefficients, PerGroup, SET_SIZE, add_to, ask_share, chunk, copy_rest,
    factors, sparse_product, split_sums, split_sums_mut, store_chunk,
};
use crate::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};

/// How many times 128 bits a register has.
const LANES: usize = 2;

#[target_feature(enable = "avx2")]
#[inline]
fn load_sums<const SUMS: usize>(sums: &[[i32; 8]; SUMS]) -> [__m256i; SUMS] {
    let mut acc = [_mm256_setzero_si256(); SUMS];
    for (acc, sum) in acc.iter_mut().zip(sums) {
        *acc = load_i32(sum);
    }
    acc
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_sums<const SUMS: usize>(sums: &mut [[i32; 8]; SUMS], acc: [__m256i; SUMS]) {
    for (sum, acc) in sums.iter_mut().zip(acc) {
        store_i32(sum, acc);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn add_sums<const SUMS: usize>(acc: [__m256i; SUMS], sums: &[[i32; 8]; SUMS]) -> [__m256i; SUMS] {
    let mut acc = acc;
    for (acc, sum) in acc.iter_mut().zip(sums) {
        *acc = _mm256_add_epi32(*acc, load_i32(sum));
    }
    acc
}

/// The sums times the scales, given by their bits.
#[target_feature(enable = "avx2")]
#[inline]
fn to_values<const SUMS: usize>(sums: [__m256i; SUMS], scales: __m256i) -> [[f32; 8]; SUMS] {
    let mut values = [[0.0; 8]; SUMS];
    for (value, sum) in values.iter_mut().zip(sums) {
        store_f32(value, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_castsi256_ps(scales)));
    }
    values
}

/// The numbers of groups `2 chunk` and `2 chunk + 1`, in one half of the register each.
#[target_feature(enable = "avx2")]
#[inline]
fn spread_int4(groups: &PerGroup, chunk: usize) -> __m256i {
    let [a, b] = groups.as_flattened().as_chunks::<2>().0[chunk];
    _mm256_set_m128i(_mm_set1_epi32(b), _mm_set1_epi32(a))
}

/// The number of group `chunk`.
#[target_feature(enable = "avx2")]
#[inline]
fn spread_int8(groups: &PerGroup, chunk: usize) -> __m256i {
    _mm256_set1_epi32(groups.as_flattened()[chunk])
}

/// Adds the products of the pairs of 16 bits in every 32-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
fn multiply_add(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
}

/// Adds four nibbles of every word, of each half's first words, then of the others: nibble 3 alone, nibbles 2
/// and up, 1 and up, and 0 to 2.
///
/// Weighing higher nibbles along with lower ones saves masks. `order_int4` takes them apart again, which is
/// exact, as integers wrap: only the sum of a single nibble has to fit 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn add_int4(sums: [__m256i; 8], a: __m256i, b: __m256i, c: __m256i) -> [__m256i; 8] {
    let mut sums = sums;
    let pairs = [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
    for (sums, words) in sums.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
        sums[0] = multiply_add(sums[0], _mm256_srli_epi16::<12>(words), c);
        sums[1] = multiply_add(sums[1], _mm256_srli_epi16::<8>(words), c);
        sums[2] = multiply_add(sums[2], _mm256_srli_epi16::<4>(words), c);
        sums[3] = multiply_add(sums[3], _mm256_and_si256(words, _mm256_set1_epi16(0x0fff)), c);
    }
    sums
}

/// Adds both bytes of every word, of each half's first words, then of the others: the high byte alone, and 256
/// times the high byte and 128 more than the low byte.
#[target_feature(enable = "avx2")]
#[inline]
fn add_int8(sums: [__m256i; 4], a: __m256i, b: __m256i, c: __m256i) -> [__m256i; 4] {
    let mut sums = sums;
    let pairs = [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
    for (sums, words) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        let both = _mm256_xor_si256(words, _mm256_set1_epi16(0x80));
        sums[0] = multiply_add(sums[0], _mm256_srai_epi16::<8>(words), c);
        sums[1] = multiply_add(sums[1], both, c);
    }
    sums
}

/// Takes the nibbles of `add_int4` apart and puts the outputs in order; from each 8 times the sum of coefficients is
/// subtracted.
#[target_feature(enable = "avx2")]
#[inline]
fn order_int4(sums: [__m256i; 8], coefficients: __m256i) -> [__m256i; 8] {
    let correction = _mm256_slli_epi32::<3>(coefficients);
    let [a, b, c, d, e, f, g, h] = sums;
    let (first, second) = (split_int4([a, b, c, d], correction), split_int4([e, f, g, h], correction));
    let ([l0, l1], [l2, l3]) = (zip(first[0], first[2]), zip(second[0], second[2]));
    let ([h0, h1], [h2, h3]) = (zip(first[1], first[3]), zip(second[1], second[3]));
    [l0, l1, l2, l3, h0, h1, h2, h3]
}

/// The sums of nibbles 0 to 3, given those of 3, of 2 + 16 * 3, of 1 + 16 * 2 + 256 * 3, and of 0 + 16 * 1 + 256 * 2.
#[target_feature(enable = "avx2")]
#[inline]
fn split_int4([from_3, from_2, from_1, from_0]: [__m256i; 4], correction: __m256i) -> [__m256i; 4] {
    let second = _mm256_sub_epi32(from_2, _mm256_slli_epi32::<4>(from_3));
    let first = _mm256_sub_epi32(from_1, _mm256_slli_epi32::<4>(from_2));
    let higher = _mm256_add_epi32(first, _mm256_slli_epi32::<4>(second));
    let zeroth = _mm256_sub_epi32(from_0, _mm256_slli_epi32::<4>(higher));
    [
        _mm256_sub_epi32(zeroth, correction),
        _mm256_sub_epi32(first, correction),
        _mm256_sub_epi32(second, correction),
        _mm256_sub_epi32(from_3, correction),
    ]
}

/// Takes the bytes of `add_int8` apart and puts the outputs in order.
#[target_feature(enable = "avx2")]
#[inline]
fn order_int8([a, b, c, d]: [__m256i; 4], coefficients: __m256i) -> [__m256i; 4] {
    let correction = _mm256_slli_epi32::<7>(coefficients);
    let low = |high, both| _mm256_sub_epi32(_mm256_sub_epi32(both, _mm256_slli_epi32::<8>(high)), correction);
    let ([l0, l1], [h0, h1]) = (zip(low(a, b), a), zip(low(c, d), c));
    [l0, l1, h0, h1]
}

/// The numbers of both in turn, within 128 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn zip(even: __m256i, odd: __m256i) -> [__m256i; 2] {
    [_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd)]
}

sparse_product!("avx2,fma,f16c", accumulate_int4, finish_int4, 16, 15, 8, spread_int4, add_int4, order_int4);
sparse_product!("avx2,fma,f16c", accumulate_int8, finish_int8, 32, 127, 4, spread_int8, add_int8, order_int8);

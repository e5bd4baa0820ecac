//! Products of quantized records with a sparse vector, in registers of 512 bits: as in `sparse_256`, twice as wide.

use core::arch::x86_64::*;

use super::memory::{load_512 as load_codes, load_i32_512, store_f32_512, store_i32_512};
use super::sparse::{
    BLOCK_GROUPS, OutputBlock, PairCoefficients, PerGroup, SET_SIZE, add_to, ask_share, chunk, copy_rest,
    factors, sparse_product, split_sums, split_sums_mut, store_chunk,
};
use crate::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};

/// How many times 128 bits a register has.
const LANES: usize = 4;

#[target_feature(enable = "avx512f")]
#[inline]
fn load_sums<const SUMS: usize>(sums: &[[i32; 16]; SUMS]) -> [__m512i; SUMS] {
    let mut acc = [_mm512_setzero_si512(); SUMS];
    for (acc, sum) in acc.iter_mut().zip(sums) {
        *acc = load_i32_512(sum);
    }
    acc
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store_sums<const SUMS: usize>(sums: &mut [[i32; 16]; SUMS], acc: [__m512i; SUMS]) {
    for (sum, acc) in sums.iter_mut().zip(acc) {
        store_i32_512(sum, acc);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_sums<const SUMS: usize>(acc: [__m512i; SUMS], sums: &[[i32; 16]; SUMS]) -> [__m512i; SUMS] {
    let mut acc = acc;
    for (acc, sum) in acc.iter_mut().zip(sums) {
        *acc = _mm512_add_epi32(*acc, load_i32_512(sum));
    }
    acc
}

/// The sums times the scales, given by their bits.
#[target_feature(enable = "avx512f")]
#[inline]
fn to_values<const SUMS: usize>(sums: [__m512i; SUMS], scales: __m512i) -> [[f32; 16]; SUMS] {
    let mut values = [[0.0; 16]; SUMS];
    for (value, sum) in values.iter_mut().zip(sums) {
        store_f32_512(value, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_castsi512_ps(scales)));
    }
    values
}

/// The numbers of groups `4 chunk..4 chunk + 4`, in a quarter of the register each.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread_int4(groups: &PerGroup, chunk: usize) -> __m512i {
    let [a, b, c, d] = groups.as_flattened().as_chunks::<4>().0[chunk];
    let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    _mm512_permutexvar_epi32(order, _mm512_castsi128_si512(_mm_setr_epi32(a, b, c, d)))
}

/// The numbers of groups `2 chunk` and `2 chunk + 1`, in one half of the register each.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread_int8(groups: &PerGroup, chunk: usize) -> __m512i {
    let [a, b] = groups.as_flattened().as_chunks::<2>().0[chunk];
    _mm512_inserti64x4::<1>(_mm512_set1_epi32(a), _mm256_set1_epi32(b))
}

/// Adds four nibbles of every word, of each 128 bits' first words, then of the others: nibble 3 alone, nibbles 2 and
/// up, 1 and up, and 0 to 2.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add_int4(sums: [__m512i; 8], a: __m512i, b: __m512i, c: __m512i) -> [__m512i; 8] {
    let mut sums = sums;
    let pairs = [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)];
    for (sums, words) in sums.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
        sums[0] = _mm512_dpwssd_epi32(sums[0], _mm512_srli_epi16::<12>(words), c);
        sums[1] = _mm512_dpwssd_epi32(sums[1], _mm512_srli_epi16::<8>(words), c);
        sums[2] = _mm512_dpwssd_epi32(sums[2], _mm512_srli_epi16::<4>(words), c);
        sums[3] = _mm512_dpwssd_epi32(sums[3], _mm512_and_si512(words, _mm512_set1_epi16(0x0fff)), c);
    }
    sums
}

/// Adds both bytes of every word, of each 128 bits' first words, then of the others: the high byte alone, and 256 times
/// the high byte and 128 more than the low byte.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add_int8(sums: [__m512i; 4], a: __m512i, b: __m512i, c: __m512i) -> [__m512i; 4] {
    let mut sums = sums;
    let pairs = [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)];
    for (sums, words) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        let both = _mm512_xor_si512(words, _mm512_set1_epi16(0x80));
        sums[0] = _mm512_dpwssd_epi32(sums[0], _mm512_srai_epi16::<8>(words), c);
        sums[1] = _mm512_dpwssd_epi32(sums[1], both, c);
    }
    sums
}

/// Takes the nibbles of `add_int4` apart and puts the outputs in order; from each 8 times the sum of coefficients is
/// subtracted.
#[target_feature(enable = "avx512f")]
#[inline]
fn order_int4([a, b, c, d, e, f, g, h]: [__m512i; 8], coefficients: __m512i) -> [__m512i; 8] {
    let correction = _mm512_slli_epi32::<3>(coefficients);
    let (first, second) = (split_int4([a, b, c, d], correction), split_int4([e, f, g, h], correction));
    let ([l0, l1], [l2, l3]) = (zip(first[0], first[2]), zip(second[0], second[2]));
    let ([h0, h1], [h2, h3]) = (zip(first[1], first[3]), zip(second[1], second[3]));
    [l0, l1, l2, l3, h0, h1, h2, h3]
}

/// The sums of nibbles 0 to 3, given those of 3, of 2 + 16 * 3, of 1 + 16 * 2 + 256 * 3, and of 0 + 16 * 1 + 256 * 2.
#[target_feature(enable = "avx512f")]
#[inline]
fn split_int4([from_3, from_2, from_1, from_0]: [__m512i; 4], correction: __m512i) -> [__m512i; 4] {
    let second = _mm512_sub_epi32(from_2, _mm512_slli_epi32::<4>(from_3));
    let first = _mm512_sub_epi32(from_1, _mm512_slli_epi32::<4>(from_2));
    let higher = _mm512_add_epi32(first, _mm512_slli_epi32::<4>(second));
    let zeroth = _mm512_sub_epi32(from_0, _mm512_slli_epi32::<4>(higher));
    [
        _mm512_sub_epi32(zeroth, correction),
        _mm512_sub_epi32(first, correction),
        _mm512_sub_epi32(second, correction),
        _mm512_sub_epi32(from_3, correction),
    ]
}

/// Takes the bytes of `add_int8` apart and puts the outputs in order.
#[target_feature(enable = "avx512f")]
#[inline]
fn order_int8([a, b, c, d]: [__m512i; 4], coefficients: __m512i) -> [__m512i; 4] {
    let correction = _mm512_slli_epi32::<7>(coefficients);
    let low = |high, both| _mm512_sub_epi32(_mm512_sub_epi32(both, _mm512_slli_epi32::<8>(high)), correction);
    let ([l0, l1], [h0, h1]) = (zip(low(a, b), a), zip(low(c, d), c));
    [l0, l1, h0, h1]
}

/// The numbers of both in turn, within 128 bits.
#[target_feature(enable = "avx512f")]
#[inline]
fn zip(even: __m512i, odd: __m512i) -> [__m512i; 2] {
    [_mm512_unpacklo_epi32(even, odd), _mm512_unpackhi_epi32(even, odd)]
}

sparse_product!(
    "avx512f,avx512bw,avx512vl,avx512vnni",
    accumulate_int4,
    finish_int4,
    16,
    15,
    8,
    spread_int4,
    add_int4,
    order_int4
);
sparse_product!(
    "avx512f,avx512bw,avx512vl,avx512vnni",
    accumulate_int8,
    finish_int8,
    32,
    127,
    4,
    spread_int8,
    add_int8,
    order_int8
);

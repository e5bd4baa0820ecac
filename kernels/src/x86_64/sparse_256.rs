//! Products of quantized records with a sparse vector, in registers of 256 bits.

use core::arch::x86_64::*;
use core::arch::x86_64::{
    __m256i as Register, _mm256_add_epi32 as add, _mm256_and_si256 as and, _mm256_castsi256_ps as as_floats,
    _mm256_cvtepi32_ps as to_floats, _mm256_mul_ps as mul, _mm256_set1_epi16 as splat_words,
    _mm256_setzero_si256 as zero, _mm256_slli_epi32 as shift_left,
    _mm256_srai_epi16 as shift_right_signed_words, _mm256_srli_epi16 as shift_right_words,
    _mm256_sub_epi32 as sub, _mm256_unpackhi_epi16 as unpack_high_words,
    _mm256_unpackhi_epi32 as unpack_high, _mm256_unpacklo_epi16 as unpack_low_words,
    _mm256_unpacklo_epi32 as unpack_low, _mm256_xor_si256 as xor,
};

use super::int4n::codes as int4n_codes;
use super::memory::{load as load_codes, load_i32, store_f32, store_i32};
use super::sparse::{
    BLOCK_GROUPS, OutputBlock, PairCoefficients, PerGroup, SET_SIZE, add_to, factors, groups_of_chunks,
    last_chunks, of_chunk, prefetch_share, sparse_product, split_sums, split_sums_mut, store_chunk,
    whole_chunks,
};
use super::sparse_codes::sparse_codes;
use crate::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};
use crate::scalar::sparse::LARGEST_INT4N;

/// Runs of 128 bits in a register.
const LANES: usize = 2;

sparse_codes!("avx2");

/// Adds the products of the pairs of 16 bits in every 32-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
fn multiply_add(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
    add(acc, _mm256_madd_epi16(a, b))
}

/// The numbers of two groups, in one half of the register each.
#[target_feature(enable = "avx2")]
#[inline]
fn spread_int4(&[a, b]: &[i32; 2]) -> __m256i {
    let pair = _mm256_castsi256_ps(_mm256_set1_epi64x(i64::from(a as u32) | i64::from(b) << 32));
    _mm256_castps_si256(_mm256_permutevar_ps(pair, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)))
}

/// The number of a group.
#[target_feature(enable = "avx2")]
#[inline]
fn spread_int8(&[number]: &[i32; 1]) -> __m256i {
    _mm256_set1_epi32(number)
}

sparse_product!(
    "avx2,fma,f16c",
    accumulate_int4,
    finish_int4,
    16,
    15,
    8,
    false,
    spread_int4,
    add_int4,
    order_int4
);
sparse_product!(
    "avx2,fma,f16c",
    accumulate_int4n,
    finish_int4n,
    16,
    LARGEST_INT4N,
    8,
    true,
    spread_int4,
    add_int4n,
    order_int4n
);
sparse_product!(
    "avx2,fma,f16c",
    accumulate_int8,
    finish_int8,
    32,
    127,
    4,
    false,
    spread_int8,
    add_int8,
    order_int8
);

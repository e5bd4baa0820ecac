//! Products of quantized records with a sparse vector, in registers of 512 bits.

use core::arch::x86_64::*;
use core::arch::x86_64::{
    __m512i as Register, _mm512_add_epi32 as add, _mm512_and_si512 as and, _mm512_castsi512_ps as as_floats,
    _mm512_cvtepi32_ps as to_floats, _mm512_mul_ps as mul, _mm512_set1_epi16 as splat_words,
    _mm512_setzero_si512 as zero, _mm512_slli_epi32 as shift_left,
    _mm512_srai_epi16 as shift_right_signed_words, _mm512_srli_epi16 as shift_right_words,
    _mm512_sub_epi32 as sub, _mm512_unpackhi_epi16 as unpack_high_words,
    _mm512_unpackhi_epi32 as unpack_high, _mm512_unpacklo_epi16 as unpack_low_words,
    _mm512_unpacklo_epi32 as unpack_low, _mm512_xor_si512 as xor,
};

use super::memory::{
    load_512 as load_codes, load_i32_512 as load_i32, store_f32_512 as store_f32, store_i32_512 as store_i32,
};
use super::sparse::{
    BLOCK_GROUPS, OutputBlock, PairCoefficients, PerGroup, SET_SIZE, add_to, factors, groups_of_chunks,
    last_chunks, of_chunk, prefetch_share, sparse_product, split_sums, split_sums_mut, store_chunk,
    whole_chunks,
};
use super::sparse_codes::sparse_codes;
use crate::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};

/// Runs of 128 bits in a register.
const LANES: usize = 4;

sparse_codes!("avx512f,avx512bw,avx512vnni");

/// `sum + a * b` for pairs of 16-bit numbers. Miri has no VPDPWSSD.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn multiply_add(sum: Register, a: Register, b: Register) -> Register {
    if cfg!(miri) { add(sum, _mm512_madd_epi16(a, b)) } else { _mm512_dpwssd_epi32(sum, a, b) }
}

/// The numbers of four groups, in a quarter of the register each.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread_int4(&[a, b, c, d]: &[i32; 4]) -> __m512i {
    let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    _mm512_permutexvar_epi32(order, _mm512_castsi128_si512(_mm_setr_epi32(a, b, c, d)))
}

/// The numbers of two groups, in one half of the register each.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread_int8(&[a, b]: &[i32; 2]) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_set1_epi32(a), _mm256_set1_epi32(b))
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

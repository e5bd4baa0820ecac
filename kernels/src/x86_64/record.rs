//! Products of single records with a dense vector.

use core::arch::x86_64::*;

use super::memory::{load_codes, load_f16, load_f32, load_half, load_i32, prefetch, store_f32};
use crate::layout::{Activation, DType, GROUP_SIZE, Records, record_scale_bytes};
use crate::scalar::add_groups;
use crate::scalar::record::{DOT_LANES, dot_of_lanes};

/// How many records ahead one is asked for.
const RECORDS_AHEAD: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn record_dots(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
    for (i, out) in out.iter_mut().enumerate() {
        if let Some(&next) = indices.get(i + RECORDS_AHEAD) {
            prefetch(w.record(next as usize));
        }
        *out = record_dot(w, w.record(indices[i] as usize), x) * w.scale();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn record_dot(w: &Records<'_>, record: &[u8], x: Activation<'_>) -> f32 {
    let (scales, runs) = record.split_at(record_scale_bytes(DType::Int4, w.value_count()));
    // Whole sets of groups; what is left has scalar code.
    let sets = w.value_count().div_ceil(GROUP_SIZE) / DOT_LANES;
    let (scales, _) = scales.as_chunks::<{ 2 * DOT_LANES }>();
    let (runs, _) = runs.as_chunks::<16>().0.as_chunks::<DOT_LANES>();
    let (codes, _) = x.codes.as_chunks::<GROUP_SIZE>().0.as_chunks::<DOT_LANES>();
    let x_scales = x.scales.as_chunks::<DOT_LANES>().0;
    let x_sums = x.sums.as_chunks::<DOT_LANES>().0;
    let mut acc = _mm256_setzero_ps();
    for i in 0..sets {
        let dots = core::array::from_fn(|g| group_products(&runs[i][g], &codes[i][g]));
        let correction = _mm256_slli_epi32::<3>(load_i32(&x_sums[i]));
        let dots = _mm256_sub_epi32(sums_of(dots), correction);
        let scale = _mm256_mul_ps(load_f16(&scales[i]), load_f32(&x_scales[i]));
        acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots), acc);
    }
    let mut lanes = [0.0; DOT_LANES];
    store_f32(&mut lanes, acc);
    add_groups(&mut lanes, w, record, DOT_LANES * sets, x);
    dot_of_lanes(lanes)
}

/// Products of the nibbles of a group with its codes, added up to eight sums: 16-bit sums reach 2 * 15 * 127.
#[target_feature(enable = "avx2")]
#[inline]
fn group_products(run: &[u8; 16], codes: &[i8; GROUP_SIZE]) -> __m256i {
    let bytes = load_half(run);
    let nibbles = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), _mm256_set1_epi8(15));
    _mm256_madd_epi16(_mm256_maddubs_epi16(nibbles, load_codes(codes)), _mm256_set1_epi16(1))
}

/// The sum of the lanes of each of eight registers.
#[target_feature(enable = "avx2")]
#[inline]
fn sums_of([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> __m256i {
    let ab_cd = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let ef_gh = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
    _mm256_add_epi32(
        _mm256_permute2x128_si256::<0x20>(ab_cd, ef_gh),
        _mm256_permute2x128_si256::<0x31>(ab_cd, ef_gh),
    )
}

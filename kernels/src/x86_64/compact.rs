//! Lists of active entries, and of those that reach a bound.

use core::arch::x86_64::*;

use super::memory::{load_f32, store_f32, store_u32};
use crate::scalar::compact::below;

/// For every set of lanes, the lanes of the set one after the other.
const COMPRESS: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut n) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                table[set][n] = lane as u8;
                n += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

/// The lanes of a set one after the other.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes_of(set: usize) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_ne_bytes(COMPRESS[set])))
}

#[target_feature(enable = "avx2")]
pub(super) fn nonzero(indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize {
    let mut n = 0;
    let mut positions = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let (chunks, tail) = x.as_chunks::<8>();
    for chunk in chunks {
        let x = load_f32(chunk);
        let active = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(x, _mm256_setzero_ps())) as usize;
        let order = lanes_of(active);
        // No more entries are active than were read, so 8 more fit.
        if let (Some(indices), Some(values)) =
            (indices[n..].first_chunk_mut::<8>(), values[n..].first_chunk_mut::<8>())
        {
            store_u32(indices, _mm256_permutevar8x32_epi32(positions, order));
            store_f32(values, _mm256_permutevar8x32_ps(x, order));
        }
        n += active.count_ones() as usize;
        positions = _mm256_add_epi32(positions, _mm256_set1_epi32(8));
    }
    let first = x.len() - tail.len();
    for (i, &v) in tail.iter().enumerate() {
        indices[n] = (first + i) as u32;
        values[n] = v;
        n += usize::from(v != 0.0);
    }
    n
}

#[target_feature(enable = "avx2")]
pub(super) fn reaching(indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize {
    let mut n = 0;
    let mut positions = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let ((chunks, tail), (bound_chunks, bound_tail)) = (x.as_chunks::<8>(), bounds.as_chunks::<8>());
    for (x, bounds) in chunks.iter().zip(bound_chunks) {
        let slack = _mm256_mul_ps(load_f32(bounds), _mm256_set1_ps(norm));
        let upper = _mm256_add_ps(load_f32(x), slack);
        let reach = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(upper, _mm256_set1_ps(least))) as usize;
        // No more entries reach it than were read, so 8 more fit.
        if let Some(indices) = indices[n..].first_chunk_mut::<8>() {
            store_u32(indices, _mm256_permutevar8x32_epi32(positions, lanes_of(reach)));
        }
        n += reach.count_ones() as usize;
        positions = _mm256_add_epi32(positions, _mm256_set1_epi32(8));
    }
    let first = x.len() - tail.len();
    for (i, (&x, &bound)) in tail.iter().zip(bound_tail).enumerate() {
        indices[n] = (first + i) as u32;
        n += usize::from(!below(x, bound, norm, least));
    }
    n
}

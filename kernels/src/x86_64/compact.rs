//! Stream compaction with registers of eight entries.

use core::arch::x86_64::*;

use super::memory::{load_f32, store_f32, store_u32};
use crate::generic::compact;

compact!("avx2", 8);

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

/// Some of the lanes of a register, a bit for each.
#[derive(Clone, Copy)]
struct LaneSet(usize);

impl LaneSet {
    /// The lanes that are not zero, NaNs included.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn nonzero(x: __m256) -> Self {
        Self(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(x, _mm256_setzero_ps())) as usize)
    }

    /// The lanes of `x + bounds * norm` that are not below `least`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn reaching(x: __m256, bounds: __m256, norm: f32, least: f32) -> Self {
        let upper = _mm256_add_ps(x, _mm256_mul_ps(bounds, _mm256_set1_ps(norm)));
        Self(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(upper, _mm256_set1_ps(least))) as usize)
    }

    #[inline(always)]
    fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The lanes of the set one after the other.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn order(self) -> __m256i {
        _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_ne_bytes(COMPRESS[self.0])))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn compress_u32(self, lanes: __m256i) -> __m256i {
        _mm256_permutevar8x32_epi32(lanes, self.order())
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn compress_f32(self, lanes: __m256) -> __m256 {
        _mm256_permutevar8x32_ps(lanes, self.order())
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn first_positions() -> __m256i {
    _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
}

#[target_feature(enable = "avx2")]
#[inline]
fn advance(positions: __m256i) -> __m256i {
    _mm256_add_epi32(positions, _mm256_set1_epi32(8))
}

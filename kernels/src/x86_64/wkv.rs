//! The recurrences of RWKV-5, 6 and 7.

use core::arch::x86_64::*;
use core::arch::x86_64::{
    _mm256_fmadd_ps as fma, _mm256_fnmadd_ps as fms, _mm256_mul_ps as mul, _mm256_set1_ps as splat,
};

use super::memory::{load_f32, store_f32};
use crate::generic::wkv;
use crate::math::ZERO_BELOW;

wkv!("avx2,fma,f16c", 8);

/// As [`settled`](crate::math::settled).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn settled(x: __m256) -> __m256 {
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
    _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude, _mm256_set1_ps(ZERO_BELOW)), x)
}

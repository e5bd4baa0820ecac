//! Products of float records with a sparse vector.

use core::arch::x86_64::*;

use super::memory::{load, load_f16, load_f32, store_f32};
use crate::fp16;
use crate::generic::{read_f32, sparse_float};

sparse_float!("avx2,fma,f16c", sparse_f32, 4, 32, |bytes| _mm256_castsi256_ps(load(bytes)), read_f32);
sparse_float!("avx2,fma,f16c", sparse_f16, 2, 16, |bytes| load_f16(bytes), fp16::read);

/// `weights * x + acc`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn multiply_add(weights: __m256, x: f32, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(weights, _mm256_set1_ps(x), acc)
}

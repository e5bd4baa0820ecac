//! Reading of memory, to measure its speed.

use core::arch::x86_64::*;
use core::arch::x86_64::{_mm256_setzero_si256 as zero, _mm256_xor_si256 as xor};

use super::memory::{load, prefetch};
use crate::generic::read;

read!("avx2", 2, 2048);

#[target_feature(enable = "avx2")]
#[inline]
fn fold(words: [__m256i; 2]) -> u64 {
    let all = xor(words[0], words[1]);
    let half = _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    (_mm_extract_epi64::<0>(half) ^ _mm_extract_epi64::<1>(half)) as u64
}

//! Products of quantized matrices with AVX-VNNI.

use core::arch::x86_64::*;

use super::int::{Group, Int4Lines, Int8Lines, Rows, add_group, finish, group, int_matvec};
use super::memory::{broadcast, load};
use super::streams::{STREAMS, Streams, by_streams};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

int_matvec!(
    "avx2,fma,f16c,avxvnni",
    matvec_int4,
    int4_rows,
    DType::Int4,
    Int4Lines,
    [_mm256_setzero_ps(); 2],
    int4_dot
);
int_matvec!(
    "avx2,fma,f16c,avxvnni",
    matvec_int8,
    int8_rows,
    DType::Int8,
    Int8Lines,
    [_mm256_setzero_ps(); 2],
    int8_dot
);

/// Sums of nibble times code, from -8 times the sum of the codes.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int4_dot(lines: &Int4Lines, x: &Group<'_>) -> Rows<__m256i> {
    let low = _mm256_set1_epi8(15);
    let mut sums = [_mm256_set1_epi32(x.sum.wrapping_mul(-8)); 2];
    for (line, quads) in lines.iter().zip(x.codes.as_chunks::<2>().0) {
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            let first = _mm256_and_si256(weights, low);
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), low);
            *sum = _mm256_dpbusd_avx_epi32(*sum, first, quads[0]);
            *sum = _mm256_dpbusd_avx_epi32(*sum, second, quads[1]);
        }
    }
    sums
}

/// Sums of code times code: unsigned, as code + 128, from -128 times the sum of the vector's codes.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int8_dot(lines: &Int8Lines, x: &Group<'_>) -> Rows<__m256i> {
    let sign = _mm256_set1_epi8(i8::MIN);
    let mut sums = [_mm256_set1_epi32(x.sum.wrapping_mul(-128)); 2];
    for (line, quad) in lines.iter().zip(x.codes) {
        let quad = broadcast(quad);
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_xor_si256(load(weights), sign), quad);
        }
    }
    sums
}

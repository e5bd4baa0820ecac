//! Products of quantized matrices with AVX-VNNI.

use core::arch::x86_64::*;

use super::int::{Rows, add_group, finish, int_matvec};
use super::memory::{broadcast, load, prefetch};
use super::streams::{ReadPattern, STREAMS, Streams, by_streams};
use crate::generic::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
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

/// Sums of nibble times code. They start as -8 times the sum of the codes. High nibbles count 16
/// times until the shift at the end.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int4_dot(lines: &Int4Lines, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let low = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_set1_epi32(x.sum.wrapping_mul(-8)), _mm256_setzero_si256()]; 2];
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for ([sum, high], weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_and_si256(weights, low), quads[0]);
            *high = _mm256_dpbusd_avx_epi32(*high, _mm256_andnot_si256(low, weights), quads[1]);
        }
    }
    let [[a, a_high], [b, b_high]] = sums;
    [_mm256_add_epi32(a, _mm256_srai_epi32::<4>(a_high)), _mm256_add_epi32(b, _mm256_srai_epi32::<4>(b_high))]
}

/// Sums of code times code. VPDPBUSD takes one unsigned factor, so weights are code + 128, and the
/// sums start as -128 times the sum of the vector's codes.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int8_dot(lines: &Int8Lines, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let sign = _mm256_set1_epi8(i8::MIN);
    let mut sums = [_mm256_set1_epi32(x.sum.wrapping_mul(-128)); 2];
    for (i, (line, quad)) in lines.iter().zip(x.codes).enumerate() {
        before(i);
        let quad = broadcast(quad);
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_xor_si256(load(weights), sign), quad);
        }
    }
    sums
}

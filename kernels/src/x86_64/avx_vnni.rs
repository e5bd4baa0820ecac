//! Products of quantized matrices with AVX-VNNI.

use core::arch::x86_64::*;

use super::int::{Rows, add_group, finish, int_matvec, start};
use super::int4n;
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
    start::<8>,
    int4_dot
);
int_matvec!(
    "avx2,fma,f16c,avxvnni",
    matvec_int4n,
    int4n_rows,
    DType::Int4n,
    Int4Lines,
    [_mm256_setzero_ps(); 2],
    int4n::start,
    int4n_dot
);
int_matvec!(
    "avx2,fma,f16c,avxvnni",
    matvec_int8,
    int8_rows,
    DType::Int8,
    Int8Lines,
    [_mm256_setzero_ps(); 2],
    start::<128>,
    int8_dot
);

/// Sums of nibble times code. High nibbles count 16 times until the shift at the end.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int4_dot(lines: &Int4Lines, start: Rows<__m256i>, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let low = _mm256_set1_epi8(15);
    let mut sums = start.map(|start| [start, _mm256_setzero_si256()]);
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

/// Sums of table code times code.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int4n_dot(
    lines: &Int4Lines,
    start: Rows<__m256i>,
    x: &Group<'_>,
    before: impl Fn(usize),
) -> Rows<__m256i> {
    let mut sums = start;
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let [first, second] = int4n::codes(load(weights));
            *sum = _mm256_dpbusd_avx_epi32(*sum, first, quads[0]);
            *sum = _mm256_dpbusd_avx_epi32(*sum, second, quads[1]);
        }
    }
    sums
}

/// Sums of code times code. VPDPBUSD takes one unsigned factor, so weights are code + 128.
#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn int8_dot(lines: &Int8Lines, start: Rows<__m256i>, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let sign = _mm256_set1_epi8(i8::MIN);
    let mut sums = start;
    for (i, (line, quad)) in lines.iter().zip(x.codes).enumerate() {
        before(i);
        let quad = broadcast(quad);
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, _mm256_xor_si256(load(weights), sign), quad);
        }
    }
    sums
}

//! Products of quantized matrices with AVX-512 VNNI. A register holds a line of weights, or the
//! sums of 16 rows.

use core::arch::x86_64::*;

use super::int::int_matvec;
use super::int4n;
use super::memory::{broadcast_512, load, load_512, prefetch, store_f32_512};
use super::streams::{ReadPattern, STREAMS, Streams, by_streams};
use crate::generic::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

int_matvec!(
    "avx512f,avx512bw,avx512vl,avx512vnni",
    matvec_int4,
    int4_rows,
    DType::Int4,
    Int4Lines,
    _mm512_setzero_ps(),
    start::<8>,
    int4_dot
);
int_matvec!(
    "avx512f,avx512bw,avx512vl,avx512vnni",
    matvec_int4n,
    int4n_rows,
    DType::Int4n,
    Int4Lines,
    _mm512_setzero_ps(),
    int4n::start_512,
    int4n_dot
);
int_matvec!(
    "avx512f,avx512bw,avx512vl,avx512vnni",
    matvec_int8,
    int8_rows,
    DType::Int8,
    Int8Lines,
    _mm512_setzero_ps(),
    start::<128>,
    int8_dot
);

/// Sums of products with codes + `OFFSET` become those with codes by this.
#[target_feature(enable = "avx512f")]
#[inline]
fn start<const OFFSET: i32>(_: &[u8; 32], x: &Group<'_>) -> __m512i {
    _mm512_set1_epi32(x.sum.wrapping_mul(-OFFSET))
}

/// Sums of nibble times code. High nibbles count 16 times until the shift at the end.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn int4_dot(lines: &Int4Lines, start: __m512i, x: &Group<'_>, before: impl Fn(usize)) -> __m512i {
    let low = _mm512_set1_epi8(15);
    let mut sum = start;
    let mut high = _mm512_setzero_si512();
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let weights = load_512(line);
        sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(weights, low), broadcast_512(&quads[0]));
        high = _mm512_dpbusd_epi32(high, _mm512_andnot_si512(low, weights), broadcast_512(&quads[1]));
    }
    _mm512_add_epi32(sum, _mm512_srai_epi32::<4>(high))
}

/// Sums of table code times code, in two chains.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn int4n_dot(lines: &Int4Lines, start: __m512i, x: &Group<'_>, before: impl Fn(usize)) -> __m512i {
    let [mut sum, mut other] = [start, _mm512_setzero_si512()];
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let [first, second] = int4n::codes_512(load_512(line));
        sum = _mm512_dpbusd_epi32(sum, first, broadcast_512(&quads[0]));
        other = _mm512_dpbusd_epi32(other, second, broadcast_512(&quads[1]));
    }
    _mm512_add_epi32(sum, other)
}

/// Sums of code times code. VPDPBUSD takes one unsigned factor, so weights are code + 128.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn int8_dot(lines: &Int8Lines, start: __m512i, x: &Group<'_>, before: impl Fn(usize)) -> __m512i {
    let sign = _mm512_set1_epi8(i8::MIN);
    let mut sum = start;
    for (i, (line, quad)) in lines.iter().zip(x.codes).enumerate() {
        before(i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(load_512(line), sign), broadcast_512(quad));
    }
    sum
}

/// `acc + scale * x.scale * dot`, with fp16 scales of 16 rows.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_group(acc: __m512, scales: &[u8; 32], dot: __m512i, x: &Group<'_>) -> __m512 {
    let scale = _mm512_mul_ps(_mm512_cvtph_ps(load(scales)), _mm512_set1_ps(x.scale));
    _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), acc)
}

/// Stores the sums times the tensor scale; the last rows may be padding.
#[target_feature(enable = "avx512f")]
#[inline]
fn finish<const N: usize>(out: &mut [f32], acc: [__m512; N], scale: f32) {
    for (out, acc) in out.chunks_mut(ROW_INTERLEAVE).zip(acc) {
        let acc = _mm512_mul_ps(acc, _mm512_set1_ps(scale));
        if let Some(out) = out.first_chunk_mut() {
            store_f32_512(out, acc);
            continue;
        }
        let mut rows = [0.0; ROW_INTERLEAVE];
        store_f32_512(&mut rows, acc);
        out.copy_from_slice(&rows[..out.len()]);
    }
}

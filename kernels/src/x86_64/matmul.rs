//! Products of several vectors, in registers of 256 bits. `generic` has the loops around them.
//!
//! A tile multiplies each line of the panel, 16 rows of 4 columns, with four codes of each of its
//! vectors. The integer sums of a group stay in registers. The sums of floats stay in memory: they
//! take part once a group.

use core::arch::x86_64::*;

use super::int4n;
use super::memory::{broadcast, load, load_f16, load_f32, prefetch_near, store, store_f32};
use crate::generic::{
    BYTE_PANEL, ByteBlock, FLOAT_PANEL, FloatBlock, GROUPS, Int4Lines, Int8Lines, IntBlock, Parts, RowSums,
    ShiftedBlock, corrections, float_columns, int_columns, matmul, steps,
};
use crate::layout::{Activation, DType, GROUP_SIZE, Matrix};

// Four vectors have eight registers of sums.
matmul!(
    "avx2,fma,f16c",
    matmul_int4,
    DType::Int4,
    [ByteBlock<8>; BYTE_PANEL],
    prefetch_near,
    decode_int4,
    tile_u4,
    4: [1 2 3 4]
);
matmul!(
    "avx2,fma,f16c",
    matmul_int4n,
    DType::Int4n,
    [ShiftedBlock<{ int4n::OFFSET }>; BYTE_PANEL],
    prefetch_near,
    decode_int4n,
    shifted_tile,
    4: [1 2 3 4]
);
matmul!(
    "avx2,fma,f16c",
    matmul_int8,
    DType::Int8,
    [NibbleBlock; BYTE_PANEL / 2],
    prefetch_near,
    decode_int8,
    tile_u8,
    2: [1 2]
);
matmul!(
    "avx2,fma,f16c",
    matmul_f16,
    DType::F16,
    [FloatBlock; FLOAT_PANEL],
    prefetch_near,
    decode_f16,
    float_tile,
    4: [1 2 3 4]
);
matmul!(
    "avx2,fma,f16c",
    matmul_f32,
    DType::F32,
    [FloatBlock; FLOAT_PANEL],
    prefetch_near,
    decode_f32,
    float_tile,
    4: [1 2 3 4]
);

/// Nibbles as bytes: codes + 8.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn decode_int4(block: &[u8; DType::Int4.block_bytes()], decoded: &mut ByteBlock<8>) {
    let parts = Parts::<4>::of(block);
    let low = _mm256_set1_epi8(15);
    for (lines, decoded) in parts.lines.iter().zip(&mut decoded.lines) {
        decode_lines(lines, decoded, |_, half| {
            [_mm256_and_si256(half, low), _mm256_and_si256(_mm256_srli_epi16::<4>(half), low)]
        });
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Codes of the table + [`OFFSET`](int4n::OFFSET).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_int4n(block: &[u8; DType::Int4n.block_bytes()], decoded: &mut ShiftedBlock<{ int4n::OFFSET }>) {
    let parts = Parts::<4>::of(block);
    for (lines, decoded) in parts.lines.iter().zip(&mut decoded.block.lines) {
        decode_lines(lines, decoded, |_, half| int4n::codes(half));
    }
    let scales = parts.scales.as_flattened().as_chunks().0;
    for (scales, shifts) in scales.iter().zip(decoded.shifts.as_flattened_mut().as_chunks_mut().0) {
        let twice = _mm256_slli_epi32::<1>(int4n::low_bits(scales));
        let shift = _mm256_sub_epi32(twice, _mm256_set1_epi32(int4n::SHIFTED_OFFSET));
        store_f32(shifts, _mm256_cvtepi32_ps(shift));
    }
    decode_scales(parts.scales, &mut decoded.block.scales);
}

/// Stores the bytes that `decode` makes of each half of a line, 8 rows: first of four columns, then
/// of the next four.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn decode_lines(
    lines: &Int4Lines,
    decoded: &mut Int8Lines,
    decode: impl Fn(usize, __m256i) -> [__m256i; 2],
) {
    for (line, [first, second]) in lines.iter().zip(decoded.as_chunks_mut::<2>().0) {
        let halves = first.as_chunks_mut().0.iter_mut().zip(second.as_chunks_mut().0);
        for (h, (half, (first, second))) in line.as_chunks().0.iter().zip(halves).enumerate() {
            let [low, high] = decode(h, load(half));
            store(first, low);
            store(second, high);
        }
    }
}

/// Two lines for each line of codes: the high nibbles of codes + 128, and the low ones.
type NibbleBlock = IntBlock<16, 128>;

/// The nibbles of codes + 128.
///
/// VPMADDUBSW saturates with larger weights. Nibbles need no sign either, which the product with
/// one vector moves from the weights to the codes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_int8(block: &[u8; DType::Int8.block_bytes()], decoded: &mut NibbleBlock) {
    let parts = Parts::<8>::of(block);
    let (low, sign) = (_mm256_set1_epi8(15), _mm256_set1_epi8(8));
    for (lines, decoded) in parts.lines.iter().zip(&mut decoded.lines) {
        for (line, [first, second]) in lines.iter().zip(decoded.as_chunks_mut::<2>().0) {
            let halves = first.as_chunks_mut().0.iter_mut().zip(second.as_chunks_mut().0);
            for (half, (first, second)) in line.as_chunks().0.iter().zip(halves) {
                let half = load(half);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(half), low);
                store(first, _mm256_xor_si256(high, sign));
                store(second, _mm256_and_si256(half, low));
            }
        }
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn decode_scales(scales: &[[u8; 32]; GROUPS], decoded: &mut [RowSums; GROUPS]) {
    store_halves(scales.as_flattened(), decoded.as_flattened_mut());
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_f16(block: &[u8; DType::F16.block_bytes()], decoded: &mut FloatBlock) {
    store_halves(block, decoded.0.as_flattened_mut().as_flattened_mut());
}

/// The values of fp16 numbers, eight at a time.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_halves(halves: &[u8], values: &mut [f32]) {
    for (halves, values) in halves.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        store_f32(values, load_f16(halves));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_f32(block: &[u8; DType::F32.block_bytes()], decoded: &mut FloatBlock) {
    let decoded = decoded.0.as_flattened_mut().as_flattened_mut().as_chunks_mut().0;
    for (values, decoded) in block.as_chunks().0.iter().zip(decoded) {
        store_f32(decoded, _mm256_castsi256_ps(load(values)));
    }
}

/// Weights are nibbles: codes + 8. The 16-bit sums reach 8 * 2 * 15 * 127 = 30480.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile_u4<const T: usize>(
    panel: &[ByteBlock<8>],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = int_columns(xs, first, panel.len());
    let corrections = corrections(&xs, panel);
    let ones = _mm256_set1_epi16(1);
    let quads = steps(GROUP_SIZE / 4);
    for (i, block) in panel.iter().enumerate() {
        for (g, (lines, scales)) in block.lines.iter().zip(&block.scales).enumerate() {
            let codes = xs.each_ref().map(|x| &x.codes[i][g]);
            let mut dots = [[_mm256_setzero_si256(); 2]; T];
            for (q, line) in lines.iter().take(quads).enumerate() {
                let weights = line.as_chunks().0;
                let weights = [load(&weights[0]), load(&weights[1])];
                for (dots, codes) in dots.iter_mut().zip(&codes) {
                    let codes = broadcast(&codes[q]);
                    dots[0] = _mm256_add_epi16(dots[0], _mm256_maddubs_epi16(weights[0], codes));
                    dots[1] = _mm256_add_epi16(dots[1], _mm256_maddubs_epi16(weights[1], codes));
                }
            }
            for t in 0..T {
                let correction = _mm256_set1_epi32(corrections[t][i][g]);
                let dots = [
                    _mm256_add_epi32(_mm256_madd_epi16(dots[t][0], ones), correction),
                    _mm256_add_epi32(_mm256_madd_epi16(dots[t][1], ones), correction),
                ];
                add_group(&mut sums[t], scales, xs[t].scales[i][g], dots);
            }
        }
    }
}

/// Weights are codes of the table + 32. The 16-bit sums of two lines reach 2 * 2 * 60 * 127 = 30480.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn shifted_tile<const T: usize>(
    panel: &[ShiftedBlock<{ int4n::OFFSET }>],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = int_columns(xs, first, panel.len());
    let ones = _mm256_set1_epi16(1);
    let pairs = steps(GROUP_SIZE / 8);
    for (i, ShiftedBlock { block, shifts }) in panel.iter().enumerate() {
        for (g, (lines, scales)) in block.lines.iter().zip(&block.scales).enumerate() {
            let codes = xs.each_ref().map(|x| &x.codes[i][g]);
            let mut dots = [[_mm256_setzero_si256(); 2]; T];
            for (q, [even, odd]) in lines.as_chunks::<2>().0.iter().take(pairs).enumerate() {
                let (even, odd) = (even.as_chunks().0, odd.as_chunks().0);
                let (even, odd) = ([load(&even[0]), load(&even[1])], [load(&odd[0]), load(&odd[1])]);
                for (dots, codes) in dots.iter_mut().zip(&codes) {
                    let (first, second) = (broadcast(&codes[2 * q]), broadcast(&codes[2 * q + 1]));
                    for h in 0..2 {
                        let first = _mm256_maddubs_epi16(even[h], first);
                        let second = _mm256_maddubs_epi16(odd[h], second);
                        let products = _mm256_madd_epi16(_mm256_add_epi16(first, second), ones);
                        dots[h] = _mm256_add_epi32(dots[h], products);
                    }
                }
            }
            for t in 0..T {
                let x = (xs[t].scales[i][g], xs[t].sums[i][g]);
                add_shifted_group(&mut sums[t], scales, &shifts[g], x, dots[t]);
            }
        }
    }
}

/// `sums + scales * scale * (dots + shifts * sum)`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_shifted_group(
    sums: &mut RowSums,
    scales: &RowSums,
    shifts: &RowSums,
    (scale, sum): (f32, i32),
    dots: [__m256i; 2],
) {
    let (scale, sum) = (_mm256_set1_ps(scale), _mm256_set1_ps(sum as f32));
    let factors = scales.as_chunks().0.iter().zip(shifts.as_chunks().0);
    for ((sums, (scales, shifts)), dot) in sums.as_chunks_mut().0.iter_mut().zip(factors).zip(dots) {
        let scales = _mm256_mul_ps(load_f32(scales), scale);
        let dot = _mm256_fmadd_ps(load_f32(shifts), sum, _mm256_cvtepi32_ps(dot));
        store_f32(sums, _mm256_fmadd_ps(scales, dot, load_f32(sums)));
    }
}

/// Weights are nibbles of codes + 128. The 16-bit sums are those of [`tile_u4`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile_u8<const T: usize>(
    panel: &[NibbleBlock],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = int_columns(xs, first, panel.len());
    let corrections = corrections(&xs, panel);
    let [ones, sixteens] = [_mm256_set1_epi16(1), _mm256_set1_epi16(16)];
    let quads = steps(GROUP_SIZE / 4);
    for (i, block) in panel.iter().enumerate() {
        for (g, (lines, scales)) in block.lines.iter().zip(&block.scales).enumerate() {
            let codes = xs.each_ref().map(|x| &x.codes[i][g]);
            let mut dots = [[_mm256_setzero_si256(); 4]; T];
            for (q, lines) in lines.as_chunks::<2>().0.iter().take(quads).enumerate() {
                let weights = lines.as_flattened().as_chunks().0;
                let weights = [load(&weights[0]), load(&weights[1]), load(&weights[2]), load(&weights[3])];
                for (dots, codes) in dots.iter_mut().zip(&codes) {
                    let codes = broadcast(&codes[q]);
                    for (dot, weights) in dots.iter_mut().zip(weights) {
                        *dot = _mm256_add_epi16(*dot, _mm256_maddubs_epi16(weights, codes));
                    }
                }
            }
            for t in 0..T {
                let correction = _mm256_set1_epi32(corrections[t][i][g]);
                let [a, b, c, d] = dots[t];
                let high = [_mm256_madd_epi16(a, sixteens), _mm256_madd_epi16(b, sixteens)];
                let low = [_mm256_madd_epi16(c, ones), _mm256_madd_epi16(d, ones)];
                let dots = [
                    _mm256_add_epi32(_mm256_add_epi32(high[0], low[0]), correction),
                    _mm256_add_epi32(_mm256_add_epi32(high[1], low[1]), correction),
                ];
                add_group(&mut sums[t], scales, xs[t].scales[i][g], dots);
            }
        }
    }
}

/// `sums + scales * scale * dots`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn add_group(sums: &mut RowSums, scales: &RowSums, scale: f32, dots: [__m256i; 2]) {
    let scale = _mm256_set1_ps(scale);
    for ((sums, scales), dot) in sums.as_chunks_mut().0.iter_mut().zip(scales.as_chunks().0).zip(dots) {
        let scales = _mm256_mul_ps(load_f32(scales), scale);
        store_f32(sums, _mm256_fmadd_ps(scales, _mm256_cvtepi32_ps(dot), load_f32(sums)));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn float_tile<const T: usize>(
    panel: &[FloatBlock],
    first: usize,
    xs: &[Activation<'_>; T],
    sums: &mut [RowSums; T],
) {
    let xs = float_columns(xs, first, panel.len());
    let columns = steps(GROUP_SIZE);
    for (i, block) in panel.iter().enumerate() {
        for (g, weights) in block.0.iter().enumerate() {
            let values = xs.each_ref().map(|x| &x[i][g]);
            let mut partial = [[_mm256_setzero_ps(); 2]; T];
            for (k, weights) in weights.iter().take(columns).enumerate() {
                let weights = weights.as_chunks().0;
                let weights = [load_f32(&weights[0]), load_f32(&weights[1])];
                for (partial, values) in partial.iter_mut().zip(&values) {
                    let x = _mm256_set1_ps(values[k]);
                    partial[0] = _mm256_fmadd_ps(weights[0], x, partial[0]);
                    partial[1] = _mm256_fmadd_ps(weights[1], x, partial[1]);
                }
            }
            for (sums, partial) in sums.iter_mut().zip(partial) {
                for (sums, partial) in sums.as_chunks_mut().0.iter_mut().zip(partial) {
                    store_f32(sums, _mm256_add_ps(load_f32(sums), partial));
                }
            }
        }
    }
}

//! Single records: decoded, and multiplied with a dense vector.

use crate::fp16;
use crate::layout::{Activation, DType, GROUP_SIZE, INT4N_TABLE, Records, int4n_shift, record_scale_bytes};
use crate::math::Fma;

/// Group `g` belongs to lane `g % DOT_LANES`.
pub(crate) const DOT_LANES: usize = 8;

#[inline(always)]
pub(crate) fn record_dots<F: Fma>(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
    for (out, &index) in out.iter_mut().zip(indices) {
        let mut lanes = [0.0; DOT_LANES];
        add_groups::<F>(&mut lanes, w, w.record(index as usize), 0, x);
        *out = dot_of_lanes(lanes) * w.scale();
    }
}

/// Adds groups `first..` of an Int4 record.
#[inline(always)]
pub(crate) fn add_groups<F: Fma>(
    lanes: &mut [f32; DOT_LANES],
    w: &Records<'_>,
    record: &[u8],
    first: usize,
    x: Activation<'_>,
) {
    let (runs, _) = record[record_scale_bytes(DType::Int4, w.record_len())..].as_chunks::<16>();
    let (codes, _) = x.codes.as_chunks::<GROUP_SIZE>();
    for g in first..w.record_len().div_ceil(GROUP_SIZE) {
        let (low, high) = codes[g].split_at(GROUP_SIZE / 2);
        let mut dot = 0i32;
        for ((&byte, &low), &high) in runs[g].iter().zip(low).zip(high) {
            dot += i32::from(byte & 15) * i32::from(low) + i32::from(byte >> 4) * i32::from(high);
        }
        let scale = fp16::read(record, g) * x.scales[g];
        let lane = &mut lanes[g % DOT_LANES];
        *lane = F::fma(scale, dot.wrapping_sub(x.sums[g].wrapping_mul(8)) as f32, *lane);
    }
}

/// The sum of the lanes: lane i and i + 4, then i + 2, then i + 1.
#[inline(always)]
pub(crate) fn dot_of_lanes([a, b, c, d, e, f, g, h]: [f32; DOT_LANES]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[inline(always)]
pub(crate) fn dequantize_record(out: &mut [f32], w: &Records<'_>, index: usize) {
    let record = w.record(index);
    let codes = &record[record_scale_bytes(w.dtype(), w.record_len())..];
    match w.dtype() {
        DType::F32 => {
            for (out, bytes) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes) * w.scale();
            }
        }
        DType::F16 => {
            for (out, bytes) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = fp16::to_f32(u16::from_le_bytes(*bytes)) * w.scale();
            }
        }
        DType::Int8 => {
            for (g, (out, run)) in out.chunks_mut(GROUP_SIZE).zip(codes.as_chunks::<32>().0).enumerate() {
                let scale = fp16::read(record, g) * w.scale();
                for (out, &code) in out.iter_mut().zip(run) {
                    *out = f32::from(code as i8) * scale;
                }
            }
        }
        DType::Int4 => dequantize_nibbles(out, w, record, |nibble, _| i32::from(nibble) - 8),
        DType::Int4n => dequantize_nibbles(out, w, record, |nibble, scale| {
            i32::from(INT4N_TABLE[usize::from(nibble)]) + int4n_shift(scale)
        }),
    }
}

/// `code` gives that of a nibble in a group with this scale.
#[inline(always)]
fn dequantize_nibbles(out: &mut [f32], w: &Records<'_>, record: &[u8], code: impl Fn(u8, u16) -> i32) {
    let runs = &record[record_scale_bytes(w.dtype(), w.record_len())..];
    for (g, (out, run)) in out.chunks_mut(GROUP_SIZE).zip(runs.as_chunks::<16>().0).enumerate() {
        let scale = fp16::read_bits(record, g);
        let factor = fp16::to_f32(scale) * w.scale();
        let nibbles = run.iter().map(|b| b & 15).chain(run.iter().map(|b| b >> 4));
        for (out, nibble) in out.iter_mut().zip(nibbles) {
            *out = code(nibble, scale) as f32 * factor;
        }
    }
}

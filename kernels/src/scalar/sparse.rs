//! Products of records with a sparse vector.

use crate::fp16;
use crate::layout::{GROUP_SIZE, Records, Sparse, record_scale_bytes};
use crate::math::{Fma, magnitude_bits, round_clamped};
use crate::table::SPARSE_TILE;

/// Output groups in a tile.
const TILE_GROUPS: usize = SPARSE_TILE / GROUP_SIZE;
/// Below this largest product the coefficients of a group are zero.
pub(crate) const ZERO_BELOW: f32 = f32::from_bits((127 - 100) << 23);

/// The largest coefficient for which `live` products with codes up to `largest_code` fit an `i32`.
#[inline(always)]
pub(crate) fn cmax(live: usize, largest_code: usize) -> f32 {
    let bound = (i32::MAX as usize / largest_code) / live.max(1);
    bound.clamp(1, 32767) as f32
}

pub(crate) fn sparse_f32<F: Fma>(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    sparse_float::<F, 4>(out, w, first, x, |bytes| f32::from_le_bytes(*bytes));
}

pub(crate) fn sparse_f16<F: Fma>(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    sparse_float::<F, 2>(out, w, first, x, |bytes| fp16::to_f32(u16::from_le_bytes(*bytes)));
}

#[inline(always)]
fn sparse_float<F: Fma, const BYTES: usize>(
    out: &mut [f32],
    w: &Records<'_>,
    first: usize,
    x: Sparse<'_>,
    weight: impl Fn(&[u8; BYTES]) -> f32,
) {
    out.fill(0.0);
    for (&j, &x) in x.indices.iter().zip(x.values) {
        let (weights, _) = w.record(j as usize)[BYTES * first..].as_chunks::<BYTES>();
        for (out, bytes) in out.iter_mut().zip(weights) {
            *out = F::fma(weight(bytes), x, *out);
        }
    }
    for out in out {
        *out *= w.scale();
    }
}

pub(crate) fn sparse_int8(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    let cmax = cmax(x.indices.len(), 127);
    let add = |acc: &mut [i32; GROUP_SIZE], run: &[u8; 32], c: i32| {
        for (acc, &code) in acc.iter_mut().zip(run) {
            *acc = acc.wrapping_add(c * i32::from(code as i8));
        }
    };
    sparse_quantized::<32>(out, w, first, x, cmax, 0, add);
}

pub(crate) fn sparse_int4(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    let cmax = cmax(x.indices.len(), 15);
    let add = |acc: &mut [i32; GROUP_SIZE], run: &[u8; 16], c: i32| {
        let (low, high) = acc.split_at_mut(16);
        for ((low, high), &codes) in low.iter_mut().zip(high).zip(run) {
            *low = low.wrapping_add(c * i32::from(codes & 15));
            *high = high.wrapping_add(c * i32::from(codes >> 4));
        }
    };
    sparse_quantized::<16>(out, w, first, x, cmax, 8, add);
}

/// `RUN` bytes hold the codes of a group, each stored as `code + offset`; `add` adds `c` times the stored codes.
#[inline(always)]
fn sparse_quantized<const RUN: usize>(
    out: &mut [f32],
    w: &Records<'_>,
    first: usize,
    x: Sparse<'_>,
    cmax: f32,
    offset: i32,
    add: impl Fn(&mut [i32; GROUP_SIZE], &[u8; RUN], i32),
) {
    let groups = out.len().div_ceil(GROUP_SIZE);
    let first_group = first / GROUP_SIZE;
    let runs_start = record_scale_bytes(w.dtype(), w.value_count());
    let product = |record: &[u8], x: f32, g: usize| x * fp16::read(record, first_group + g);

    let mut largest = [0u32; TILE_GROUPS];
    for (&j, &x) in x.indices.iter().zip(x.values) {
        let record = w.record(j as usize);
        for (g, largest) in largest[..groups].iter_mut().enumerate() {
            *largest = (*largest).max(magnitude_bits(product(record, x, g)));
        }
    }
    let largest = largest.map(f32::from_bits);
    let inverse = largest.map(|m| if m < ZERO_BELOW { 0.0 } else { cmax / m });

    let mut acc = [[0i32; GROUP_SIZE]; TILE_GROUPS];
    let mut coefficient_sums = [0i32; TILE_GROUPS];
    for (&j, &x) in x.indices.iter().zip(x.values) {
        let record = w.record(j as usize);
        let (runs, _) = record[runs_start..].as_chunks::<RUN>();
        for g in 0..groups {
            let c = round_clamped(product(record, x, g) * inverse[g], cmax);
            coefficient_sums[g] = coefficient_sums[g].wrapping_add(c);
            add(&mut acc[g], &runs[first_group + g], c);
        }
    }
    for (g, out) in out.chunks_mut(GROUP_SIZE).enumerate() {
        let correction = coefficient_sums[g].wrapping_mul(offset);
        let scale = (largest[g] / cmax) * w.scale();
        for (out, acc) in out.iter_mut().zip(acc[g]) {
            *out = acc.wrapping_sub(correction) as f32 * scale;
        }
    }
}

//! Products of records with a sparse vector.

use crate::fp16;
use crate::layout::{
    GROUP_SIZE, INT4N_TABLE, Records, Sparse, SparseScale, int4n_shift, record_scale_bytes, sparse_sums,
};
use crate::math::ZERO_BELOW;
use crate::math::{Fma, magnitude_bits, round_clamped};

/// Output groups of a block, whose sums stay in the L1 cache.
const BLOCK_GROUPS: usize = 64;

/// The largest magnitude of an Int4n code.
pub(crate) const LARGEST_INT4N: usize = 35;

/// The largest coefficient with which `active` products with codes up to `largest_code` fit an
/// `i32`.
#[inline(always)]
pub(crate) fn cmax(active: usize, largest_code: usize) -> f32 {
    let bound = (i32::MAX as usize / largest_code) / active.max(1);
    bound.clamp(1, 32767) as f32
}

#[inline(always)]
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, &x| m.max(magnitude_bits(x))))
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

pub(crate) fn accumulate_int8(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    let add = |acc: &mut [i32; GROUP_SIZE], run: &[u8; 32], c: i32| {
        for (acc, &code) in acc.iter_mut().zip(run) {
            *acc = acc.wrapping_add(c * i32::from(code as i8));
        }
    };
    accumulate::<32>(sums, w, x, scale, cmax(scale.active, 127), |_| 1, add);
}

pub(crate) fn accumulate_int4(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    let add = |acc: &mut [i32; GROUP_SIZE], run: &[u8; 16], c: i32| {
        let (low, high) = acc.split_at_mut(16);
        for ((low, high), &codes) in low.iter_mut().zip(high).zip(run) {
            *low = low.wrapping_add(c * i32::from(codes & 15));
            *high = high.wrapping_add(c * i32::from(codes >> 4));
        }
    };
    accumulate::<16>(sums, w, x, scale, cmax(scale.active, 15), |_| 1, add);
}

pub(crate) fn accumulate_int4n(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    let code = |nibble: u8| i32::from(INT4N_TABLE[usize::from(nibble)]);
    let add = |acc: &mut [i32; GROUP_SIZE], run: &[u8; 16], c: i32| {
        let (low, high) = acc.split_at_mut(16);
        for ((low, high), &codes) in low.iter_mut().zip(high).zip(run) {
            *low = low.wrapping_add(c * code(codes & 15));
            *high = high.wrapping_add(c * code(codes >> 4));
        }
    };
    accumulate::<16>(sums, w, x, scale, cmax(scale.active, LARGEST_INT4N), int4n_shift, add);
}

pub(crate) fn finish_int8(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, 127), 0);
}

pub(crate) fn finish_int4(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, 15), 8);
}

pub(crate) fn finish_int4n(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, LARGEST_INT4N), -1);
}

/// Adds to partial sums: those of the outputs, then those of each group's coefficients, times what
/// `factor` gives for the scale. `RUN` bytes hold the codes of a group. `add` adds `c` times the
/// codes as stored, or as the table has them.
#[inline(always)]
fn accumulate<const RUN: usize>(
    sums: &mut [i32],
    w: &Records<'_>,
    x: Sparse<'_>,
    scale: SparseScale<'_>,
    cmax: f32,
    factor: impl Fn(u16) -> i32,
    add: impl Fn(&mut [i32; GROUP_SIZE], &[u8; RUN], i32),
) {
    let runs_start = record_scale_bytes(w.dtype(), w.record_len());
    let (outputs, coefficient_sums) = split_sums(sums);
    let blocks = scale.bounds.chunks(BLOCK_GROUPS);
    let sums = outputs.chunks_mut(BLOCK_GROUPS).zip(coefficient_sums.chunks_mut(BLOCK_GROUPS));
    for (first, (bounds, (acc, coefficient_sums))) in (0..).step_by(BLOCK_GROUPS).zip(blocks.zip(sums)) {
        let mut inverse = [0.0; BLOCK_GROUPS];
        for (inverse, &bound) in inverse.iter_mut().zip(bounds) {
            let m = scale.largest * bound;
            *inverse = if m < ZERO_BELOW { 0.0 } else { cmax / m };
        }
        for (&j, &x) in x.indices.iter().zip(x.values) {
            let record = w.record(j as usize);
            let (runs, _) = record[runs_start..].as_chunks::<RUN>();
            for g in 0..bounds.len() {
                let scale = fp16::read_bits(record, first + g);
                let c = round_clamped((x * fp16::to_f32(scale)) * inverse[g], cmax);
                coefficient_sums[g] = coefficient_sums[g].wrapping_add(c * factor(scale));
                add(&mut acc[g], &runs[first + g], c);
            }
        }
    }
}

/// The sums of outputs have `offset` times the group's sum too much.
#[inline(always)]
fn finish(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>, cmax: f32, offset: i32) {
    let each = sparse_sums(w.record_len());
    let first_coefficient = each / (GROUP_SIZE + 1) * GROUP_SIZE;
    let total = |i: usize| sums.chunks_exact(each).fold(0i32, |sum, part| sum.wrapping_add(part[i]));
    for (g, (out, &bound)) in out.chunks_mut(GROUP_SIZE).zip(scale.bounds).enumerate() {
        let correction = total(first_coefficient + g).wrapping_mul(offset);
        let factor = ((scale.largest * bound) / cmax) * w.scale();
        for (i, out) in (g * GROUP_SIZE..).zip(out) {
            *out = total(i).wrapping_sub(correction) as f32 * factor;
        }
    }
}

/// The sums of each group's outputs, and of its coefficients.
pub(crate) fn split_sums(sums: &mut [i32]) -> (&mut [[i32; GROUP_SIZE]], &mut [i32]) {
    let (outputs, coefficients) = sums.split_at_mut(sums.len() / (GROUP_SIZE + 1) * GROUP_SIZE);
    (outputs.as_chunks_mut().0, coefficients)
}

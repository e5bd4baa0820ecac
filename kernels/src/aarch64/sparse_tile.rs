//! The coefficients of a sparse vector for a block of outputs of its product with quantized
//! records.
//!
//! They are computed for all groups of a set before its codes are read: the scales of a record lie
//! together, and the loop over codes is left with integers alone. Eight groups of eight records go
//! through registers and are transposed, so that the coefficients of a group lie beside each other.

use core::arch::aarch64::*;

use super::int4n;
use super::memory::{load_f16, load_f32, load_i32, store_i16, store_i32};
use super::shim::prefetch_all;
use crate::layout::{Records, Sparse, SparseScale, record_scale_bytes};
use crate::math::ROUNDER;
use crate::math::ZERO_BELOW;
use crate::scalar::sparse::cmax;

/// Records in a set.
pub(super) const SET_SIZE: usize = 8;
/// Output groups in a block.
pub(super) const BLOCK_GROUPS: usize = 128;

/// Coefficients of a set's records, for every group of a block.
pub(super) type Coefficients = [[i16; SET_SIZE]; BLOCK_GROUPS];

/// A block of neighbouring outputs, for some entries of the vector.
pub(super) struct OutputBlock<'a> {
    w: &'a Records<'a>,
    x: Sparse<'a>,
    first_group: usize,
    /// Number of groups.
    pub(super) groups: usize,
    cmax: f32,
    inverse: [f32; BLOCK_GROUPS],
}

impl<'a> OutputBlock<'a> {
    /// The block of the groups from `first_group` on.
    pub(super) fn new(
        w: &'a Records<'a>,
        x: Sparse<'a>,
        scale: SparseScale<'a>,
        first_group: usize,
        largest_code: usize,
    ) -> Self {
        let cmax = cmax(scale.active, largest_code);
        let bounds = &scale.bounds[first_group..];
        let mut inverse = [0.0; BLOCK_GROUPS];
        for (inverse, &bound) in inverse.iter_mut().zip(bounds) {
            let m = scale.largest * bound;
            *inverse = if m < ZERO_BELOW { 0.0 } else { cmax / m };
        }
        Self { w, x, first_group, groups: bounds.len().min(BLOCK_GROUPS), cmax, inverse }
    }

    pub(super) fn sets(&self) -> usize {
        self.x.indices.len().div_ceil(SET_SIZE)
    }

    /// The records of set `s`. Where there are none left, the last one again.
    #[inline(always)]
    fn records(&self, s: usize) -> [&'a [u8]; SET_SIZE] {
        let last = self.x.indices.len() - 1;
        core::array::from_fn(|k| self.w.record(self.x.indices[last.min(SET_SIZE * s + k)] as usize))
    }

    /// The codes of set `s`, `RUN` bytes for each group.
    #[inline(always)]
    pub(super) fn codes<const RUN: usize>(&self, s: usize) -> [&'a [[u8; RUN]]; SET_SIZE] {
        let start = record_scale_bytes(self.w.dtype(), self.w.record_len());
        self.records(s).map(|record| &record[start..].as_chunks().0[self.first_group..][..self.groups])
    }

    /// Sets the coefficients of set `s`, 0 where there are no entries left, and adds them to the
    /// coefficient sums: each times the shift of its group if `SHIFTED`. Prefetches the scales of the
    /// next set.
    #[target_feature(enable = "neon")]
    pub(super) fn coefficients<const SHIFTED: bool>(
        &self,
        s: usize,
        out: &mut Coefficients,
        sums: &mut [[i32; 8]],
    ) {
        let mut x = [0.0; SET_SIZE];
        x.iter_mut().zip(&self.x.values[SET_SIZE * s..]).for_each(|(x, &value)| *x = value);
        let records = self.records(s).map(|record| &record[2 * self.first_group..]);
        for later in self.records(s + 1) {
            prefetch_all(&later[2 * self.first_group..][..2 * self.groups]);
        }
        let limits = [vdupq_n_f32(-self.cmax), vdupq_n_f32(self.cmax)];
        let inverse = self.inverse.as_chunks::<4>().0.as_chunks::<2>().0;
        for (i, ((out, sums), inverse)) in
            out.as_chunks_mut::<8>().0.iter_mut().zip(sums).zip(inverse).enumerate()
        {
            let inverse = [load_f32(&inverse[0]), load_f32(&inverse[1])];
            let (sums, _) = sums.as_chunks_mut::<4>();
            let mut total = [load_i32(&sums[0]), load_i32(&sums[1])];
            let mut rows = [vdupq_n_s16(0); SET_SIZE];
            for ((row, record), &x) in rows.iter_mut().zip(records).zip(&x) {
                // A record always has 16 bytes from any eighth scale on.
                let scales = &record.as_chunks().0[i];
                let [a, b] = load_f16(scales);
                let a = round(vmulq_f32(vmulq_n_f32(a, x), inverse[0]), limits);
                let b = round(vmulq_f32(vmulq_n_f32(b, x), inverse[1]), limits);
                *row = vcombine_s16(vmovn_s32(a), vmovn_s32(b));
                total = if SHIFTED {
                    let shifts = int4n::shifts(scales);
                    let low = vmlal_s16(total[0], vget_low_s16(*row), vget_low_s16(shifts));
                    [low, vmlal_high_s16(total[1], *row, shifts)]
                } else {
                    [vaddq_s32(total[0], a), vaddq_s32(total[1], b)]
                };
            }
            store_i32(&mut sums[0], total[0]);
            store_i32(&mut sums[1], total[1]);
            for (out, column) in out.iter_mut().zip(transpose(rows)) {
                store_i16(out, column);
            }
        }
    }
}

/// Clamped to the limits and rounded to nearest even; the lower one for a NaN.
#[target_feature(enable = "neon")]
#[inline]
fn round(c: float32x4_t, [low, high]: [float32x4_t; 2]) -> int32x4_t {
    let c = vbslq_f32(vcgtq_f32(c, low), c, low);
    let c = vbslq_f32(vcltq_f32(c, high), c, high);
    let rounder = vdupq_n_f32(ROUNDER);
    vsubq_s32(vreinterpretq_s32_f32(vaddq_f32(c, rounder)), vreinterpretq_s32_f32(rounder))
}

/// Lane `i` of register `k` to lane `k` of register `i`.
#[target_feature(enable = "neon")]
#[inline]
fn transpose(rows: [int16x8_t; 8]) -> [int16x8_t; 8] {
    let mut x = rows;
    for [a, b] in x.as_chunks_mut::<2>().0 {
        (*a, *b) = (vtrn1q_s16(*a, *b), vtrn2q_s16(*a, *b));
    }
    let mut x = x.map(|row| vreinterpretq_s32_s16(row));
    for [a, b, c, d] in x.as_chunks_mut::<4>().0 {
        (*a, *c) = (vtrn1q_s32(*a, *c), vtrn2q_s32(*a, *c));
        (*b, *d) = (vtrn1q_s32(*b, *d), vtrn2q_s32(*b, *d));
    }
    let [a, b, c, d, e, f, g, h] = x.map(|row| vreinterpretq_s64_s32(row));
    [
        vtrn1q_s64(a, e),
        vtrn1q_s64(b, f),
        vtrn1q_s64(c, g),
        vtrn1q_s64(d, h),
        vtrn2q_s64(a, e),
        vtrn2q_s64(b, f),
        vtrn2q_s64(c, g),
        vtrn2q_s64(d, h),
    ]
    .map(|column| vreinterpretq_s16_s64(column))
}

//! The arithmetic of error feedback. Levels compile these bodies again, with registers of their own.

use super::{GroupRows, Outputs, Rounded, Rows, Tile};
use crate::layout::{GROUP_SIZE, INT4N_TABLE, ROW_INTERLEAVE, int4n_shift};
use crate::quant::group::{round, scale_and_inverse};
use crate::quant::int4n::BOUNDARIES;

/// Adds to each target the errors of a group: `targets[i] += sum(factors[i][j] * errors[j])`, with
/// `j` ascending.
#[inline(always)]
pub(crate) fn carry_rows(targets: &mut [Rows], errors: &[Rows; GROUP_SIZE], factors: &[[f32; GROUP_SIZE]]) {
    carry::<ROW_INTERLEAVE, 4>(targets, errors, factors);
}

/// The same for outputs.
#[inline(always)]
pub(crate) fn carry_outputs(
    targets: &mut [Outputs],
    errors: &[Outputs; GROUP_SIZE],
    factors: &[[f32; GROUP_SIZE]],
) {
    carry::<GROUP_SIZE, 2>(targets, errors, factors);
}

/// `AT_ONCE` targets stay in registers.
#[inline(always)]
fn carry<const LANES: usize, const AT_ONCE: usize>(
    targets: &mut [[f32; LANES]],
    errors: &[[f32; LANES]; GROUP_SIZE],
    factors: &[[f32; GROUP_SIZE]],
) {
    let (targets, last_targets) = targets.as_chunks_mut::<AT_ONCE>();
    let (factors, last_factors) = factors.as_chunks::<AT_ONCE>();
    for (targets, factors) in targets.iter_mut().zip(factors) {
        carry_to(targets, errors, factors);
    }
    for (target, factors) in last_targets.iter_mut().zip(last_factors) {
        carry_to(core::array::from_mut(target), errors, core::array::from_ref(factors));
    }
}

#[inline(always)]
fn carry_to<const LANES: usize, const AT_ONCE: usize>(
    targets: &mut [[f32; LANES]; AT_ONCE],
    errors: &[[f32; LANES]; GROUP_SIZE],
    factors: &[[f32; GROUP_SIZE]; AT_ONCE],
) {
    let mut sums = *targets;
    for (j, errors) in errors.iter().enumerate() {
        for (sums, factors) in sums.iter_mut().zip(factors) {
            let factor = factors[j];
            for (sum, error) in sums.iter_mut().zip(errors) {
                *sum += factor * error;
            }
        }
    }
    *targets = sums;
}

/// The scales of a group of each row.
struct Scales {
    values: Rows,
    inverses: Rows,
    shifts: Rows,
}

impl Scales {
    #[inline(always)]
    fn new(scales: &[u16; ROW_INTERLEAVE]) -> Self {
        let mut out = Self { values: [0.0; 16], inverses: [0.0; 16], shifts: [0.0; 16] };
        for (i, &scale) in scales.iter().enumerate() {
            (out.values[i], out.inverses[i]) = scale_and_inverse(scale);
            out.shifts[i] = int4n_shift(scale) as f32;
        }
        out
    }
}

/// The nearest codes of values, as each type of weights defines them.
trait Codes {
    fn nearest(values: &Rows, scales: &Scales) -> Rows;
}

/// Linear codes of at most `-LOWEST` and `HIGHEST`.
struct Linear<const LOWEST: i8, const HIGHEST: i8>;

impl<const LOWEST: i8, const HIGHEST: i8> Codes for Linear<LOWEST, HIGHEST> {
    #[inline(always)]
    fn nearest(values: &Rows, scales: &Scales) -> Rows {
        let mut codes = [0.0; ROW_INTERLEAVE];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = round(values[i] * scales.inverses[i], f32::from(LOWEST), f32::from(HIGHEST));
        }
        codes
    }
}

/// Codes of the table.
struct Table;

impl Codes for Table {
    #[inline(always)]
    fn nearest(values: &Rows, scales: &Scales) -> Rows {
        let mut steps = [0.0; ROW_INTERLEAVE];
        let mut codes = [0.0; ROW_INTERLEAVE];
        for i in 0..ROW_INTERLEAVE {
            let (factor, offset) = (2.0 * scales.inverses[i], -2.0 * scales.shifts[i] - 0.5);
            steps[i] = round(values[i] * factor + offset, -64.0, 63.0);
            codes[i] = f32::from(INT4N_TABLE[0]) + scales.shifts[i];
        }
        for (k, boundary) in BOUNDARIES.into_iter().enumerate() {
            let more = f32::from(INT4N_TABLE[k + 1] - INT4N_TABLE[k]);
            for (code, &step) in codes.iter_mut().zip(&steps) {
                *code += if step >= f32::from(boundary) { more } else { 0.0 };
            }
        }
        codes
    }
}

/// Rounds a group of Int8 with given scales.
#[inline(always)]
pub(crate) fn round_int8(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) {
    round_group::<Linear<-127, 127>>(group, scales, rounded);
}

/// Rounds a group of Int4 with given scales.
#[inline(always)]
pub(crate) fn round_int4(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) {
    round_group::<Linear<-8, 7>>(group, scales, rounded);
}

/// Rounds a group of Int4n with given scales.
#[inline(always)]
pub(crate) fn round_int4n(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) {
    round_group::<Table>(group, scales, rounded);
}

#[inline(always)]
fn round_group<C: Codes>(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) {
    let scales = Scales::new(scales);
    let mut losses = [0.0; ROW_INTERLEAVE];
    for i in 0..GROUP_SIZE {
        let mut targets = group.targets[i];
        for (factor, errors) in group.factors[i][..i].iter().zip(&rounded.errors) {
            for (target, error) in targets.iter_mut().zip(errors) {
                *target += factor * error;
            }
        }
        let codes = C::nearest(&targets, &scales);
        for r in 0..ROW_INTERLEAVE {
            let weight = codes[r] * scales.values[r];
            let miss = targets[r] - weight;
            rounded.errors[i][r] = group.weights[i][r] - weight;
            losses[r] += (group.d[i] * miss) * miss;
        }
        rounded.codes[i] = codes;
    }
    rounded.losses = losses;
}

/// Positions whose factors are converted at a time.
const RUN: usize = 64;

/// As [`Kernels::subtract_products`](crate::Kernels::subtract_products).
#[inline(always)]
pub(crate) fn subtract_products(
    tile: &mut Tile,
    a: &[[f32; GROUP_SIZE]],
    b: &[[f32; GROUP_SIZE]],
    d: &[f32],
) {
    /// Sums that stay in registers.
    const A: usize = 8;
    const B: usize = 4;
    let mut wide_a = [[[0.0f64; A]; GROUP_SIZE / A]; RUN];
    let mut wide_b = [[[0.0f64; B]; GROUP_SIZE / B]; RUN];
    for ((a, b), d) in a.chunks(RUN).zip(b.chunks(RUN)).zip(d.chunks(RUN)) {
        for (k, &d) in d.iter().enumerate() {
            for (wide, &a) in wide_a[k].as_flattened_mut().iter_mut().zip(&a[k]) {
                *wide = f64::from(a);
            }
            for (wide, &b) in wide_b[k].as_flattened_mut().iter_mut().zip(&b[k]) {
                *wide = f64::from(b) * f64::from(d);
            }
        }
        for (i, rows) in tile.as_chunks_mut::<B>().0.iter_mut().enumerate() {
            for j in 0..GROUP_SIZE / A {
                let mut sums = [[0.0; A]; B];
                for (sums, row) in sums.iter_mut().zip(&*rows) {
                    *sums = row.as_chunks().0[j];
                }
                for (a, b) in wide_a[..d.len()].iter().zip(&wide_b) {
                    let (a, b) = (&a[j], &b[i]);
                    for (sums, b) in sums.iter_mut().zip(b) {
                        for (sum, a) in sums.iter_mut().zip(a) {
                            *sum -= a * b;
                        }
                    }
                }
                for (sums, row) in sums.iter().zip(&mut *rows) {
                    row.as_chunks_mut().0[j] = *sums;
                }
            }
        }
    }
}

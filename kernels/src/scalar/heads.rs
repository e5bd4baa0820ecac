//! What the time mixing of RWKV-5, 6 and 7 needs: the recurrences of a head and the functions around them.

use core::ops::Range;

use super::norm::{LANES, fold_lanes, tree};
use crate::math::{Fma, max};

/// The smallest norm to divide by.
const NORM_FLOOR: f32 = 1e-12;
/// The logarithm of the fastest decay of RWKV-7.
const DECAY7: f32 = -0.606_531;
/// Values of a head that go by together.
const STRIP: usize = 64;

#[inline(always)]
pub(crate) fn wkv6<F: Fma>(
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    k: &[f32],
    v: &[f32],
    u: &[f32],
    w: &[f32],
) {
    wkv6_columns::<F>(0..y.len(), y, state, r, k, v, u, w);
}

/// [`wkv6`] for some of the values.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
pub(crate) fn wkv6_columns<F: Fma>(
    columns: Range<usize>,
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    k: &[f32],
    v: &[f32],
    u: &[f32],
    w: &[f32],
) {
    let n = y.len();
    let (y, v) = (&mut y[columns.clone()], &v[columns.clone()]);
    y.fill(0.0);
    for ((((row, &r), &k), &u), &w) in state.chunks_exact_mut(n.max(1)).zip(r).zip(k).zip(u).zip(w) {
        let row = &mut row[columns.clone()];
        for ((s, y), &v) in row.iter_mut().zip(y.iter_mut()).zip(v) {
            let kv = k * v;
            *y = F::fma(r, F::fma(u, kv, *s), *y);
            *s = F::fma(w, *s, kv);
        }
        F::settle(row);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
pub(crate) fn wkv7<F: Fma>(
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    w: &[f32],
    k: &[f32],
    v: &[f32],
    kk: &[f32],
    a: &[f32],
) {
    wkv7_columns::<F>(0..y.len(), y, state, r, w, k, v, kk, a);
}

/// [`wkv7`] for some of the values.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
pub(crate) fn wkv7_columns<F: Fma>(
    columns: Range<usize>,
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    w: &[f32],
    k: &[f32],
    v: &[f32],
    kk: &[f32],
    a: &[f32],
) {
    let n = y.len();
    for start in columns.clone().step_by(STRIP) {
        let strip = start..columns.end.min(start + STRIP);
        let (y, v) = (&mut y[strip.clone()], &v[strip.clone()]);
        let mut removed = [0.0f32; STRIP];
        for (row, &kk) in state.chunks_exact(n).zip(kk) {
            for (removed, &s) in removed.iter_mut().zip(&row[strip.clone()]) {
                *removed = F::fma(s, kk, *removed);
            }
        }
        y.fill(0.0);
        let rows = state.chunks_exact_mut(n).zip(r).zip(w).zip(k).zip(kk).zip(a);
        for (((((row, &r), &w), &k), &kk), &a) in rows {
            let b = kk * a;
            let row = &mut row[strip.clone()];
            for (((s, y), &v), &removed) in row.iter_mut().zip(y.iter_mut()).zip(v).zip(&removed) {
                *s = F::fma(k, v, F::fma(-removed, b, *s * w));
                *y = F::fma(*s, r, *y);
            }
            F::settle(row);
        }
    }
}

#[inline(always)]
pub(crate) fn tanh<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::tanh(*x));
}

#[inline(always)]
pub(crate) fn sigmoid<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::sigmoid(*x));
}

#[inline(always)]
pub(crate) fn decay6<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::exp(-F::exp(*x)));
}

#[inline(always)]
pub(crate) fn decay7<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::exp(DECAY7 * F::sigmoid(*x)));
}

#[inline(always)]
pub(crate) fn silu_mul<F: Fma>(out: &mut [f32], gate: &[f32], x: &[f32]) {
    for ((out, &gate), &x) in out.iter_mut().zip(gate).zip(x) {
        *out = (gate * F::sigmoid(gate)) * x;
    }
}

#[inline(always)]
pub(crate) fn mul(out: &mut [f32], a: &[f32], b: &[f32]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = a * b;
    }
}

#[inline(always)]
pub(crate) fn l2_normalize<F: Fma>(x: &mut [f32]) {
    let squares = fold_lanes(x, 0.0, |acc, v| F::fma(v, v, acc));
    // In this order a NaN passes.
    let norm = max(NORM_FLOOR, tree(squares, |a, b| a + b).sqrt());
    x.iter_mut().for_each(|x| *x /= norm);
}

#[inline(always)]
pub(crate) fn dot3<F: Fma>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for ((a, b), c) in a.chunks(LANES).zip(b.chunks(LANES)).zip(c.chunks(LANES)) {
        for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane = F::fma(a * b, c, *lane);
        }
    }
    tree(lanes, |a, b| a + b)
}

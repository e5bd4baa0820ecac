//! The recurrences: one step of RWKV-4 for all channels, and of RWKV-5, 6 and 7 for one head.

use core::ops::Range;

use crate::math::{Fma, max, settled};

/// Values of a head that [`wkv7_columns`] updates together.
const STRIP: usize = 64;

/// The factors `e^(a - m)` and `e^(b - m)` for `m` the larger of `a` and `b`, given `d = a - b`.
#[inline(always)]
fn factors<F: Fma>(d: f32) -> (f32, f32) {
    let e = F::exp(-d.abs());
    if d >= 0.0 { (1.0, e) } else { (e, 1.0) }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
pub(crate) fn wkv4<F: Fma>(
    y: &mut [f32],
    k: &[f32],
    v: &[f32],
    time_first: &[f32],
    time_decay: &[f32],
    aa: &mut [f32],
    bb: &mut [f32],
    pp: &mut [f32],
) {
    let n = y.len();
    let (k, v, time_first, time_decay) = (&k[..n], &v[..n], &time_first[..n], &time_decay[..n]);
    let (aa, bb, pp) = (&mut aa[..n], &mut bb[..n], &mut pp[..n]);
    for i in 0..n {
        let (e1, e2) = factors::<F>(pp[i] - (time_first[i] + k[i]));
        y[i] = F::fma(e1, aa[i], e2 * v[i]) / F::fma(e1, bb[i], e2);

        let decayed = pp[i] + time_decay[i];
        let (e1, e2) = factors::<F>(decayed - k[i]);
        aa[i] = settled(F::fma(e1, aa[i], e2 * v[i]));
        bb[i] = F::fma(e1, bb[i], e2);
        pp[i] = max(decayed, k[i]);
    }
}

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

/// [`wkv6`] for the values in `columns`.
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

/// [`wkv7`] for the values in `columns`.
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

//! The recurrence of RWKV-4.

use crate::math::{Fma, max, settled};

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

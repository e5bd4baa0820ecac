//! Layer norm, token shift and quantization in one pass.

use super::activation::{lerp, quantize_group};
use super::norm::Moments;
use crate::layout::{GROUP_SIZE, Normed, Shift, Shifted};
use crate::math::Fma;

/// As [`Kernels::norm_shift`](crate::Kernels::norm_shift).
pub(super) fn norm_shift<F: Fma>(
    h: &mut [f32],
    x: Normed<'_>,
    h_prev: &[f32],
    shift: Shift,
    outs: &mut [Shifted<'_, '_>],
) {
    let moments = Moments::of::<F>(x.x, x.eps);
    for g in 0..h.len() / GROUP_SIZE {
        let group = |x: &[f32]| x.as_chunks::<GROUP_SIZE>().0[g];
        // In arrays of their own, which the compiler knows not to overlap.
        let mut normed = [0.0; GROUP_SIZE];
        moments.normalize::<F>(&mut normed, &group(x.x), &group(x.weight), &group(x.bias));
        h.as_chunks_mut().0[g] = normed;
        let (from, to) = ends(shift, normed, group(h_prev));
        for Shifted { mix, out } in &mut *outs {
            let mut mixed = [0.0; GROUP_SIZE];
            lerp::<F>(&mut mixed, &from, &to, &group(mix));
            out.values.as_chunks_mut().0[g] = mixed;
            (out.scales[g], out.sums[g]) = quantize_group(&mixed, &mut out.codes.as_chunks_mut().0[g]);
        }
    }
    shift_rest::<F>(moments, h, x, h_prev, shift, outs);
}

/// What is left after whole groups, and the padding.
pub(crate) fn shift_rest<F: Fma>(
    moments: Moments,
    h: &mut [f32],
    x: Normed<'_>,
    h_prev: &[f32],
    shift: Shift,
    outs: &mut [Shifted<'_, '_>],
) {
    let whole = h.len() / GROUP_SIZE;
    let at = whole * GROUP_SIZE;
    let h = &mut h[at..];
    moments.normalize::<F>(h, &x.x[at..], &x.weight[at..], &x.bias[at..]);
    let (from, to) = ends(shift, &*h, &h_prev[at..]);
    for Shifted { mix, out } in outs {
        lerp::<F>(&mut out.values[at..mix.len()], from, to, &mix[at..]);
        for (g, values) in out.values.as_chunks().0.iter().enumerate().skip(whole) {
            (out.scales[g], out.sums[g]) = quantize_group(values, &mut out.codes.as_chunks_mut().0[g]);
        }
    }
}

/// Where the mixes begin and end.
#[inline(always)]
pub(crate) fn ends<T>(shift: Shift, h: T, h_prev: T) -> (T, T) {
    match shift {
        Shift::Current => (h_prev, h),
        Shift::Previous => (h, h_prev),
    }
}

//! Layer norm, token shift and quantization.

use super::activation::{lerp, quantize};
use super::norm::layer_norm;
use crate::layout::{Normed, Shift, Shifted};
use crate::math::Fma;

/// As [`Kernels::norm_shift`](crate::Kernels::norm_shift), one operation after the other: compilers make more of whole
/// vectors, which are in the first cache, than of their groups.
pub(super) fn norm_shift<F: Fma>(
    h: &mut [f32],
    x: Normed<'_>,
    h_prev: &[f32],
    shift: Shift,
    outs: &mut [Shifted<'_, '_>],
) {
    layer_norm::<F>(h, x.x, x.weight, x.bias, x.eps);
    let (from, to) = ends(shift, &*h, h_prev);
    for Shifted { mix, out } in outs {
        lerp::<F>(&mut out.values[..mix.len()], from, to, mix);
        quantize(out);
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

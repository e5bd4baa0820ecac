//! Layer norm, token shift and quantization.

use super::activation::{lerp, quantize};
use super::norm::layer_norm;
use crate::layout::{Normed, Shift, Shifted};
use crate::math::Fma;

/// One operation after the other. Compilers vectorise passes over whole vectors, which are in the
/// L1 cache, better than passes over their groups (`docs/DESIGN.md`, Layer norm, token shift and
/// quantization in one pass).
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

/// The ends between which a mix interpolates: at 0 and at 1.
#[inline(always)]
pub(crate) fn ends<T>(shift: Shift, h: T, h_prev: T) -> (T, T) {
    match shift {
        Shift::Current => (h_prev, h),
        Shift::Previous => (h, h_prev),
    }
}

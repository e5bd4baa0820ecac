//! Element-wise operations and activation quantization.

use crate::layout::{ActivationMut, GROUP_SIZE};
use crate::math::{Fma, ZERO_BELOW, magnitude_bits, round_clamped};

/// The logarithm of the fastest decay of RWKV-7.
const DECAY7: f32 = -0.606_531;

#[inline(always)]
pub(crate) fn quantize(x: &mut ActivationMut<'_>) {
    let (values, _) = x.values.as_chunks::<GROUP_SIZE>();
    let (codes, _) = x.codes.as_chunks_mut::<GROUP_SIZE>();
    for (((values, codes), scale), sum) in
        values.iter().zip(codes).zip(x.scales.iter_mut()).zip(x.sums.iter_mut())
    {
        (*scale, *sum) = quantize_group(values, codes);
    }
}

#[inline(always)]
fn quantize_group(values: &[f32; GROUP_SIZE], codes: &mut [i8; GROUP_SIZE]) -> (f32, i32) {
    let amax = f32::from_bits(values.iter().fold(0, |m, &v| m.max(magnitude_bits(v))));
    if amax < ZERO_BELOW {
        codes.fill(0);
        return (0.0, 0);
    }
    let inverse = 127.0 / amax;
    let mut sum = 0;
    for (code, &value) in codes.iter_mut().zip(values) {
        let q = round_clamped(value * inverse, 127.0);
        *code = q as i8;
        sum += q;
    }
    (amax / 127.0, sum)
}

#[inline(always)]
pub(crate) fn lerp<F: Fma>(out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]) {
    for (((out, &a), &b), &t) in out.iter_mut().zip(a).zip(b).zip(t) {
        *out = F::fma(t, b - a, a);
    }
}

#[inline(always)]
pub(crate) fn relu_squared(x: &mut [f32]) {
    for x in x {
        let positive = crate::math::max(*x, 0.0);
        *x = positive * positive;
    }
}

#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
pub(crate) fn mul(out: &mut [f32], a: &[f32], b: &[f32]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = a * b;
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
pub(crate) fn silu_mul<F: Fma>(out: &mut [f32], gate: &[f32], x: &[f32]) {
    for ((out, &gate), &x) in out.iter_mut().zip(gate).zip(x) {
        *out = (gate * F::sigmoid(gate)) * x;
    }
}

#[inline(always)]
pub(crate) fn decay6<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::exp(-F::exp(*x)));
}

#[inline(always)]
pub(crate) fn decay7<F: Fma>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = F::exp(DECAY7 * F::sigmoid(*x)));
}

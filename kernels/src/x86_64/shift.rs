//! Layer norm, token shift and quantization in one pass (`docs/DESIGN.md`, Layer norm, token shift
//! and quantization in one pass).
//!
//! ```text
//! mean and spread of x                               a pass of its own
//! for each group of 32 elements, in registers
//!     h = normalised x
//!     for each output
//!         v = lerp of h and h_prev                   stored as values
//!         codes, scale, sum = quantized v
//! ```
//!
//! A group is in registers from its load until its codes are stored, and `h - h_prev` is computed
//! once for all outputs.

use core::arch::x86_64::*;

use super::memory::{load_f32, store_f32};
use super::quantize::{quantize_group, quantize_registers};
use crate::layout::{GROUP_SIZE, Normed, Shift, Shifted};
use crate::math::MulAdd;
use crate::scalar::{Moments, ends, lerp};

/// A group in registers.
type Group = [__m256; GROUP_SIZE / 8];

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn norm_shift(
    h: &mut [f32],
    x: Normed<'_>,
    h_prev: &[f32],
    shift: Shift,
    outs: &mut [Shifted<'_, '_>],
) {
    let moments = Moments::of::<MulAdd>(x.x, x.eps);
    let [mean, inverse] = [moments.mean, moments.inverse].map(|moment| _mm256_set1_ps(moment));
    for g in 0..h.len() / GROUP_SIZE {
        let [x, weight, bias, h_prev] = [x.x, x.weight, x.bias, h_prev].map(|x| load(x, g));
        let mut normed = x;
        for ((x, weight), bias) in normed.iter_mut().zip(weight).zip(bias) {
            *x = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_sub_ps(*x, mean), inverse), weight, bias);
        }
        store(h, g, normed);
        let (from, to) = ends(shift, normed, h_prev);
        let mut way = to;
        way.iter_mut().zip(from).for_each(|(way, from)| *way = _mm256_sub_ps(*way, from));
        for Shifted { mix, out } in &mut *outs {
            let mut mixed = load(mix, g);
            for ((mixed, way), from) in mixed.iter_mut().zip(way).zip(from) {
                *mixed = _mm256_fmadd_ps(*mixed, way, from);
            }
            store(out.values, g, mixed);
            (out.scales[g], out.sums[g]) = quantize_registers(mixed, &mut out.codes.as_chunks_mut().0[g]);
        }
    }
    shift_rest(moments, h, x, h_prev, shift, outs);
}

/// The elements after the whole groups, and the padding.
#[target_feature(enable = "avx2,fma,f16c")]
fn shift_rest(
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
    moments.normalize::<MulAdd>(h, &x.x[at..], &x.weight[at..], &x.bias[at..]);
    let (from, to) = ends(shift, &*h, &h_prev[at..]);
    for Shifted { mix, out } in outs {
        lerp(&mut out.values[at..mix.len()], from, to, &mix[at..]);
        for (g, values) in out.values.as_chunks().0.iter().enumerate().skip(whole) {
            (out.scales[g], out.sums[g]) = quantize_group(values, &mut out.codes.as_chunks_mut().0[g]);
        }
    }
}

/// Group `g`.
#[target_feature(enable = "avx2")]
#[inline]
fn load(x: &[f32], g: usize) -> Group {
    let [a, b, c, d] = x.as_chunks().0.as_chunks::<{ GROUP_SIZE / 8 }>().0[g];
    [load_f32(&a), load_f32(&b), load_f32(&c), load_f32(&d)]
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(x: &mut [f32], g: usize, group: Group) {
    let (groups, _) = x.as_chunks_mut().0.as_chunks_mut::<{ GROUP_SIZE / 8 }>();
    groups[g].iter_mut().zip(group).for_each(|(x, group)| store_f32(x, group));
}

//! Encoding of weights.

use core::arch::aarch64::*;

use super::memory::load_f32;
use super::shim::look_up_parts;
use crate::layout::GROUP_SIZE;
use crate::math::ROUNDER;
use crate::quant::int4n::{CODES, FIRST_STEP, Fit, LAST_STEP, Values, encode_by};
use crate::quant::{Group, ScaleOverflow};

#[target_feature(enable = "neon")]
pub(super) fn encode_int4n(
    values: &[f32; GROUP_SIZE],
    importance: &[f32; GROUP_SIZE],
    len: usize,
) -> Result<Group, ScaleOverflow> {
    encode_by(values, importance, len, |values, inverse, shift| fit(values, inverse, shift))
}

/// How well the codes of values times `inverse` match the values.
#[target_feature(enable = "neon")]
#[inline]
fn fit(values: &Values<'_>, inverse: f32, shift: i32) -> Fit {
    let (mut dots, mut squares) = ([vdupq_n_f32(0.0); 2], [vdupq_n_f32(0.0); 2]);
    let (u, _) = values.u.as_chunks::<16>();
    let factors = values.weighted.as_chunks::<16>().0.iter().zip(values.importance.as_chunks::<16>().0);
    for (u, (weighted, importance)) in u.iter().zip(factors) {
        let factors = weighted.as_chunks().0.iter().zip(importance.as_chunks().0);
        for (i, (code, (weighted, importance))) in codes(u, inverse, shift).iter().zip(factors).enumerate() {
            let (dot, square) = (&mut dots[i % 2], &mut squares[i % 2]);
            *dot = vaddq_f32(*dot, vmulq_f32(load_f32(weighted), *code));
            *square = vaddq_f32(*square, vmulq_f32(vmulq_f32(load_f32(importance), *code), *code));
        }
    }
    Fit { dot: sum(dots), square: sum(squares) }
}

/// All lanes, in the order of the contract.
#[target_feature(enable = "neon")]
#[inline]
fn sum([low, high]: [float32x4_t; 2]) -> f32 {
    let lanes = vaddq_f32(low, high);
    let lanes = vadd_f32(vget_low_f32(lanes), vget_high_f32(lanes));
    vget_lane_f32::<0>(lanes) + vget_lane_f32::<1>(lanes)
}

/// The codes of values times `inverse`.
#[target_feature(enable = "neon")]
#[inline]
fn codes(u: &[f32; 16], inverse: f32, shift: i32) -> [float32x4_t; 4] {
    let (factor, offset) = (vdupq_n_f32(2.0 * inverse), vdupq_n_f32((-2 * shift) as f32 - 0.5));
    let [first, last] = [FIRST_STEP, LAST_STEP].map(|step| vdupq_n_f32(f32::from(step)));
    let (u, _) = u.as_chunks();
    let step = |i: usize| {
        let x = vaddq_f32(vmulq_f32(load_f32(&u[i]), factor), offset);
        // Not the instructions for a minimum and a maximum, which Miri lacks.
        let x = vbslq_f32(vcgtq_f32(x, first), x, first);
        let x = vbslq_f32(vcltq_f32(x, last), x, last);
        vreinterpretq_s16_f32(vaddq_f32(x, vdupq_n_f32(ROUNDER)))
    };
    let halves = [vuzp1q_s16(step(0), step(1)), vuzp1q_s16(step(2), step(3))];
    let [low, high] = halves.map(|half| vreinterpretq_s8_s16(half));
    let positions = vsubq_s8(vuzp1q_s8(low, high), vdupq_n_s8(FIRST_STEP));
    let codes = vaddq_s8(look_up_parts(&CODES, positions), vdupq_n_s8(shift as i8));
    let [low, high] = [vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)];
    [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
        .map(|codes| vcvtq_f32_s32(codes))
}

//! The recurrences of RWKV-5, 6 and 7.

use core::arch::aarch64::*;
use core::arch::aarch64::{vdupq_n_f32 as splat, vmulq_f32 as mul};

use super::memory::{load_f32, store_f32};
use crate::generic::wkv;
use crate::math::ZERO_BELOW;

wkv!("neon", 4);

/// `a * b + c`.
#[target_feature(enable = "neon")]
#[inline]
fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    vfmaq_f32(c, a, b)
}

/// `c - a * b`.
#[target_feature(enable = "neon")]
#[inline]
fn fms(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    vfmsq_f32(c, a, b)
}

/// As [`settled`](crate::math::settled).
#[target_feature(enable = "neon")]
#[inline]
fn settled(x: float32x4_t) -> float32x4_t {
    let limit = vdupq_n_f32(ZERO_BELOW);
    // Miri does not know the one instruction.
    let small = if cfg!(miri) { vcltq_f32(vabsq_f32(x), limit) } else { vcaltq_f32(x, limit) };
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), small))
}

//! Loads and stores whose length is in the type of their argument.

use core::arch::aarch64::*;

use super::shim::half_to_f32;

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    unsafe { vld1q_u8(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_codes(from: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    unsafe { vld1q_s8(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_codes(to: &mut [u8; 16], value: int8x16_t) {
    let bytes = vreinterpretq_u8_s8(value);
    // SAFETY: 16 bytes are writable; the store needs no alignment.
    unsafe { vst1q_u8(to.as_mut_ptr(), bytes) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_f32(from: &[f32; 4]) -> float32x4_t {
    // SAFETY: 4 floats are readable.
    unsafe { vld1q_f32(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_scales(from: &[f32; 2]) -> float32x2_t {
    // SAFETY: 2 floats are readable.
    unsafe { vld1_f32(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_f32(to: &mut [f32; 4], value: float32x4_t) {
    // SAFETY: 4 floats are writable.
    unsafe { vst1q_f32(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_i32(from: &[i32; 4]) -> int32x4_t {
    // SAFETY: 4 integers are readable.
    unsafe { vld1q_s32(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_i32(to: &mut [i32; 4], value: int32x4_t) {
    // SAFETY: 4 integers are writable.
    unsafe { vst1q_s32(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_i16(from: &[i16; 8]) -> int16x8_t {
    // SAFETY: 8 integers are readable.
    unsafe { vld1q_s16(from.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_i16(to: &mut [i16; 8], value: int16x8_t) {
    // SAFETY: 8 integers are writable.
    unsafe { vst1q_s16(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store_u32(to: &mut [u32; 4], value: uint32x4_t) {
    // SAFETY: 4 integers are writable.
    unsafe { vst1q_u32(to.as_mut_ptr(), value) }
}

/// Eight fp16 numbers.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load_f16(from: &[u8; 16]) -> [float32x4_t; 2] {
    half_to_f32(vreinterpretq_u16_u8(load(from)))
}

//! The codes of Int4n. TBL finds those of the table.

use core::arch::aarch64::*;

use super::int::{Rows, nibbles};
use super::memory::{load, load_codes};
use super::shim::look_up;
use crate::generic::Group;
use crate::layout::INT4N_TABLE;

/// Codes of the table of the low nibbles of all bytes, and of the high ones.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn codes(bytes: uint8x16_t) -> [int8x16_t; 2] {
    let [low, high] = nibbles(bytes);
    [look_up(load_codes(&INT4N_TABLE), low), look_up(load_codes(&INT4N_TABLE), high)]
}

/// The two lowest bits of eight fp16 scales.
#[target_feature(enable = "neon")]
#[inline]
fn low_bits(scales: &[u8; 16]) -> int16x8_t {
    vreinterpretq_s16_u16(vandq_u16(vreinterpretq_u16_u8(load(scales)), vdupq_n_u16(3)))
}

/// The shifts of eight groups with these scales.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn shifts(scales: &[u8; 16]) -> int16x8_t {
    vsubq_s16(vshlq_n_s16::<1>(low_bits(scales)), vdupq_n_s16(3))
}

/// The shifts of 16 rows times the sum of the vector's codes.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn start(scales: &[u8; 32], x: &Group<'_>) -> Rows<int32x4_t> {
    let (scales, _) = scales.as_chunks::<16>();
    let (a, b) = (low_bits(&scales[0]), low_bits(&scales[1]));
    // Twice the sum fits 16 bits.
    let (none, each) = (vdupq_n_s32(x.sum.wrapping_mul(-3)), vdupq_n_s16(x.sum.wrapping_mul(2) as i16));
    [
        vmlal_s16(none, vget_low_s16(a), vget_low_s16(each)),
        vmlal_high_s16(none, a, each),
        vmlal_s16(none, vget_low_s16(b), vget_low_s16(each)),
        vmlal_high_s16(none, b, each),
    ]
}

/// The shifts of 16 rows as bytes, four times each.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn row_shifts(scales: &[u8; 32]) -> Rows<int8x16_t> {
    const FIRST: [i8; 16] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
    let (scales, _) = scales.as_chunks::<16>();
    let shifts = vcombine_s8(vmovn_s16(shifts(&scales[0])), vmovn_s16(shifts(&scales[1])));
    let first = load_codes(&FIRST);
    [
        look_up(shifts, first),
        look_up(shifts, vaddq_s8(first, vdupq_n_s8(4))),
        look_up(shifts, vaddq_s8(first, vdupq_n_s8(8))),
        look_up(shifts, vaddq_s8(first, vdupq_n_s8(12))),
    ]
}

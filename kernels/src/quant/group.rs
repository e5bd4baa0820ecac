//! Encoding of single values and of groups with a given scale, in units of the tensor scale.

use core::ops::Add;

use super::{ErrorSums, ScaleOverflow};
use crate::fp16;
use crate::layout::GROUP_SIZE;
use crate::math::{ROUNDER, magnitude_bits, max, min};

/// Element `i` of a group adds to partial sum `i % LANES`.
pub(super) const LANES: usize = 8;

/// One encoded group.
pub(crate) struct Group {
    /// The scale as fp16 bits.
    pub(crate) scale: u16,
    /// One code per value.
    pub(crate) codes: [i8; GROUP_SIZE],
    /// Error and norm of the group.
    pub(crate) sums: ErrorSums,
}

pub(super) fn encode_f32(u: f32) -> Result<([u8; 4], ErrorSums), ScaleOverflow> {
    if u.is_finite() { Ok((u.to_le_bytes(), sums_of(u, u))) } else { Err(ScaleOverflow { largest: u }) }
}

pub(super) fn encode_f16(u: f32) -> Result<([u8; 2], ErrorSums), ScaleOverflow> {
    let half = fp16::from_f32(u);
    let decoded = fp16::to_f32(half);
    if decoded.is_finite() {
        Ok((half.to_le_bytes(), sums_of(u, decoded)))
    } else {
        Err(ScaleOverflow { largest: u })
    }
}

fn sums_of(u: f32, decoded: f32) -> ErrorSums {
    let (norm, error) = (f64::from(u), f64::from(u - decoded));
    ErrorSums { squared_error: error * error, squared_norm: norm * norm }
}

/// The largest magnitude, or a NaN if there is one.
#[inline(always)]
pub(super) fn largest(u: &[f32; GROUP_SIZE]) -> f32 {
    f32::from_bits(u.iter().fold(0, |m, &u| m.max(magnitude_bits(u))))
}

/// Adds the partial sums as a tree: lane i and i + 4, then i + 2, then i + 1.
#[inline(always)]
pub(super) fn sum<T: Copy + Add<Output = T>>(lanes: [T; LANES]) -> T {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The nearest integer, ties to even, after clamping.
#[inline(always)]
pub(super) fn round(x: f32, lowest: f32, highest: f32) -> f32 {
    (min(max(x, lowest), highest) + ROUNDER) - ROUNDER
}

/// The value of a scale and its inverse, which for scale 0 is 0 too, so that the codes are.
#[inline(always)]
pub(super) fn scale_and_inverse(scale: u16) -> (f32, f32) {
    let s = fp16::to_f32(scale);
    (s, if s == 0.0 { 0.0 } else { 1.0 / s })
}

/// Codes and errors of a group with a given scale; a code is `u * (1 / scale)`, clamped and rounded
/// to nearest even.
#[inline(always)]
pub(super) fn with_scale(u: &[f32; GROUP_SIZE], scale: u16, lowest: f32, highest: f32) -> Group {
    let (s, inverse) = scale_and_inverse(scale);
    let mut codes = [0; GROUP_SIZE];
    let mut squared_error = [0.0; LANES];
    let mut squared_norm = [0.0; LANES];
    for (codes, u) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(u.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let q = round(u[i] * inverse, lowest, highest);
            let (norm, error) = (f64::from(u[i]), f64::from(u[i] - q * s));
            squared_norm[i] += norm * norm;
            squared_error[i] += error * error;
            codes[i] = (q + ROUNDER).to_bits() as i8;
        }
    }
    let sums = ErrorSums { squared_error: sum(squared_error), squared_norm: sum(squared_norm) };
    Group { scale, codes, sums }
}

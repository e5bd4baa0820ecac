//! The scale search of Int4.

use super::ScaleOverflow;
use super::group::{Group, LANES, largest, round, sum, with_scale};
use crate::fp16;
use crate::layout::GROUP_SIZE;

const LOWEST: f32 = -8.0;
const HIGHEST: f32 = 7.0;

/// Quarters of the code that the search gives the value of largest magnitude: 5, 5.25 .. 8.75.
const SPREADS: core::ops::Range<u8> = 20..36;

/// Codes that the value of largest magnitude gets from plain scales. With them values that are multiples of some
/// fp16 scale by codes, such as decoded ones, are met without an error.
const PLAIN_CODES: [f32; 8] = [7.0, -7.0, 6.0, -6.0, 5.0, -5.0, 4.0, -4.0];

#[inline(always)]
pub(super) fn encode(u: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> {
    let amax = largest(u);
    if !fp16::to_f32(fp16::from_f32(amax / 7.0)).is_finite() {
        return Err(ScaleOverflow { largest: amax });
    }
    if fp16::from_f32(amax / 4.0) == 0 {
        return Ok(with_scale(u, 0, LOWEST, HIGHEST));
    }
    let signed_largest = u.iter().copied().find(|u| u.abs() == amax).unwrap_or(amax);
    let mut best = fp16::from_f32(signed_largest / -8.0);
    let mut least = squared_error(u, best);
    let mut consider = |scale: f32| {
        let scale = fp16::from_f32(scale);
        let error = squared_error(u, scale);
        if error < least {
            (best, least) = (scale, error);
        }
    };
    PLAIN_CODES.iter().for_each(|code| consider(amax / code));
    consider(search(u, amax));
    Ok(with_scale(u, best, LOWEST, HIGHEST))
}

/// The error of the codes that [`with_scale`] chooses; a NaN for a scale that is infinite.
#[inline(always)]
fn squared_error(u: &[f32; GROUP_SIZE], scale: u16) -> f32 {
    let s = fp16::to_f32(scale);
    let divisor = if s == 0.0 { f32::INFINITY } else { s };
    let mut squares = [0.0; LANES];
    for u in u.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let error = u[i] - round(u[i] / divisor, LOWEST, HIGHEST) * s;
            squares[i] += error * error;
        }
    }
    sum(squares)
}

/// The best scale of the best of the tried codes.
#[inline(always)]
fn search(u: &[f32; GROUP_SIZE], amax: f32) -> f32 {
    let mut best = Fit { dot: 0.0, square: 1.0 };
    for spread in SPREADS {
        let inverse = 0.25 * f32::from(spread) / amax;
        for fit in [fit(u, inverse), fit(u, -inverse)] {
            if fit.explained() > best.explained() {
                best = fit;
            }
        }
    }
    best.dot / best.square
}

/// How well codes match the values.
struct Fit {
    /// Sum of value times code.
    dot: f32,
    /// Sum of the squares of the codes.
    square: f32,
}

impl Fit {
    /// What the best scale for the codes takes off the squared norm of the values.
    fn explained(&self) -> f32 {
        self.dot * self.dot / self.square
    }
}

#[inline(always)]
fn fit(u: &[f32; GROUP_SIZE], inverse: f32) -> Fit {
    let mut dot = [0.0; LANES];
    let mut square = [0.0; LANES];
    for u in u.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let q = round(u[i] * inverse, LOWEST, HIGHEST);
            dot[i] += u[i] * q;
            square[i] += q * q;
        }
    }
    Fit { dot: sum(dot), square: sum(square) }
}

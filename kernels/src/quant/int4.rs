//! The scale search of Int4.

use super::ScaleOverflow;
use super::group::{Group, LANES, largest, round, scale_and_inverse, sum, with_scale};
use crate::fp16;
use crate::layout::GROUP_SIZE;

const LOWEST: f32 = -8.0;
const HIGHEST: f32 = 7.0;

/// Number of trials of the search, which give the value of largest magnitude the codes 5, 5.25 ..
/// 8.75.
const SPREADS: usize = 16;
/// The code of the first trial, in quarters.
const FIRST_SPREAD: usize = 20;

/// Codes that the value of largest magnitude gets from plain scales. With them, values that are an
/// fp16 scale times codes, such as decoded ones, are encoded without an error.
const PLAIN_CODES: [f32; 8] = [7.0, -7.0, 6.0, -6.0, 5.0, -5.0, 4.0, -4.0];

/// Encodes a group as Int4.
#[inline(always)]
pub(crate) fn encode(u: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> {
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
    let (s, inverse) = scale_and_inverse(scale);
    let mut squares = [0.0; LANES];
    for u in u.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let error = u[i] - round(u[i] * inverse, LOWEST, HIGHEST) * s;
            squares[i] += error * error;
        }
    }
    sum(squares)
}

/// The best scale of the best of the tried codes.
#[inline(always)]
fn search(u: &[f32; GROUP_SIZE], amax: f32) -> f32 {
    let unit = 0.25 / amax;
    let positive: [f32; SPREADS] = core::array::from_fn(|i| (FIRST_SPREAD + i) as f32 * unit);
    let mut best = (0.0, 0.0);
    for inverses in [positive, positive.map(|inverse| -inverse)] {
        let fits = fit(u, &inverses);
        for (&dot, &square) in fits.dots.iter().zip(&fits.squares) {
            let scale = dot / square;
            // The scale takes this off the squared norm of the values.
            let explained = dot * scale;
            if explained > best.0 {
                best = (explained, scale);
            }
        }
    }
    best.1
}

/// How well the codes of each spread match the values.
struct Fits {
    /// Sums of value times code.
    dots: [f32; SPREADS],
    /// Sums of the squares of the codes.
    squares: [f32; SPREADS],
}

#[inline(always)]
fn fit(u: &[f32; GROUP_SIZE], inverses: &[f32; SPREADS]) -> Fits {
    let mut fits = Fits { dots: [0.0; SPREADS], squares: [0.0; SPREADS] };
    for &u in u {
        for (i, inverse) in inverses.iter().enumerate() {
            let q = round(u * inverse, LOWEST, HIGHEST);
            fits.dots[i] += u * q;
            fits.squares[i] += q * q;
        }
    }
    fits
}

//! The search for scale and shift of Int4n.

use super::ScaleOverflow;
use super::group::{Group, LANES, largest, scale_and_inverse, sum};
use crate::fp16;
use crate::layout::{GROUP_SIZE, INT4N_TABLE, int4n_shift};
use crate::math::{ROUNDER, max, min};
use crate::quant::ErrorSums;

/// What each shift and sign multiplies the inverse scale with that reaches all values. Factors
/// above 1 leave the extreme values out of reach.
const STRETCHES: [f32; 8] = [0.97, 1.015, 1.065, 1.12, 1.18, 1.25, 1.35, 1.515];

/// How often the best scale is fitted to the codes that it gives.
const REFITS: usize = 2;

/// Groups whose largest value is this times the largest fp16 number are refused: then every start is
/// finite.
const LARGEST_SCALES: f32 = 20.0;

/// Half the smallest fp16 number. No scale comes nearer to smaller values than scale 0.
const SMALLEST: f32 = f32::from_bits((127 - 25) << 23);

/// The largest fp16 number. A fitted scale can exceed it.
const LARGEST_FINITE: u16 = 0x7bff;

/// Twice the number above which a value gets code `k + 1` rather than `k`.
pub(crate) const BOUNDARIES: [i8; 15] = {
    let mut boundaries = [0; 15];
    let mut k = 0;
    while k < boundaries.len() {
        boundaries[k] = INT4N_TABLE[k] + INT4N_TABLE[k + 1];
        k += 1;
    }
    boundaries
};

/// Codes before the shift for half steps of [`FIRST_STEP`]`..=`[`LAST_STEP`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const CODES: [[i8; 16]; 7] = {
    let mut codes = [[INT4N_TABLE[0]; 16]; 7];
    let mut i = 0;
    while i < 16 * codes.len() {
        let mut k = 0;
        while k < BOUNDARIES.len() && FIRST_STEP + i as i8 >= BOUNDARIES[k] {
            k += 1;
        }
        codes[i / 16][i % 16] = INT4N_TABLE[k];
        i += 1;
    }
    codes
};

/// From here to all lower half steps, the code is the first one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const FIRST_STEP: i8 = BOUNDARIES[0] - 1;

/// From here to all higher half steps, the code is the last one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const LAST_STEP: i8 = FIRST_STEP + 16 * 7 - 1;

/// The values of a group, and the factors of their squared errors.
pub(crate) struct Values<'a> {
    pub(crate) u: &'a [f32; GROUP_SIZE],
    pub(crate) importance: &'a [f32; GROUP_SIZE],
    /// `importance * u`.
    pub(crate) weighted: [f32; GROUP_SIZE],
}

/// How well codes match the values of a group.
pub(crate) struct Fit {
    /// Sum of `weighted * code`.
    pub(crate) dot: f32,
    /// Sum of `importance * code * code`.
    pub(crate) square: f32,
}

/// Encodes a group of `len` values, and zeros after them, as Int4n. `importance` are factors of
/// squared errors in 0..=1; those of the zeros are 0.
#[inline(always)]
pub(crate) fn encode(
    u: &[f32; GROUP_SIZE],
    importance: &[f32; GROUP_SIZE],
    len: usize,
) -> Result<Group, ScaleOverflow> {
    encode_by(u, importance, len, fit)
}

/// The same with a level's [`fit`].
#[inline(always)]
pub(crate) fn encode_by(
    u: &[f32; GROUP_SIZE],
    importance: &[f32; GROUP_SIZE],
    len: usize,
    fit: impl Fn(&Values<'_>, f32, i32) -> Fit,
) -> Result<Group, ScaleOverflow> {
    let amax = largest(u);
    if !fp16::to_f32(fp16::from_f32(amax / LARGEST_SCALES)).is_finite() {
        return Err(ScaleOverflow { largest: amax });
    }
    let scale = if amax < SMALLEST { 0 } else { Search::new(u, importance, fit).best() };
    Ok(with_scale(u, scale, len))
}

struct Search<'a, F> {
    values: Values<'a>,
    fit: F,
}

impl<'a, F: Fn(&Values<'_>, f32, i32) -> Fit> Search<'a, F> {
    #[inline(always)]
    fn new(u: &'a [f32; GROUP_SIZE], importance: &'a [f32; GROUP_SIZE], fit: F) -> Self {
        let mut weighted = [0.0; GROUP_SIZE];
        for (weighted, (u, importance)) in weighted.iter_mut().zip(u.iter().zip(importance)) {
            *weighted = importance * u;
        }
        Self { values: Values { u, importance, weighted }, fit }
    }

    /// The scale that takes most off the squared norm of the values, fitted to its codes; 0 if it
    /// takes nothing off.
    #[inline(always)]
    fn best(&self) -> u16 {
        let (above, below) =
            self.values.u.iter().fold((0.0, 0.0), |(above, below), &u| (max(u, above), max(-u, below)));
        let (mut most, mut best, mut best_low_bits) = (0.0, 0.0, 0);
        for low_bits in 0..4 {
            let shift = int4n_shift(low_bits);
            let [first, last] =
                [INT4N_TABLE[0], INT4N_TABLE[15]].map(|code| (i32::from(code) + shift) as f32);
            for (above, below, sign) in [(above, below, 1.0), (below, above, -1.0)] {
                let reaching = sign * min(last / above, -first / below);
                let (mut dots, mut scales) = ([0.0; STRETCHES.len()], [0.0; STRETCHES.len()]);
                for (i, stretch) in STRETCHES.into_iter().enumerate() {
                    let fit = (self.fit)(&self.values, reaching * stretch, shift);
                    (dots[i], scales[i]) = (fit.dot, fit.dot / fit.square);
                }
                for (dot, scale) in dots.into_iter().zip(scales) {
                    let explained = dot * scale;
                    if explained > most {
                        (most, best, best_low_bits) = (explained, scale, low_bits);
                    }
                }
            }
        }
        if most > 0.0 { self.refined(best, best_low_bits) } else { 0 }
    }

    /// The scale with these low bits that fitting makes of `scale`; 0 if that is better.
    #[inline(always)]
    fn refined(&self, mut scale: f32, low_bits: u16) -> u16 {
        let shift = int4n_shift(low_bits);
        for _ in 0..REFITS {
            let fit = (self.fit)(&self.values, 1.0 / scale, shift);
            let fitted = fit.dot / fit.square;
            scale = if fitted * scale > 0.0 { fitted } else { scale };
        }
        let nearest = nearest_scale(scale, low_bits);
        let (s, inverse) = scale_and_inverse(nearest);
        let fit = (self.fit)(&self.values, inverse, shift);
        if 2.0 * (fit.dot * s) > (fit.square * s) * s { nearest } else { 0 }
    }
}

/// Codes of values times `inverse`.
#[inline(always)]
fn fit(values: &Values<'_>, inverse: f32, shift: i32) -> Fit {
    let steps = half_steps(values.u, inverse, shift);
    let mut codes = [INT4N_TABLE[0] + shift as i8; GROUP_SIZE];
    for (k, boundary) in BOUNDARIES.into_iter().enumerate() {
        let more = INT4N_TABLE[k + 1] - INT4N_TABLE[k];
        for (code, &step) in codes.iter_mut().zip(&steps) {
            *code += if step >= boundary { more } else { 0 };
        }
    }
    let (mut dots, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let factors = values.weighted.as_chunks::<LANES>().0.iter().zip(values.importance.as_chunks::<LANES>().0);
    for (codes, (weighted, importance)) in codes.as_chunks::<LANES>().0.iter().zip(factors) {
        for i in 0..LANES {
            let code = f32::from(codes[i]);
            dots[i] += weighted[i] * code;
            squares[i] += (importance[i] * code) * code;
        }
    }
    Fit { dot: sum(dots), square: sum(squares) }
}

/// Twice the distance from the shift, in scales, rounded down to an integer. It is rounded to
/// nearest even after half a step down, which differs at ties only.
#[inline(always)]
fn half_steps(u: &[f32; GROUP_SIZE], inverse: f32, shift: i32) -> [i8; GROUP_SIZE] {
    let (factor, offset) = (2.0 * inverse, (-2 * shift) as f32 - 0.5);
    // Compilers vectorise this loop, and not a `map`.
    let mut steps = [0; GROUP_SIZE];
    for (step, &u) in steps.iter_mut().zip(u) {
        *step = (min(max(u * factor + offset, -64.0), 63.0) + ROUNDER).to_bits() as i8;
    }
    steps
}

/// The fp16 number nearest to `scale`, the smaller one in a tie, that has these two lowest bits.
#[inline(always)]
pub(super) fn nearest_scale(scale: f32, low_bits: u16) -> u16 {
    let magnitude = scale.abs();
    let nearest = fp16::from_f32(magnitude).min(LARGEST_FINITE);
    let below = nearest - u16::from(fp16::to_f32(nearest) > magnitude);
    let below = ((below.max(low_bits) - low_bits) & !3) + low_bits;
    let [down, up] = [below, below + 4].map(|half| (fp16::to_f32(half) - magnitude).abs());
    let half = if up < down { below + 4 } else { below };
    half | if scale < 0.0 { 0x8000 } else { 0 }
}

/// Nibbles, less 8, and errors of `len` values with a given scale.
#[inline(always)]
fn with_scale(u: &[f32; GROUP_SIZE], scale: u16, len: usize) -> Group {
    let (s, inverse) = scale_and_inverse(scale);
    let shift = int4n_shift(scale);
    let steps = half_steps(u, inverse, shift);
    let (mut nibbles, mut codes) = ([-8i8; GROUP_SIZE], [INT4N_TABLE[0] + shift as i8; GROUP_SIZE]);
    for (k, boundary) in BOUNDARIES.into_iter().enumerate() {
        let more = INT4N_TABLE[k + 1] - INT4N_TABLE[k];
        for ((nibble, code), &step) in nibbles.iter_mut().zip(&mut codes).zip(&steps) {
            *nibble += i8::from(step >= boundary);
            *code += if step >= boundary { more } else { 0 };
        }
    }
    let coded = if scale == 0 { 0 } else { len };
    nibbles[coded..].fill(0);
    codes[coded..].fill(0);
    let (mut squared_error, mut squared_norm) = ([0.0; LANES], [0.0; LANES]);
    for (codes, u) in codes.as_chunks::<LANES>().0.iter().zip(u.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let (norm, error) = (f64::from(u[i]), f64::from(u[i] - f32::from(codes[i]) * s));
            squared_norm[i] += norm * norm;
            squared_error[i] += error * error;
        }
    }
    let sums = ErrorSums { squared_error: sum(squared_error), squared_norm: sum(squared_norm) };
    Group { scale, codes: nibbles, sums }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_beyond_fp16_become_the_largest_with_their_low_bits() {
        for low_bits in 0..4 {
            assert_eq!(nearest_scale(1e6, low_bits), 0x7bfc + low_bits);
            assert_eq!(nearest_scale(f32::NEG_INFINITY, low_bits), 0xfbfc + low_bits);
        }
    }
}

//! The search for scale and shift of Int4n.

use super::ScaleOverflow;
use super::group::{Group, LANES, largest, round, scale_and_inverse, sum};
use crate::fp16;
use crate::layout::{GROUP_SIZE, INT4N_TABLE, int4n_shift};
use crate::math::ROUNDER;
use crate::quant::ErrorSums;

/// Scales that each shift and sign starts from, as parts of the one that reaches all values.
const STARTS: [f32; 9] = [0.7, 0.745, 0.79, 0.835, 0.88, 0.925, 0.97, 1.015, 1.06];

/// How often a scale is fitted to the codes that it gave.
const REFITS: usize = 2;

/// Groups whose largest value is this times the largest fp16 number are refused: then every start is
/// finite, and so are those that fitting makes of them.
const LARGEST_SCALES: f32 = 20.0;

/// Half the smallest fp16 number. No scale comes nearer to smaller values than scale 0.
const SMALLEST: f32 = f32::from_bits((127 - 25) << 23);

/// Twice the number above which a value gets code `k + 1` rather than `k`.
pub(super) const BOUNDARIES: [i8; 15] = {
    let mut boundaries = [0; 15];
    let mut k = 0;
    while k < boundaries.len() {
        boundaries[k] = INT4N_TABLE[k] + INT4N_TABLE[k + 1];
        k += 1;
    }
    boundaries
};

/// Encodes a group of `len` values, and zeros after them, as Int4n. `importance` are factors of
/// squared errors in 0..=1; those of the zeros are 0.
#[inline(always)]
pub(crate) fn encode(
    u: &[f32; GROUP_SIZE],
    importance: &[f32; GROUP_SIZE],
    len: usize,
) -> Result<Group, ScaleOverflow> {
    let amax = largest(u);
    if !fp16::to_f32(fp16::from_f32(amax / LARGEST_SCALES)).is_finite() {
        return Err(ScaleOverflow { largest: amax });
    }
    let search = Search { u, importance };
    let scale = if amax < SMALLEST { 0 } else { search.best() };
    Ok(with_scale(u, scale, len))
}

struct Search<'a> {
    u: &'a [f32; GROUP_SIZE],
    importance: &'a [f32; GROUP_SIZE],
}

impl Search<'_> {
    /// The scale with the least error, the first one in a tie.
    #[inline(always)]
    fn best(&self) -> u16 {
        let (highest, lowest) = self.u.iter().fold((0.0f32, 0.0f32), |(highest, lowest), &u| {
            (if u > highest { u } else { highest }, if u < lowest { u } else { lowest })
        });
        let (mut best, mut least) = (0, self.error(0));
        for low_bits in 0..4u16 {
            let shift = int4n_shift(low_bits);
            let [first, last] =
                [INT4N_TABLE[0], INT4N_TABLE[15]].map(|code| (i32::from(code) + shift) as f32);
            for (highest, lowest, sign) in [(highest, lowest, 1.0), (-lowest, -highest, -1.0)] {
                let (above, below) = (highest / last, lowest / first);
                let reaching = sign * if above > below { above } else { below };
                for start in STARTS {
                    let mut scale = reaching * start;
                    for _ in 0..REFITS {
                        scale = self.refit(scale, shift);
                    }
                    let scale = nearest_scale(scale, low_bits);
                    let error = self.error(scale);
                    if error < least {
                        (best, least) = (scale, error);
                    }
                }
            }
        }
        best
    }

    /// The best scale of the codes that `scale` gives, unless it has another sign.
    #[inline(always)]
    fn refit(&self, scale: f32, shift: i32) -> f32 {
        let codes = codes(self.u, 1.0 / scale, shift);
        let (mut dots, mut squares) = ([0.0; LANES], [0.0; LANES]);
        let parts = self.u.as_chunks::<LANES>().0.iter().zip(self.importance.as_chunks::<LANES>().0);
        for ((u, importance), codes) in parts.zip(codes.as_chunks::<LANES>().0) {
            for i in 0..LANES {
                let code = f32::from(codes[i]);
                let weighted = importance[i] * code;
                dots[i] += weighted * u[i];
                squares[i] += weighted * code;
            }
        }
        let fitted = sum(dots) / sum(squares);
        if fitted * scale > 0.0 { fitted } else { scale }
    }

    /// The error of the codes that `scale` gives; a NaN if it is not finite.
    #[inline(always)]
    fn error(&self, scale: u16) -> f32 {
        let (s, inverse) = scale_and_inverse(scale);
        let codes = codes(self.u, inverse, int4n_shift(scale));
        let mut squares = [0.0; LANES];
        let parts = self.u.as_chunks::<LANES>().0.iter().zip(self.importance.as_chunks::<LANES>().0);
        for ((u, importance), codes) in parts.zip(codes.as_chunks::<LANES>().0) {
            for i in 0..LANES {
                let error = u[i] - f32::from(codes[i]) * s;
                squares[i] += (importance[i] * error) * error;
            }
        }
        sum(squares)
    }
}

/// Twice the distance from the shift, in scales, rounded down to an integer. It is rounded to
/// nearest even after half a step down, which differs at ties only.
#[inline(always)]
fn half_steps(u: &[f32; GROUP_SIZE], inverse: f32, shift: i32) -> [i8; GROUP_SIZE] {
    let (factor, offset) = (2.0 * inverse, (-2 * shift) as f32 - 0.5);
    // Compilers vectorise this loop, and not a `map`.
    let mut steps = [0; GROUP_SIZE];
    for (step, &u) in steps.iter_mut().zip(u) {
        *step = (round(u * factor + offset, -64.0, 63.0) + ROUNDER).to_bits() as i8;
    }
    steps
}

/// The codes nearest to the values times `inverse`.
#[inline(always)]
fn codes(u: &[f32; GROUP_SIZE], inverse: f32, shift: i32) -> [i8; GROUP_SIZE] {
    let steps = half_steps(u, inverse, shift);
    let mut codes = [INT4N_TABLE[0] + shift as i8; GROUP_SIZE];
    for (k, boundary) in BOUNDARIES.into_iter().enumerate() {
        let more = INT4N_TABLE[k + 1] - INT4N_TABLE[k];
        for (code, &step) in codes.iter_mut().zip(&steps) {
            *code += if step >= boundary { more } else { 0 };
        }
    }
    codes
}

/// The fp16 number nearest to `scale`, the smaller one in a tie, that has these two lowest bits.
#[inline(always)]
pub(super) fn nearest_scale(scale: f32, low_bits: u16) -> u16 {
    let magnitude = scale.abs();
    let nearest = fp16::from_f32(magnitude);
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
    let mut group = Group { scale, codes: [0; GROUP_SIZE], sums: ErrorSums::default() };
    let (mut squared_error, mut squared_norm) = ([0.0; LANES], [0.0; LANES]);
    for (i, &u) in u[..len].iter().enumerate() {
        let nibble = BOUNDARIES.iter().filter(|&&boundary| steps[i] >= boundary).count();
        let nibble = if scale == 0 { 8 } else { nibble };
        let code = (i32::from(INT4N_TABLE[nibble]) + shift) as f32;
        let (norm, error) = (f64::from(u), f64::from(u - code * s));
        squared_norm[i % LANES] += norm * norm;
        squared_error[i % LANES] += error * error;
        group.codes[i] = nibble as i8 - 8;
    }
    group.sums = ErrorSums { squared_error: sum(squared_error), squared_norm: sum(squared_norm) };
    group
}

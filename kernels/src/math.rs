//! The scalar functions that every instruction set shares bit by bit.

/// `a > b ? a : b`: `b` if either is a NaN or both are zeros.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `a < b ? a : b`: `b` if either is a NaN or both are zeros.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// 1.5 * 2^23. The last place of a number near it weighs 1, so that adding it rounds to an integer.
pub(crate) const ROUNDER: f32 = 12_582_912.0;

/// Clamps to `-limit..=limit`, then rounds to the nearest integer, ties to even; -limit for a NaN.
/// `limit` is an integer below 2^22.
#[inline(always)]
pub(crate) fn round_clamped(x: f32, limit: f32) -> i32 {
    let clamped = min(max(x, -limit), limit);
    (clamped + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32
}

/// The bits of `|x|`. As integers they order like the magnitudes, and a NaN is above everything.
#[inline(always)]
pub(crate) fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The threshold below which magnitudes count as zero: those of a group that is quantized, of the
/// largest product of a sparse vector, and of an element of a recurrent state.
pub(crate) const ZERO_BELOW: f32 = f32::from_bits((127 - 100) << 23);

/// `x`, or 0 if its magnitude is below 2^-100. A NaN stays.
///
/// A decaying number would otherwise end as a subnormal one, with which many processors are slow.
#[inline(always)]
pub fn settled(x: f32) -> f32 {
    if magnitude_bits(x) < ZERO_BELOW.to_bits() { 0.0 } else { x }
}

/// A level's `fma` and `settle`, and the functions built on `fma`.
///
/// The compiler uses the instruction wherever a function's target features have it. For 32-bit ARM
/// these features are unstable, and `mul_add` becomes a library call.
pub(crate) trait Fma {
    /// `a * b + c`, rounded once.
    fn fma(a: f32, b: f32, c: f32) -> f32;

    /// Replaces each element by its [`settled`].
    #[inline(always)]
    fn settle(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = settled(*x));
    }

    #[inline(always)]
    fn exp(x: f32) -> f32 {
        let (power, r, slope) = Self::reduce(x);
        Self::fma(r, slope, 1.0) * power
    }

    #[inline(always)]
    fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + Self::exp(-x))
    }

    #[inline(always)]
    fn tanh(x: f32) -> f32 {
        let (power, r, slope) = Self::reduce(-2.0 * x.abs());
        let m = Self::fma(r * slope, power, power - 1.0);
        (m / (2.0 + m)).copysign(x)
    }

    /// `power = 2^n`, `r` and `(e^r - 1) / r` for `x = n ln 2 + r`, after clamping `x` to -87..=88.
    #[inline(always)]
    fn reduce(x: f32) -> (f32, f32, f32) {
        const LN_2_HIGH: f32 = core::f32::consts::LN_2;
        const LN_2_LOW: f32 = -1.904_654_2e-9;
        let x = min(88.0, max(-87.0, x));
        let shifted = Self::fma(x, core::f32::consts::LOG2_E, ROUNDER);
        let n = shifted - ROUNDER;
        let r = Self::fma(n, -LN_2_LOW, Self::fma(n, -LN_2_HIGH, x));
        let p = 0.001_381_454;
        let p = Self::fma(r, p, 0.008_368_745);
        let p = Self::fma(r, p, 0.041_668_39);
        let p = Self::fma(r, p, 0.166_665_21);
        let p = Self::fma(r, p, 0.499_999_94);
        let slope = Self::fma(r, p, 1.0);
        let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127);
        (f32::from_bits(exponent << 23), r, slope)
    }
}

/// The `fma` that the compiler makes of `mul_add`.
pub(crate) struct MulAdd;

impl Fma for MulAdd {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// `e^x` within 1 ulp for `x` in -87..=88; arguments outside are clamped. Exactly 1 at 0; a NaN
/// gives a NaN.
///
/// The crate documentation states the steps: every instruction set gives these bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    MulAdd::exp(x)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    MulAdd::sigmoid(x)
}

/// The hyperbolic tangent, within 3 ulp; odd, 0 at 0, never beyond 1. A NaN gives a NaN.
///
/// It is `-m / (2 + m)` with `m = exp(-2|x|) - 1`, which is computed without cancellation near 0.
/// The crate documentation states the steps: every instruction set gives these bits.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    MulAdd::tanh(x)
}

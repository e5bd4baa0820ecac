//! Element-wise operations.

use super::{Kernels, check_len};

impl Kernels {
    /// `a + t (b - a)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn lerp(&self, out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]) {
        let n = out.len();
        check_len("a", a.len(), n);
        check_len("b", b.len(), n);
        check_len("t", t.len(), n);
        (self.lerp)(out, a, b, t);
    }

    /// `max(x, 0)^2` in place. A NaN becomes 0.
    pub fn relu_squared(&self, x: &mut [f32]) {
        (self.relu_squared)(x);
    }

    /// `x + y` in place of `x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        check_len("y", y.len(), x.len());
        (self.add)(x, y);
    }

    /// [`tanh`](crate::tanh) in place.
    pub fn tanh(&self, x: &mut [f32]) {
        (self.tanh)(x);
    }

    /// [`sigmoid`](crate::sigmoid) in place.
    pub fn sigmoid(&self, x: &mut [f32]) {
        (self.sigmoid)(x);
    }

    /// `a * b`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul(&self, out: &mut [f32], a: &[f32], b: &[f32]) {
        check_len("a", a.len(), out.len());
        check_len("b", b.len(), out.len());
        (self.mul)(out, a, b);
    }

    /// `(gate * sigmoid(gate)) * x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, out: &mut [f32], gate: &[f32], x: &[f32]) {
        check_len("gate", gate.len(), out.len());
        check_len("input", x.len(), out.len());
        (self.silu_mul)(out, gate, x);
    }

    /// The decay of RWKV-6 in place: `exp(-exp(x))`.
    ///
    /// The error is below 2^-24, and below `x = -4` hardly more than the 2^-25 of rounding a number
    /// just below 1. From about `x = -17.3` down the decay is 1. It is never 0: the smallest is
    /// `exp(-87)`.
    pub fn decay6(&self, x: &mut [f32]) {
        (self.decay6)(x);
    }

    /// The decay of RWKV-7 in place: `exp(-0.606531 * sigmoid(x))`, from 0.545 to 1.
    pub fn decay7(&self, x: &mut [f32]) {
        (self.decay7)(x);
    }
}

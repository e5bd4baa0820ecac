//! Operations that reduce a vector: norms, softmax, and a product of three vectors.

use super::{Kernels, SoftmaxStats, check_activation, check_len};
use crate::layout::{Normed, Shift, Shifted, padded_cols};

impl Kernels {
    /// `(x - mean) / sqrt(variance + eps) * weight + bias`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn layer_norm(&self, out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let n = out.len();
        check_len("input", x.len(), n);
        check_len("weight", weight.len(), n);
        check_len("bias", bias.len(), n);
        (self.layer_norm)(out, x, weight, bias, eps);
    }

    /// Layer norm, token shift and quantization, in one pass where that is faster
    /// (`docs/DESIGN.md`, Layer norm, token shift and quantization in one pass).
    ///
    /// 1. `h` becomes the [`layer_norm`](Self::layer_norm) of `x`.
    /// 2. The first elements of each output become `h_prev + mix (h - h_prev)`, or
    ///    `h + mix (h_prev - h)` if the mix weighs the previous token, by [`lerp`](Self::lerp).
    /// 3. Each output is [quantized](Self::quantize), together with what its padding holds.
    ///
    /// # Panics
    /// If the lengths differ, or the values of an output are not as many as a padded `x` has.
    pub fn norm_shift(
        &self,
        h: &mut [f32],
        x: Normed<'_>,
        h_prev: &[f32],
        shift: Shift,
        outs: &mut [Shifted<'_, '_>],
    ) {
        let n = h.len();
        check_len("input", x.x.len(), n);
        check_len("weight", x.weight.len(), n);
        check_len("bias", x.bias.len(), n);
        check_len("previous", h_prev.len(), n);
        for Shifted { mix, out } in &*outs {
            check_len("mix", mix.len(), n);
            check_activation(out.view(), padded_cols(n));
        }
        (self.norm_shift)(h, x, h_prev, shift, outs);
    }

    /// `exp(x - max) / sum`. Any NaN or positive infinity among the inputs makes every output a
    /// NaN.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn softmax(&self, out: &mut [f32], x: &[f32]) -> SoftmaxStats {
        check_len("input", x.len(), out.len());
        (self.softmax)(out, x)
    }

    /// `x / max(norm, 1e-12)` in place. `norm` is the square root of the sum of squares.
    ///
    /// The sum has 16 lanes: `lane = fma(x, x, lane)` from 0 over every 16th element, then lane `i`
    /// plus lane `i + 8`, and so on with 4, 2 and 1. A NaN makes every element a NaN.
    pub fn l2_normalize(&self, x: &mut [f32]) {
        (self.l2_normalize)(x);
    }

    /// The sum of `a * b * c`.
    ///
    /// The sum has 16 lanes: `lane = fma(a * b, c, lane)` from 0 over every 16th element, then lane
    /// `i` plus lane `i + 8`, and so on with 4, 2 and 1.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot3(&self, a: &[f32], b: &[f32], c: &[f32]) -> f32 {
        check_len("b", b.len(), a.len());
        check_len("c", c.len(), a.len());
        (self.dot3)(a, b, c)
    }
}

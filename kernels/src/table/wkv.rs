//! The operations around the recurrences of RWKV-5, 6 and 7.

use super::{Kernels, check_len};

impl Kernels {
    /// One step of the RWKV-5 and 6 recurrence for one head of `n` keys and as many values, `n` being the
    /// length of `y`.
    ///
    /// `state[j * n + i]` belongs to key `j` and value `i` and starts as 0. `w` is the decay per step, in 0..1,
    /// and `u` the bonus of the current token. From `y[i] = 0`, for `j` ascending and all `i`:
    ///
    /// ```text
    /// kv      = k[j] * v[i]
    /// y[i]    = fma(r[j], fma(u[j], kv, S[j][i]), y[i])
    /// S[j][i] = settled(fma(w[j], S[j][i], kv))
    /// ```
    ///
    /// # Panics
    /// If `state` has not `n * n` elements or another slice not `n`.
    #[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
    pub fn wkv6(
        &self,
        y: &mut [f32],
        state: &mut [f32],
        r: &[f32],
        k: &[f32],
        v: &[f32],
        u: &[f32],
        w: &[f32],
    ) {
        let n = y.len();
        check_state(state, n);
        check_len("r", r.len(), n);
        check_len("k", k.len(), n);
        check_len("v", v.len(), n);
        check_len("u", u.len(), n);
        check_len("w", w.len(), n);
        (self.wkv6)(y, state, r, k, v, u, w);
    }

    /// One step of the RWKV-7 recurrence for one head of `n` keys and as many values, `n` being the length of
    /// `y`.
    ///
    /// `state[j * n + i]` belongs to key `j` and value `i` and starts as 0. `w` is the decay per step, `kk` the
    /// normalised key whose value is removed from the state, and `a` how much of it. For all `i`, from
    /// `s[i] = 0` and `y[i] = 0`, first the one line for `j` ascending, then the others for `j` ascending:
    ///
    /// ```text
    /// s[i]    = fma(S[j][i], kk[j], s[i])
    ///
    /// b       = kk[j] * a[j]
    /// new     = fma(k[j], v[i], fma(-s[i], b, S[j][i] * w[j]))
    /// y[i]    = fma(new, r[j], y[i])
    /// S[j][i] = settled(new)
    /// ```
    ///
    /// # Panics
    /// If `state` has not `n * n` elements or another slice not `n`.
    #[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
    pub fn wkv7(
        &self,
        y: &mut [f32],
        state: &mut [f32],
        r: &[f32],
        w: &[f32],
        k: &[f32],
        v: &[f32],
        kk: &[f32],
        a: &[f32],
    ) {
        let n = y.len();
        check_state(state, n);
        check_len("r", r.len(), n);
        check_len("w", w.len(), n);
        check_len("k", k.len(), n);
        check_len("v", v.len(), n);
        check_len("kk", kk.len(), n);
        check_len("a", a.len(), n);
        (self.wkv7)(y, state, r, w, k, v, kk, a);
    }

    /// [`tanh`](crate::tanh) in place.
    pub fn tanh(&self, x: &mut [f32]) {
        (self.tanh)(x);
    }

    /// [`sigmoid`](crate::sigmoid) in place.
    pub fn sigmoid(&self, x: &mut [f32]) {
        (self.sigmoid)(x);
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

    /// `a * b`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul(&self, out: &mut [f32], a: &[f32], b: &[f32]) {
        check_len("a", a.len(), out.len());
        check_len("b", b.len(), out.len());
        (self.mul)(out, a, b);
    }

    /// The decay of RWKV-6 in place: `exp(-exp(x))`.
    ///
    /// The error is below 2^-24, and below `x = -4` hardly more than the 2^-25 of rounding a number just below 1.
    /// From about `x = -17.3` down the decay is 1. It is never 0: the smallest is `exp(-87)`.
    pub fn decay6(&self, x: &mut [f32]) {
        (self.decay6)(x);
    }

    /// The decay of RWKV-7 in place: `exp(-0.606531 * sigmoid(x))`, from 0.545 to 1.
    pub fn decay7(&self, x: &mut [f32]) {
        (self.decay7)(x);
    }

    /// `x / max(norm, 1e-12)` in place, `norm` being the square root of the sum of squares.
    ///
    /// The sum has 16 lanes: `lane = fma(x, x, lane)` from 0 over every 16th element, then lane `i` plus lane
    /// `i + 8`, and so on with 4, 2 and 1. A NaN makes every element a NaN.
    pub fn l2_normalize(&self, x: &mut [f32]) {
        (self.l2_normalize)(x);
    }

    /// The sum of `a * b * c`.
    ///
    /// The sum has 16 lanes: `lane = fma(a * b, c, lane)` from 0 over every 16th element, then lane `i` plus
    /// lane `i + 8`, and so on with 4, 2 and 1.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot3(&self, a: &[f32], b: &[f32], c: &[f32]) -> f32 {
        check_len("b", b.len(), a.len());
        check_len("c", c.len(), a.len());
        (self.dot3)(a, b, c)
    }
}

#[track_caller]
fn check_state(state: &[f32], n: usize) {
    assert!(n.checked_mul(n) == Some(state.len()), "state: {} elements, expected {n} x {n}", state.len());
}

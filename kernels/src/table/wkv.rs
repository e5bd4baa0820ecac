//! The recurrences.

use super::{Kernels, check_len};

impl Kernels {
    /// One step of the RWKV-4 recurrence for every channel.
    ///
    /// `time_decay` is the logarithm of the decay per step and `time_first` the bonus of the
    /// current token. The state starts with `aa = bb = 0` and `pp = -1e30`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
    pub fn wkv4(
        &self,
        y: &mut [f32],
        k: &[f32],
        v: &[f32],
        time_first: &[f32],
        time_decay: &[f32],
        aa: &mut [f32],
        bb: &mut [f32],
        pp: &mut [f32],
    ) {
        let n = y.len();
        check_len("k", k.len(), n);
        check_len("v", v.len(), n);
        check_len("time_first", time_first.len(), n);
        check_len("time_decay", time_decay.len(), n);
        check_len("aa", aa.len(), n);
        check_len("bb", bb.len(), n);
        check_len("pp", pp.len(), n);
        (self.wkv4)(y, k, v, time_first, time_decay, aa, bb, pp);
    }

    /// One step of the RWKV-5 and 6 recurrence for one head of `n` keys and `n` values. `n` is the
    /// length of `y`.
    ///
    /// `state[j * n + i]` belongs to key `j` and value `i` and starts as 0. `w` is the decay per
    /// step, in 0..1, and `u` the bonus of the current token. From `y[i] = 0`, for `j` ascending
    /// and all `i`:
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

    /// One step of the RWKV-7 recurrence for one head of `n` keys and `n` values. `n` is the length
    /// of `y`.
    ///
    /// `state[j * n + i]` belongs to key `j` and value `i` and starts as 0. `w` is the decay per
    /// step, `kk` the normalised key whose value is removed from the state, and `a` the share of it
    /// that is removed. For all `i`, from `s[i] = 0` and `y[i] = 0`, the first line runs for `j`
    /// ascending, then the others run for `j` ascending:
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
}

#[track_caller]
fn check_state(state: &[f32], n: usize) {
    assert!(n.checked_mul(n) == Some(state.len()), "state: {} elements, expected {n} x {n}", state.len());
}

//! The recurrences of RWKV-5, 6 and 7: strips of values, whose outputs stay in registers while the keys go by.

use core::arch::aarch64::*;

use super::memory::{load_f32, store_f32};
use crate::math::ZERO_BELOW;
use crate::scalar::{wkv6_columns, wkv7_columns};

/// Calls `$strip::<V>(first, ...)` for strips of `4 V` values, `first` counting registers, as wide ones as there
/// are, and returns the number of values in them. (A macro, as a generic function could not name `V`.)
macro_rules! by_strips {
    ($strip:ident, $y:expr, $($arg:expr),*) => {{
        let registers = $y.len() / 4;
        let mut first = 0;
        while first < registers {
            first += match registers - first {
                1 => $strip::<1>(first, $y, $($arg),*),
                2 | 3 => $strip::<2>(first, $y, $($arg),*),
                4..8 => $strip::<4>(first, $y, $($arg),*),
                _ => $strip::<8>(first, $y, $($arg),*),
            };
        }
        4 * registers
    }};
}

#[target_feature(enable = "neon")]
pub(super) fn wkv6(y: &mut [f32], state: &mut [f32], r: &[f32], k: &[f32], v: &[f32], u: &[f32], w: &[f32]) {
    let done = by_strips!(wkv6_strip, y, state, r, k, v, u, w);
    wkv6_columns(done..y.len(), y, state, r, k, v, u, w);
}

#[target_feature(enable = "neon")]
#[inline]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
fn wkv6_strip<const V: usize>(
    first: usize,
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    k: &[f32],
    v: &[f32],
    u: &[f32],
    w: &[f32],
) -> usize {
    let n = y.len();
    let v = lanes::<V>(v, first);
    let mut acc = [vdupq_n_f32(0.0); V];
    for ((((row, &r), &k), &u), &w) in state.chunks_exact_mut(n).zip(r).zip(k).zip(u).zip(w) {
        let [r, k, u, w] = [vdupq_n_f32(r), vdupq_n_f32(k), vdupq_n_f32(u), vdupq_n_f32(w)];
        for ((s, acc), v) in lanes_mut::<V>(row, first).iter_mut().zip(&mut acc).zip(v) {
            let kv = vmulq_f32(k, load_f32(v));
            let old = load_f32(s);
            *acc = vfmaq_f32(*acc, r, vfmaq_f32(old, u, kv));
            store_f32(s, settled(vfmaq_f32(kv, w, old)));
        }
    }
    for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
        store_f32(y, acc);
    }
    V
}

#[target_feature(enable = "neon")]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
pub(super) fn wkv7(
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    w: &[f32],
    k: &[f32],
    v: &[f32],
    kk: &[f32],
    a: &[f32],
) {
    let done = by_strips!(wkv7_strip, y, state, r, w, k, v, kk, a);
    wkv7_columns(done..y.len(), y, state, r, w, k, v, kk, a);
}

#[target_feature(enable = "neon")]
#[inline]
#[allow(clippy::too_many_arguments, reason = "the recurrence has these operands")]
fn wkv7_strip<const V: usize>(
    first: usize,
    y: &mut [f32],
    state: &mut [f32],
    r: &[f32],
    w: &[f32],
    k: &[f32],
    v: &[f32],
    kk: &[f32],
    a: &[f32],
) -> usize {
    let n = y.len();
    let v = lanes::<V>(v, first);
    let mut removed = [vdupq_n_f32(0.0); V];
    for (row, &kk) in state.chunks_exact(n).zip(kk) {
        let kk = vdupq_n_f32(kk);
        for (s, removed) in lanes::<V>(row, first).iter().zip(&mut removed) {
            *removed = vfmaq_f32(*removed, load_f32(s), kk);
        }
    }
    let mut acc = [vdupq_n_f32(0.0); V];
    let rows = state.chunks_exact_mut(n).zip(r).zip(w).zip(k).zip(kk).zip(a);
    for (((((row, &r), &w), &k), &kk), &a) in rows {
        let [r, w, k, b] = [vdupq_n_f32(r), vdupq_n_f32(w), vdupq_n_f32(k), vdupq_n_f32(kk * a)];
        let row = lanes_mut::<V>(row, first);
        for (((s, acc), v), &removed) in row.iter_mut().zip(&mut acc).zip(v).zip(&removed) {
            let kept = vfmsq_f32(vmulq_f32(load_f32(s), w), removed, b);
            let new = vfmaq_f32(kept, k, load_f32(v));
            *acc = vfmaq_f32(*acc, new, r);
            store_f32(s, settled(new));
        }
    }
    for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
        store_f32(y, acc);
    }
    V
}

/// As [`settled`](crate::math::settled).
#[target_feature(enable = "neon")]
#[inline]
fn settled(x: float32x4_t) -> float32x4_t {
    let limit = vdupq_n_f32(ZERO_BELOW);
    // Miri does not know the one instruction.
    let small = if cfg!(miri) { vcltq_f32(vabsq_f32(x), limit) } else { vcaltq_f32(x, limit) };
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), small))
}

/// The values of `V` registers.
#[inline(always)]
fn lanes<const V: usize>(row: &[f32], first: usize) -> &[[f32; 4]] {
    row[4 * first..][..4 * V].as_chunks().0
}

/// The values of `V` registers.
#[inline(always)]
fn lanes_mut<const V: usize>(row: &mut [f32], first: usize) -> &mut [[f32; 4]] {
    row[4 * first..][..4 * V].as_chunks_mut().0
}

//! The recurrences of RWKV-5, 6 and 7: strips of values, whose outputs stay in registers while the keys go by.

use core::arch::x86_64::*;

use super::memory::{load_f32, store_f32};
use crate::math::ZERO_BELOW;
use crate::scalar::{wkv6_columns, wkv7_columns};

/// Calls `$strip::<V>(first, ...)` for strips of `8 V` values, `first` counting registers, as wide ones as there
/// are, and returns the number of values in them. (A macro, as a generic function could not name `V`.)
macro_rules! by_strips {
    ($strip:ident, $y:expr, $($arg:expr),*) => {{
        let registers = $y.len() / 8;
        let mut first = 0;
        while first < registers {
            first += match registers - first {
                1 => $strip::<1>(first, $y, $($arg),*),
                2 | 3 => $strip::<2>(first, $y, $($arg),*),
                4..8 => $strip::<4>(first, $y, $($arg),*),
                _ => $strip::<8>(first, $y, $($arg),*),
            };
        }
        8 * registers
    }};
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn wkv6(y: &mut [f32], state: &mut [f32], r: &[f32], k: &[f32], v: &[f32], u: &[f32], w: &[f32]) {
    let done = by_strips!(wkv6_strip, y, state, r, k, v, u, w);
    wkv6_columns(done..y.len(), y, state, r, k, v, u, w);
}

#[target_feature(enable = "avx2,fma,f16c")]
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
    let mut acc = [_mm256_setzero_ps(); V];
    for ((((row, &r), &k), &u), &w) in state.chunks_exact_mut(n).zip(r).zip(k).zip(u).zip(w) {
        let [r, k, u, w] = [_mm256_set1_ps(r), _mm256_set1_ps(k), _mm256_set1_ps(u), _mm256_set1_ps(w)];
        for ((s, acc), v) in lanes_mut::<V>(row, first).iter_mut().zip(&mut acc).zip(v) {
            let kv = _mm256_mul_ps(k, load_f32(v));
            let old = load_f32(s);
            *acc = _mm256_fmadd_ps(r, _mm256_fmadd_ps(u, kv, old), *acc);
            store_f32(s, settled(_mm256_fmadd_ps(w, old, kv)));
        }
    }
    for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
        store_f32(y, acc);
    }
    V
}

#[target_feature(enable = "avx2,fma,f16c")]
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

#[target_feature(enable = "avx2,fma,f16c")]
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
    let mut removed = [_mm256_setzero_ps(); V];
    for (row, &kk) in state.chunks_exact(n).zip(kk) {
        let kk = _mm256_set1_ps(kk);
        for (s, removed) in lanes::<V>(row, first).iter().zip(&mut removed) {
            *removed = _mm256_fmadd_ps(load_f32(s), kk, *removed);
        }
    }
    let mut acc = [_mm256_setzero_ps(); V];
    let rows = state.chunks_exact_mut(n).zip(r).zip(w).zip(k).zip(kk).zip(a);
    for (((((row, &r), &w), &k), &kk), &a) in rows {
        let [r, w, k, b] = [_mm256_set1_ps(r), _mm256_set1_ps(w), _mm256_set1_ps(k), _mm256_set1_ps(kk * a)];
        let row = lanes_mut::<V>(row, first);
        for (((s, acc), v), &removed) in row.iter_mut().zip(&mut acc).zip(v).zip(&removed) {
            let kept = _mm256_fnmadd_ps(removed, b, _mm256_mul_ps(load_f32(s), w));
            let new = _mm256_fmadd_ps(k, load_f32(v), kept);
            *acc = _mm256_fmadd_ps(new, r, *acc);
            store_f32(s, settled(new));
        }
    }
    for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
        store_f32(y, acc);
    }
    V
}

/// As [`settled`](crate::math::settled).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn settled(x: __m256) -> __m256 {
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
    _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude, _mm256_set1_ps(ZERO_BELOW)), x)
}

/// The values of `V` registers.
#[inline(always)]
fn lanes<const V: usize>(row: &[f32], first: usize) -> &[[f32; 8]] {
    row[8 * first..][..8 * V].as_chunks().0
}

/// The values of `V` registers.
#[inline(always)]
fn lanes_mut<const V: usize>(row: &mut [f32], first: usize) -> &mut [[f32; 8]] {
    row[8 * first..][..8 * V].as_chunks_mut().0
}

//! The recurrences of RWKV-5, 6 and 7.
//!
//! ```text
//! for each strip of values i                         as many registers as there are, up to 8
//!     y = 0                                          in registers for the whole strip
//!     for each key j                                 row j of the state S[j][i]
//!         broadcast r[j], k[j], ...                  one number for the whole row
//!         load S[j][strip], add to y, update, store
//!     store y[strip]
//! ```
//!
//! Within a strip the keys are the outer loop: rows of the state are contiguous, and `y` stays in
//! registers. The sums over `j` are those of the numeric contract: one `fma` a key, in ascending
//! order. RWKV-7 reads a strip twice: a sum over all keys has to be known before the first row
//! changes. The strip stays in the L1 cache between the two.

/// Defines `wkv6` and `wkv7` with registers of `$lanes` floats.
///
/// The invoking module has, by these names, `load_f32`, `store_f32`, `splat`, `mul`,
/// `fma(a, b, c)`, which is `a * b + c`, `fms(a, b, c)`, which is `c - a * b`, and `settled`, all
/// for a register.
macro_rules! wkv {
    ($features:literal, $lanes:literal) => {
        #[target_feature(enable = $features)]
        pub(super) fn wkv6(
            y: &mut [f32],
            state: &mut [f32],
            r: &[f32],
            k: &[f32],
            v: &[f32],
            u: &[f32],
            w: &[f32],
        ) {
            let done = $crate::generic::by_strips!($lanes, wkv6_strip, y, state, r, k, v, u, w);
            $crate::scalar::wkv6_columns(done..y.len(), y, state, r, k, v, u, w);
        }

        #[target_feature(enable = $features)]
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
            let mut acc = [splat(0.0); V];
            for ((((row, &r), &k), &u), &w) in state.chunks_exact_mut(n).zip(r).zip(k).zip(u).zip(w) {
                let [r, k, u, w] = [splat(r), splat(k), splat(u), splat(w)];
                for ((s, acc), v) in lanes_mut::<V>(row, first).iter_mut().zip(&mut acc).zip(v) {
                    let kv = mul(k, load_f32(v));
                    let old = load_f32(s);
                    *acc = fma(r, fma(u, kv, old), *acc);
                    store_f32(s, settled(fma(w, old, kv)));
                }
            }
            for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
                store_f32(y, acc);
            }
            V
        }

        #[target_feature(enable = $features)]
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
            let done = $crate::generic::by_strips!($lanes, wkv7_strip, y, state, r, w, k, v, kk, a);
            $crate::scalar::wkv7_columns(done..y.len(), y, state, r, w, k, v, kk, a);
        }

        #[target_feature(enable = $features)]
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
            let mut removed = [splat(0.0); V];
            for (row, &kk) in state.chunks_exact(n).zip(kk) {
                let kk = splat(kk);
                for (s, removed) in lanes::<V>(row, first).iter().zip(&mut removed) {
                    *removed = fma(load_f32(s), kk, *removed);
                }
            }
            let mut acc = [splat(0.0); V];
            let rows = state.chunks_exact_mut(n).zip(r).zip(w).zip(k).zip(kk).zip(a);
            for (((((row, &r), &w), &k), &kk), &a) in rows {
                let [r, w, k, b] = [splat(r), splat(w), splat(k), splat(kk * a)];
                let row = lanes_mut::<V>(row, first);
                for (((s, acc), v), &removed) in row.iter_mut().zip(&mut acc).zip(v).zip(&removed) {
                    let kept = fms(removed, b, mul(load_f32(s), w));
                    let new = fma(k, load_f32(v), kept);
                    *acc = fma(new, r, *acc);
                    store_f32(s, settled(new));
                }
            }
            for (y, acc) in lanes_mut::<V>(y, first).iter_mut().zip(acc) {
                store_f32(y, acc);
            }
            V
        }

        /// The values of `V` registers.
        #[inline(always)]
        fn lanes<const V: usize>(row: &[f32], first: usize) -> &[[f32; $lanes]] {
            row[$lanes * first..][..$lanes * V].as_chunks().0
        }

        /// The values of `V` registers.
        #[inline(always)]
        fn lanes_mut<const V: usize>(row: &mut [f32], first: usize) -> &mut [[f32; $lanes]] {
            row[$lanes * first..][..$lanes * V].as_chunks_mut().0
        }
    };
}
pub(crate) use wkv;

/// Calls `$strip::<V>(first, ...)` for the widest strips that fit, of `V` registers of `$lanes`
/// values. `first` counts registers. Returns the number of values in all strips. (A macro, as a
/// generic function could not name `V`.)
macro_rules! by_strips {
    ($lanes:literal, $strip:ident, $y:expr, $($arg:expr),*) => {{
        let registers = $y.len() / $lanes;
        let mut first = 0;
        while first < registers {
            first += match registers - first {
                1 => $strip::<1>(first, $y, $($arg),*),
                2 | 3 => $strip::<2>(first, $y, $($arg),*),
                4..8 => $strip::<4>(first, $y, $($arg),*),
                _ => $strip::<8>(first, $y, $($arg),*),
            };
        }
        $lanes * registers
    }};
}
pub(crate) use by_strips;

//! Stream compaction, which gathers the entries of a vector that pass a test; and the largest
//! entry.

/// Entries that are compared side by side.
const LANES: usize = 32;

/// The largest number of `x`: a NaN if there is one, -infinity if `x` is empty.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nans = [0u32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for ((lane, nan), &x) in lanes.iter_mut().zip(&mut nans).zip(chunk) {
            *lane = crate::math::max(x, *lane);
            *nan |= u32::from(x.is_nan());
        }
    }
    let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &x| crate::math::max(x, m));
    let nan = nans.iter().any(|&nan| nan != 0) || tail.iter().any(|x| x.is_nan());
    if nan { f32::NAN } else { max }
}

#[inline(always)]
pub(crate) fn nonzero(indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize {
    let mut n = 0;
    for (i, &v) in x.iter().enumerate() {
        indices[n] = i as u32;
        values[n] = v;
        n += usize::from(v != 0.0);
    }
    n
}

#[inline(always)]
pub(crate) fn reaching(indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize {
    let mut n = 0;
    for (i, (&x, &bound)) in x.iter().zip(bounds).enumerate() {
        indices[n] = i as u32;
        n += usize::from(!below(x, bound, norm, least));
    }
    n
}

/// Whether `x` plus the bound of its error is below `least`; false if any of them is a NaN.
#[inline(always)]
pub(crate) fn below(x: f32, bound: f32, norm: f32, least: f32) -> bool {
    x + bound * norm < least
}

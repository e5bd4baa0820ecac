//! Reductions in 16 virtual lanes: layer norm, softmax, the L2 norm and a product of three vectors.

use crate::math::{Fma, max};
use crate::table::SoftmaxStats;

/// The smallest norm to divide by.
const NORM_FLOOR: f32 = 1e-12;

/// Element `i` of a vector belongs to lane `i % LANES`.
const LANES: usize = 16;

/// Folds `x` into its lanes, every lane in ascending order.
#[inline(always)]
fn fold_lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = f(*lane, v);
    }
    lanes
}

/// Combines the lanes as a tree: lane i with i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
fn tree(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Mean and spread of a vector, for its layer norm.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) mean: f32,
    /// One over the standard deviation.
    pub(crate) inverse: f32,
}

impl Moments {
    #[inline(always)]
    pub(crate) fn of<F: Fma>(x: &[f32], eps: f32) -> Self {
        let n = x.len() as f32;
        let add = |a, b| a + b;
        let mean = tree(fold_lanes(x, 0.0, add), add) / n;
        let squares = fold_lanes(x, 0.0, |acc, v| {
            let d = v - mean;
            F::fma(d, d, acc)
        });
        let variance = tree(squares, add) / n;
        Self { mean, inverse: 1.0 / (variance + eps).sqrt() }
    }

    /// Normalises some of the vector's elements.
    #[inline(always)]
    pub(crate) fn normalize<F: Fma>(self, out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
        for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = F::fma((x - self.mean) * self.inverse, weight, bias);
        }
    }
}

#[inline(always)]
pub(crate) fn layer_norm<F: Fma>(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    Moments::of::<F>(x, eps).normalize::<F>(out, x, weight, bias);
}

#[inline(always)]
pub(crate) fn softmax<F: Fma>(out: &mut [f32], x: &[f32]) -> SoftmaxStats {
    let largest = tree(fold_lanes(x, f32::NEG_INFINITY, max), max);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = F::exp(x - largest);
    }
    let add = |a, b| a + b;
    let sum = tree(fold_lanes(out, 0.0, add), add);
    for out in out {
        *out /= sum;
    }
    SoftmaxStats { max: largest, sum }
}

#[inline(always)]
pub(crate) fn l2_normalize<F: Fma>(x: &mut [f32]) {
    let squares = fold_lanes(x, 0.0, |acc, v| F::fma(v, v, acc));
    // In this order of arguments a NaN is the result.
    let norm = max(NORM_FLOOR, tree(squares, |a, b| a + b).sqrt());
    x.iter_mut().for_each(|x| *x /= norm);
}

#[inline(always)]
pub(crate) fn dot3<F: Fma>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for ((a, b), c) in a.chunks(LANES).zip(b.chunks(LANES)).zip(c.chunks(LANES)) {
        for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane = F::fma(a * b, c, *lane);
        }
    }
    tree(lanes, |a, b| a + b)
}

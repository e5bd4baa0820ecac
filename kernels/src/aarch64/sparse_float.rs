//! Products of float records with a sparse vector.

use core::arch::aarch64::*;

use super::memory::{self, load, load_f16};
use crate::fp16;
use crate::generic::{read_f32, sparse_float};

sparse_float!("neon", sparse_f32, 4, 32, load_weights, read_f32);
sparse_float!("neon", sparse_f16, 2, 16, load_f16, fp16::read);

/// Eight floats.
type Eight = [float32x4_t; 2];

#[target_feature(enable = "neon")]
#[inline]
fn load_weights(bytes: &[u8; 32]) -> Eight {
    let (halves, _) = bytes.as_chunks::<16>();
    [vreinterpretq_f32_u8(load(&halves[0])), vreinterpretq_f32_u8(load(&halves[1]))]
}

#[target_feature(enable = "neon")]
#[inline]
fn load_f32(from: &[f32; 8]) -> Eight {
    let (halves, _) = from.as_chunks::<4>();
    [memory::load_f32(&halves[0]), memory::load_f32(&halves[1])]
}

#[target_feature(enable = "neon")]
#[inline]
fn store_f32(to: &mut [f32; 8], [low, high]: Eight) {
    let (halves, _) = to.as_chunks_mut::<4>();
    memory::store_f32(&mut halves[0], low);
    memory::store_f32(&mut halves[1], high);
}

/// `weights * x + acc`.
#[target_feature(enable = "neon")]
#[inline]
fn multiply_add(weights: Eight, x: f32, acc: Eight) -> Eight {
    [vfmaq_n_f32(acc[0], weights[0], x), vfmaq_n_f32(acc[1], weights[1], x)]
}

//! Products of float records with a sparse vector.

use core::arch::aarch64::*;

use super::memory::{load, load_f16, load_f32, store_f32};
use crate::fp16;
use crate::layout::{Records, Sparse};

/// Records that go by together while 8 outputs are in registers.
const SET_SIZE: usize = 4;

/// Defines a kernel, given the bytes of a value and of 8 values, how to load 8, and how to read number `i`.
macro_rules! sparse_float {
    ($name:ident, $bytes:literal, $eight:literal, $load:ident, $read:expr) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $name(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
            let n = out.len();
            out.fill(0.0);
            for (indices, x) in x.indices.chunks(SET_SIZE).zip(x.values.chunks(SET_SIZE)) {
                let mut records = [&[][..]; SET_SIZE];
                for (record, &j) in records.iter_mut().zip(indices) {
                    *record = &w.record(j as usize)[$bytes * first..][..$bytes * n];
                }
                let (chunks, _) = out.as_chunks_mut::<4>().0.as_chunks_mut::<2>();
                for (i, [low, high]) in chunks.iter_mut().enumerate() {
                    let mut acc = [load_f32(low), load_f32(high)];
                    for (record, &x) in records.iter().zip(x) {
                        let weights = $load(&record.as_chunks::<$eight>().0[i]);
                        acc = [vfmaq_n_f32(acc[0], weights[0], x), vfmaq_n_f32(acc[1], weights[1], x)];
                    }
                    store_f32(low, acc[0]);
                    store_f32(high, acc[1]);
                }
                for (i, out) in out.iter_mut().enumerate().skip(n / 8 * 8) {
                    for (record, &x) in records.iter().zip(x) {
                        *out = f32::mul_add($read(record, i), x, *out);
                    }
                }
            }
            out.iter_mut().for_each(|out| *out *= w.scale());
        }
    };
}

sparse_float!(sparse_f32, 4, 32, load_eight, fp32_at);
sparse_float!(sparse_f16, 2, 16, load_f16, fp16::read);

#[target_feature(enable = "neon")]
#[inline]
fn load_eight(bytes: &[u8; 32]) -> [float32x4_t; 2] {
    let (halves, _) = bytes.as_chunks::<16>();
    [vreinterpretq_f32_u8(load(&halves[0])), vreinterpretq_f32_u8(load(&halves[1]))]
}

fn fp32_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

//! Products of float records with a sparse vector.

use core::arch::x86_64::*;

use super::memory::{load, load_f16, load_f32, store_f32};
use crate::fp16;
use crate::layout::{Records, Sparse};

/// Records that go by together while 8 outputs are in a register.
const SET_SIZE: usize = 4;

/// Defines a kernel, given the bytes of a value and of 8 values, how to load 8, and how to read number `i`.
macro_rules! sparse_float {
    ($name:ident, $bytes:literal, $eight:literal, $load:expr, $read:expr) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $name(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
            let n = out.len();
            out.fill(0.0);
            for (indices, x) in x.indices.chunks(SET_SIZE).zip(x.values.chunks(SET_SIZE)) {
                let mut records = [&[][..]; SET_SIZE];
                for (record, &j) in records.iter_mut().zip(indices) {
                    *record = &w.record(j as usize)[$bytes * first..][..$bytes * n];
                }
                let (chunks, tail) = out.as_chunks_mut::<8>();
                let tail_start = n - tail.len();
                for (i, out) in chunks.iter_mut().enumerate() {
                    let mut acc = load_f32(out);
                    for (record, &x) in records.iter().zip(x) {
                        let weights = $load(&record.as_chunks::<$eight>().0[i]);
                        acc = _mm256_fmadd_ps(weights, _mm256_set1_ps(x), acc);
                    }
                    store_f32(out, acc);
                }
                for (i, out) in tail.iter_mut().enumerate() {
                    for (record, &x) in records.iter().zip(x) {
                        *out = f32::mul_add($read(record, tail_start + i), x, *out);
                    }
                }
            }
            out.iter_mut().for_each(|out| *out *= w.scale());
        }
    };
}

sparse_float!(sparse_f32, 4, 32, |bytes| _mm256_castsi256_ps(load(bytes)), fp32_at);
sparse_float!(sparse_f16, 2, 16, |bytes| load_f16(bytes), fp16::read);

fn fp32_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

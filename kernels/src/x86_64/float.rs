//! Products of float matrices.
//!
//! Several block rows go side by side on every processor. The sums of one row depend on each other,
//! so one block row alone would wait for the latency of each `fma`.

use core::arch::x86_64::*;

use super::int::finish;
use super::memory::{load, load_f16, prefetch};
use super::streams::{ReadPattern, STREAMS, Streams, by_streams};
use crate::layout::{Activation, DType, GROUP_SIZE, K_BLOCK, Matrix, ROW_INTERLEAVE};

const F32_BLOCK: usize = DType::F32.block_bytes();
const F16_BLOCK: usize = DType::F16.block_bytes();

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matvec_f32(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_streams!(f32_rows, ReadPattern::SIDE_BY_SIDE, out, w, first_row, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matvec_f16(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_streams!(f16_rows, ReadPattern::SIDE_BY_SIDE, out, w, first_row, x);
}

/// Defines the product `$name`. `$load` loads 8 rows of a column, which are `$bytes` bytes.
macro_rules! float_rows {
    ($name:ident, $block:expr, $bytes:expr, $load:expr) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $name<const N: usize>(
            out: &mut [f32],
            w: &Matrix<'_>,
            pattern: ReadPattern,
            first: usize,
            end: usize,
            x: Activation<'_>,
        ) {
            let streams = Streams::<N, $block>::new(w, pattern, first, end);
            let mut acc = [[_mm256_setzero_ps(); 2]; N];
            for (i, x) in x.values.as_chunks::<K_BLOCK>().0.iter().enumerate() {
                let blocks: [_; N] = core::array::from_fn(|n| {
                    let [block, later] = streams.block(n, i);
                    [block.as_chunks::<$bytes>().0, later.as_chunks::<$bytes>().0]
                });
                for (g, x) in x.as_chunks::<GROUP_SIZE>().0.iter().enumerate() {
                    let mut partial = [[_mm256_setzero_ps(); 2]; N];
                    for (k, &x) in x.iter().enumerate() {
                        let x = _mm256_set1_ps(x);
                        for (partial, [columns, later]) in partial.iter_mut().zip(blocks) {
                            prefetch(&later[2 * (GROUP_SIZE * g + k)]);
                            for (half, partial) in partial.iter_mut().enumerate() {
                                let weights = $load(&columns[2 * (GROUP_SIZE * g + k) + half]);
                                *partial = _mm256_fmadd_ps(weights, x, *partial);
                            }
                        }
                    }
                    for (acc, partial) in acc.iter_mut().zip(partial) {
                        *acc = [_mm256_add_ps(acc[0], partial[0]), _mm256_add_ps(acc[1], partial[1])];
                    }
                }
            }
            finish(out, acc, w.scale());
        }
    };
}

float_rows!(f32_rows, F32_BLOCK, 32, |bytes| _mm256_castsi256_ps(load(bytes)));
float_rows!(f16_rows, F16_BLOCK, 16, |bytes| load_f16(bytes));

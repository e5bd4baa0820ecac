//! Products of float matrices.

use core::arch::aarch64::*;

use super::int::{Rows, finish};
use super::memory::{load, load_f16};
use super::shim::prefetch;
use super::streams::BlockStream;
use crate::layout::{Activation, DType, GROUP_SIZE, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// Defines a kernel, given the bytes of a column of a block and how to load it.
macro_rules! float_matvec {
    ($matvec:ident, $dtype:expr, $bytes:literal, $load:ident) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $matvec(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
            let stream = BlockStream::<{ $dtype.block_bytes() }>::new(w, first_row, out.len());
            let (groups, _) = x.values.as_chunks::<GROUP_SIZE>().0.as_chunks::<2>();
            for (out, row) in out.chunks_mut(ROW_INTERLEAVE).zip(stream.rows()) {
                let mut acc = [vdupq_n_f32(0.0); 4];
                for ([block, later], groups) in row.zip(groups) {
                    let [block, later] = [block, later].map(|block| block.as_chunks::<$bytes>().0);
                    let [block, later] = [block, later].map(|columns| columns.as_chunks::<GROUP_SIZE>().0);
                    for ((columns, later), x) in block.iter().zip(later).zip(groups) {
                        let mut partial = [vdupq_n_f32(0.0); 4];
                        let (lines, _) = columns.as_chunks::<{ LINE_BYTES / $bytes }>();
                        let (later, _) = later.as_chunks::<{ LINE_BYTES / $bytes }>();
                        for ((line, later), x) in lines.iter().zip(later).zip(x.as_chunks().0) {
                            prefetch::<0>(later.as_flattened());
                            for (column, &x) in line.iter().zip::<&[f32; LINE_BYTES / $bytes]>(x) {
                                for (partial, weights) in partial.iter_mut().zip($load(column)) {
                                    *partial = vfmaq_n_f32(*partial, weights, x);
                                }
                            }
                        }
                        for (acc, partial) in acc.iter_mut().zip(partial) {
                            *acc = vaddq_f32(*acc, partial);
                        }
                    }
                }
                finish(out, acc, w.scale());
            }
        }
    };
}

float_matvec!(matvec_f32, DType::F32, 64, load_f32_column);
float_matvec!(matvec_f16, DType::F16, 32, load_f16_column);

#[target_feature(enable = "neon")]
#[inline]
fn load_f32_column(column: &[u8; 64]) -> Rows<float32x4_t> {
    let (rows, _) = column.as_chunks::<16>();
    [
        vreinterpretq_f32_u8(load(&rows[0])),
        vreinterpretq_f32_u8(load(&rows[1])),
        vreinterpretq_f32_u8(load(&rows[2])),
        vreinterpretq_f32_u8(load(&rows[3])),
    ]
}

#[target_feature(enable = "neon")]
#[inline]
fn load_f16_column(column: &[u8; 32]) -> Rows<float32x4_t> {
    let (rows, _) = column.as_chunks::<16>();
    let ([a, b], [c, d]) = (load_f16(&rows[0]), load_f16(&rows[1]));
    [a, b, c, d]
}

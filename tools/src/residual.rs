//! The second plane of a nested head: the rounding errors of the first plane, row by row, in int4
//! like the first.

use anyhow::{Context, Result};
use rwkv_edge::kernels::layout::{Matrix, ROW_INTERLEAVE, Records, matrix_bytes};
use rwkv_edge::kernels::quant::{ErrorSums, ScaleOverflow, decode_matrix_row, decode_record};
use rwkv_edge::kernels::{DType, Kernels};

/// Encodes blocks of rows; holds room for one.
pub(crate) struct BlockRows {
    kernels: &'static Kernels,
    cols: usize,
    /// Tensor scale of the first plane.
    first_plane: f32,
    block: Vec<u8>,
    row: Vec<f32>,
}

impl BlockRows {
    pub(crate) fn new(kernels: &'static Kernels, cols: usize, first_plane: f32) -> Result<Self> {
        let bytes = matrix_bytes(DType::Int4, ROW_INTERLEAVE, cols).context("the head is too large")?;
        Ok(Self { kernels, cols, first_plane, block: vec![0; bytes], row: vec![0.0; cols] })
    }

    /// Encodes the rounding errors of the first plane for up to 16 rows of `values`, one record a
    /// row. Sets an upper bound of each record's norm, and returns the error of both planes
    /// together.
    pub(crate) fn encode<'a>(
        &mut self,
        values: &[f32],
        scale: f32,
        records: impl Iterator<Item = &'a mut [u8]>,
        bounds: &mut [f32; ROW_INTERLEAVE],
    ) -> Result<ErrorSums, ScaleOverflow> {
        let Self { kernels, cols, first_plane, block, row } = self;
        let rows = values.len() / *cols;
        kernels.encode_block_row(DType::Int4, values, *cols, None, *first_plane, block)?;
        let mut sums = ErrorSums::default();
        let numbered = values.chunks_exact(*cols).zip(records).zip(bounds).enumerate();
        for (i, ((values, record), bound)) in numbered {
            let view = Matrix::new(DType::Int4, rows, *cols, *first_plane, block);
            decode_matrix_row(&view.expect("a block of these rows"), i, row);
            row.iter_mut().zip(values).for_each(|(first, value)| *first = value - *first);
            let errors = kernels.encode_record(DType::Int4, row, None, scale, record)?;
            let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum();
            sums += ErrorSums { squared_norm: norm, ..errors };
            let view = Records::new(DType::Int4, 1, *cols, scale, record);
            decode_record(&view.expect("a record of this length"), 0, row);
            *bound = norm_bound(row);
        }
        Ok(sums)
    }
}

/// The norm, rounded up; 0 for zeros.
fn norm_bound(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    if squares == 0.0 {
        return 0.0;
    }
    // The sum is off by a relative n * 2^-53 at most, the cast by half a place.
    ((squares.sqrt() * (1.0 + 1e-9)) as f32).next_up()
}

//! Column records.

use rwkv_edge::kernels::layout::{GROUP_SIZE, record_bytes};
use rwkv_edge::kernels::quant::{FedSums, ScaleOverflow, output_bytes, store_outputs};
use rwkv_edge::kernels::{DType, Kernels};

use super::{Factor, each};

/// Encodes a block of the columns of a matrix `[out, in]` with feedback from column to column, on up
/// to `threads` threads.
///
/// `values` are the block's rows: `factor.columns()` values for each output. `records` takes a
/// record for each column.
///
/// # Errors
/// If a value, or what feedback makes of it, is too large for the dtype and `tensor_scale`.
///
/// # Panics
/// If lengths do not fit, or `dtype` is not quantized.
pub fn encode_columns(
    kernels: &Kernels,
    threads: usize,
    dtype: DType,
    values: &[f32],
    factor: &Factor,
    tensor_scale: f32,
    records: &mut [u8],
) -> Result<FedSums, ScaleOverflow> {
    let columns = factor.columns();
    assert!(values.len().is_multiple_of(columns), "{} values of {columns} columns", values.len());
    let outputs = values.len() / columns;
    let bytes = record_bytes(dtype, outputs).and_then(|bytes| bytes.checked_mul(columns));
    assert!(bytes == Some(records.len()), "{} bytes of records, expected {bytes:?}", records.len());
    let mut groups = vec![vec![0; columns * output_bytes(dtype)]; outputs.div_ceil(GROUP_SIZE)];
    let mut results = vec![Ok(FedSums::default()); groups.len()];
    let parts = values.chunks(GROUP_SIZE * columns).zip(&mut groups).zip(&mut results);
    each(threads, parts, |((values, out), result)| {
        let view = factor.view();
        let mut scratch = vec![0.0; 2 * GROUP_SIZE * view.positions()];
        *result = kernels.encode_outputs_fed(dtype, values, view, tensor_scale, &mut scratch, out);
    });
    records.fill(0);
    for (g, group) in groups.iter().enumerate() {
        store_outputs(dtype, outputs, g, group, records);
    }
    results.into_iter().try_fold(FedSums::default(), |mut sums, result| {
        sums += result?;
        Ok(sums)
    })
}

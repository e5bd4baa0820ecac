//! Interleaved matrices.

use rwkv_edge::kernels::layout::ROW_INTERLEAVE;
use rwkv_edge::kernels::quant::{FactorView, FedSums, ScaleOverflow};
use rwkv_edge::kernels::{DType, Kernels};

use super::Factor;

/// Encodes blocks of rows with feedback from column to column. Each thread has its own.
pub struct RowEncoder<'a> {
    kernels: &'static Kernels,
    factor: FactorView<'a>,
    scratch: Vec<f32>,
}

impl<'a> RowEncoder<'a> {
    /// For matrices whose inputs `factor` describes, made with [`Order::Groups`](super::Order).
    pub fn new(kernels: &'static Kernels, factor: &'a Factor) -> Self {
        let view = factor.view();
        let scratch = vec![0.0; 2 * ROW_INTERLEAVE * view.positions()];
        Self { kernels, factor: view, scratch }
    }

    /// Encodes 1 to 16 rows as a block row of an interleaved matrix, as
    /// [`Kernels::encode_block_row_fed`] does.
    ///
    /// # Errors
    /// If a value, or what feedback makes of it, is too large for the dtype and `tensor_scale`.
    ///
    /// # Panics
    /// If lengths do not fit, the factor is of another order, or `dtype` is not quantized.
    pub fn encode(
        &mut self,
        dtype: DType,
        rows: &[f32],
        tensor_scale: f32,
        out: &mut [u8],
    ) -> Result<FedSums, ScaleOverflow> {
        let Self { kernels, factor, scratch } = self;
        kernels.encode_block_row_fed(dtype, rows, *factor, tensor_scale, scratch, out)
    }
}

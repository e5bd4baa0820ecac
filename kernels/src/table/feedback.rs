//! Encoding of weights with error feedback.

use super::{Kernels, check_len};
use crate::layout::{DType, GROUP_SIZE};
use crate::quant::{FactorView, FedSums, Feedback, FeedbackTable, ScaleOverflow, Tile, feedback};

impl Kernels {
    /// Encodes 1 to 16 rows, row-major, with error feedback (`quant::feedback`), as one block
    /// row of an interleaved matrix. `out` is that of [`encode_block_row`](Self::encode_block_row).
    ///
    /// A group of positions of `factor` has the columns of one group. `scratch` has at least 32
    /// floats for each position.
    ///
    /// # Errors
    /// If a value is not finite, or it or what feedback makes of it is too large for the dtype and
    /// `tensor_scale`. `out` is unspecified then.
    ///
    /// # Panics
    /// If `dtype` is not quantized, lengths do not fit together, or `tensor_scale` is no positive
    /// power of two.
    pub fn encode_block_row_fed(
        &self,
        dtype: DType,
        rows: &[f32],
        factor: FactorView<'_>,
        tensor_scale: f32,
        scratch: &mut [f32],
        out: &mut [u8],
    ) -> Result<FedSums, ScaleOverflow> {
        feedback::encode_rows(self.feedback(), dtype, rows, factor, tensor_scale, scratch, out)
    }

    /// Encodes one group of 1 to 32 outputs of column records with error feedback from record to
    /// record. `values` are rows of a matrix `[out, in]`: a value of each column for each output.
    ///
    /// `out` takes [`output_bytes`](crate::quant::output_bytes) for each record, and
    /// [`store_outputs`](crate::quant::store_outputs) puts them to their places. `scratch` has at
    /// least 64 floats for each position of `factor`.
    ///
    /// # Errors
    /// As [`encode_block_row_fed`](Self::encode_block_row_fed).
    ///
    /// # Panics
    /// As [`encode_block_row_fed`](Self::encode_block_row_fed).
    pub fn encode_outputs_fed(
        &self,
        dtype: DType,
        values: &[f32],
        factor: FactorView<'_>,
        tensor_scale: f32,
        scratch: &mut [f32],
        out: &mut [u8],
    ) -> Result<FedSums, ScaleOverflow> {
        feedback::encode_outputs(self.feedback(), dtype, values, factor, tensor_scale, scratch, out)
    }

    /// `tile[i][j] -= a[k][j] * (b[k][i] * d[k])` for all `k` in order, in double precision, rounded
    /// after each operation.
    ///
    /// # Panics
    /// If `a`, `b` and `d` differ in length.
    pub fn subtract_products(
        &self,
        tile: &mut Tile,
        a: &[[f32; GROUP_SIZE]],
        b: &[[f32; GROUP_SIZE]],
        d: &[f32],
    ) {
        check_len("products", b.len(), a.len());
        check_len("factors", d.len(), a.len());
        (FeedbackTable::of(self.isa()).subtract_products)(tile, a, b, d);
    }

    fn feedback(&self) -> Feedback {
        Feedback { table: FeedbackTable::of(self.isa()), encoders: self.group_encoders() }
    }
}

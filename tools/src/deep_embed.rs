//! The tables of DeepEmbed in RWKV-7a. A row of the file is the checkpoint's row plus the product
//! of `ffn.s_emb_x` with the embedding of the token after `ln0`.

use anyhow::{Context, Result};
use rwkv_edge::kernels::layout::{Activation, GROUP_SIZE, Matrix, ROW_INTERLEAVE, matrix_bytes, padded_cols};
use rwkv_edge::kernels::{DType, Kernels};

use crate::encode::read_finite;
use crate::origin::Input;
use crate::source::{SourceError, SourceTensor, folded_into};

/// Rows that are made together. The matrix is read once for them.
pub(crate) const ROWS: usize = 64;

/// What is folded into the table of one layer.
pub(crate) struct Fold<'a> {
    kernels: &'static Kernels,
    input: Input<'a>,
    embedding: &'a SourceTensor,
    /// `ffn.s_emb_x.weight`, `[deep_rank^2, n_embd]`, interleaved.
    matrix: Vec<u8>,
    shape: [usize; 2],
    /// The table's name in the checkpoint, for errors.
    table: &'a str,
}

impl<'a> Fold<'a> {
    /// Reads the matrix that is folded into `table`. The shapes have been checked.
    pub(crate) fn new(kernels: &'static Kernels, input: Input<'a>, table: &'a str) -> Result<Self> {
        let name = folded_into(table).with_context(|| format!("{table} is no table of DeepEmbed"))?;
        let (tensor, embedding) = (input.get(&name)?, input.get("emb.weight")?);
        let (len, n_embd) = (tensor.elements(), embedding.shape.last().copied().unwrap_or(1));
        let mut values = vec![0.0; len];
        read_finite(input, tensor, 0, &mut values)?;
        let shape = [len / n_embd, n_embd];
        let bytes = matrix_bytes(DType::F32, shape[0], shape[1]).context("a matrix has no size")?;
        let mut matrix = vec![0; bytes];
        let block = bytes / shape[0].div_ceil(ROW_INTERLEAVE);
        for (rows, out) in values.chunks(ROW_INTERLEAVE * n_embd).zip(matrix.chunks_mut(block)) {
            kernels
                .encode_block_row(DType::F32, rows, n_embd, None, 1.0, out)
                .map_err(|_| input.error(&name, "weights that f32 can hold", "others"))?;
        }
        Ok(Self { kernels, input, embedding, matrix, shape, table })
    }

    /// Adds the products for the tokens from `first` on to their rows, at most [`ROWS`].
    /// `norm(out, x)` is `ln0`.
    pub(crate) fn add(
        &self,
        first: usize,
        rows: &mut [f32],
        norm: impl Fn(&mut [f32], &[f32]),
    ) -> Result<(), SourceError> {
        let [width, n_embd] = self.shape;
        let (count, padded) = (rows.len() / width, padded_cols(n_embd));
        let mut embedding = vec![0.0; count * n_embd];
        read_finite(self.input, self.embedding, first * n_embd, &mut embedding)?;
        let mut inputs = vec![0.0; count * padded];
        for (out, x) in inputs.chunks_exact_mut(padded).zip(embedding.chunks_exact(n_embd)) {
            norm(&mut out[..n_embd], x);
        }
        let matrix = Matrix::new(DType::F32, width, n_embd, 1.0, &self.matrix);
        let matrix = matrix.map_err(|error| self.input.error(self.table, "a table", error.to_string()))?;
        // Float matrices read the values only.
        let (codes, groups) = (vec![0; padded], padded / GROUP_SIZE);
        let (scales, sums) = (vec![0.0; groups], vec![0; groups]);
        let inputs: Vec<_> = inputs
            .chunks_exact(padded)
            .map(|values| Activation { values, codes: &codes, scales: &scales, sums: &sums })
            .collect();
        let mut products = vec![0.0; rows.len()];
        let mut outs: Vec<_> = products.chunks_exact_mut(width).collect();
        self.kernels.matmul(&mut outs, &matrix, 0, &inputs);
        self.kernels.add(rows, &products);
        Ok(())
    }
}

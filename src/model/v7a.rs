//! DeepEmbed of RWKV-7a: factors of the hidden units of channel mixing.
//!
//! Each layer has a table with a matrix `S`, `[rank, rank]`, for each token. With the normalised
//! stream `h` of a token:
//!
//! ```text
//! factors = s0 + s2 @ (S^T @ (s1 @ h))
//! ```
//!
//! The rest of RWKV-7a is RWKV-7. The tables stay in the file; a token reads one row of each.

use std::array;

use rwkv_edge_kernels::DType;
use rwkv_edge_kernels::layout::{Records, Sparse};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixHandle, ModelFile, RecordsHandle, TensorLayout, VectorHandle};
use crate::memory::Buffers;

use super::batch::{Batch, Step};
use super::names;
use super::ops::{Ops, Product};
use super::vectors::{Activations, SCRATCH, Vectors, record_floats};

/// Most rows of `S`: the bound of `deep_rank` in a file.
const MAX_RANK: usize = 256;

/// Hidden units that are multiplied at a time. A copy of them lies on the stack.
const UNITS: usize = 256;

/// Weights of one layer's DeepEmbed.
#[derive(Debug)]
pub(crate) struct DeepEmbed {
    layer: usize,
    rank: usize,
    /// `S` of each token, `[n_vocab, rank^2]`.
    table: RecordsHandle,
    /// `[rank, n_embd]`
    s1: MatrixHandle,
    /// `[n_ffn, rank]`
    s2: MatrixHandle,
    /// `[n_ffn]`
    s0: VectorHandle,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Rows of the tables as stored, `[n_layer, tokens of the batch]`.
    rows: &'a mut [f32],
    /// Normalised streams, `[tokens, n_embd]`.
    h: Activations<'a>,
    /// `s1 @ h`, `[tokens, rank]`.
    low: Vectors<'a>,
    /// `S`, `[tokens, rank^2]`.
    s: Vectors<'a>,
    /// `S^T @ (s1 @ h)`, `[tokens, rank]`.
    mixed: Activations<'a>,
    /// `[tokens, n_ffn]`
    factors: Vectors<'a>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, rank: usize, tokens: usize) -> Self {
        let Config { n_layer, n_embd, n_ffn, .. } = *config;
        let rows = n_layer.saturating_mul(tokens).saturating_mul(record_floats(rank * rank));
        Self {
            rows: buffers.f32s("rows of DeepEmbed", rows),
            h: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            low: Vectors::take(buffers, SCRATCH, [tokens, rank]),
            s: Vectors::take(buffers, SCRATCH, [tokens, rank * rank]),
            mixed: Activations::take(buffers, SCRATCH, [tokens, rank]),
            factors: Vectors::take(buffers, SCRATCH, [tokens, n_ffn]),
        }
    }
}

impl DeepEmbed {
    pub(crate) fn load(file: &ModelFile, config: &Config, rank: usize, layer: usize) -> Result<Self> {
        let Config { n_embd, n_ffn, n_vocab, .. } = *config;
        let name = |tail: &str| format!("blocks.{layer}.ffn.{tail}");
        let table = |layer| {
            let shape = [n_vocab, rank * rank];
            file.records_handle(&names::deep_embedding(layer), TensorLayout::RowRecords, shape)
        };
        let (table, first) = (table(layer)?, table(0)?);
        if table.dtype() != first.dtype() {
            let what = format!("{} is {}, that of layer 0 {}", name("s_emb"), table.dtype(), first.dtype());
            return Err(Error::malformed(what));
        }
        Ok(Self {
            layer,
            rank,
            table,
            s1: file.matrix_handle(&name("s1"), rank, n_embd)?,
            s2: file.matrix_handle(&name("s2"), n_ffn, rank)?,
            s0: file.vector_handle(&name("s0"), n_ffn)?,
        })
    }

    /// Reads the layer's rows of the tokens of a batch.
    ///
    /// # Errors
    /// If a row is damaged or cannot be read.
    pub(crate) fn read_rows(
        &self,
        ops: &mut Ops<'_>,
        batch: &Batch<'_, '_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let (tokens, stride) = (batch.tokens(), self.table.stride());
        let rows: &mut [u8] = bytemuck::cast_slice_mut(scratch.rows);
        let rows = rows[self.layer * tokens * stride..].chunks_exact_mut(stride);
        ops.meter.traffic.weight_bytes += (tokens * stride) as u64;
        let mut tokens = batch.ids().zip(rows);
        tokens.try_for_each(|(token, row)| ops.file.read_record(self.table, token as usize, row).map(drop))
    }

    /// Takes the normalised streams of the tokens, after [`Step::shift`], as inputs.
    pub(crate) fn take_inputs(&self, ops: &mut Ops<'_>, step: &Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let kernels = ops.kernels;
        step.for_each_pair(ops.pool, scratch.h.pieces(step.tokens()), &|h, _, mut input| {
            input.values[..h.len()].copy_from_slice(h);
            kernels.quantize(&mut input);
        });
    }

    /// The first product.
    pub(crate) fn first<'x>(&self, scratch: &'x mut Scratch<'_>) -> Product<'x> {
        Product::new(self.s1, &scratch.h, scratch.low.rows_mut())
    }

    /// Multiplies the hidden units, `[tokens, n_ffn]`, by their factors, after the first product.
    pub(crate) fn scale(
        &self,
        ops: &mut Ops<'_>,
        (tokens, hidden): (usize, &mut Vectors<'_>),
        scratch: &mut Scratch<'_>,
    ) {
        let Scratch { rows, low, s, mixed, factors, .. } = scratch;
        let (kernels, rank, stride) = (ops.kernels, self.rank, self.table.stride());
        let rows: &[u8] = bytemuck::cast_slice(rows);
        let rows = &rows[self.layer * tokens * stride..];
        let indices: [u32; MAX_RANK] = array::from_fn(|i| i as u32);
        ops.pool.for_each_piece((s.pieces(tokens), mixed.pieces(tokens)), &|t, (s, mut mixed)| {
            kernels.dequantize_record(s, &self.table.record(&rows[t * stride..][..stride]), 0);
            let s = Records::new(DType::F32, rank, rank, 1.0, bytemuck::cast_slice(s));
            let s = s.expect("a multiple of 16 floats is a record");
            let low = Sparse { indices: &indices[..rank], values: low.row(t) };
            kernels.sparse_matvec(&mut mixed.values[..rank], &s, 0, low);
            kernels.quantize(&mut mixed);
        });
        ops.matmul(tokens, [Product::new(self.s2, mixed, factors.rows_mut())]);
        let s0 = ops.vector(self.s0);
        let pieces = (hidden.pieces(tokens), factors.pieces(tokens));
        ops.pool.for_each_piece(pieces, &|_, (hidden, factors)| {
            kernels.add(factors, s0);
            for (hidden, factors) in hidden.chunks_mut(UNITS).zip(factors.chunks(UNITS)) {
                let mut copy = [0.0; UNITS];
                let copy = &mut copy[..hidden.len()];
                copy.copy_from_slice(hidden);
                kernels.mul(hidden, copy, factors);
            }
        });
    }
}

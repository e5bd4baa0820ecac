//! The output head, plain or in two planes.
//!
//! A nested head is the sum of two int4 matrices: the rounded weights, and the residual of that
//! rounding. A product with the first plane gives estimates of all logits. The file has an upper
//! bound of the norm of each row of the second plane, so `|logit - estimate| <= bound * |input|`
//! (Cauchy and Schwarz). `shortlist.rs` uses this bound to read only rows of tokens that can still
//! be sampled.

use std::ops::Range;

use arrayvec::ArrayVec;
use rwkv_edge_kernels::layout::Activation;
use rwkv_edge_kernels::{DType, GROUP_SIZE, Records};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixHandle, ModelFile, RecordsHandle, TensorLayout, VectorHandle};
use crate::memory::Buffers;

use super::meter::Phase;
use super::names;
use super::ops::{Norm, Ops, Product};
use super::vectors::{Activations, Vectors};

/// Most tokens that go through the head together.
pub(crate) const MAX_HEAD_BATCH: usize = 64;

/// Fewest rows of the residual that a thread takes at a time.
const RESIDUAL_GRAIN: usize = 32;

/// Rows per call of the kernel when all rows are read. Each call waits for its first rows.
const RESIDUAL_ROWS: usize = 512;

/// The weights of the output.
#[derive(Debug)]
pub(crate) struct LmHead {
    ln_out: Norm,
    /// `[n_vocab, n_embd]`
    weight: MatrixHandle,
    residual: Option<Residual>,
}

/// The second plane.
#[derive(Clone, Copy, Debug)]
struct Residual {
    /// `[n_vocab, n_embd]`
    rows: RecordsHandle,
    /// Norm of each row, `[n_vocab]`.
    bound: VectorHandle,
}

/// Buffers of the head, with a row for each of up to [`MAX_HEAD_BATCH`] tokens.
pub(crate) struct Scratch<'a> {
    /// Normalised residual streams, `[tokens, n_embd]`.
    inputs: Activations<'a>,
    /// Logits or their estimates, `[tokens, n_vocab]`.
    logits: Vectors<'a>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, tokens: usize) -> Self {
        Self {
            inputs: Activations::take(buffers, "head input", [tokens, config.n_embd]),
            logits: Vectors::take(buffers, "logits", [tokens, config.n_vocab]),
        }
    }

    /// The logits of the first token, `[n_vocab]`.
    pub(crate) fn into_logits(self) -> &'a mut [f32] {
        let n_vocab = self.logits.len();
        &mut self.logits.into_data()[..n_vocab]
    }

    /// The logits of token `t`, `[n_vocab]`.
    pub(super) fn logits_mut(&mut self, t: usize) -> &mut [f32] {
        self.logits.row_mut(t)
    }

    /// What the first plane has made of token `t`.
    pub(super) fn estimated(&self, t: usize) -> Estimated<'_> {
        Estimated { input: self.inputs.row(t), logits: self.logits.row(t) }
    }
}

/// The input of the head for one token, and the estimates of its logits, `[n_vocab]`.
#[derive(Clone, Copy)]
pub(super) struct Estimated<'s> {
    input: Activation<'s>,
    pub(super) logits: &'s [f32],
}

impl Residual {
    fn load(file: &ModelFile, n_vocab: usize, n_embd: usize) -> Result<Self> {
        let rows = file.records_handle(names::HEAD_RESIDUAL, TensorLayout::RowRecords, [n_vocab, n_embd])?;
        if rows.dtype() != DType::Int4 {
            return Err(Error::malformed(format!("{} is {}, not int4", names::HEAD_RESIDUAL, rows.dtype())));
        }
        Ok(Self { rows, bound: file.vector_handle(names::HEAD_BOUND, n_vocab)? })
    }

    /// The rows. Counts `count` of them as read.
    fn read<'a>(&self, ops: &mut Ops<'a>, count: usize) -> Records<'a> {
        let rows = ops.file.records(self.rows);
        ops.meter.traffic.residual_rows += count as u64;
        ops.meter.traffic.weight_bytes += (count * rows.stride()) as u64;
        rows
    }
}

impl LmHead {
    pub(crate) fn load(file: &ModelFile) -> Result<Self> {
        let Config { n_embd, n_vocab, .. } = *file.config();
        let residual = match is_nested(file) {
            true => Some(Residual::load(file, n_vocab, n_embd)?),
            false => None,
        };
        Ok(Self {
            ln_out: Norm::load(file, "ln_out", n_embd)?,
            weight: file.matrix_handle(names::HEAD, n_vocab, n_embd)?,
            residual,
        })
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.residual.is_some()
    }

    /// Computes estimates of all logits of `tokens` tokens with the first plane. `x(t)`, `[n_embd]`,
    /// is the residual stream after token `t`. The estimates of a plain head are the logits.
    pub(super) fn estimate<'x>(
        &self,
        ops: &mut Ops<'_>,
        (tokens, x): (usize, &(dyn Fn(usize) -> &'x [f32] + Sync)),
        scratch: &mut Scratch<'_>,
    ) {
        let Scratch { inputs, logits } = scratch;
        let (kernels, (weight, bias), eps) = (ops.kernels, ops.norm(self.ln_out), ops.layer_norm_eps);
        ops.pool.for_each_piece(inputs.pieces(tokens), &|t, mut input| {
            let x = x(t);
            kernels.layer_norm(&mut input.values[..x.len()], x, weight, bias, eps);
            kernels.quantize(&mut input);
        });
        ops.matmul(tokens, [Product::new(self.weight, inputs, logits.rows_mut())]);
        if self.is_nested() {
            ops.meter.traffic.head_rows += (tokens * logits.len()) as u64;
        }
        ops.meter.end(Phase::Head);
    }

    /// Adds the second plane to all estimates of the tokens, which makes them the logits. Each row
    /// of it is read once.
    pub(super) fn refine_all(&self, ops: &mut Ops<'_>, tokens: Range<usize>, scratch: &mut Scratch<'_>) {
        let Some(residual) = self.residual else { return };
        let Scratch { inputs, logits } = scratch;
        let n_vocab = logits.len();
        let rows = residual.read(ops, n_vocab);
        ops.meter.traffic.residual_rows += ((tokens.len() - 1) * n_vocab) as u64;
        let kernels = ops.kernels;
        let mut logits = logits.rows_mut();
        let outs = logits.part(tokens.clone());
        ops.pool.for_each_range_of_rows([outs], RESIDUAL_GRAIN, &|_, first, parts| {
            let mut parts: ArrayVec<_, MAX_HEAD_BATCH> = parts.collect();
            let len = parts.first().map_or(0, |part| part.len());
            let mut indices = [0; RESIDUAL_ROWS];
            let mut added = [0.0; RESIDUAL_ROWS];
            for start in (0..len).step_by(RESIDUAL_ROWS) {
                let some = start..len.min(start + RESIDUAL_ROWS);
                let (indices, added) = (&mut indices[..some.len()], &mut added[..some.len()]);
                indices.iter_mut().zip((first + start) as u32..).for_each(|(index, i)| *index = i);
                for (logits, t) in parts.iter_mut().zip(tokens.clone()) {
                    kernels.record_dots(added, &rows, indices, inputs.row(t));
                    kernels.add(&mut logits[some.clone()], added);
                }
            }
        });
        ops.release(rows.data());
    }

    /// Sets `exact[i]` to the logit of token `ids[i]`, after [`estimate`](Self::estimate).
    pub(super) fn refine(&self, ops: &mut Ops<'_>, ids: &[u32], exact: &mut [f32], of: Estimated<'_>) {
        let Some(residual) = self.residual else { return };
        let rows = residual.read(ops, ids.len());
        let (kernels, Estimated { input, logits }) = (ops.kernels, of);
        ops.pool.for_each_range([exact], RESIDUAL_GRAIN, &|_, first, exact| {
            let ids = &ids[first..][..exact.len()];
            kernels.record_dots(exact, &rows, ids, input);
            exact.iter_mut().zip(ids).for_each(|(exact, &id)| *exact += logits[id as usize]);
        });
    }

    /// `bounds` and `norm` with `|logit[i] - estimate[i]| <= bounds[i] * norm`, after
    /// [`estimate`](Self::estimate).
    pub(super) fn bounds<'a>(&self, ops: &mut Ops<'a>, of: Estimated<'_>) -> (&'a [f32], f32) {
        let Some(Residual { bound, .. }) = self.residual else { return (&[], 0.0) };
        let bounds = ops.vector(bound);
        ops.meter.traffic.weight_bytes += size_of_val(bounds) as u64;
        let x = of.input;
        let squares = x.codes.chunks_exact(GROUP_SIZE).zip(x.scales).map(|(codes, &scale)| {
            let squares: i32 = codes.iter().map(|&code| i32::from(code) * i32::from(code)).sum();
            f64::from(squares) * f64::from(scale) * f64::from(scale)
        });
        let norm = squares.sum::<f64>().sqrt();
        // The margin covers fewer than n / 32 + 8 roundings of the f32 sums. That is below a
        // thousandth up to n = 500,000.
        (bounds, (norm * 1.001) as f32)
    }
}

/// Whether the head of a file has two planes.
pub(crate) fn is_nested(file: &ModelFile) -> bool {
    file.tensor(names::HEAD_RESIDUAL).is_ok()
}

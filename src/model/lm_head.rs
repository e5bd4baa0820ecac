//! The output head, plain or in two planes.
//!
//! A nested head is the sum of two int4 matrices: the rounded weights, and the residual of that
//! rounding. A product with the first plane gives estimates of all logits. The file has an upper
//! bound of the norm of each row of the second plane, so `|logit - estimate| <= bound * |input|`
//! (Cauchy and Schwarz). `shortlist.rs` uses this bound to read only rows of tokens that can still
//! be sampled.

use rwkv_edge_kernels::layout::Activation;
use rwkv_edge_kernels::{DType, GROUP_SIZE, Records};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixHandle, ModelFile, RecordsHandle, TensorLayout, VectorHandle};
use crate::memory::Buffers;

use super::meter::Phase;
use super::names;
use super::ops::{Norm, Ops, Product};
use super::vectors::{Activations, Vectors};

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

/// Buffers of the head.
pub(crate) struct Scratch<'a> {
    /// Normalised residual stream, `[1, n_embd]`.
    input: Activations<'a>,
    /// Logits or their estimates, `[1, n_vocab]`.
    logits: Vectors<'a>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        Self {
            input: Activations::take(buffers, "head input", [1, config.n_embd]),
            logits: Vectors::take(buffers, "logits", [1, config.n_vocab]),
        }
    }

    /// The result of the last call of the head, `[n_vocab]`.
    pub(crate) fn into_logits(self) -> &'a mut [f32] {
        self.logits.into_data()
    }

    /// The estimates, `[n_vocab]`.
    pub(super) fn estimates(&self) -> &[f32] {
        self.logits.row(0)
    }

    fn input(&self) -> Activation<'_> {
        self.input.row(0)
    }
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

    /// Computes estimates of all logits with the first plane. `x`, `[n_embd]`, is the residual
    /// stream after the last token. The estimates of a plain head are the logits.
    pub(super) fn estimate(&self, ops: &mut Ops<'_>, x: &[f32], scratch: &mut Scratch<'_>) {
        let Scratch { input, logits } = scratch;
        ops.layer_norm(input.values(0), x, self.ln_out);
        ops.quantize(input, 0);
        ops.matmul(1, [Product::new(self.weight, input, logits.rows_mut())]);
        if self.is_nested() {
            ops.meter.traffic.head_rows += logits.len() as u64;
        }
        ops.meter.end(Phase::Head);
    }

    /// Adds the second plane to all estimates, which makes them the logits.
    pub(super) fn refine_all(&self, ops: &mut Ops<'_>, scratch: &mut Scratch<'_>) {
        let Some(residual) = self.residual else { return };
        let Scratch { input, logits } = scratch;
        let logits = logits.row_mut(0);
        let rows = residual.read(ops, logits.len());
        let (kernels, x) = (ops.kernels, input.row(0));
        ops.pool.for_each_range([logits], RESIDUAL_GRAIN, &|_, first, logits| {
            let mut indices = [0; RESIDUAL_ROWS];
            let mut added = [0.0; RESIDUAL_ROWS];
            for (first, logits) in (first..).step_by(RESIDUAL_ROWS).zip(logits.chunks_mut(RESIDUAL_ROWS)) {
                let (indices, added) = (&mut indices[..logits.len()], &mut added[..logits.len()]);
                indices.iter_mut().zip(first as u32..).for_each(|(index, i)| *index = i);
                kernels.record_dots(added, &rows, indices, x);
                logits.iter_mut().zip(added).for_each(|(logit, added)| *logit += *added);
            }
        });
        ops.release(rows.data());
    }

    /// Sets `exact[i]` to the logit of token `ids[i]`, after [`estimate`](Self::estimate).
    pub(super) fn refine(&self, ops: &mut Ops<'_>, ids: &[u32], exact: &mut [f32], scratch: &Scratch<'_>) {
        let Some(residual) = self.residual else { return };
        let rows = residual.read(ops, ids.len());
        let (kernels, x, estimates) = (ops.kernels, scratch.input(), scratch.estimates());
        ops.pool.for_each_range([exact], RESIDUAL_GRAIN, &|_, first, exact| {
            let ids = &ids[first..][..exact.len()];
            kernels.record_dots(exact, &rows, ids, x);
            exact.iter_mut().zip(ids).for_each(|(exact, &id)| *exact += estimates[id as usize]);
        });
    }

    /// `bounds` and `norm` with `|logit[i] - estimate[i]| <= bounds[i] * norm`, after
    /// [`estimate`](Self::estimate).
    pub(super) fn bounds<'a>(&self, ops: &mut Ops<'a>, scratch: &Scratch<'_>) -> (&'a [f32], f32) {
        let Some(Residual { bound, .. }) = self.residual else { return (&[], 0.0) };
        let bounds = ops.vector(bound);
        ops.meter.traffic.weight_bytes += size_of_val(bounds) as u64;
        let x = scratch.input();
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

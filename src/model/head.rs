//! The output head, plain or in two planes.
//!
//! A nested head is the sum of two Int4 matrices: the weights rounded coarsely, and what rounding left. All rows of the
//! first are read for every token; they give estimates of the logits. The file has an upper bound of the norm of each
//! row of the second, so no logit is further from its estimate than that times the norm of the input
//! (Cauchy and Schwarz). Rows that by this bound can no longer be sampled need not be read.

use std::iter;

use rwkv_edge_kernels::{DType, GROUP_SIZE, Records};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixRef, ModelFile, RecordsRef, TensorLayout, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Norm, Ops};
use super::meter::Meter;
use super::names;

/// Fewest rows of the residual that a thread takes at a time.
const RESIDUAL_GRAIN: usize = 32;

/// Rows whose products are made together when all are: each time the first of them have to be waited for.
const RESIDUAL_ROWS: usize = 512;

/// The weights of the output.
#[derive(Debug)]
pub(crate) struct Head {
    ln_out: Norm,
    /// `[n_vocab, n_embd]`
    weight: MatrixRef,
    residual: Option<Residual>,
}

/// The second plane.
#[derive(Clone, Copy, Debug)]
struct Residual {
    /// `[n_vocab, n_embd]`
    rows: RecordsRef,
    /// Norm of each row, `[n_vocab]`.
    bound: VectorRef,
}

/// Buffers that live until the next token.
pub(crate) struct Scratch<'a> {
    /// Normalised input, `[n_embd]`.
    input: Input<'a>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        Self { input: Input::take(buffers, "head input", config.n_embd) }
    }
}

impl Residual {
    fn load(file: &ModelFile, n_vocab: usize, n_embd: usize) -> Result<Self> {
        let rows = file.records_ref(names::HEAD_RESIDUAL, TensorLayout::RowRecords, [n_vocab, n_embd])?;
        if rows.dtype() != DType::Int4 {
            return Err(Error::malformed(format!("{} is {}, not int4", names::HEAD_RESIDUAL, rows.dtype())));
        }
        Ok(Self { rows, bound: file.vector_ref(names::HEAD_BOUND, n_vocab)? })
    }

    /// The rows, of which `count` will be read.
    fn read<'a>(&self, ops: &mut Ops<'a>, count: usize) -> Result<Records<'a>> {
        let rows = ops.file.records(self.rows)?;
        ops.meter.traffic.residual_rows += count as u64;
        ops.meter.traffic.weight_bytes += (count * rows.stride()) as u64;
        Ok(rows)
    }
}

impl Head {
    pub(crate) fn load(file: &ModelFile) -> Result<Self> {
        let Config { n_embd, n_vocab, .. } = *file.config();
        let residual = match is_nested(file) {
            true => Some(Residual::load(file, n_vocab, n_embd)?),
            false => None,
        };
        Ok(Self {
            ln_out: Norm::load(file, "ln_out", n_embd)?,
            weight: file.matrix_ref(names::HEAD, n_vocab, n_embd)?,
            residual,
        })
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.residual.is_some()
    }

    /// Sets `logits` to the product with the first plane, which for a plain head is all there is.
    pub(crate) fn estimate(
        &self,
        ops: &mut Ops<'_>,
        x: &[f32],
        logits: &mut [f32],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let input = &mut scratch.input;
        ops.layer_norm(input.values(), x, self.ln_out)?;
        ops.quantize(input);
        ops.matmul([self.weight], iter::once(([&mut *logits], [&*input])))?;
        if self.is_nested() {
            ops.meter.traffic.head_rows += logits.len() as u64;
        }
        Ok(())
    }

    /// Adds the second plane to all estimates.
    pub(crate) fn refine_all(
        &self,
        ops: &mut Ops<'_>,
        logits: &mut [f32],
        scratch: &Scratch<'_>,
    ) -> Result<()> {
        let Some(residual) = self.residual else { return Ok(()) };
        let rows = residual.read(ops, logits.len())?;
        let (kernels, x) = (ops.kernels, scratch.input.view());
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
        Ok(())
    }

    /// Sets `exact[i]` to the logit of row `indices[i]`, of which `logits` has the estimates.
    pub(crate) fn refine(
        &self,
        ops: &mut Ops<'_>,
        indices: &[u32],
        logits: &[f32],
        exact: &mut [f32],
        scratch: &Scratch<'_>,
    ) -> Result<()> {
        let Some(residual) = self.residual else { return Ok(()) };
        let rows = residual.read(ops, indices.len())?;
        let (kernels, x) = (ops.kernels, scratch.input.view());
        ops.pool.for_each_range([exact], RESIDUAL_GRAIN, &|_, first, exact| {
            let indices = &indices[first..][..exact.len()];
            kernels.record_dots(exact, &rows, indices, x);
            exact.iter_mut().zip(indices).for_each(|(exact, &i)| *exact += logits[i as usize]);
        });
        Ok(())
    }

    /// Upper bounds of how far each logit is from its estimate are the first times the second.
    pub(crate) fn bounds<'a>(
        &self,
        file: &'a ModelFile,
        meter: &mut Meter,
        scratch: &Scratch<'_>,
    ) -> Result<(&'a [f32], f32)> {
        let Some(Residual { bound, .. }) = self.residual else { return Ok((&[], 0.0)) };
        let bounds = file.vector(bound)?;
        meter.traffic.weight_bytes += size_of_val(bounds) as u64;
        let x = scratch.input.view();
        let squares = x.codes.chunks_exact(GROUP_SIZE).zip(x.scales).map(|(codes, &scale)| {
            let squares: i32 = codes.iter().map(|&code| i32::from(code) * i32::from(code)).sum();
            f64::from(squares) * f64::from(scale) * f64::from(scale)
        });
        let norm = squares.sum::<f64>().sqrt();
        // What is computed in f32 is off by fewer than n / 32 + 8 roundings, which are below a thousandth up to
        // n = 500,000.
        Ok((bounds, (norm * 1.001) as f32))
    }
}

/// Whether the head of a file has two planes.
pub(crate) fn is_nested(file: &ModelFile) -> bool {
    file.tensor(names::HEAD_RESIDUAL).is_ok()
}

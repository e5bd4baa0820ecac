//! Channel mixing: `Wv @ relu(Wk @ xk)^2`, up to RWKV-6 gated by `sigmoid(Wr @ xr)`. RWKV-7a
//! multiplies the hidden units by factors.

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Arch, Config, MatrixHandle, ModelFile, Rwkv7, VectorHandle};
use crate::memory::Buffers;

use super::batch::{Batch, Step};
use super::meter::Phase;
use super::ops::{Epilogue, Ops, Product};
use super::sparse_value::{ActiveColumns, SparseValue};
use super::v7a::{self, DeepEmbed};
use super::vectors::{Activations, SCRATCH, Vectors};

/// Weights of one layer's channel mixing.
#[derive(Debug)]
pub(crate) struct ChannelMix {
    shift: Shift,
    /// Mix of the key's input, `[n_embd]`.
    mix_k: VectorHandle,
    /// `[n_ffn, n_embd]`
    key: MatrixHandle,
    value: SparseValue,
    gating: Gating,
}

/// What channel mixing multiplies by.
#[derive(Debug)]
enum Gating {
    /// Nothing: RWKV-7.
    None,
    /// The output: RWKV-4 to 6.
    Output(Gate),
    /// The hidden units: RWKV-7a.
    Hidden(DeepEmbed),
}

/// A gate of the output.
#[derive(Clone, Copy, Debug)]
struct Gate {
    /// Mix of the receptance's input, `[n_embd]`.
    mix_r: VectorHandle,
    /// `[n_embd, n_embd]`
    receptance: MatrixHandle,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs, `[tokens, n_embd]`. Once `xk` has been used, it takes the ungated output.
    xk: Activations<'a>,
    xr: Activations<'a>,
    /// Hidden layer, `[tokens, n_ffn]`.
    hidden: Vectors<'a>,
    /// `[tokens, n_embd]`
    r: Vectors<'a>,
    deep: Option<v7a::Scratch<'a>>,
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, tokens: usize) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        Self {
            xk: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xr: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            hidden: Vectors::take(buffers, SCRATCH, [tokens, n_ffn]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_embd]),
            deep: deep_rank(config).map(|rank| v7a::Scratch::take(buffers, config, rank, tokens)),
        }
    }
}

/// Inner size of DeepEmbed, in RWKV-7a.
fn deep_rank(config: &Config) -> Option<usize> {
    match config.arch {
        Arch::V7(Rwkv7 { deep_rank, .. }) => deep_rank,
        Arch::V4 | Arch::V5(_) | Arch::V6(_) => None,
    }
}

impl ChannelMix {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Config { n_embd, n_ffn, arch, .. } = *config;
        let name = |tail: &str| format!("blocks.{index}.ffn.{tail}");
        let (mix, shift) = match arch {
            Arch::V4 | Arch::V5(_) => ("time_mix_", Shift::Current),
            Arch::V6(_) => ("time_maa_", Shift::Previous),
            Arch::V7(_) => ("x_", Shift::Previous),
        };
        let gating = match (arch, deep_rank(config)) {
            (Arch::V7(_), None) => Gating::None,
            (Arch::V7(_), Some(rank)) => Gating::Hidden(DeepEmbed::load(file, config, rank, index)?),
            (Arch::V4 | Arch::V5(_) | Arch::V6(_), _) => Gating::Output(Gate {
                mix_r: file.vector_handle(&name(&format!("{mix}r")), n_embd)?,
                receptance: file.matrix_handle(&name("receptance.weight"), n_embd, n_embd)?,
            }),
        };
        Ok(Self {
            shift,
            mix_k: file.vector_handle(&name(&format!("{mix}k")), n_embd)?,
            key: file.matrix_handle(&name("key.weight"), n_ffn, n_embd)?,
            value: SparseValue::load(file, &name("value"), [n_embd, n_ffn])?,
            gating,
        })
    }

    /// Reads the rows of tables that the tokens of the batch need.
    ///
    /// # Errors
    /// If a row is damaged or cannot be read.
    pub(crate) fn read_rows(
        &self,
        ops: &mut Ops<'_>,
        batch: &Batch<'_, '_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        match (&self.gating, &mut scratch.deep) {
            (Gating::Hidden(deep), Some(scratch)) => deep.read_rows(ops, batch, scratch),
            _ => Ok(()),
        }
    }

    /// Computes `out`, `[tokens, n_embd]`.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        step: &mut Step<'_, '_>,
        out: &mut Vectors<'_>,
        scratch: &mut Scratch<'_>,
        active: &mut ActiveColumns<'_>,
    ) {
        let Scratch { xk, xr, hidden, r, deep } = scratch;
        let tokens = step.tokens();
        match (&self.gating, deep) {
            (Gating::Output(gate), _) => {
                step.shift(ops, self.shift, [(xk, self.mix_k), (xr, gate.mix_r)]);
                ops.meter.end(Phase::Mix);
                let gate = Product::new(gate.receptance, xr, r.rows_mut()).then(Epilogue::Sigmoid);
                ops.matmul(tokens, [self.hidden(xk, hidden), gate]);
            }
            (Gating::Hidden(deep), Some(scratch)) => {
                step.shift(ops, self.shift, [(xk, self.mix_k)]);
                deep.take_inputs(ops, step, scratch);
                ops.meter.end(Phase::Mix);
                ops.matmul(tokens, [self.hidden(xk, hidden), deep.first(scratch)]);
                deep.scale(ops, (tokens, hidden), scratch);
            }
            (Gating::None | Gating::Hidden(_), _) => {
                step.shift(ops, self.shift, [(xk, self.mix_k)]);
                ops.meter.end(Phase::Mix);
                ops.matmul(tokens, [self.hidden(xk, hidden)]);
            }
        }
        ops.meter.end(Phase::ChannelMixKey);
        let Gating::Output(_) = self.gating else {
            return self.value.forward(ops, out.rows_mut(), (tokens, hidden), active);
        };
        self.value.forward(ops, xk.rows_mut(), (tokens, hidden), active);
        let (kernels, value) = (ops.kernels, xk);
        ops.pool.for_each_piece(out.pieces(tokens), &|t, out| {
            kernels.mul(out, r.row(t), &value.row(t).values[..out.len()]);
        });
    }

    /// `relu(Wk @ xk)^2`
    fn hidden<'x>(&self, xk: &'x Activations<'_>, hidden: &'x mut Vectors<'_>) -> Product<'x> {
        Product::new(self.key, xk, hidden.rows_mut()).then(Epilogue::ReluSquared)
    }
}

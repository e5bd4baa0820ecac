//! Channel mixing: `Wv @ relu(Wk @ xk)^2`, up to RWKV-6 gated by `sigmoid(Wr @ xr)`.

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Arch, Config, MatrixHandle, ModelFile, VectorHandle};
use crate::memory::Buffers;

use super::batch::Step;
use super::meter::Phase;
use super::ops::{Epilogue, Ops, Product};
use super::sparse_value::{ActiveColumns, SparseValue};
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
    gate: Option<Gate>,
}

/// The gate, which RWKV-7 does not have.
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
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, tokens: usize) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        Self {
            xk: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xr: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            hidden: Vectors::take(buffers, SCRATCH, [tokens, n_ffn]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_embd]),
        }
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
        let gate = match arch {
            Arch::V7(_) => None,
            Arch::V4 | Arch::V5(_) | Arch::V6(_) => Some(Gate {
                mix_r: file.vector_handle(&name(&format!("{mix}r")), n_embd)?,
                receptance: file.matrix_handle(&name("receptance.weight"), n_embd, n_embd)?,
            }),
        };
        Ok(Self {
            shift,
            mix_k: file.vector_handle(&name(&format!("{mix}k")), n_embd)?,
            key: file.matrix_handle(&name("key.weight"), n_ffn, n_embd)?,
            value: SparseValue::load(file, &name("value"), [n_embd, n_ffn])?,
            gate,
        })
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
        let Scratch { xk, xr, hidden, r } = scratch;
        let tokens = step.tokens();
        match self.gate {
            None => step.shift(ops, self.shift, [(xk, self.mix_k)]),
            Some(gate) => step.shift(ops, self.shift, [(xk, self.mix_k), (xr, gate.mix_r)]),
        }
        ops.meter.end(Phase::Mix);
        let key = Product::new(self.key, xk, hidden.rows_mut()).then(Epilogue::ReluSquared);
        match self.gate {
            None => ops.matmul(tokens, [key]),
            Some(gate) => {
                let gate = Product::new(gate.receptance, xr, r.rows_mut()).then(Epilogue::Sigmoid);
                ops.matmul(tokens, [key, gate]);
            }
        }
        ops.meter.end(Phase::ChannelMixKey);
        if self.gate.is_none() {
            return self.value.forward(ops, out.rows_mut(), (tokens, hidden), active);
        }
        self.value.forward(ops, xk.rows_mut(), (tokens, hidden), active);
        let (kernels, value) = (ops.kernels, xk);
        ops.pool.for_each_piece(out.pieces(tokens), &|t, out| {
            kernels.mul(out, r.row(t), &value.row(t).values[..out.len()]);
        });
    }
}

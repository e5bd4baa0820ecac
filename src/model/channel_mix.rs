//! Channel mixing: `Wv @ relu(Wk @ xk)^2`, up to RWKV-6 gated by `sigmoid(Wr @ xr)`.

use std::slice::ChunksExactMut;

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixRef, ModelFile, VectorRef, Version};
use crate::memory::Buffers;

use super::common::{Input, Inputs, Ops, Tail};
use super::layer::SCRATCH;
use super::meter::Phase;
use super::sparse_value::{Live, SparseValue};

/// Weights of one layer's channel mixing.
#[derive(Debug)]
pub(crate) struct ChannelMix {
    shift: Shift,
    /// Mix of the key's input, `[n_embd]`.
    mix_k: VectorRef,
    /// `[n_ffn, n_embd]`
    key: MatrixRef,
    value: SparseValue,
    gate: Option<Gate>,
}

/// What RWKV-7 left out.
#[derive(Clone, Copy, Debug)]
struct Gate {
    /// Mix of the receptance's input, `[n_embd]`.
    mix_r: VectorRef,
    /// `[n_embd, n_embd]`
    receptance: MatrixRef,
}

/// Buffers for one token.
pub(crate) struct Scratch<'a> {
    xk: Input<'a>,
    xr: Input<'a>,
    /// Hidden layer, `[n_ffn]`.
    hidden: &'a mut [f32],
    /// `[n_embd]` each.
    r: &'a mut [f32],
    value: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        Self {
            xk: Input::take(buffers, SCRATCH, n_embd),
            xr: Input::take(buffers, SCRATCH, n_embd),
            hidden: buffers.f32s(SCRATCH, n_ffn),
            r: buffers.f32s(SCRATCH, n_embd),
            value: buffers.f32s(SCRATCH, n_embd),
        }
    }
}

impl ChannelMix {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Config { n_embd, n_ffn, version, .. } = *config;
        let name = |tail: &str| format!("blocks.{index}.ffn.{tail}");
        let (mix, shift) = match version {
            Version::V6 => ("time_maa_", Shift::Previous),
            Version::V7 => ("x_", Shift::Previous),
            _ => ("time_mix_", Shift::Current),
        };
        let gate = match version {
            Version::V7 => None,
            _ => Some(Gate {
                mix_r: file.vector_ref(&name(&format!("{mix}r")), n_embd)?,
                receptance: file.matrix_ref(&name("receptance.weight"), n_embd, n_embd)?,
            }),
        };
        Ok(Self {
            shift,
            mix_k: file.vector_ref(&name(&format!("{mix}k")), n_embd)?,
            key: file.matrix_ref(&name("key.weight"), n_ffn, n_embd)?,
            value: SparseValue::load(file, &name("value"), [n_embd, n_ffn])?,
            gate,
        })
    }

    /// `out` of each token's normalised input.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        mut inputs: Inputs<'_>,
        out: ChunksExactMut<'_, f32>,
        tokens: &mut [Scratch<'_>],
        live: &mut Live<'_>,
    ) -> Result<()> {
        match &self.gate {
            None => inputs.shift(ops, self.shift, tokens.iter_mut().map(|t| [(&mut t.xk, self.mix_k)]))?,
            Some(gate) => {
                let outs = tokens.iter_mut().map(|t| [(&mut t.xk, self.mix_k), (&mut t.xr, gate.mix_r)]);
                inputs.shift(ops, self.shift, outs)?;
            }
        }
        ops.meter.end(Phase::Mix);
        match &self.gate {
            None => {
                let hidden = tokens.iter_mut().map(|t| ([&mut *t.hidden], [&t.xk]));
                ops.matmul_then([Tail::ReluSquared], [self.key], hidden)?;
            }
            Some(gate) => {
                let projections = tokens.iter_mut().map(|token| {
                    let Scratch { xk, xr, hidden, r, .. } = token;
                    ([&mut **hidden, r], [&*xk, xr])
                });
                let tails = [Tail::ReluSquared, Tail::Sigmoid];
                ops.matmul_then(tails, [self.key, gate.receptance], projections)?;
            }
        }
        ops.meter.end(Phase::ChannelMixKey);
        for (Scratch { hidden, r, value, .. }, out) in tokens.iter_mut().zip(out) {
            if self.gate.is_none() {
                self.value.forward(ops, out, hidden, live)?;
                continue;
            }
            self.value.forward(ops, value, hidden, live)?;
            ops.kernels.mul(out, r, value);
        }
        Ok(())
    }
}

//! Channel mixing: `Wv @ relu(Wk @ xk)^2`, up to RWKV-6 gated by `sigmoid(Wr @ xr)`.

use crate::error::Result;
use crate::format::{Config, MatrixRef, ModelFile, VectorRef, Version};
use crate::memory::Buffers;

use super::common::{Input, Ops, Shift};
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

/// Buffers that live for one token.
pub(crate) struct Scratch<'a> {
    xk: Input<'a>,
    xr: Input<'a>,
    /// Hidden layer, `[n_ffn]`.
    hidden: &'a mut [f32],
    live: Live<'a>,
    /// `[n_embd]` each.
    r: &'a mut [f32],
    value: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, threads: usize) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        Self {
            xk: Input::take(buffers, SCRATCH, n_embd),
            xr: Input::take(buffers, SCRATCH, n_embd),
            hidden: buffers.f32s(SCRATCH, n_ffn),
            live: Live::take(buffers, n_ffn, n_embd, threads),
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

    /// `out` of the normalised input `h`, given that of the previous token.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        h: &[f32],
        h_prev: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let Scratch { xk, xr, hidden, live, r, value } = scratch;
        ops.token_shift(xk, self.shift, h, h_prev, self.mix_k)?;
        let Some(gate) = &self.gate else {
            ops.meter.end(Phase::Mix);
            ops.matvec([&mut **hidden], [(self.key, xk)])?;
            ops.meter.end(Phase::ChannelMixKey);
            return self.value.forward(ops, out, hidden, live);
        };
        ops.token_shift(xr, self.shift, h, h_prev, gate.mix_r)?;
        ops.meter.end(Phase::Mix);
        ops.matvec([&mut **hidden, &mut **r], [(self.key, xk), (gate.receptance, xr)])?;
        ops.meter.end(Phase::ChannelMixKey);
        self.value.forward(ops, value, hidden, live)?;
        ops.kernels.sigmoid_mul(out, r, value);
        Ok(())
    }
}

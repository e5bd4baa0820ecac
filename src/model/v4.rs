//! RWKV-4 (arXiv 2305.13048, section 3; appendix D for the numerically stable WKV).

use crate::error::Result;
use crate::format::{Config, MatrixRef, ModelFile, RecordsRef, TensorLayout, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Live, Norm, Ops};

/// Recurrent state of one layer, in floats: two shifted inputs and the WKV sums.
pub(crate) fn layer_state_len(config: &Config) -> usize {
    2 * config.n_embd + 3 * config.n_att
}

/// Recurrent state of one layer.
struct LayerState<'a> {
    /// Normalised input of time mixing at the previous token, `[n_embd]`.
    att_x_prev: &'a mut [f32],
    /// Normalised input of channel mixing at the previous token, `[n_embd]`.
    ffn_x_prev: &'a mut [f32],
    /// Numerator of WKV, scaled by `exp(-pp)`, `[n_att]`.
    aa: &'a mut [f32],
    /// Denominator of WKV, scaled by `exp(-pp)`, `[n_att]`.
    bb: &'a mut [f32],
    /// Running maximum of the exponents, `[n_att]`.
    pp: &'a mut [f32],
}

impl<'a> LayerState<'a> {
    fn split(state: &'a mut [f32], config: &Config) -> Self {
        let (att_x_prev, state) = state.split_at_mut(config.n_embd);
        let (ffn_x_prev, state) = state.split_at_mut(config.n_embd);
        let (aa, state) = state.split_at_mut(config.n_att);
        let (bb, pp) = state.split_at_mut(config.n_att);
        Self { att_x_prev, ffn_x_prev, aa, bb, pp }
    }
}

/// Puts one layer's state to what it is before the first token.
pub(crate) fn init_layer_state(state: &mut [f32], config: &Config) {
    state.fill(0.0);
    LayerState::split(state, config).pp.fill(-1e30);
}

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    ln1: Norm,
    time_mix_k: VectorRef,
    time_mix_v: VectorRef,
    time_mix_r: VectorRef,
    /// Log decay per channel, negative, `[n_att]`.
    time_decay: VectorRef,
    /// Bonus of the current token, `[n_att]`.
    time_first: VectorRef,
    /// `[n_att, n_embd]`
    key: MatrixRef,
    /// `[n_att, n_embd]`
    value: MatrixRef,
    /// `[n_att, n_embd]`
    receptance: MatrixRef,
    /// `[n_embd, n_att]`
    output: MatrixRef,
    ln2: Norm,
    ffn_time_mix_k: VectorRef,
    ffn_time_mix_r: VectorRef,
    /// `[n_ffn, n_embd]`
    ffn_key: MatrixRef,
    /// `[n_embd, n_embd]`
    ffn_receptance: MatrixRef,
    /// `[n_embd, n_ffn]`, by columns
    ffn_value: RecordsRef,
}

impl Layer {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, n_ffn, .. } = *config;
        let name = |tail: &str| format!("blocks.{index}.{tail}");
        let vector = |tail: &str, len| file.vector_ref(&name(tail), len);
        let matrix = |tail: &str, rows, cols| file.matrix_ref(&name(tail), rows, cols);
        Ok(Self {
            ln1: Norm::load(file, &name("ln1"), n_embd)?,
            time_mix_k: vector("att.time_mix_k", n_embd)?,
            time_mix_v: vector("att.time_mix_v", n_embd)?,
            time_mix_r: vector("att.time_mix_r", n_embd)?,
            time_decay: vector("att.time_decay", n_att)?,
            time_first: vector("att.time_first", n_att)?,
            key: matrix("att.key.weight", n_att, n_embd)?,
            value: matrix("att.value.weight", n_att, n_embd)?,
            receptance: matrix("att.receptance.weight", n_att, n_embd)?,
            output: matrix("att.output.weight", n_embd, n_att)?,
            ln2: Norm::load(file, &name("ln2"), n_embd)?,
            ffn_time_mix_k: vector("ffn.time_mix_k", n_embd)?,
            ffn_time_mix_r: vector("ffn.time_mix_r", n_embd)?,
            ffn_key: matrix("ffn.key.weight", n_ffn, n_embd)?,
            ffn_receptance: matrix("ffn.receptance.weight", n_embd, n_embd)?,
            ffn_value: file.records_ref(
                &name("ffn.value.weight"),
                TensorLayout::ColumnRecords,
                [n_embd, n_ffn],
            )?,
        })
    }
}

/// Buffers that live for one token.
pub(crate) struct Scratch<'a> {
    /// Normalised input of the current half layer, `[n_embd]`.
    h: &'a mut [f32],
    /// Shifted inputs of key, value and receptance, `[n_embd]`.
    xk: Input<'a>,
    xv: Input<'a>,
    xr: Input<'a>,
    /// `[n_att]` each; `r` also holds the gate of channel mixing, `[n_embd]`.
    k: &'a mut [f32],
    v: &'a mut [f32],
    r: &'a mut [f32],
    wkv: &'a mut [f32],
    /// Input of the output projection, `[n_att]`.
    gated: Input<'a>,
    /// Hidden layer of channel mixing, `[n_ffn]`.
    ffn: &'a mut [f32],
    live: Live<'a>,
    /// Channel mixing before its gate, `[n_embd]`.
    ungated: &'a mut [f32],
    /// Result of the current half layer, `[n_embd]`.
    out: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        let Config { n_embd, n_att, n_ffn, .. } = *config;
        Self {
            h: buffers.f32s("time and channel mixing", n_embd),
            xk: Input::take(buffers, "time and channel mixing", n_embd),
            xv: Input::take(buffers, "time and channel mixing", n_embd),
            xr: Input::take(buffers, "time and channel mixing", n_embd),
            k: buffers.f32s("time and channel mixing", n_att),
            v: buffers.f32s("time and channel mixing", n_att),
            r: buffers.f32s("time and channel mixing", n_att.max(n_embd)),
            wkv: buffers.f32s("time and channel mixing", n_att),
            gated: Input::take(buffers, "time and channel mixing", n_att),
            out: buffers.f32s("time and channel mixing", n_embd),
            ffn: buffers.f32s("time and channel mixing", n_ffn),
            live: Live::take(buffers, n_ffn),
            ungated: buffers.f32s("time and channel mixing", n_embd),
        }
    }
}

/// Runs one layer on the residual stream `x`, `[n_embd]`, and updates its state.
pub(crate) fn forward(
    ops: &mut Ops<'_>,
    config: &Config,
    layer: &Layer,
    x: &mut [f32],
    state: &mut [f32],
    scratch: &mut Scratch<'_>,
) -> Result<()> {
    let mut state = LayerState::split(state, config);

    ops.layer_norm(scratch.h, x, layer.ln1)?;
    time_mix(ops, layer, &mut state, scratch)?;
    state.att_x_prev.copy_from_slice(scratch.h);
    ops.kernels.add(x, scratch.out);

    ops.layer_norm(scratch.h, x, layer.ln2)?;
    channel_mix(ops, layer, &state, scratch)?;
    state.ffn_x_prev.copy_from_slice(scratch.h);
    ops.kernels.add(x, scratch.out);
    Ok(())
}

/// `out = Wo @ (sigmoid(r) * wkv(k, v))`
fn time_mix(
    ops: &mut Ops<'_>,
    layer: &Layer,
    state: &mut LayerState<'_>,
    scratch: &mut Scratch<'_>,
) -> Result<()> {
    let Scratch { h, xk, xv, xr, k, v, r, wkv, gated, out, .. } = scratch;
    let r = &mut r[..k.len()];
    ops.token_shift(xk, state.att_x_prev, h, layer.time_mix_k)?;
    ops.token_shift(xv, state.att_x_prev, h, layer.time_mix_v)?;
    ops.token_shift(xr, state.att_x_prev, h, layer.time_mix_r)?;
    ops.matvec([&mut **k, &mut **v, &mut *r], [(layer.key, xk), (layer.value, xv), (layer.receptance, xr)])?;

    let (time_first, time_decay) = (ops.file.vector(layer.time_first)?, ops.file.vector(layer.time_decay)?);
    ops.kernels.wkv4(wkv, k, v, time_first, time_decay, state.aa, state.bb, state.pp);
    ops.kernels.sigmoid_mul(gated.values(), r, wkv);
    ops.quantize(gated);
    ops.matvec([&mut **out], [(layer.output, gated)])
}

/// `out = sigmoid(Wr @ xr) * (Wv @ relu(Wk @ xk)^2)`
fn channel_mix(
    ops: &mut Ops<'_>,
    layer: &Layer,
    state: &LayerState<'_>,
    scratch: &mut Scratch<'_>,
) -> Result<()> {
    let Scratch { h, xk, xr, r, ffn, live, ungated, out, .. } = scratch;
    let r = &mut r[..h.len()];
    ops.token_shift(xk, state.ffn_x_prev, h, layer.ffn_time_mix_k)?;
    ops.token_shift(xr, state.ffn_x_prev, h, layer.ffn_time_mix_r)?;
    ops.matvec([&mut **ffn, &mut *r], [(layer.ffn_key, xk), (layer.ffn_receptance, xr)])?;
    ops.relu_squared_matvec(ungated, layer.ffn_value, ffn, live)?;
    ops.kernels.sigmoid_mul(out, r, ungated);
    Ok(())
}

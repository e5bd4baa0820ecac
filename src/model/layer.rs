//! One layer: time mixing and channel mixing, each on the normalised residual stream.
//!
//! The versions differ in time mixing, which each version's module implements as a [`TimeMix`].

use crate::error::Result;
use crate::format::{Config, ModelFile};
use crate::memory::Buffers;

use super::channel_mix::{self, ChannelMix};
use super::common::{Norm, Ops};
use super::meter::Phase;

/// Name of the scratch buffers in the memory plan.
pub(super) const SCRATCH: &str = "time and channel mixing";

/// Time mixing of one layer of one version.
pub(crate) trait TimeMix: Sized {
    /// Buffers that live for one token, shared by all layers.
    type Scratch<'a>;

    /// Floats of recurrent state beside the shifted input.
    fn state_len(config: &Config) -> usize;

    /// Puts the state, which is zero, to what it is before the first token.
    fn init_state(_state: &mut [f32]) {}

    /// Finds the weights of layer `index`.
    fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self>;

    /// Takes the scratch buffers.
    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Self::Scratch<'a>;

    /// Computes `step.out` and updates `step.state`.
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, scratch: &mut Self::Scratch<'_>) -> Result<()>;
}

/// One token passing through one time mixing.
pub(crate) struct Step<'a> {
    /// Normalised input, `[n_embd]`.
    pub(crate) h: &'a [f32],
    /// Normalised input of the previous token, `[n_embd]`.
    pub(crate) h_prev: &'a [f32],
    /// Recurrent state, [`TimeMix::state_len`] floats.
    pub(crate) state: &'a mut [f32],
    /// Result, `[n_embd]`.
    pub(crate) out: &'a mut [f32],
}

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    ln1: Norm,
    time_mix: T,
    ln2: Norm,
    channel_mix: ChannelMix,
}

/// Buffers that live for one token, shared by all layers.
pub(crate) struct Scratch<'a, T: TimeMix> {
    h: &'a mut [f32],
    out: &'a mut [f32],
    time_mix: T::Scratch<'a>,
    channel_mix: channel_mix::Scratch<'a>,
}

impl<'a, T: TimeMix> Scratch<'a, T> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config, threads: usize) -> Self {
        Self {
            h: buffers.f32s(SCRATCH, config.n_embd),
            out: buffers.f32s(SCRATCH, config.n_embd),
            time_mix: T::take(buffers, config),
            channel_mix: channel_mix::Scratch::take(buffers, config, threads),
        }
    }
}

impl<T: TimeMix> Layer<T> {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        Ok(Self {
            ln1: Norm::load(file, &format!("blocks.{index}.ln1"), config.n_embd)?,
            time_mix: T::load(file, config, index)?,
            ln2: Norm::load(file, &format!("blocks.{index}.ln2"), config.n_embd)?,
            channel_mix: ChannelMix::load(file, config, index)?,
        })
    }

    /// Floats of recurrent state: the two shifted inputs, then that of time mixing.
    pub(crate) fn state_len(config: &Config) -> usize {
        2 * config.n_embd + T::state_len(config)
    }

    /// Puts one layer's state to what it is before the first token.
    pub(crate) fn init_state(state: &mut [f32], config: &Config) {
        state.fill(0.0);
        T::init_state(&mut state[2 * config.n_embd..]);
    }

    /// Runs the layer on the residual stream `x`, `[n_embd]`, and updates its state.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        config: &Config,
        x: &mut [f32],
        state: &mut [f32],
        scratch: &mut Scratch<'_, T>,
    ) -> Result<()> {
        let (att_x_prev, state) = state.split_at_mut(config.n_embd);
        let (ffn_x_prev, state) = state.split_at_mut(config.n_embd);
        let Scratch { h, out, time_mix, channel_mix } = scratch;

        ops.layer_norm(h, x, self.ln1)?;
        self.time_mix.forward(ops, Step { h, h_prev: att_x_prev, state, out }, time_mix)?;
        ops.meter.end(Phase::TimeMixOut);
        att_x_prev.copy_from_slice(h);
        ops.kernels.add(x, out);

        ops.layer_norm(h, x, self.ln2)?;
        self.channel_mix.forward(ops, h, ffn_x_prev, out, channel_mix)?;
        ops.meter.end(Phase::ChannelMixValue);
        ffn_x_prev.copy_from_slice(h);
        ops.kernels.add(x, out);
        Ok(())
    }
}

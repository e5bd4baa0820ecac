//! One layer: time mixing and channel mixing, each on the normalised residual stream.
//!
//! The versions differ in time mixing, which each version's module implements as a [`TimeMix`].

use std::slice::ChunksExactMut;

use crate::error::Result;
use crate::format::{Config, ModelFile};
use crate::memory::Buffers;

use super::channel_mix::{self, ChannelMix};
use super::common::{Inputs, MAX_TOKENS, Norm, Ops, PerToken};
use super::meter::Phase;
use super::sparse_value::Live;

/// Name of the scratch buffers in the memory plan.
pub(super) const SCRATCH: &str = "time and channel mixing";

/// Time mixing of one layer of one version.
pub(crate) trait TimeMix: Sized {
    /// Buffers for one token, shared by all layers.
    type Scratch<'a>;

    /// Floats of recurrent state beside the shifted input.
    fn state_len(config: &Config) -> usize;

    /// Puts the state, which is zero, to what it is before the first token.
    fn init_state(_state: &mut [f32]) {}

    /// Finds the weights of layer `index`.
    fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self>;

    /// Takes the scratch buffers.
    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Self::Scratch<'a>;

    /// Computes `step.out` and updates `step.state`. There is scratch for each token.
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, tokens: &mut [Self::Scratch<'_>]) -> Result<()>;
}

/// Tokens passing through one time mixing.
pub(crate) struct Step<'a> {
    pub(crate) inputs: Inputs<'a>,
    /// Recurrent state, [`TimeMix::state_len`] floats.
    pub(crate) state: &'a mut [f32],
    /// Result of each token, `[n_embd]`.
    pub(crate) out: ChunksExactMut<'a, f32>,
}

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    ln1: Norm,
    time_mix: T,
    ln2: Norm,
    channel_mix: ChannelMix,
}

/// Buffers for tokens that go through the layers together, shared by all layers.
pub(crate) struct Scratch<'a, T: TimeMix> {
    /// Normalised inputs, that of the token before the first one in front.
    h: &'a mut [f32],
    out: &'a mut [f32],
    live: Live<'a>,
    time_mix: PerToken<T::Scratch<'a>>,
    channel_mix: PerToken<channel_mix::Scratch<'a>>,
}

impl<'a, T: TimeMix> Scratch<'a, T> {
    /// Takes buffers for `tokens` tokens. Each of them has the same place however many there are, so that the padding of
    /// its inputs stays zero.
    pub(crate) fn take(
        buffers: &mut impl Buffers<'a>,
        config: &Config,
        threads: usize,
        tokens: usize,
    ) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        let h = buffers.f32s(SCRATCH, (MAX_TOKENS + 1) * n_embd);
        let out = buffers.f32s(SCRATCH, MAX_TOKENS * n_embd);
        let live = Live::take(buffers, n_ffn, n_embd, threads);
        let token = |_| (T::take(buffers, config), channel_mix::Scratch::take(buffers, config));
        let (time_mix, channel_mix) = (0..tokens).map(token).unzip();
        Self { h, out, live, time_mix, channel_mix }
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
        T::state_len(config).saturating_add(2 * config.n_embd)
    }

    /// Puts one layer's state to what it is before the first token.
    pub(crate) fn init_state(state: &mut [f32], config: &Config) {
        state.fill(0.0);
        T::init_state(&mut state[2 * config.n_embd..]);
    }

    /// Runs the layer on the residual streams `x` of as many tokens as there is scratch for, `[tokens, n_embd]`, and
    /// updates its state.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        config: &Config,
        x: &mut [f32],
        state: &mut [f32],
        scratch: &mut Scratch<'_, T>,
    ) -> Result<()> {
        let n_embd = config.n_embd;
        let (att_x_prev, state) = state.split_at_mut(n_embd);
        let (ffn_x_prev, state) = state.split_at_mut(n_embd);
        let Scratch { h, out, live, time_mix, channel_mix } = scratch;
        let (h, out) = (&mut h[..n_embd + x.len()], &mut out[..x.len()]);

        let inputs = Inputs::new(x, self.ln1, h, att_x_prev);
        let step = Step { inputs, state, out: out.chunks_exact_mut(n_embd) };
        self.time_mix.forward(ops, step, time_mix)?;
        att_x_prev.copy_from_slice(&h[x.len()..]);
        ops.meter.end(Phase::TimeMixOut);
        ops.kernels.add(x, out);

        let inputs = Inputs::new(x, self.ln2, h, ffn_x_prev);
        self.channel_mix.forward(ops, inputs, out.chunks_exact_mut(n_embd), channel_mix, live)?;
        ffn_x_prev.copy_from_slice(&h[x.len()..]);
        ops.meter.end(Phase::ChannelMixValue);
        ops.kernels.add(x, out);
        Ok(())
    }
}

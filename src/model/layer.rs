//! One layer: time mixing and channel mixing, each on the normalised residual stream.
//!
//! The versions differ in time mixing, which each version's module implements as a [`TimeMix`].

use std::ops::Range;

use crate::error::Result;
use crate::format::{Config, MatrixHandle, ModelFile};
use crate::memory::Buffers;

use super::batch::{Batch, Mixing, Step};
use super::channel_mix::{self, ChannelMix};
use super::meter::Phase;
use super::ops::{Norm, Ops, Product};
use super::sparse_value::ActiveColumns;
use super::vectors::{Activations, SCRATCH, Vectors};

/// Time mixing of one layer of one version.
pub(crate) trait TimeMix: Sized {
    /// Buffers for the tokens of a batch, shared by all layers.
    type Scratch<'a>;

    /// Hyperparameters that only this version has.
    type Arch;

    /// Floats of recurrent state beside the shifted input.
    fn state_len(config: &Config, arch: &Self::Arch) -> usize;

    /// Initialises the state; `state` is zeroed.
    fn init_state(_state: &mut [f32]) {}

    /// Finds the weights of layer `index`.
    fn load(file: &ModelFile, config: &Config, arch: &Self::Arch, index: usize) -> Result<Self>;

    /// Takes the scratch buffers for `tokens` tokens.
    fn take<'a>(
        buffers: &mut impl Buffers<'a>,
        config: &Config,
        arch: &Self::Arch,
        tokens: usize,
    ) -> Self::Scratch<'a>;

    /// Mixes each token with the one before it.
    fn shift(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Self::Scratch<'_>);

    /// Computes the products of the mixed inputs.
    fn project(&self, ops: &mut Ops<'_>, tokens: usize, scratch: &mut Self::Scratch<'_>);

    /// Computes the recurrence of each text and the input of the output projection.
    fn recur(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Self::Scratch<'_>);

    /// The output projection, `[n_embd, n_att]`, with its input.
    fn output<'s>(&self, scratch: &'s Self::Scratch<'_>) -> (MatrixHandle, &'s Activations<'s>);

    /// What this layer passes to later layers beside the residual stream, or has from an earlier one,
    /// `[tokens, first_values]`.
    fn first_values<'s>(_scratch: &'s mut Self::Scratch<'_>, _tokens: usize) -> &'s mut [f32] {
        &mut []
    }

    /// Computes `out`, `[tokens, n_embd]`, and updates the states of the texts.
    fn forward(
        &self,
        ops: &mut Ops<'_>,
        step: &mut Step<'_, '_>,
        out: &mut Vectors<'_>,
        scratch: &mut Self::Scratch<'_>,
    ) {
        self.shift(ops, step, scratch);
        ops.meter.end(Phase::Mix);
        self.project(ops, step.tokens(), scratch);
        ops.meter.end(Phase::TimeMixIn);
        self.recur(ops, step, scratch);
        ops.meter.end(Phase::Wkv);
        let (weight, input) = self.output(scratch);
        ops.matmul(step.tokens(), [Product::new(weight, input, out.rows_mut())]);
    }
}

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer<T> {
    /// The layer's range in a text's recurrent state.
    state: Range<usize>,
    ln1: Norm,
    time_mix: T,
    ln2: Norm,
    channel_mix: ChannelMix,
}

/// Buffers for the tokens of a batch, shared by all layers.
pub(crate) struct Scratch<'a, T: TimeMix> {
    /// Normalised streams, `[tokens, n_embd]`.
    h: Vectors<'a>,
    /// Output of one half of the layer, `[tokens, n_embd]`.
    out: Vectors<'a>,
    active: ActiveColumns<'a>,
    time_mix: T::Scratch<'a>,
    channel_mix: channel_mix::Scratch<'a>,
}

impl<'a, T: TimeMix> Scratch<'a, T> {
    /// What layers pass to later layers, as [`TimeMix::first_values`] has it.
    pub(crate) fn first_values(&mut self, tokens: usize) -> &mut [f32] {
        T::first_values(&mut self.time_mix, tokens)
    }

    /// Takes buffers for up to `tokens` tokens.
    pub(crate) fn take(
        buffers: &mut impl Buffers<'a>,
        config: &Config,
        arch: &T::Arch,
        threads: usize,
        tokens: usize,
    ) -> Self {
        let Config { n_embd, n_ffn, .. } = *config;
        Self {
            h: Vectors::take(buffers, SCRATCH, [tokens, n_embd]),
            out: Vectors::take(buffers, SCRATCH, [tokens, n_embd]),
            active: ActiveColumns::take(buffers, [n_embd, n_ffn], threads, tokens),
            time_mix: T::take(buffers, config, arch, tokens),
            channel_mix: channel_mix::Scratch::take(buffers, config, tokens),
        }
    }
}

impl<T: TimeMix> Layer<T> {
    pub(crate) fn load(file: &ModelFile, config: &Config, arch: &T::Arch, index: usize) -> Result<Self> {
        let len = Self::state_len(config, arch);
        Ok(Self {
            state: index * len..(index + 1) * len,
            ln1: Norm::load(file, &format!("blocks.{index}.ln1"), config.n_embd)?,
            time_mix: T::load(file, config, arch, index)?,
            ln2: Norm::load(file, &format!("blocks.{index}.ln2"), config.n_embd)?,
            channel_mix: ChannelMix::load(file, config, index)?,
        })
    }

    /// Floats of recurrent state: the two shifted inputs, then the state of time mixing.
    pub(crate) fn state_len(config: &Config, arch: &T::Arch) -> usize {
        T::state_len(config, arch).saturating_add(2 * config.n_embd)
    }

    /// Initialises one layer's state; `state` is zeroed.
    pub(crate) fn init_state(state: &mut [f32], config: &Config) {
        state.fill(0.0);
        T::init_state(&mut state[2 * config.n_embd..]);
    }

    /// Reads the rows of tables that the tokens of the batch need.
    ///
    /// # Errors
    /// If a row is damaged or cannot be read.
    pub(crate) fn read_rows(
        &self,
        ops: &mut Ops<'_>,
        batch: &Batch<'_, '_>,
        scratch: &mut Scratch<'_, T>,
    ) -> Result<()> {
        self.channel_mix.read_rows(ops, batch, &mut scratch.channel_mix)
    }

    /// Runs the layer on the residual streams `x` of the batch, `[tokens, n_embd]`, and updates the
    /// states of its texts.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        batch: &mut Batch<'_, '_>,
        x: &mut Vectors<'_>,
        scratch: &mut Scratch<'_, T>,
    ) {
        let Scratch { h, out, active, time_mix, channel_mix } = scratch;
        let tokens = batch.tokens();

        let mut step = Step::new(batch, self.state.clone(), (Mixing::Time, self.ln1), x, h);
        self.time_mix.forward(ops, &mut step, out, time_mix);
        step.finish();
        ops.meter.end(Phase::TimeMixOut);
        ops.add(tokens, x, out);

        let mut step = Step::new(batch, self.state.clone(), (Mixing::Channel, self.ln2), x, h);
        self.channel_mix.forward(ops, &mut step, out, channel_mix, active);
        step.finish();
        ops.meter.end(Phase::ChannelMixValue);
        ops.add(tokens, x, out);
    }
}

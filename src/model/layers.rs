//! All layers of a model. Only this module chooses the time mixing of an architecture.

use crate::error::Result;
use crate::format::{Arch, Config, ModelFile};
use crate::memory::Buffers;

use super::batch::Batch;
use super::layer::{Layer, Scratch, TimeMix};
use super::ops::Ops;
use super::state::State;
use super::vectors::Vectors;
use super::{v4, v5, v6, v7};

/// The layers. The version determines their time mixing.
#[derive(Debug)]
pub(super) enum Layers {
    V4(Stack<v4::TimeMix>),
    V5(Stack<v5::TimeMix>),
    V6(Stack<v6::TimeMix>),
    V7(Stack<v7::TimeMix>),
}

/// Layers of one version, with the hyperparameters that only this version has.
#[derive(Debug)]
pub(super) struct Stack<T: TimeMix> {
    arch: T::Arch,
    layers: Vec<Layer<T>>,
}

/// Evaluates an expression in which `$T` is the [`TimeMix`] of an architecture and `$arch` its own
/// hyperparameters.
macro_rules! with_time_mix {
    ($config:expr, $T:ident, $arch:ident => $body:expr) => {
        match &$config.arch {
            Arch::V4 => {
                type $T = v4::TimeMix;
                let $arch = &();
                $body
            }
            Arch::V5($arch) => {
                type $T = v5::TimeMix;
                $body
            }
            Arch::V6($arch) => {
                type $T = v6::TimeMix;
                $body
            }
            Arch::V7($arch) => {
                type $T = v7::TimeMix;
                $body
            }
        }
    };
}

/// Floats of recurrent state in one layer of a model with hyperparameters `config`.
fn layer_state_len(config: &Config) -> usize {
    with_time_mix!(config, T, arch => Layer::<T>::state_len(config, arch))
}

/// Floats of recurrent state of a model with hyperparameters `config`; `usize::MAX` if the number
/// overflows.
pub(super) fn state_len(config: &Config) -> usize {
    config.n_layer.saturating_mul(layer_state_len(config))
}

/// Initialises the recurrent state of all layers. `tuned(layer)` gives the state of time mixing of
/// a state-tuned model.
pub(super) fn init_state<'t>(config: &Config, state: &mut [f32], tuned: impl Fn(usize) -> Option<&'t [f32]>) {
    for (layer, state) in state.chunks_exact_mut(layer_state_len(config)).enumerate() {
        with_time_mix!(config, T, _arch => Layer::<T>::init_state(state, config));
        if let Some(tuned) = tuned(layer) {
            state[2 * config.n_embd..].copy_from_slice(tuned);
        }
    }
}

/// Takes the buffers for batches of up to `tokens` tokens and drops them, for the memory plan.
pub(super) fn measure<'a>(config: &Config, threads: usize, tokens: usize, buffers: &mut impl Buffers<'a>) {
    with_time_mix!(config, T, arch => {
        Scratch::<T>::take(buffers, config, arch, threads, tokens);
    });
}

impl State {
    /// Bytes of a state of a model with hyperparameters `config`.
    pub fn bytes(config: &Config) -> usize {
        state_len(config).saturating_add(config.n_embd).saturating_mul(size_of::<f32>())
    }
}

impl Layers {
    pub(super) fn load(file: &ModelFile) -> Result<Self> {
        Ok(match file.config().arch {
            Arch::V4 => Layers::V4(Stack::load(file, ())?),
            Arch::V5(arch) => Layers::V5(Stack::load(file, arch)?),
            Arch::V6(arch) => Layers::V6(Stack::load(file, arch)?),
            Arch::V7(arch) => Layers::V7(Stack::load(file, arch)?),
        })
    }

    /// Runs all layers on the residual streams `x` of a batch, `[tokens, n_embd]`. The buffers have
    /// room for `most_tokens` tokens.
    ///
    /// # Errors
    /// If a row of a table is damaged or cannot be read. No state has changed then.
    pub(super) fn run<'a>(
        &self,
        (ops, config): (&mut Ops<'_>, &Config),
        batch: &mut Batch<'_, '_>,
        x: &mut Vectors<'_>,
        most_tokens: usize,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        match self {
            Layers::V4(stack) => stack.run((ops, config), batch, x, most_tokens, buffers),
            Layers::V5(stack) => stack.run((ops, config), batch, x, most_tokens, buffers),
            Layers::V6(stack) => stack.run((ops, config), batch, x, most_tokens, buffers),
            Layers::V7(stack) => stack.run((ops, config), batch, x, most_tokens, buffers),
        }
    }

    /// Runs layer `layer` on the residual streams of a batch, as [`run`](Self::run) does.
    /// `first_values` are what layer 0 passes to the others, `[tokens, first_values]`.
    ///
    /// # Errors
    /// As `run`.
    pub(super) fn run_one<'a>(
        &self,
        layer: usize,
        ops: (&mut Ops<'_>, &Config),
        batch: &mut Batch<'_, '_>,
        x: (&mut Vectors<'_>, &mut [f32]),
        most_tokens: usize,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        match self {
            Layers::V4(stack) => stack.run_one(layer, ops, batch, x, most_tokens, buffers),
            Layers::V5(stack) => stack.run_one(layer, ops, batch, x, most_tokens, buffers),
            Layers::V6(stack) => stack.run_one(layer, ops, batch, x, most_tokens, buffers),
            Layers::V7(stack) => stack.run_one(layer, ops, batch, x, most_tokens, buffers),
        }
    }
}

impl<T: TimeMix> Stack<T> {
    /// Runs one layer, with the values that layer 0 passes to the others.
    fn run_one<'a>(
        &self,
        layer: usize,
        ops: (&mut Ops<'_>, &Config),
        batch: &mut Batch<'_, '_>,
        (x, first_values): (&mut Vectors<'_>, &mut [f32]),
        most_tokens: usize,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let ((ops, config), layer) = (ops, &self.layers[layer]);
        let mut scratch = Scratch::take(buffers, config, &self.arch, ops.pool.threads(), most_tokens);
        layer.read_rows(ops, batch, &mut scratch)?;
        scratch.first_values(batch.tokens()).copy_from_slice(first_values);
        layer.forward(ops, batch, x, &mut scratch);
        first_values.copy_from_slice(scratch.first_values(batch.tokens()));
        Ok(())
    }

    fn load(file: &ModelFile, arch: T::Arch) -> Result<Self> {
        let config = file.config();
        let layers: Result<_> =
            (0..config.n_layer).map(|index| Layer::load(file, config, &arch, index)).collect();
        Ok(Self { layers: layers?, arch })
    }

    fn run<'a>(
        &self,
        (ops, config): (&mut Ops<'_>, &Config),
        batch: &mut Batch<'_, '_>,
        x: &mut Vectors<'_>,
        most_tokens: usize,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let mut scratch = Scratch::take(buffers, config, &self.arch, ops.pool.threads(), most_tokens);
        self.layers.iter().try_for_each(|layer| layer.read_rows(ops, batch, &mut scratch))?;
        self.layers.iter().for_each(|layer| layer.forward(ops, batch, x, &mut scratch));
        Ok(())
    }
}

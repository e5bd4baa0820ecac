//! The engine: threads and memory that compute for any number of texts.

use std::slice;
use std::sync::Arc;

use rwkv_edge_kernels::default_float_environment;

use crate::error::{Error, Result};
use crate::format::Config;
use crate::host;
use crate::memory::{Arena, Measure, MemoryPlan};
use crate::model::{
    self, Batch, Means, Meter, Model, Profile, Sequence, Shortcuts, State, Traffic, unify_nan,
};
use crate::sampler::Sampler;
use crate::threads::{Pool, WORKER_STACK_BYTES};

/// Most threads of an engine.
const MAX_THREADS: usize = 1024;

/// Most tokens that go through the model together.
const MAX_PROMPT_CHUNK: usize = 4096;

/// How an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Number of threads, at most 1024. `None` takes one per physical performance core, at most 4.
    pub threads: Option<usize>,
    /// Tokens that go through the model together, at most 4096. The engine reads each matrix once
    /// for all of them. Each token takes some memory. 1 feeds token by token. The results are the
    /// same.
    pub prompt_chunk: usize,
    /// Ways of reading less. The results are the same without them.
    pub shortcuts: Shortcuts,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { threads: None, prompt_chunk: 8, shortcuts: Shortcuts::default() }
    }
}

impl EngineOptions {
    /// Number of threads of an engine with these options.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(host::default_threads).max(1)
    }

    /// The same options with the number of threads fixed.
    ///
    /// # Errors
    /// If the number of threads or the chunk is out of range.
    fn resolve(&self) -> Result<Self> {
        let (threads, chunk) = (self.thread_count(), self.prompt_chunk);
        if threads > MAX_THREADS {
            return Err(Error::invalid(format!("{threads} threads; an engine has at most {MAX_THREADS}")));
        }
        if !(1..=MAX_PROMPT_CHUNK).contains(&chunk) {
            return Err(Error::invalid(format!(
                "a prompt chunk of {chunk} tokens; it must be in 1..={MAX_PROMPT_CHUNK}"
            )));
        }
        Ok(Self { threads: Some(threads), ..*self })
    }
}

/// Threads, memory and counters that compute for any number of texts, one call at a time.
///
/// After [`Engine::new`] nothing allocates. Each text has a [`State`]. [`feed`](Self::feed) changes
/// a state; [`logits`](Self::logits) and [`sample`](Self::sample) read it. The engine computes
/// logits on demand from the last residual, so feeding alone never runs the output head.
///
/// The caller's floating-point environment has no influence on results. Each call computes in the
/// default environment and restores the caller's when it returns.
///
/// A process that inherits an engine over `fork` does not inherit its threads. The engine then
/// computes on the calling thread alone, with the same results.
pub struct Engine<'m> {
    model: Arc<Model>,
    options: EngineOptions,
    arena: Arena<'m>,
    plan: MemoryPlan,
    pool: Pool,
    meter: Meter,
    /// Tokens fed whose share of the file is not checked yet. `None` before the first batch, which
    /// must not wait for a check.
    unchecked: Option<usize>,
}

impl Engine<'static> {
    /// Allocates an engine and starts its threads.
    ///
    /// # Errors
    /// If the options are out of range, there is no memory, or a thread cannot be started.
    pub fn new(model: Arc<Model>, options: &EngineOptions) -> Result<Self> {
        let plan = Self::plan(model.config(), options)?;
        let arena = Arena::new(plan.arena_bytes())?;
        Self::with_arena(model, options, plan, arena)
    }
}

impl<'m> Engine<'m> {
    /// Starts an engine that computes in `memory`. It uses the first
    /// [`arena_bytes`](MemoryPlan::arena_bytes) of its [`plan`](Self::plan).
    ///
    /// # Errors
    /// As [`new`](Engine::new), or if `memory` is smaller than that or does not begin at a multiple
    /// of 64.
    pub fn in_memory(model: Arc<Model>, options: &EngineOptions, memory: &'m mut [u8]) -> Result<Self> {
        let plan = Self::plan(model.config(), options)?;
        let arena = Arena::within(memory, plan.arena_bytes())?;
        Self::with_arena(model, options, plan, arena)
    }

    fn with_arena(
        model: Arc<Model>,
        options: &EngineOptions,
        plan: MemoryPlan,
        arena: Arena<'m>,
    ) -> Result<Self> {
        let options = options.resolve()?;
        let pool = Pool::new(options.thread_count())?;
        Ok(Self { model, options, arena, plan, pool, meter: Meter::default(), unchecked: None })
    }

    /// The memory of an engine for models with hyperparameters `config`: arena and stacks.
    ///
    /// # Errors
    /// If the options are out of range, or this machine cannot address the buffers.
    pub fn plan(config: &Config, options: &EngineOptions) -> Result<MemoryPlan> {
        Self::plan_within(Measure::default(), config, options)
    }

    fn plan_within(mut measure: Measure, config: &Config, options: &EngineOptions) -> Result<MemoryPlan> {
        let options = options.resolve()?;
        let threads = options.thread_count();
        model::measure(config, threads, options.prompt_chunk, &mut measure);
        Ok(MemoryPlan {
            regions: measure.into_regions()?,
            stack_bytes: (threads - 1) * WORKER_STACK_BYTES,
            ..MemoryPlan::default()
        })
    }

    /// The model that runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The options, with the actual number of threads.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The memory of the engine.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Bytes read since the engine was made.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic
    }

    /// Turns the measurement of time per phase on or off.
    pub fn measure_time(&mut self, on: bool) {
        self.meter.measure_time(on);
    }

    /// The time spent in each phase while measurement was on.
    pub fn profile(&self) -> Profile {
        self.meter.profile
    }

    /// Continues the text of `state` with `tokens`. The result is that of feeding them one by one.
    ///
    /// # Errors
    /// If a token is not in the vocabulary or the state belongs to another model file: nothing was
    /// fed. If the file is damaged: [`State::tokens_read`] tells how many tokens were fed.
    pub fn feed(&mut self, state: &mut State, tokens: &[u32]) -> Result<()> {
        self.feed_batch(slice::from_mut(&mut Sequence::new(state, tokens)))
    }

    /// Continues each text of `sequences` with its tokens. The engine reads each matrix once for up
    /// to [`prompt_chunk`](EngineOptions::prompt_chunk) tokens of all texts. The result is that of
    /// feeding the texts one by one.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn feed_batch(&mut self, sequences: &mut [Sequence<'_>]) -> Result<()> {
        for sequence in &*sequences {
            sequence.state().check(self.model.file().model_id())?;
            sequence.left().iter().try_for_each(|&token| self.model.check_token(token))?;
        }
        let _environment = default_float_environment();
        while let Some(batch) = Batch::next(sequences, self.options.prompt_chunk) {
            let tokens = batch.tokens();
            let (model, means, arena) = self.parts();
            model.forward(means, batch, &mut arena.carve())?;
            self.check_file(tokens)?;
        }
        Ok(())
    }

    /// The logits of the token that follows the text of `state`, `[n_vocab]`. Every NaN has the
    /// bits `0x7FC00000`.
    ///
    /// # Errors
    /// If the text has no tokens yet, or the state belongs to another model file.
    pub fn logits(&mut self, state: &State) -> Result<&[f32]> {
        self.check_readable(state)?;
        let _environment = default_float_environment();
        let (model, means, arena) = self.parts();
        let (logits, _) = model.logits(means, state, (None, std::iter::empty()), &mut arena.carve());
        logits.iter_mut().for_each(|logit| *logit = unify_nan(*logit));
        Ok(logits)
    }

    /// Draws the token that follows the text of `state`. The state and the counts of `sampler` do
    /// not change: feed the token, and let the sampler [`accept`](Sampler::accept) it.
    ///
    /// # Errors
    /// As [`logits`](Self::logits), or if the logits are not finite.
    pub fn sample(&mut self, state: &State, sampler: &mut Sampler) -> Result<u32> {
        self.check_readable(state)?;
        let _environment = default_float_environment();
        let (model, means, arena) = self.parts();
        let seen = sampler.counts().iter().map(|&(id, _)| id);
        let needed = (sampler.largest_needed(), seen);
        let (logits, ids) = model.logits(means, state, needed, &mut arena.carve());
        let token = sampler.draw(model.kernels(), logits, ids)?;
        self.meter.end(model::Phase::Sample);
        Ok(token)
    }

    fn parts(&mut self) -> (&Model, Means<'_>, &mut Arena<'m>) {
        let Self { model, options, arena, pool, meter, .. } = self;
        let means = Means { pool, meter, shortcuts: options.shortcuts, tokens: options.prompt_chunk };
        (model, means, arena)
    }

    fn check_readable(&self, state: &State) -> Result<()> {
        state.check(self.model.file().model_id())?;
        if state.tokens_read() == 0 {
            return Err(Error::invalid("there is nothing to continue: the prompt is empty"));
        }
        Ok(())
    }

    /// Checks the share of a batch, for a file that is checked while running. The first batch
    /// leaves its share to the second, so the first token comes at once.
    fn check_file(&mut self, tokens: usize) -> Result<()> {
        let Some(unchecked) = self.unchecked else {
            self.unchecked = Some(tokens - 1);
            return Ok(());
        };
        self.unchecked = Some(0);
        self.model.verify_some(unchecked + tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::{Arch, Heads, Rwkv7};

    /// The largest dimensions that a configuration may have.
    fn largest() -> Config {
        Config {
            n_layer: 1024,
            n_embd: 1 << 20,
            n_att: 1 << 20,
            n_ffn: 1 << 20,
            n_vocab: 1 << 20,
            layer_norm_eps: 1e-5,
            arch: Arch::V7(Rwkv7 {
                heads: Heads { n_head: 1024, head_size: 1024, group_norm_eps: 64e-5 },
                decay_rank: 8192,
                iclr_rank: 8192,
                value_rank: Some(8192),
                gate_rank: 8192,
            }),
        }
    }

    fn plan(prompt_chunk: usize, address_space: usize) -> Result<MemoryPlan> {
        let options = EngineOptions { threads: Some(MAX_THREADS), prompt_chunk, ..EngineOptions::default() };
        Engine::plan_within(Measure::within(address_space), &largest(), &options)
    }

    #[test]
    fn buffers_too_large_for_the_address_space_have_no_plan() {
        largest().validate().unwrap();
        for address_space in [i32::MAX as usize, u32::MAX as usize] {
            let error = plan(MAX_PROMPT_CHUNK, address_space).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
            assert!(error.to_string().contains(&format!("more than {address_space} bytes")), "{error}");
        }
        // On 32 bits, sizes that exceed a `usize` are an error; they do not wrap.
        assert_eq!(plan(MAX_PROMPT_CHUNK, usize::MAX).is_ok(), cfg!(target_pointer_width = "64"));
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_plan_ends_exactly_at_the_address_space() {
        let needed = plan(8, usize::MAX).unwrap().arena_bytes();
        plan(8, needed).unwrap();
        plan(8, needed - 1).unwrap_err();
        let plan = plan(8, usize::MAX).unwrap();
        assert_eq!(plan.regions.iter().find(|r| r.name == "logits").unwrap().bytes, 4 << 20);
        assert_eq!(plan.stack_bytes, 1023 * WORKER_STACK_BYTES);
        // 1024 heads of 1024 x 1024 in each layer, two shifted inputs, and one residual.
        assert_eq!(State::bytes(&largest()), 4 * (1024 * ((1 << 30) + (2 << 20)) + (1 << 20)));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let plan = |threads, prompt_chunk| {
            let options = EngineOptions { threads: Some(threads), prompt_chunk, ..Default::default() };
            Engine::plan(&Config { n_layer: 1, ..largest() }, &options).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(plan(1025, 8).unwrap_err(), "1025 threads; an engine has at most 1024");
        for chunk in [0, 4097] {
            let expected = format!("a prompt chunk of {chunk} tokens; it must be in 1..=4096");
            assert_eq!(plan(1, chunk).unwrap_err(), expected);
        }
    }
}

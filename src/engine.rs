//! The engine: threads and memory that compute for any number of texts.

use std::slice;
use std::sync::Arc;

use rwkv_edge_kernels::{Isa, default_float_environment};

use crate::error::{Error, Result};
use crate::format::Config;
use crate::host;
use crate::memory::{Arena, Measure, MemoryPlan};
use crate::model::{
    self, Batch, MAX_HEAD_BATCH, Means, Meter, Model, Phase, Profile, Room, Sequence, Shortcuts, State,
    Traffic, choose_kernels, default_prompt_chunk,
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
    /// for all of them. Each token takes some memory. 1 feeds token by token. `None` takes the
    /// [default](default_prompt_chunk) of the kernels. The results are the same.
    pub prompt_chunk: Option<usize>,
    /// Tokens that go through the output head together, at most 64. The engine reads the head once
    /// for all of them, in [`feed_all`](Engine::feed_all), [`logits_batch`](Engine::logits_batch) and
    /// [`sample_batch`](Engine::sample_batch). Each token takes `n_vocab` floats. The results are
    /// the same.
    pub head_batch: usize,
    /// Ways of reading less. The results are the same without them.
    pub shortcuts: Shortcuts,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { threads: None, prompt_chunk: None, head_batch: 1, shortcuts: Shortcuts::default() }
    }
}

impl EngineOptions {
    /// Number of threads of an engine with these options.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(host::default_threads).max(1)
    }

    /// The same options with the numbers of threads and of tokens fixed, for the kernels of `isa`.
    ///
    /// # Errors
    /// If a number is out of range.
    fn resolve(&self, isa: Isa) -> Result<Resolved> {
        let (threads, head_batch) = (self.thread_count(), self.head_batch);
        let tokens = self.prompt_chunk.unwrap_or_else(|| default_prompt_chunk(isa));
        if threads > MAX_THREADS {
            return Err(Error::invalid(format!("{threads} threads; an engine has at most {MAX_THREADS}")));
        }
        if !(1..=MAX_PROMPT_CHUNK).contains(&tokens) {
            return Err(Error::invalid(format!(
                "a prompt chunk of {tokens} tokens; it must be in 1..={MAX_PROMPT_CHUNK}"
            )));
        }
        if !(1..=MAX_HEAD_BATCH).contains(&head_batch) {
            return Err(Error::invalid(format!(
                "a head batch of {head_batch} tokens; it must be in 1..={MAX_HEAD_BATCH}"
            )));
        }
        let options = Self { threads: Some(threads), prompt_chunk: Some(tokens), ..*self };
        Ok(Resolved { options, threads, room: Room { tokens, head_batch } })
    }
}

/// Options within their ranges, with all defaults filled in.
struct Resolved {
    options: EngineOptions,
    threads: usize,
    room: Room,
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
    room: Room,
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
    /// If the options are out of range, there is no memory, or a thread cannot be started. If the
    /// model is [locked](crate::LoadOptions::lock) and the buffers cannot be.
    pub fn new(model: Arc<Model>, options: &EngineOptions) -> Result<Self> {
        let plan = Self::plan_for(&model, options)?;
        let arena = Arena::new(plan.arena_bytes())?;
        if model.is_locked() {
            arena.lock()?;
        }
        Self::with_arena(model, options, plan, arena)
    }
}

impl<'m> Engine<'m> {
    /// Starts an engine that computes in `memory`. It uses the first
    /// [`arena_bytes`](MemoryPlan::arena_bytes) of its [`plan_for`](Self::plan_for) the model.
    ///
    /// # Errors
    /// As [`new`](Engine::new), or if `memory` is smaller than that or does not begin at a multiple
    /// of 64.
    pub fn in_memory(model: Arc<Model>, options: &EngineOptions, memory: &'m mut [u8]) -> Result<Self> {
        let plan = Self::plan_for(&model, options)?;
        let arena = Arena::within(memory, plan.arena_bytes())?;
        Self::with_arena(model, options, plan, arena)
    }

    fn with_arena(
        model: Arc<Model>,
        options: &EngineOptions,
        plan: MemoryPlan,
        arena: Arena<'m>,
    ) -> Result<Self> {
        let Resolved { options, threads, room } = options.resolve(model.kernels().isa())?;
        let (pool, meter) = (Pool::new(threads)?, Meter::default());
        Ok(Self { model, options, room, arena, plan, pool, meter, unchecked: None })
    }

    /// The memory of an engine for models with hyperparameters `config`: arena and stacks. The
    /// models run on the kernels that [`LoadOptions::default`](crate::LoadOptions) takes.
    ///
    /// # Errors
    /// If the options are out of range, or this machine cannot address the buffers, or the
    /// environment asks for kernels that this machine does not have.
    pub fn plan(config: &Config, options: &EngineOptions) -> Result<MemoryPlan> {
        Self::plan_with(config, options, choose_kernels(None)?.isa())
    }

    /// The memory of an engine for `model`: arena and stacks.
    ///
    /// # Errors
    /// If the options are out of range, or this machine cannot address the buffers.
    pub fn plan_for(model: &Model, options: &EngineOptions) -> Result<MemoryPlan> {
        Self::plan_with(model.config(), options, model.kernels().isa())
    }

    /// The memory of an engine with the kernels of `isa`.
    pub(crate) fn plan_with(config: &Config, options: &EngineOptions, isa: Isa) -> Result<MemoryPlan> {
        Self::plan_within(Measure::default(), config, &options.resolve(isa)?)
    }

    fn plan_within(mut measure: Measure, config: &Config, options: &Resolved) -> Result<MemoryPlan> {
        let Resolved { threads, room, .. } = *options;
        model::measure(config, threads, room, &mut measure);
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

    /// The options, with the actual numbers of threads and of tokens that go together.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Most tokens that go through the model together. A caller that feeds as many at a time can
    /// do something else in between, such as telling how far it is, at no cost.
    pub fn prompt_chunk(&self) -> usize {
        self.room.tokens
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
    /// If a token is not in the vocabulary or the state belongs to another model: nothing was
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
        self.check_sequences(sequences)?;
        let _environment = default_float_environment();
        while let Some(batch) = Batch::next(sequences, self.room.tokens) {
            let tokens = batch.tokens();
            let (model, means, arena) = self.parts();
            model.forward(means, batch, &mut arena.carve())?;
            self.check_file(tokens)?;
        }
        Ok(())
    }

    /// As [`feed`](Self::feed), and calls `each(i, logits)` with the logits after each token
    /// `tokens[i]`, in order. `logits` is `[n_vocab]`, and `each` may change it. Every NaN has the
    /// bits `0x7FC00000`.
    ///
    /// The engine reads the head once for up to [`head_batch`](EngineOptions::head_batch) tokens.
    /// `each` runs in the default floating-point environment.
    ///
    /// # Errors
    /// As `feed`, or the first error of `each`: [`State::tokens_read`] tells how many tokens were
    /// fed, which may be some more than `each` was called for.
    pub fn feed_all(
        &mut self,
        state: &mut State,
        tokens: &[u32],
        mut each: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut sequence = [Sequence::new(state, tokens)];
        self.check_sequences(&sequence)?;
        let _environment = default_float_environment();
        let mut fed = 0;
        while let Some(batch) = Batch::next(&mut sequence, self.room.tokens) {
            let tokens = batch.tokens();
            let (model, means, arena) = self.parts();
            let mut each = |t: usize, logits: &mut [f32]| each(fed + t, logits);
            model.forward_all(means, batch, &mut each, &mut arena.carve())?;
            fed += tokens;
            self.check_file(tokens)?;
        }
        Ok(())
    }

    /// The logits of the token that follows the text of `state`, `[n_vocab]`. Every NaN has the
    /// bits `0x7FC00000`.
    ///
    /// # Errors
    /// If the text has no tokens yet, or the state belongs to another model.
    pub fn logits(&mut self, state: &State) -> Result<&[f32]> {
        self.check_readable(state)?;
        let _environment = default_float_environment();
        let (model, means, arena) = self.parts();
        let mut head = model.head(means, &mut arena.carve());
        head.estimate(1, &|_| state);
        Ok(head.into_logits())
    }

    /// Calls `each(i, logits)` with the logits of the token that follows the text of `states[i]`, in
    /// order, as [`logits`](Self::logits) gives them. `each` may change them. The engine reads the
    /// head once for up to [`head_batch`](EngineOptions::head_batch) texts.
    ///
    /// # Errors
    /// As `logits`, before the first call of `each`; or the first error of `each`.
    pub fn logits_batch(
        &mut self,
        states: &[&State],
        mut each: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        states.iter().try_for_each(|state| self.check_readable(state))?;
        let _environment = default_float_environment();
        let head_batch = self.room.head_batch;
        let (model, means, arena) = self.parts();
        let mut head = model.head(means, &mut arena.carve());
        for (batch, states) in states.chunks(head_batch).enumerate() {
            head.estimate(states.len(), &|t| states[t]);
            head.refine(0..states.len());
            head.end(Phase::Head);
            (0..states.len()).try_for_each(|t| each(batch * head_batch + t, head.exact_logits(t)))?;
        }
        Ok(())
    }

    /// Draws the token that follows the text of `state`. The state and the counts of `sampler` do
    /// not change: feed the token, and let the sampler [`accept`](Sampler::accept) it.
    ///
    /// # Errors
    /// As [`logits`](Self::logits), or if the logits are not finite.
    pub fn sample(&mut self, state: &State, sampler: &mut Sampler) -> Result<u32> {
        let mut token = [0];
        self.sample_batch(&mut [(state, sampler)], &mut token)?;
        Ok(token[0])
    }

    /// Draws the token that follows each of `texts` into `tokens`, as [`sample`](Self::sample)
    /// does. The engine reads the head once for up to [`head_batch`](EngineOptions::head_batch)
    /// texts.
    ///
    /// # Errors
    /// As `sample`. If a text is empty or belongs to another model, no sampler has drawn.
    /// Otherwise the samplers of the texts before have.
    ///
    /// # Panics
    /// If there are not as many `tokens` as `texts`.
    pub fn sample_batch(&mut self, texts: &mut [(&State, &mut Sampler)], tokens: &mut [u32]) -> Result<()> {
        assert!(texts.len() == tokens.len(), "{} tokens for {} texts", tokens.len(), texts.len());
        texts.iter().try_for_each(|(state, _)| self.check_readable(state))?;
        let _environment = default_float_environment();
        let head_batch = self.room.head_batch;
        let (model, means, arena) = self.parts();
        let mut head = model.head(means, &mut arena.carve());
        for (texts, tokens) in texts.chunks_mut(head_batch).zip(tokens.chunks_mut(head_batch)) {
            head.estimate(texts.len(), &|t| texts[t].0);
            head.refine_needed(texts.len(), |t| texts[t].1.largest_needed());
            head.end(Phase::Head);
            for (t, ((_, sampler), token)) in texts.iter_mut().zip(tokens).enumerate() {
                let seen = sampler.counts().iter().map(|&(id, _)| id);
                let (logits, ids) = head.logits(t, (sampler.largest_needed(), seen));
                *token = sampler.draw(model.kernels(), logits, ids)?;
                head.end(Phase::Sample);
            }
        }
        Ok(())
    }

    pub(crate) fn parts(&mut self) -> (&Model, Means<'_>, &mut Arena<'m>) {
        let Self { model, options, room, arena, pool, meter, .. } = self;
        let means = Means { pool, meter, shortcuts: options.shortcuts, room: *room, observer: None };
        (model, means, arena)
    }

    pub(crate) fn check_sequences(&self, sequences: &[Sequence<'_>]) -> Result<()> {
        for sequence in sequences {
            sequence.state().check(self.model.file().model_id())?;
            sequence.left().try_for_each(|token| self.model.check_token(token))?;
        }
        Ok(())
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
    use crate::format::{Arch, Heads, Rwkv7, Variant};

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
                deep_rank: None,
            }),
            variant: Variant::Plain,
        }
    }

    fn plan(prompt_chunk: usize, address_space: usize) -> Result<MemoryPlan> {
        let prompt_chunk = Some(prompt_chunk);
        let options = EngineOptions { threads: Some(MAX_THREADS), prompt_chunk, ..EngineOptions::default() };
        let options = options.resolve(Isa::Scalar)?;
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
        let plan = |threads, prompt_chunk, head_batch| {
            let [threads, prompt_chunk] = [threads, prompt_chunk].map(Some);
            let options = EngineOptions { threads, prompt_chunk, head_batch, ..Default::default() };
            Engine::plan(&Config { n_layer: 1, ..largest() }, &options).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(plan(1025, 8, 1).unwrap_err(), "1025 threads; an engine has at most 1024");
        for chunk in [0, 4097] {
            let expected = format!("a prompt chunk of {chunk} tokens; it must be in 1..=4096");
            assert_eq!(plan(1, chunk, 1).unwrap_err(), expected);
        }
        for batch in [0, 65] {
            let expected = format!("a head batch of {batch} tokens; it must be in 1..=64");
            assert_eq!(plan(1, 1, batch).unwrap_err(), expected);
        }
    }
}

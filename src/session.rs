//! A session: one engine and one text, for the simple case.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::format::SamplingParams;
use crate::memory::MemoryPlan;
use crate::model::{Model, Sequence, State};
use crate::plan::PlanOptions;
use crate::sampler::Sampler;

/// How a session runs.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// How the engine computes.
    pub engine: EngineOptions,
    /// Sampling; `None` takes the model's defaults.
    pub sampling: Option<SamplingParams>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl SessionOptions {
    /// The defaults with this number of threads; `None` takes the default number.
    pub fn with_threads(threads: Option<usize>) -> Self {
        Self { engine: EngineOptions { threads, ..EngineOptions::default() }, ..Self::default() }
    }
}

/// Everything that a text needs to go on exactly, sampling included. A clone is a fork.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the model remembers.
    pub state: State,
    /// Parameters, random numbers, and counts of the reply.
    pub sampler: Sampler,
    /// A sampled token that the state has not read yet.
    pub pending: Option<u32>,
}

impl Snapshot {
    /// A text that has not begun.
    ///
    /// # Errors
    /// If the sampling parameters are out of range or there is no memory.
    pub fn new(model: &Model, sampling: SamplingParams, seed: u64) -> Result<Self> {
        Ok(Self {
            state: model.initial_state()?,
            sampler: Sampler::new(sampling, model.config().n_vocab, seed)?,
            pending: None,
        })
    }

    /// Becomes a copy of `other` without allocating.
    ///
    /// # Errors
    /// If `other` belongs to another model. Nothing has changed then.
    pub fn copy_from(&mut self, other: &Snapshot) -> Result<()> {
        self.state.copy_from(&other.state)?;
        self.sampler.copy_from(&other.sampler)?;
        self.pending = other.pending;
        Ok(())
    }
}

/// An [`Engine`] and one text.
///
/// After [`Session::new`] only [`snapshot`](Self::snapshot) and the tokenizer allocate.
pub struct Session {
    engine: Engine<'static>,
    text: Snapshot,
    plan: MemoryPlan,
}

impl Session {
    /// The memory of a session of `model` with these options.
    ///
    /// # Errors
    /// As [`Engine::plan_for`].
    pub fn plan(model: &Model, options: &SessionOptions) -> Result<MemoryPlan> {
        let file = model.file();
        let isa = Some(model.kernels().isa());
        MemoryPlan::new(
            file.header(),
            &PlanOptions { engine: options.engine, isa, sessions: 1, file: file.mapping().kind() },
        )
    }

    /// Allocates a session and starts its threads.
    ///
    /// # Errors
    /// If the options are out of range, there is no memory, or a thread cannot be started.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let text = Snapshot::new(&model, options.sampling.unwrap_or(model.chat().sampling), options.seed)?;
        Self::resume(model, &options.engine, text)
    }

    /// A session that goes on with `text`. Sampling and seed are those of the text.
    ///
    /// # Errors
    /// As [`new`](Self::new), or if the text belongs to another model.
    pub fn resume(model: Arc<Model>, engine: &EngineOptions, text: Snapshot) -> Result<Self> {
        text.state.check(model.file().model_id())?;
        let options = SessionOptions { engine: *engine, ..SessionOptions::default() };
        let plan = Self::plan(&model, &options)?;
        Ok(Self { engine: Engine::new(model, engine)?, text, plan })
    }

    /// The model that runs.
    pub fn model(&self) -> &Arc<Model> {
        self.engine.model()
    }

    /// The engine, for its counters.
    pub fn engine(&self) -> &Engine<'static> {
        &self.engine
    }

    /// The engine, to compute for other texts too.
    pub fn engine_mut(&mut self) -> &mut Engine<'static> {
        &mut self.engine
    }

    /// The memory of the session.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The state of the text, without a pending token.
    pub fn state(&self) -> &State {
        &self.text.state
    }

    /// The text, to [save](Snapshot::save) it without a copy.
    pub fn text(&self) -> &Snapshot {
        &self.text
    }

    /// Everything that the text needs to go on elsewhere, or later, exactly as here.
    pub fn snapshot(&self) -> Snapshot {
        self.text.clone()
    }

    /// Continues the text of `snapshot`, sampling included.
    ///
    /// # Errors
    /// If the snapshot belongs to another model. Nothing has changed then.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.text.copy_from(snapshot)
    }

    /// Continues the text of `state`. A new reply begins, and a pending token is dropped. The
    /// random numbers go on.
    ///
    /// # Errors
    /// If the state belongs to another model. Nothing has changed then.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        self.text.state.copy_from(state)?;
        self.begin_reply();
        self.text.pending = None;
        Ok(())
    }

    /// Forgets the text: state, counts, and a pending token. The random numbers go on.
    pub fn reset(&mut self) {
        let Snapshot { state, sampler, pending } = &mut self.text;
        self.engine.model().reset(state);
        sampler.begin_reply();
        *pending = None;
    }

    /// Samples with other parameters from here on. Counts and random numbers stay.
    ///
    /// # Errors
    /// If a parameter is out of range.
    pub fn set_sampling(&mut self, params: SamplingParams) -> Result<()> {
        self.text.sampler.set_params(params)
    }

    /// Restarts the random numbers with `seed`.
    pub fn set_seed(&mut self, seed: u64) {
        self.text.sampler.set_seed(seed);
    }

    /// Begins a new reply: penalties forget the tokens of the reply before.
    pub fn begin_reply(&mut self) {
        self.text.sampler.begin_reply();
    }

    /// Feeds tokens, after the pending token of [`next_token`](Self::next_token) if there is one.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed_with(tokens, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// As [`feed`](Self::feed), in pieces that the engine computes at once. Calls `progress` after
    /// each with the number of `tokens` fed so far. If the result is `Break`, the text ends there.
    /// Returns the number of `tokens` fed.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    pub fn feed_with(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        tokens.iter().try_for_each(|&token| self.model().check_token(token))?;
        let most = self.engine.prompt_chunk();
        let mut fed = 0;
        while fed < tokens.len() {
            // The pending token and the first tokens go together.
            let room = most.saturating_sub(usize::from(self.text.pending.is_some())).max(1);
            let count = room.min(tokens.len() - fed);
            self.feed_after_pending(&tokens[fed..fed + count])?;
            fed += count;
            if progress(fed).is_break() {
                break;
            }
        }
        Ok(fed)
    }

    /// Feeds a text and returns the number of tokens fed. The model's start tokens go before the
    /// first text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`](crate::Tokenizer::encode) and [`Engine::feed`].
    pub fn feed_text(&mut self, text: &str) -> Result<usize> {
        let tokens = self.encode(text.as_bytes())?;
        self.feed(&tokens)?;
        Ok(tokens.len())
    }

    /// The tokens by which the session's text goes on with `text`. The model's start tokens go
    /// before the first text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`](crate::Tokenizer::encode).
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>> {
        if self.text.state.tokens_read() == 0 && self.text.pending.is_none() {
            return self.model().encode_prompt(text);
        }
        let mut tokens = Vec::new();
        self.model().tokenizer().encode(text, &mut tokens)?;
        Ok(tokens)
    }

    /// The logits of the next token, `[n_vocab]`. Every NaN has the bits `0x7FC00000`.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.feed_pending()?;
        self.engine.logits(&self.text.state)
    }

    /// Samples the next token; `None` if it is one of the model's stop tokens.
    ///
    /// The token stays pending: the next call that feeds or samples feeds it first. The caller can
    /// show its text before that step has run.
    ///
    /// # Errors
    /// As [`Engine::sample`].
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        let token = self.sample()?;
        Ok((!self.model().is_stop_token(token)).then_some(token))
    }

    /// Samples the next token. Unless it is a stop token, it is counted and becomes pending.
    pub(crate) fn sample(&mut self) -> Result<u32> {
        self.feed_pending()?;
        let Snapshot { state, sampler, .. } = &mut self.text;
        let token = self.engine.sample(state, sampler)?;
        self.accept(token);
        Ok(token)
    }

    /// Counts a token that follows a fed text, and makes it pending, unless it is a stop token.
    fn accept(&mut self, token: u32) {
        if !self.model().is_stop_token(token) {
            self.text.sampler.accept(token);
            self.text.pending = Some(token);
        }
    }

    /// Takes the token back that was sampled last and is still pending.
    pub(crate) fn forget_pending(&mut self) {
        self.text.pending = None;
    }

    /// As [`sample`](Self::sample), of a sampler that draws `token`.
    #[cfg(test)]
    pub(crate) fn sample_as(&mut self, token: u32) -> Result<u32> {
        self.feed_pending()?;
        self.accept(token);
        Ok(token)
    }

    fn feed_pending(&mut self) -> Result<()> {
        match self.text.pending {
            Some(_) => self.feed_after_pending(&[]),
            None => Ok(()),
        }
    }

    /// Feeds the pending token, if there is one, and then `tokens`.
    fn feed_after_pending(&mut self, tokens: &[u32]) -> Result<()> {
        let Snapshot { state, pending, .. } = &mut self.text;
        let (waiting, read) = (*pending, state.tokens_read());
        let mut sequence = [Sequence::of_two_parts(state, [waiting.as_slice(), tokens])];
        let result = self.engine.feed_batch(&mut sequence);
        if state.tokens_read() > read {
            *pending = None;
        }
        result
    }
}

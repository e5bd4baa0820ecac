//! A session: one text being read and written by a model, in memory that is allocated once.

use std::sync::Arc;

use crate::cpu;
use crate::error::{Error, Result};
use crate::format::{Config, SamplingParams};
use crate::memory::{Arena, Buffers, Measure, Plan};
use crate::model::{self, Model, Traffic};
use crate::sampler::{Sampler, SamplerBuffers};
use crate::state::State;
use crate::threads::{Pool, WORKER_STACK_BYTES};

/// How a session runs.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads to compute with; `None` takes the physical performance cores, at most 4.
    pub threads: Option<usize>,
    /// Sampling; `None` takes the model's defaults.
    pub sampling: Option<SamplingParams>,
    /// Seed of the sampler.
    pub seed: u64,
}

impl SessionOptions {
    /// Threads that a session with these options uses.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(cpu::default_threads).max(1)
    }
}

/// Exclusive use of one arena and its threads. After [`Session::new`] nothing allocates.
pub struct Session {
    model: Arc<Model>,
    arena: Arena,
    plan: Plan,
    pool: Pool,
    sampler: Sampler,
    /// A sampled token that has not been fed yet.
    pending: Option<u32>,
    /// Whether the logits are those of the last token fed.
    has_logits: bool,
    tokens_fed: u64,
    traffic: Traffic,
}

/// The buffers of a session that outlive a token, as cut out of its arena. The model's scratch follows them.
struct Memory<'a> {
    state: &'a mut [f32],
    logits: &'a mut [f32],
    sampler: SamplerBuffers<'a>,
}

impl<'a> Memory<'a> {
    fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        let n = config.n_vocab;
        Self {
            state: buffers.f32s("state", model::state_len(config)),
            logits: buffers.f32s("logits", n),
            sampler: SamplerBuffers {
                probs: buffers.f32s("sampler", n),
                candidates: buffers.u32s("sampler", n),
                counts: buffers.f32s("sampler", n),
                seen: buffers.u32s("sampler", n),
            },
        }
    }
}

impl Session {
    /// What a session of `model` with these options will use, without allocating it.
    pub fn plan(model: &Model, options: &SessionOptions) -> Plan {
        let file = model.file();
        let embedding_bytes = file.embedding_bytes();
        let weights_bytes = file.data_bytes() - embedding_bytes;
        Plan {
            weights_bytes,
            embedding_bytes,
            tables_bytes: file.file_len() - weights_bytes - embedding_bytes,
            ..Self::arena_plan(model.config(), options)
        }
    }

    /// The part of the plan that follows from the hyperparameters alone: arena and stacks.
    pub fn arena_plan(config: &Config, options: &SessionOptions) -> Plan {
        let mut measure = Measure::default();
        Memory::take(&mut measure, config);
        model::measure_scratch(config, &mut measure);
        Plan {
            regions: measure.into_regions(),
            stack_bytes: (options.thread_count() - 1) * WORKER_STACK_BYTES,
            ..Plan::default()
        }
    }

    /// Allocates a session and starts its threads.
    ///
    /// # Errors
    /// If the sampling parameters are out of range or a thread cannot be started.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let plan = Self::plan(&model, options);
        let sampling = options.sampling.unwrap_or(model.chat().sampling);
        let mut session = Self {
            arena: Arena::new(&plan),
            plan,
            pool: Pool::new(options.thread_count())?,
            sampler: Sampler::new(sampling, options.seed)?,
            pending: None,
            has_logits: false,
            tokens_fed: 0,
            traffic: Traffic::default(),
            model,
        };
        session.reset()?;
        Ok(session)
    }

    /// The model that runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// What the session uses.
    pub fn memory_plan(&self) -> &Plan {
        &self.plan
    }

    /// Tokens fed since the last [`reset`](Self::reset) or [`set_state`](Self::set_state).
    pub fn tokens_fed(&self) -> u64 {
        self.tokens_fed
    }

    /// What was read of the weights since the session was made.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Forgets the text: state and penalties start anew. The random numbers go on.
    ///
    /// # Errors
    /// Never for a loaded model.
    pub fn reset(&mut self) -> Result<()> {
        let Self { model, arena, sampler, .. } = self;
        let mut memory = Memory::take(&mut arena.carve(), model.config());
        model.init_state(memory.state)?;
        sampler.reset(&mut memory.sampler);
        self.forget_logits();
        Ok(())
    }

    /// A copy of the recurrent state. A sampled token that was not fed yet is not part of it.
    pub fn state(&mut self) -> State {
        let memory = Memory::take(&mut self.arena.carve(), self.model.config());
        State { model_id: self.model.file().model_id(), values: (&*memory.state).into() }
    }

    /// Continues from `state`; the next call must be [`feed`](Self::feed) or [`forward`](Self::forward).
    ///
    /// # Errors
    /// If the state belongs to another model file.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        state.check(&self.model)?;
        let memory = Memory::take(&mut self.arena.carve(), self.model.config());
        memory.state.copy_from_slice(&state.values);
        self.forget_logits();
        Ok(())
    }

    fn forget_logits(&mut self) {
        self.pending = None;
        self.has_logits = false;
        self.tokens_fed = 0;
    }

    /// Feeds a token whose successor is not wanted, which spares the head.
    ///
    /// # Errors
    /// If the token is not in the vocabulary or its embedding row is damaged.
    pub fn feed(&mut self, token: u32) -> Result<()> {
        self.step(token, false)
    }

    /// Feeds a token and returns the logits of the next one, `[n_vocab]`.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn forward(&mut self, token: u32) -> Result<&[f32]> {
        self.step(token, true)?;
        Ok(Memory::take(&mut self.arena.carve(), self.model.config()).logits)
    }

    /// Feeds `tokens`; the logits after the last one are kept for [`next_token`](Self::next_token).
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<()> {
        let Some((&last, tokens)) = tokens.split_last() else { return Ok(()) };
        for &token in tokens {
            self.feed(token)?;
        }
        self.step(last, true)
    }

    /// Samples the next token; `None` if it is one of the model's stop tokens.
    ///
    /// The token is fed by the next call, so that its text can be shown before the time of a step has passed.
    ///
    /// # Errors
    /// If nothing was fed yet, or the logits are not finite.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if let Some(token) = self.pending.take() {
            self.step(token, true)?;
        }
        if !self.has_logits {
            return Err(Error::invalid("there is nothing to continue: the prompt is empty"));
        }
        let Self { model, arena, sampler, .. } = self;
        let mut memory = Memory::take(&mut arena.carve(), model.config());
        let token = sampler.sample(model.kernels(), memory.logits, &mut memory.sampler)?;
        if model.chat().stop_tokens.contains(&token) {
            return Ok(None);
        }
        sampler.accept(token, &mut memory.sampler);
        self.pending = Some(token);
        Ok(Some(token))
    }

    fn step(&mut self, token: u32, want_logits: bool) -> Result<()> {
        let Self { model, arena, pool, traffic, .. } = self;
        let mut buffers = arena.carve();
        let memory = Memory::take(&mut buffers, model.config());
        let logits = want_logits.then_some(memory.logits);
        self.pending = None;
        self.has_logits = false;
        model.forward(pool, traffic, token, memory.state, &mut buffers, logits)?;
        self.has_logits = want_logits;
        self.tokens_fed += 1;
        Ok(())
    }
}

//! A session: one text being read and written by a model, in memory that is allocated once.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::cpu;
use crate::error::{Error, Result};
use crate::format::{Config, SamplingParams, Verifier};
use crate::kernels::default_float_environment;
use crate::memory::{Arena, Buffers, Measure, Plan};
use crate::model::{self, MAX_TOKENS, Meter, Model, Phase, Profile, Traffic};
use crate::sampler::{Sampler, SamplerBuffers};
use crate::shortlist::Estimates;
use crate::state::State;
use crate::threads::{Pool, WORKER_STACK_BYTES};

/// Tokens over which the check of a file is spread.
const VERIFYING_TOKENS: usize = 63;
/// Most tokens whose logits decide by their order alone, for a shortlist to be tried.
const MOST_LARGEST: usize = 256;
/// A shortlist must be shorter than the vocabulary by this factor: reading rows here and there is slower than
/// reading all.
const LEAST_SAVING: usize = 3;

/// Most threads of a session.
const MAX_THREADS: usize = 1024;

/// How a session runs.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads to compute with, at most 1024; `None` takes the physical performance cores, at most 4.
    pub threads: Option<usize>,
    /// Sampling; `None` takes the model's defaults.
    pub sampling: Option<SamplingParams>,
    /// Seed of the sampler.
    pub seed: u64,
    /// What to do without that is done to read less; for measuring what each is worth. Results are the same.
    pub without: Savings,
}

/// Ways of reading less than all weights for a token. None changes a bit of the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Savings {
    /// Of the columns of `ffn.value`, read only those with an input that is not zero.
    pub sparse_value: bool,
    /// Of the second plane of a nested head, read only rows of tokens that can be sampled.
    pub shortlist: bool,
    /// Read each matrix once for several tokens of a prompt.
    pub prompt_chunks: bool,
}

impl SessionOptions {
    /// Threads that a session with these options uses.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(cpu::default_threads).max(1)
    }
}

/// The bits of every logit that is a NaN. What sign and payload arithmetic gives depends on the processor.
const NAN: u32 = 0x7fc0_0000;

/// Exclusive use of one arena and its threads. After [`Session::new`] nothing allocates.
///
/// Results do not depend on the floating-point environment of the caller: each call computes in the default one, and the
/// caller's returns with it.
///
/// A process that inherited a session over `fork` has it without its threads: it computes alone, with the same results.
pub struct Session {
    model: Arc<Model>,
    arena: Arena,
    plan: Plan,
    pool: Pool,
    sampler: Sampler,
    /// A sampled token that has not been fed yet.
    pending: Option<u32>,
    logits: Logits,
    tokens_fed: u64,
    meter: Meter,
    without: Savings,
    /// Checks the file while running.
    verifier: Option<Verifier>,
}

/// What the buffer of logits holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    /// Nothing of use.
    Stale,
    /// Estimates of those after the last token fed.
    Estimated,
    /// Those after the last token fed.
    Exact,
}

/// The buffers of a session that outlive a token, as cut out of its arena. The model's scratch follows them.
struct Memory<'a> {
    state: &'a mut [f32],
    logits: &'a mut [f32],
    sampler: SamplerBuffers<'a>,
    /// Exact logits of the tokens that are being made exact.
    exact: &'a mut [f32],
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
            exact: buffers.f32s("sampler", n),
        }
    }
}

/// Gives all NaNs the same bits.
fn unify_nans(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = if value.is_nan() { f32::from_bits(NAN) } else { *value });
}

impl Session {
    /// Most tokens that go through the model at once.
    pub const MAX_TOKENS: usize = MAX_TOKENS;

    /// What a session of `model` with these options will use, without allocating it.
    ///
    /// # Errors
    /// As [`arena_plan`](Self::arena_plan).
    pub fn plan(model: &Model, options: &SessionOptions) -> Result<Plan> {
        let file = model.file();
        let embedding_bytes = file.embedding_bytes();
        let weights_bytes = file.data_bytes() - embedding_bytes;
        Ok(Plan {
            file: file.mapping().kind(),
            weights_bytes,
            embedding_bytes,
            tables_bytes: file.file_len() - weights_bytes - embedding_bytes,
            ..Self::arena_plan(model.config(), options)?
        })
    }

    /// The part of the plan that follows from the hyperparameters alone: arena and stacks.
    ///
    /// # Errors
    /// If the buffers are more than this machine can address, or the threads more than 1024.
    pub fn arena_plan(config: &Config, options: &SessionOptions) -> Result<Plan> {
        Self::arena_plan_in(Measure::default(), config, options)
    }

    fn arena_plan_in(mut measure: Measure, config: &Config, options: &SessionOptions) -> Result<Plan> {
        let threads = options.thread_count();
        if threads > MAX_THREADS {
            return Err(Error::invalid(format!("{threads} threads; a session has at most {MAX_THREADS}")));
        }
        Memory::take(&mut measure, config);
        model::measure_scratch(config, threads, &mut measure);
        Ok(Plan {
            regions: measure.into_regions()?,
            stack_bytes: (threads - 1) * WORKER_STACK_BYTES,
            ..Plan::default()
        })
    }

    /// Allocates a session and starts its threads.
    ///
    /// # Errors
    /// If the sampling parameters are out of range, the threads are more than 1024 or one cannot be started, there is no memory,
    /// or the file is damaged.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let threads = options.thread_count();
        let options = &SessionOptions { threads: Some(threads), ..options.clone() };
        let plan = Self::plan(&model, options)?;
        let sampling = options.sampling.unwrap_or(model.chat().sampling);
        let mut session = Self {
            arena: Arena::new(&plan)?,
            plan,
            pool: Pool::new(threads)?,
            sampler: Sampler::new(sampling, options.seed)?,
            pending: None,
            logits: Logits::Stale,
            tokens_fed: 0,
            meter: Meter::default(),
            without: options.without,
            verifier: model.take_verifier()?,
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
        self.meter.traffic
    }

    /// From here on the time of each phase is measured, or is not.
    pub fn measure_time(&mut self, on: bool) {
        self.meter.measure_time(on);
    }

    /// The time spent in each phase while it was measured.
    pub fn profile(&self) -> Profile {
        self.meter.profile
    }

    /// Forgets the text, and a sampled token that was not fed yet: state and penalties start anew. The random numbers go on.
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

    /// A copy of the recurrent state, in which every NaN has the bits `0x7FC00000`. A sampled token that was not fed yet is
    /// not part of it.
    pub fn state(&mut self) -> State {
        let memory = Memory::take(&mut self.arena.carve(), self.model.config());
        let mut values: Box<[f32]> = (&*memory.state).into();
        unify_nans(&mut values);
        State { model_id: self.model.file().model_id(), values }
    }

    /// Continues from `state`; the next call must be [`feed`](Self::feed) or [`forward`](Self::forward). A sampled token that
    /// was not fed yet is forgotten.
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
        self.logits = Logits::Stale;
        self.tokens_fed = 0;
    }

    /// Feeds a token whose successor is not wanted, which spares the head.
    ///
    /// Whatever is fed, a token that [`next_token`](Self::next_token) gave and that was not fed yet goes first.
    ///
    /// # Errors
    /// If the token is not in the vocabulary or its embedding row is damaged.
    pub fn feed(&mut self, token: u32) -> Result<()> {
        self.feed_in_chunks(&[token], false)
    }

    /// Feeds tokens whose successors are not wanted, up to [`MAX_TOKENS`](Self::MAX_TOKENS) at once, for which each matrix is
    /// read once. The result is that of feeding them one by one.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed_in_chunks(tokens, false)
    }

    /// Feeds a token and returns the logits of the next one, `[n_vocab]`. Those that are a NaN have the bits `0x7FC00000`.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn forward(&mut self, token: u32) -> Result<&[f32]> {
        let _environment = default_float_environment();
        self.feed_in_chunks(&[token], true)?;
        self.make_exact()?;
        let logits = Memory::take(&mut self.arena.carve(), self.model.config()).logits;
        unify_nans(logits);
        Ok(logits)
    }

    /// As [`feed_all`](Self::feed_all), but the logits after the last token are kept for
    /// [`next_token`](Self::next_token).
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed_in_chunks(tokens, true)
    }

    /// Feeds the token that waits, if there is one, and `tokens`, as many together as go through the model at once. Makes
    /// the logits after the last one if they are wanted.
    fn feed_in_chunks(&mut self, tokens: &[u32], want_logits: bool) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        let _environment = default_float_environment();
        let together = if self.without.prompt_chunks { 1 } else { Self::MAX_TOKENS };
        let mut left = self.pending.into_iter().chain(tokens.iter().copied()).peekable();
        while left.peek().is_some() {
            let chunk: ArrayVec<_, MAX_TOKENS> = left.by_ref().take(together).collect();
            self.step(&chunk, want_logits && left.peek().is_none())?;
        }
        Ok(())
    }

    /// Samples the next token; `None` if it is one of the model's stop tokens.
    ///
    /// The token is fed by the next call that feeds something or samples, before all else, so that its text can be shown
    /// before the time of a step has passed.
    ///
    /// # Errors
    /// If nothing was fed yet, or the logits are not finite.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        let _environment = default_float_environment();
        if let Some(token) = self.pending {
            self.step(&[token], true)?;
        }
        if self.logits == Logits::Stale {
            return Err(Error::invalid("there is nothing to continue: the prompt is empty"));
        }
        let token = self.sample()?;
        self.meter.end(Phase::Sample);
        let Self { model, arena, sampler, .. } = self;
        if model.chat().stop_tokens.contains(&token) {
            return Ok(None);
        }
        let mut memory = Memory::take(&mut arena.carve(), model.config());
        sampler.accept(token, &mut memory.sampler);
        self.pending = Some(token);
        Ok(Some(token))
    }

    fn sample(&mut self) -> Result<u32> {
        let largest = self.sampler.largest_needed().filter(|&n| n <= MOST_LARGEST);
        if let Some(n) = largest
            && self.logits == Logits::Estimated
            && !self.without.shortlist
            && let Some(token) = self.sample_shortlist(n)?
        {
            return Ok(token);
        }
        self.make_exact()?;
        let Self { model, arena, sampler, .. } = self;
        let mut memory = Memory::take(&mut arena.carve(), model.config());
        sampler.sample(model.kernels(), memory.logits, &mut memory.sampler)
    }

    /// Makes those logits exact that can be among the `largest`, and samples; `None` if that does not pay.
    fn sample_shortlist(&mut self, largest: usize) -> Result<Option<u32>> {
        let Self { model, arena, pool, sampler, meter, without, .. } = self;
        let mut buffers = arena.carve();
        let Memory { logits, sampler: mut buf, exact, .. } = Memory::take(&mut buffers, model.config());
        let mut scratch = buffers.rest();
        let (bounds, norm) = model.logit_bounds(meter, &mut scratch.carve())?;
        let estimates = Estimates { logits, bounds, norm, kernels: model.kernels() };
        if !estimates.are_finite() {
            return Ok(None);
        }
        // Logits that are not known are -infinity.
        buf.probs.fill(f32::NEG_INFINITY);
        let mut refine = |buf: &mut SamplerBuffers<'_>, n: usize| {
            let (ids, exact) = (&buf.candidates[..n], &mut exact[..n]);
            model.refine(model.ops(pool, meter, *without), &mut scratch.carve(), ids, logits, exact)?;
            ids.iter().zip(&*exact).for_each(|(&id, &exact)| buf.probs[id as usize] = exact);
            Ok::<_, Error>(())
        };
        // Tokens with a penalty are known, so that among the others the order of logits is that of the penalised.
        let n = sampler.seen(&buf).len();
        buf.candidates[..n].copy_from_slice(&buf.seen[..n]);
        refine(&mut buf, n)?;
        let n = estimates.largest(buf.probs, &mut buf.candidates[..largest.min(logits.len())]);
        let enough = n == largest;
        refine(&mut buf, n)?;
        let known = buf.candidates[..n].iter().map(|&id| buf.probs[id as usize]);
        let reached = if enough { known.fold(f32::INFINITY, f32::min) } else { f32::NEG_INFINITY };
        let most = logits.len() / LEAST_SAVING;
        let Some(n) = estimates.reaching(reached, buf.probs, buf.candidates, most) else { return Ok(None) };
        refine(&mut buf, n)?;
        Ok(Some(sampler.sample_in_place(model.kernels(), &mut buf)?))
    }

    /// Makes estimates of logits the logits.
    fn make_exact(&mut self) -> Result<()> {
        if self.logits == Logits::Estimated {
            let Self { model, arena, pool, meter, without, .. } = self;
            let without = *without;
            let mut buffers = arena.carve();
            let memory = Memory::take(&mut buffers, model.config());
            model.refine_all(model.ops(pool, meter, without), &mut buffers, memory.logits)?;
            self.logits = Logits::Exact;
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[u32], want_logits: bool) -> Result<()> {
        let Self { model, arena, pool, meter, without, .. } = self;
        let without = *without;
        let mut buffers = arena.carve();
        let memory = Memory::take(&mut buffers, model.config());
        let logits = want_logits.then_some(memory.logits);
        self.logits = Logits::Stale;
        model.forward(model.ops(pool, meter, without), tokens, memory.state, &mut buffers, logits)?;
        self.logits = match (want_logits, model.has_nested_head()) {
            (false, _) => Logits::Stale,
            (true, true) => Logits::Estimated,
            (true, false) => Logits::Exact,
        };
        // The token that waited was the first of these.
        self.pending = None;
        self.tokens_fed += tokens.len() as u64;
        self.verify_some(tokens.len())
    }

    /// Checks the next part of the file, if that is still to be done, after some tokens. Not with the first ones, which have
    /// to wait long enough.
    fn verify_some(&mut self, tokens: usize) -> Result<()> {
        let Some(verifier) = &mut self.verifier else { return Ok(()) };
        let file = self.model.file();
        let share = file.data_bytes() as usize / VERIFYING_TOKENS + 1;
        if self.tokens_fed > tokens as u64 && verifier.advance(file, tokens * share)? {
            self.verifier = None;
        }
        Ok(())
    }

    /// Checks what is left of a file that is [checked while running](crate::Verify::WhileRunning).
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) if the file is damaged.
    pub fn verify_rest(&mut self) -> Result<()> {
        match self.verifier.take() {
            Some(mut verifier) => verifier.advance(self.model.file(), usize::MAX).map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::{Heads, Version};

    /// As large as a configuration may be.
    fn largest() -> Config {
        Config {
            version: Version::V7,
            n_layer: 1024,
            n_embd: 1 << 20,
            n_att: 1 << 20,
            n_ffn: 1 << 20,
            n_vocab: 1 << 20,
            layer_norm_eps: 1e-5,
            heads: Some(Heads { n_head: 1024, head_size: 1024, group_norm_eps: 64e-5 }),
            mix_rank: None,
            decay_rank: Some(8192),
            iclr_rank: Some(8192),
            value_rank: Some(8192),
            gate_rank: Some(8192),
        }
    }

    fn plan(n_layer: usize, address_space: usize) -> Result<Plan> {
        let options = SessionOptions { threads: Some(MAX_THREADS), ..Default::default() };
        Session::arena_plan_in(Measure::within(address_space), &Config { n_layer, ..largest() }, &options)
    }

    #[test]
    fn a_model_too_large_for_the_address_space_has_no_plan() {
        largest().validate().unwrap();
        for address_space in [i32::MAX as usize, u32::MAX as usize] {
            let error = plan(1024, address_space).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
            assert!(error.to_string().contains(&format!("more than {address_space} bytes")), "{error}");
        }
        // On 32 bits sizes end at those of a `usize`, and not at wrong ones.
        assert_eq!(plan(1024, usize::MAX).is_ok(), cfg!(target_pointer_width = "64"));
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_plan_ends_exactly_at_the_address_space() {
        let needed = plan(1, usize::MAX).unwrap().arena_bytes();
        assert!(needed > 4 << 30);
        plan(1, needed).unwrap();
        plan(1, needed - 1).unwrap_err();
        let plan = plan(1024, usize::MAX).unwrap();
        // 1024 heads of 1024 x 1024 in each layer, and two vectors.
        assert_eq!(plan.regions[0].bytes, 4 * 1024 * ((1 << 30) + (2 << 20)));
        assert_eq!(plan.stack_bytes, 1023 * WORKER_STACK_BYTES);
        assert!(plan.resident_bytes() > 4 << 40);
    }
}

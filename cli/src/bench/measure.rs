//! The measurements with one number of threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rwkv_edge::format::{SamplingParams, TensorInfo, TensorLayout};
use rwkv_edge::model::{Profile, Traffic, names};
use rwkv_edge::{Engine, EngineOptions, Model, Sampler, Sequence, Shortcuts, Snapshot, State};

use super::yardstick::{Yardstick, is_disturbed};
use super::{BenchArgs, Choice, SEED, Saving, median};

/// How often the prompt is read at least, and at most.
const PROMPTS: [usize; 2] = [3, 9];

/// Time after which the prompt is not read more often than needed.
const PROMPT_TIME: Duration = Duration::from_secs(1);

/// The measurements with one number of threads.
pub(super) struct Measured {
    pub(super) threads: usize,
    /// Tokens of a prompt that go through the model together.
    pub(super) prompt_chunk: usize,
    /// Texts that are decoded together.
    pub(super) sessions: usize,
    prompt: Prompt,
    /// Times of the steps of decoding, sorted. In a step each text goes on by a token.
    latencies: Vec<Duration>,
    traffic: Traffic,
    pub(super) profile: Profile,
    rounds: Vec<Round>,
    /// Bytes per second of each pass of plain reading.
    passes: Vec<f64>,
}

/// The prompt, read several times from the same state.
struct Prompt {
    /// Tokens per second, for each time.
    rates: Vec<f64>,
    /// Share of the peak, for each time.
    shares: Vec<f64>,
    /// Multiply-accumulates per second of each pass of plain multiplying.
    peaks: Vec<f64>,
    /// Of all tokens of all times.
    tokens: usize,
    profile: Profile,
}

/// A few tokens between two passes of plain reading. Shared machines change their speed from one
/// second to the next, so decoding is compared with the passes around it.
struct Round {
    /// Bytes per second of plain reading, before and after.
    bandwidth: f64,
    /// Bytes per second read while decoding.
    read: f64,
}

/// Texts that go on together.
struct Texts {
    engine: Engine<'static>,
    choose: Choice,
    states: Vec<State>,
    samplers: Vec<Sampler>,
    /// The token chosen last in each text.
    chosen: Vec<u32>,
}

pub(super) fn measure(args: &BenchArgs, model: &Arc<Model>, threads: usize) -> Result<Measured> {
    let mut texts = Texts::new(args, model, threads)?;
    let mut yardstick = Yardstick::new(model, threads)?;
    let mut latencies = Vec::new();
    latencies.try_reserve_exact(args.n_tokens as usize).context("-n asks for too many tokens")?;
    texts.engine.measure_time(args.profile);
    let prompt = texts.measure_prompt(args, &mut yardstick)?;
    texts.engine.measure_time(false);
    texts.fork(usize::from(args.sessions))?;
    (0..args.n_tokens.div_ceil(4)).try_for_each(|i| texts.step(i))?;

    let before = texts.engine.traffic();
    let mut rounds = Vec::new();
    let mut bandwidth = yardstick.read();
    let mut passes = vec![bandwidth];
    while latencies.len() < args.n_tokens as usize {
        let first = latencies.len();
        let traffic = texts.engine.traffic();
        texts.engine.measure_time(args.profile);
        // Decoding takes as long as reading, so both see the same load of the machine.
        let until = Instant::now() + Duration::from_secs_f64(yardstick.bytes() as f64 / bandwidth);
        while latencies.len() < args.n_tokens as usize && (latencies.len() == first || Instant::now() < until)
        {
            let started = Instant::now();
            texts.step(latencies.len() as u32)?;
            latencies.push(started.elapsed());
        }
        texts.engine.measure_time(false);
        let seconds = latencies[first..].iter().sum::<Duration>().as_secs_f64();
        let read = (texts.engine.traffic() - traffic).bytes() as f64 / seconds;
        let after = yardstick.read();
        rounds.push(Round { bandwidth: 0.5 * (bandwidth + after), read });
        passes.push(after);
        bandwidth = after;
    }
    latencies.sort_unstable();
    Ok(Measured {
        threads,
        prompt_chunk: texts.engine.prompt_chunk(),
        sessions: texts.states.len(),
        latencies,
        traffic: texts.engine.traffic() - before,
        profile: texts.engine.profile() - prompt.profile,
        prompt,
        rounds,
        passes,
    })
}

impl Texts {
    /// One text that has read as many tokens as the depth asks for.
    fn new(args: &BenchArgs, model: &Arc<Model>, threads: usize) -> Result<Self> {
        let sampling = match args.choose {
            Choice::Greedy => SamplingParams { temperature: 0.0, ..model.chat().sampling },
            Choice::Sample | Choice::Logits => model.chat().sampling,
        };
        let without = |saving| args.without.contains(&saving);
        let options = EngineOptions {
            threads: Some(threads),
            prompt_chunk: args.kernels.prompt_chunk(),
            head_batch: usize::from(args.sessions),
            shortcuts: Shortcuts {
                sparse_ffn: !without(Saving::SparseValue),
                head_shortlist: !without(Saving::Shortlist),
            },
        };
        let engine = Engine::new(Arc::clone(model), &options)?;
        let Snapshot { state, sampler, .. } = Snapshot::new(model, sampling, SEED)?;
        let (states, samplers) = (vec![state], vec![sampler]);
        let mut texts = Self { engine, choose: args.choose, states, samplers, chosen: vec![0] };
        let tokens: Vec<u32> = (0..args.depth).map(|i| texts.token(0, i)).collect();
        texts.engine.feed(&mut texts.states[0], &tokens)?;
        Ok(texts)
    }

    /// Reads the prompt several times in turns with plain multiplying, and then goes on from it.
    fn measure_prompt(&mut self, args: &BenchArgs, yardstick: &mut Yardstick<'_>) -> Result<Prompt> {
        let tokens: Vec<u32> = (0..args.n_prompt).map(|i| self.token(0, i)).collect();
        let start = self.states[0].clone();
        let (mut rates, mut shares, mut peaks) = (Vec::new(), Vec::new(), vec![yardstick.multiply()]);
        let mut time = Duration::ZERO;
        while rates.len() < PROMPTS[0] || (rates.len() < PROMPTS[1] && time < PROMPT_TIME) {
            self.states[0].copy_from(&start)?;
            let traffic = self.engine.traffic();
            let started = Instant::now();
            self.engine.feed(&mut self.states[0], &tokens)?;
            self.choose()?;
            let taken = started.elapsed();
            let traffic = self.engine.traffic() - traffic;
            let (before, after) = (peaks[peaks.len() - 1], yardstick.multiply());
            let reached = products(self.engine.model(), tokens.len(), traffic) as f64 / taken.as_secs_f64();
            rates.push(tokens.len() as f64 / taken.as_secs_f64());
            shares.push(reached / (0.5 * (before + after)));
            peaks.push(after);
            time += taken;
        }
        let (tokens, profile) = (tokens.len() * rates.len(), self.engine.profile());
        Ok(Prompt { rates, shares, peaks, tokens, profile })
    }

    /// Makes `n` texts of the one that there is.
    fn fork(&mut self, n: usize) -> Result<()> {
        let (params, n_vocab) = (*self.samplers[0].params(), self.engine.model().config().n_vocab);
        self.states.resize(n, self.states[0].clone());
        for seed in (SEED..).take(n).skip(1) {
            self.samplers.push(Sampler::new(params, n_vocab, seed)?);
        }
        self.chosen.resize(n, 0);
        Ok(())
    }

    /// Continues each text with its token `i`, and chooses the next one.
    fn step(&mut self, i: u32) -> Result<()> {
        let tokens: Vec<u32> = (0..self.states.len()).map(|text| self.token(text, i)).collect();
        let sequences = self.states.iter_mut().zip(tokens.chunks(1));
        let mut sequences: Vec<_> = sequences.map(|(state, token)| Sequence::new(state, token)).collect();
        self.engine.feed_batch(&mut sequences)?;
        self.choose()?;
        self.samplers.iter_mut().zip(&self.chosen).for_each(|(sampler, &token)| sampler.accept(token));
        Ok(())
    }

    fn choose(&mut self) -> Result<()> {
        let Self { engine, choose, states, samplers, chosen } = self;
        if *choose == Choice::Logits {
            return Ok(engine.logits_batch(&states.iter().collect::<Vec<_>>(), |_, _| Ok(()))?);
        }
        let mut texts: Vec<_> = states.iter().zip(samplers).collect();
        Ok(engine.sample_batch(&mut texts, chosen)?)
    }

    /// Token `i` of a text, from a fixed pseudo-random walk over the vocabulary. So the tokens do
    /// not depend on what the model chooses.
    fn token(&self, text: usize, i: u32) -> u32 {
        const APART: u32 = 1_013_904_223;
        let i = i.wrapping_add((text as u32).wrapping_mul(APART));
        i.wrapping_mul(2_654_435_761) % self.engine.model().config().n_vocab as u32
    }
}

/// Multiply-accumulates of `tokens` tokens with weights, the last one's head included. `traffic` is
/// theirs.
fn products(model: &Model, tokens: usize, traffic: Traffic) -> u64 {
    let config = model.config();
    let of_layers =
        |tensor: &&TensorInfo| tensor.layout == TensorLayout::Interleaved && tensor.name != names::HEAD;
    let matrices = model.file().tensors().iter().filter(of_layers);
    let weights: u64 = matrices.map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
    let vectors = traffic.active_columns + config.n_vocab as u64 + traffic.residual_rows;
    tokens as u64 * weights + vectors * config.n_embd as u64
}

impl Measured {
    /// All tokens that were decoded.
    pub(super) fn tokens(&self) -> f64 {
        (self.latencies.len() * self.sessions) as f64
    }

    fn seconds(&self) -> f64 {
        self.latencies.iter().sum::<Duration>().as_secs_f64()
    }

    /// The sum over the texts.
    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens() / self.seconds()
    }

    /// The median over the times that the prompt was read.
    pub(super) fn prompt_tokens_per_second(&self) -> f64 {
        median(&self.prompt.rates)
    }

    /// Multiply-accumulates per second, the median over the passes.
    pub(super) fn peak(&self) -> f64 {
        median(&self.prompt.peaks)
    }

    /// The median over the times that the prompt was read.
    pub(super) fn share_of_peak(&self) -> f64 {
        median(&self.prompt.shares)
    }

    /// The time of the prompts, and the number of their tokens.
    pub(super) fn prompt_profile(&self) -> (Profile, f64) {
        (self.prompt.profile, self.prompt.tokens as f64)
    }

    /// Bytes of weights and state per token.
    pub(super) fn bytes_per_token(&self) -> f64 {
        self.traffic.bytes() as f64 / self.tokens()
    }

    /// The median over the rounds.
    pub(super) fn bandwidth(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.bandwidth).collect::<Vec<_>>())
    }

    /// The median over the rounds.
    pub(super) fn share_of_limit(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.read / round.bandwidth).collect::<Vec<_>>())
    }

    pub(super) fn is_disturbed(&self) -> bool {
        is_disturbed(self.share_of_limit(), &self.passes)
            // A level may multiply faster than its loop of bytes: int4 on AVX2 adds up in 16 bits.
            || is_disturbed(0.0, &self.prompt.peaks)
    }

    /// Milliseconds of the `q` quantile of the steps.
    pub(super) fn latency(&self, q: f64) -> f64 {
        let index = (q * (self.latencies.len() - 1) as f64).round() as usize;
        self.latencies[index].as_secs_f64() * 1e3
    }

    /// Share of the inputs of `ffn.value` that are zero.
    pub(super) fn zeros(&self) -> f64 {
        1.0 - self.traffic.active_columns as f64 / self.traffic.columns.max(1) as f64
    }

    /// Share of the rows of the head's residual that were read; `None` for a plain head.
    pub(super) fn residual_rows(&self) -> Option<f64> {
        let Traffic { residual_rows, head_rows, .. } = self.traffic;
        (head_rows > 0).then(|| residual_rows as f64 / head_rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_zeros_multiplies_every_weight_once() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fairy7-int8.rwkv");
        let model = Model::open(path, &Default::default()).unwrap();
        let config = model.config();
        let traffic = Traffic {
            active_columns: (config.n_layer * config.n_ffn) as u64,
            residual_rows: config.n_vocab as u64,
            ..Traffic::default()
        };
        let tensors = model.file().tensors().iter();
        let all =
            tensors.filter(|tensor| tensor.layout != TensorLayout::Vector && tensor.name != "emb.weight");
        let weights: usize = all.map(|tensor| tensor.shape[0] * tensor.shape[1]).sum();
        assert_eq!(products(&model, 1, traffic), weights as u64);
    }
}

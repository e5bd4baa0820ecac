//! `rwkv-edge bench`: the speed of prompt and decoding, beside this machine's read bandwidth.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rwkv_edge::format::SamplingParams;
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::kernels::{Kernels, MAX_READ_STREAMS};
use rwkv_edge::model::{Phase, Profile, Traffic};
use rwkv_edge::threads::Pool;
use rwkv_edge::{Engine, EngineOptions, Model, Shortcuts, Snapshot, State, Verify, host, stdio};

use crate::args::{KernelArgs, load, model_name};

#[derive(Args)]
pub(super) struct BenchArgs {
    /// Model file (.rwkv); without it the built-in model is used
    model: Option<PathBuf>,
    #[command(flatten)]
    kernels: KernelArgs,
    /// Thread counts to measure, such as 1,2,4 [default: the physical performance cores, at most 4]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Vec<u16>,
    /// Tokens to decode, after a quarter as many to warm up
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    n_tokens: u32,
    /// Tokens of the prompt
    #[arg(long = "prompt", value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n_prompt: u32,
    /// How to choose the next token; this determines how much of a nested head is read
    #[arg(long, value_enum, default_value_t = Choice::Greedy)]
    choose: Choice,
    /// Switch off a shortcut that reads less; may be given several times
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Saving>,
    /// Show the time of each phase
    #[arg(long)]
    profile: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The most likely token
    Greedy,
    /// The model's sampling defaults
    Sample,
    /// Not at all: all logits are computed
    Logits,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Saving {
    /// Read all columns of ffn.value, also those whose input is zero
    SparseValue,
    /// Read all rows of a nested head's second plane
    Shortlist,
    /// Read all weights for every token of the prompt
    PromptChunks,
}

/// Seed for sampling.
const SEED: u64 = 0;

/// Most repeats of a disturbed measurement.
const MOST_REPEATS: usize = 2;

/// The measurements with one number of threads.
struct Measured {
    threads: usize,
    prompt: f64,
    /// Sorted.
    latencies: Vec<Duration>,
    traffic: Traffic,
    profile: Profile,
    rounds: Vec<Round>,
    /// Bytes per second of each pass of plain reading.
    passes: Vec<f64>,
}

/// A few tokens between two passes of plain reading. Shared machines change their speed from one
/// second to the next, so decoding is compared with the passes around it.
struct Round {
    /// Bytes per second of plain reading, before and after.
    bandwidth: f64,
    /// Bytes per second read while decoding.
    read: f64,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let model = load(args.model.as_ref(), &args.kernels, Verify::AtOnce)?;
    let threads: Vec<usize> = match args.threads.is_empty() {
        true => {
            DefaultThreads::detect().keep_to_fast_cores();
            vec![host::default_threads()]
        }
        false => args.threads.iter().copied().map(usize::from).collect(),
    };
    let runs = threads.into_iter().map(|threads| measure_undisturbed(args, &model, threads));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let out = &mut stdio::stdout();
    match args.json {
        true => print_json(out, args, &model, &runs)?,
        false => print_text(out, args, &model, &runs)?,
    }
    Ok(out.flush()?)
}

/// Measures again if something else used the machine meanwhile, at most [`MOST_REPEATS`] times.
fn measure_undisturbed(args: &BenchArgs, model: &Arc<Model>, threads: usize) -> Result<Measured> {
    let mut measured = measure(args, model, threads)?;
    for _ in 0..MOST_REPEATS {
        if !measured.is_disturbed() {
            break;
        }
        measured = measure(args, model, threads)?;
    }
    Ok(measured)
}

fn measure(args: &BenchArgs, model: &Arc<Model>, threads: usize) -> Result<Measured> {
    let sampling = match args.choose {
        Choice::Greedy => SamplingParams { temperature: 0.0, ..model.chat().sampling },
        Choice::Sample | Choice::Logits => model.chat().sampling,
    };
    let without = |saving| args.without.contains(&saving);
    let mut options = EngineOptions {
        threads: Some(threads),
        shortcuts: Shortcuts {
            sparse_ffn: !without(Saving::SparseValue),
            head_shortlist: !without(Saving::Shortlist),
        },
        ..EngineOptions::default()
    };
    if without(Saving::PromptChunks) {
        options.prompt_chunk = Some(1);
    }
    let mut engine = Engine::new(Arc::clone(model), &options)?;
    let Snapshot { mut state, mut sampler, .. } = Snapshot::new(model, sampling, SEED)?;
    let n_vocab = model.config().n_vocab as u32;
    // A fixed pseudo-random walk over the vocabulary, so the fed tokens do not depend on the text.
    let token = |i: u32| i.wrapping_mul(2_654_435_761) % n_vocab;
    let mut feed = |engine: &mut Engine<'_>, state: &mut State, tokens: &[u32]| {
        engine.feed(state, tokens)?;
        if args.choose == Choice::Logits {
            engine.logits(state)?;
        } else {
            let chosen = engine.sample(state, &mut sampler)?;
            sampler.accept(chosen);
        }
        anyhow::Ok(())
    };

    let mut yardstick = Yardstick::new(model, threads)?;
    let mut latencies = Vec::new();
    latencies.try_reserve_exact(args.n_tokens as usize).context("-n asks for too many tokens")?;
    let prompt: Vec<u32> = (0..args.n_prompt).map(token).collect();
    let started = Instant::now();
    feed(&mut engine, &mut state, &prompt)?;
    let prompt = f64::from(args.n_prompt) / started.elapsed().as_secs_f64();
    (0..args.n_tokens.div_ceil(4)).try_for_each(|i| feed(&mut engine, &mut state, &[token(i)]))?;

    let before = engine.traffic();
    let mut rounds = Vec::new();
    let mut bandwidth = yardstick.read();
    let mut passes = vec![bandwidth];
    while latencies.len() < args.n_tokens as usize {
        let first = latencies.len();
        let traffic = engine.traffic();
        engine.measure_time(args.profile);
        // Decoding takes as long as reading, so both see the same load of the machine.
        let until = Instant::now() + Duration::from_secs_f64(yardstick.bytes.len() as f64 / bandwidth);
        while latencies.len() < args.n_tokens as usize && (latencies.len() == first || Instant::now() < until)
        {
            let started = Instant::now();
            feed(&mut engine, &mut state, &[token(latencies.len() as u32)])?;
            latencies.push(started.elapsed());
        }
        engine.measure_time(false);
        let seconds = latencies[first..].iter().sum::<Duration>().as_secs_f64();
        let read = (engine.traffic() - traffic).bytes() as f64 / seconds;
        let after = yardstick.read();
        rounds.push(Round { bandwidth: 0.5 * (bandwidth + after), read });
        passes.push(after);
        bandwidth = after;
    }
    latencies.sort_unstable();
    let (traffic, profile) = (engine.traffic() - before, engine.profile());
    Ok(Measured { threads, prompt, latencies, traffic, profile, rounds, passes })
}

impl Measured {
    fn tokens(&self) -> f64 {
        self.latencies.len() as f64
    }

    fn seconds(&self) -> f64 {
        self.latencies.iter().sum::<Duration>().as_secs_f64()
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens() / self.seconds()
    }

    /// Bytes of weights and state per token.
    fn bytes_per_token(&self) -> f64 {
        self.traffic.bytes() as f64 / self.tokens()
    }

    /// The median over the rounds.
    fn bandwidth(&self) -> f64 {
        median(&mut self.rounds.iter().map(|round| round.bandwidth).collect::<Vec<_>>())
    }

    /// The median over the rounds.
    fn share_of_limit(&self) -> f64 {
        median(&mut self.rounds.iter().map(|round| round.read / round.bandwidth).collect::<Vec<_>>())
    }

    fn is_disturbed(&self) -> bool {
        is_disturbed(self.share_of_limit(), &self.passes)
    }

    /// Milliseconds of the `q` quantile.
    fn latency(&self, q: f64) -> f64 {
        let index = (q * (self.latencies.len() - 1) as f64).round() as usize;
        self.latencies[index].as_secs_f64() * 1e3
    }

    /// Share of the inputs of `ffn.value` that are zero.
    fn zeros(&self) -> f64 {
        1.0 - self.traffic.active_columns as f64 / self.traffic.columns.max(1) as f64
    }

    /// Share of the rows of the head's residual that were read; `None` for a plain head.
    fn residual_rows(&self) -> Option<f64> {
        let Traffic { residual_rows, head_rows, .. } = self.traffic;
        (head_rows > 0).then(|| residual_rows as f64 / head_rows as f64)
    }
}

fn print_text(out: &mut impl Write, args: &BenchArgs, model: &Model, runs: &[Measured]) -> io::Result<()> {
    writeln!(out, "model             {} ({})", model_name(args.model.as_ref()), model.config().version())?;
    writeln!(out, "kernels           {}", model.kernels().isa())?;
    if args.choose == Choice::Sample {
        writeln!(out, "seed              {SEED}")?;
    }
    for run in runs {
        writeln!(out, "threads           {}", run.threads)?;
        writeln!(out, "  prompt          {:.2} tokens/s", run.prompt)?;
        writeln!(out, "  decode          {:.2} tokens/s", run.tokens_per_second())?;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| run.latency(q));
        writeln!(out, "  latency         p50 {p50:.3} ms, p99 {p99:.3} ms, max {max:.3} ms")?;
        write!(out, "  read per token  {:.1} MB; ", run.bytes_per_token() / 1e6)?;
        write!(out, "{:.1} % of ffn.value's inputs are zero", 100.0 * run.zeros())?;
        match run.residual_rows() {
            Some(share) => writeln!(out, ", {:.1} % of the head's second plane is read", 100.0 * share)?,
            None => writeln!(out)?,
        }
        let rate = run.bytes_per_token() * run.tokens_per_second();
        writeln!(out, "  read bandwidth  {:.2} GB/s of weights and state while decoding", rate / 1e9)?;
        writeln!(
            out,
            "  limit           {:.2} GB/s reading the same file and nothing else",
            run.bandwidth() / 1e9
        )?;
        let note = if run.is_disturbed() { ", disturbed: something else used the machine" } else { "" };
        writeln!(out, "  share of limit  {:.1} %{note}", 100.0 * run.share_of_limit())?;
        if args.profile {
            print_profile(out, run)?;
        }
    }
    writeln!(out, "peak RSS          {}", stdio::peak_rss())
}

fn print_profile(out: &mut impl Write, run: &Measured) -> io::Result<()> {
    let total = run.profile.total().max(1) as f64;
    for phase in Phase::ALL {
        let nanos = run.profile.nanos(phase) as f64;
        let (micros, share) = (nanos / 1e3 / run.tokens(), 100.0 * nanos / total);
        writeln!(out, "    {:<22} {micros:>10.1} us  {share:>5.1} %", phase.name())?;
    }
    Ok(())
}

fn print_json(out: &mut impl Write, args: &BenchArgs, model: &Model, runs: &[Measured]) -> io::Result<()> {
    write!(out, "{{\"model\":{},", json_string(&model_name(args.model.as_ref())))?;
    write!(out, "\"version\":{},", json_string(&model.config().version().to_string()))?;
    write!(out, "\"isa\":{},", json_string(model.kernels().isa().name()))?;
    if args.choose == Choice::Sample {
        write!(out, "\"seed\":{SEED},")?;
    }
    write!(out, "\"runs\":[")?;
    for (i, run) in runs.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        write!(out, "{comma}{{\"threads\":{},", run.threads)?;
        write!(out, "\"prompt_tokens_per_second\":{:.4},", run.prompt)?;
        write!(out, "\"decode_tokens_per_second\":{:.4},", run.tokens_per_second())?;
        write!(out, "\"bytes_per_token\":{:.0},", run.bytes_per_token())?;
        write!(out, "\"read_bandwidth_bytes_per_second\":{:.0},", run.bandwidth())?;
        write!(out, "\"share_of_limit\":{:.4},", run.share_of_limit())?;
        write!(out, "\"disturbed\":{},", run.is_disturbed())?;
        write!(out, "\"ffn_zeros\":{:.4},", run.zeros())?;
        if let Some(share) = run.residual_rows() {
            write!(out, "\"head_residual_rows\":{share:.4},")?;
        }
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| run.latency(q));
        write!(out, "\"latency_ms\":{{\"p50\":{p50:.4},\"p99\":{p99:.4},\"max\":{max:.4}}}")?;
        if args.profile {
            let phases = Phase::ALL.map(|phase| {
                let micros = run.profile.nanos(phase) as f64 / 1e3 / run.tokens();
                format!("{}:{micros:.3}", json_string(phase.name()))
            });
            write!(out, ",\"profile_us_per_token\":{{{}}}", phases.join(","))?;
        }
        write!(out, "}}")?;
    }
    let rss = host::peak_rss_bytes().map_or("null".into(), |bytes| bytes.to_string());
    writeln!(out, "],\"peak_rss_bytes\":{rss}}}")
}

/// A JSON string: quotes, backslashes and control characters escaped.
fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out + "\""
}

/// The same threads reading the same file and doing nothing else.
struct Yardstick<'a> {
    pool: Pool,
    kernels: &'static Kernels,
    bytes: &'a [u8],
    /// Read streams of each thread.
    streams: usize,
    /// A result for each block, so that the reads have a use.
    words: Vec<f32>,
}

impl<'a> Yardstick<'a> {
    /// Bytes read as one set of streams before the next set begins.
    const BLOCK: usize = 1 << 20;

    /// Finds the number of streams that reads fastest, by the medians of five passes of each.
    fn new(model: &'a Model, threads: usize) -> Result<Self> {
        let bytes = weights(model);
        let words = vec![0.0; bytes.len().div_ceil(Self::BLOCK)];
        let pool = Pool::new(threads)?;
        let mut yardstick = Self { pool, kernels: model.kernels(), bytes, streams: 1, words };
        let mut passes = [const { Vec::new() }; MAX_READ_STREAMS];
        for _ in 0..5 {
            for (streams, passes) in (1..).zip(&mut passes) {
                yardstick.streams = streams;
                passes.push(yardstick.read());
            }
        }
        let speeds = passes.map(|mut passes| median(&mut passes));
        let best = (1..).zip(speeds).max_by(|a, b| a.1.total_cmp(&b.1));
        yardstick.streams = best.map_or(1, |(streams, _)| streams);
        Ok(yardstick)
    }

    /// Reads everything once; returns bytes per second.
    fn read(&mut self) -> f64 {
        let Self { pool, kernels, bytes, streams, words } = self;
        let started = Instant::now();
        pool.for_each_range([words], 1, &|_, first, words| {
            for (word, block) in words.iter_mut().zip(bytes.chunks(Self::BLOCK).skip(first)) {
                *word = f32::from_bits(kernels.read(block, *streams) as u32);
            }
        });
        std::hint::black_box(&self.words);
        self.bytes.len() as f64 / started.elapsed().as_secs_f64()
    }
}

/// The part of the file that decoding reads: everything before the embedding at its end. For a
/// large file, the first part of it.
fn weights(model: &Model) -> &[u8] {
    const MOST: u64 = 1 << 30;
    let file = model.file();
    let len = file.file_len() - file.embedding_bytes();
    file.mapping().get(..len.min(MOST) as usize).unwrap_or_default()
}

/// Whether the passes of plain reading are no valid limit for decoding: decoding read clearly
/// faster, or the middle half of the passes differ by more than a quarter.
fn is_disturbed(share_of_limit: f64, passes: &[f64]) -> bool {
    const LARGEST_SHARE: f64 = 1.2;
    const LARGEST_MOVE: f64 = 0.25;
    let mut passes = passes.to_vec();
    passes.sort_unstable_by(f64::total_cmp);
    let (low, high) = (passes[passes.len() / 4], passes[passes.len() * 3 / 4]);
    share_of_limit > LARGEST_SHARE || high - low > LARGEST_MOVE * high
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::is_disturbed;

    #[test]
    fn a_share_above_a_hundred_and_twenty_percent_is_disturbed() {
        let steady = [10.0, 10.1, 9.9, 10.0];
        assert!(!is_disturbed(0.9, &steady) && !is_disturbed(1.2, &steady));
        assert!(is_disturbed(1.21, &steady) && is_disturbed(55.07, &steady));
    }

    #[test]
    fn a_bandwidth_that_moves_by_more_than_a_quarter_is_disturbed() {
        // One or two passes that something else held up do not move the medians.
        assert!(!is_disturbed(0.9, &[10.0, 1.0, 10.0, 9.0, 10.0, 10.0, 0.2, 10.0, 9.5]));
        // A machine that has become slower does move them.
        assert!(is_disturbed(0.9, &[10.0, 10.0, 10.0, 10.0, 7.0, 7.0, 7.0, 7.0]));
        assert!(is_disturbed(0.9, &[10.0, 7.0]) && !is_disturbed(0.9, &[10.0, 8.0]));
        assert!(!is_disturbed(0.9, &[10.0]));
    }
}

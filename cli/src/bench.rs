//! `rwkv-edge bench`: the speed of prompt and decoding, beside what the same threads can multiply and
//! read.

mod cold;
mod measure;
mod report;
mod yardstick;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::memory::Region;
use rwkv_edge::threads::WORKER_STACK_BYTES;
use rwkv_edge::{EngineOptions, Model, Verify, host, stdio};

use crate::args::{KernelArgs, ModelPath, load, warn_of_threads};
use crate::memory::Demand;
use cold::FirstToken;
use measure::{Measured, measure};
use report::Report;

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    file: ModelPath,
    #[command(flatten)]
    kernels: KernelArgs,
    /// Thread counts to measure, such as 1,2,4 [default: the physical performance cores, at most 4]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Vec<u16>,
    /// Tokens to decode in each text, after a quarter as many to warm up
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    n_tokens: u32,
    /// Tokens of the prompt
    #[arg(long = "prompt", value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n_prompt: u32,
    /// Tokens to read before the prompt
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    depth: u32,
    /// Texts to decode together, each with tokens of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    sessions: u8,
    /// How to choose the next token; this determines how much of a nested head is read
    #[arg(long, value_enum, default_value_t = Choice::Greedy)]
    choose: Choice,
    /// Switch off a shortcut that reads less; may be given several times
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Saving>,
    /// Measure the first token with nothing of the file in the page cache
    #[arg(long)]
    cold: bool,
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
}

/// Seed for sampling in the first text.
const SEED: u64 = 0;

/// Most repeats of a disturbed measurement.
const MOST_REPEATS: usize = 2;

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let threads: Vec<usize> = match args.threads.is_empty() {
        true => {
            DefaultThreads::detect().keep_to_fast_cores();
            vec![host::default_threads()]
        }
        false => args.threads.iter().copied().map(usize::from).inspect(|&n| warn_of_threads(n)).collect(),
    };
    let path = args.file.path();
    let demand = demand(args, &threads);
    args.kernels.check_memory(path, &demand)?;
    let first_token = match (args.cold, path) {
        (false, _) => None,
        (true, Some(path)) => Some(FirstToken::measure(path, &args.kernels, demand.engine)?),
        (true, None) => bail!("--cold needs a model file: the built-in model is a part of the program"),
    };
    let model = load(path, &args.kernels, Verify::AtOnce)?;
    let runs = threads.into_iter().map(|threads| measure_undisturbed(args, &model, threads));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let out = &mut stdio::stdout();
    let report = Report { args, model: &model, first_token, runs };
    match args.json {
        true => report.json(out)?,
        false => report.text(out)?,
    }
    Ok(out.flush()?)
}

/// The memory of the measurements: those of the largest number of threads.
fn demand(args: &BenchArgs, threads: &[usize]) -> Demand {
    let threads = threads.iter().copied().max().unwrap_or(1);
    let sessions = usize::from(args.sessions);
    let engine = EngineOptions {
        threads: Some(threads),
        prompt_chunk: args.kernels.prompt_chunk(),
        head_batch: sessions,
        ..EngineOptions::default()
    };
    let latencies = args.n_tokens as usize * size_of::<Duration>();
    let buffers = vec![
        Region { name: "latencies", bytes: latencies },
        // Reading and multiplying have threads of their own.
        Region { name: "stacks of the yardstick", bytes: (threads - 1) * WORKER_STACK_BYTES },
    ];
    Demand { sessions, buffers, ..Demand::new(engine) }
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

/// The value in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

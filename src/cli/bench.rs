//! `rwkv-edge bench`: decoding speed, beside what this machine can read from memory.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use rwkv_edge::threads::Pool;
use rwkv_edge::{Session, SessionOptions};

use super::ModelArgs;

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens to decode, after as many to warm up
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n_tokens: u32,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let model = args.model.load()?;
    let options = SessionOptions { threads: args.model.compute.threads(), ..Default::default() };
    let mut session = Session::new(Arc::clone(&model), &options)?;
    let n_vocab = model.config().n_vocab as u32;
    // A fixed pseudo-random walk over the vocabulary: the work does not depend on what a token says.
    let token = |i: u32| i.wrapping_mul(2_654_435_761) % n_vocab;
    for i in 0..args.n_tokens {
        session.forward(token(i))?;
    }
    let before = session.traffic();
    let mut times = Vec::with_capacity(args.n_tokens as usize);
    for i in 0..args.n_tokens {
        let started = Instant::now();
        session.forward(token(i))?;
        times.push(started.elapsed());
    }
    let after = session.traffic();

    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let bytes_per_token = (after.weight_bytes - before.weight_bytes) as f64 / f64::from(args.n_tokens);
    let live = (after.live_columns - before.live_columns) as f64 / (after.columns - before.columns) as f64;
    let rate = f64::from(args.n_tokens) / total.as_secs_f64();
    let bandwidth = read_bandwidth(model.file().mapping(), session.threads())?;
    let used = rate * bytes_per_token;
    let mut out = io::stdout().lock();
    writeln!(out, "model             {} ({})", args.model.name(), model.config().version)?;
    writeln!(out, "isa, threads      {}, {}", model.kernels().isa(), session.threads())?;
    writeln!(out, "decode            {rate:.2} tokens/s")?;
    writeln!(
        out,
        "per token         p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0)
    )?;
    writeln!(
        out,
        "weights read      {:.1} MB/token; {:.1} % of ffn.value's columns",
        bytes_per_token / 1e6,
        100.0 * live
    )?;
    writeln!(out, "read bandwidth    {:.2} GB/s while decoding", used / 1e9)?;
    writeln!(out, "plain reading     {:.2} GB/s over the same file", bandwidth / 1e9)?;
    writeln!(out, "share             {:.0} % of plain reading", 100.0 * used / bandwidth)?;
    Ok(())
}

/// Milliseconds of the `q` quantile of sorted times.
fn quantile(sorted: &[Duration], q: f64) -> f64 {
    let index = (q * (sorted.len() - 1) as f64).round() as usize;
    sorted[index].as_secs_f64() * 1e3
}

/// Bytes per second at which the same threads can read `bytes` and do nothing else: the best of five passes.
fn read_bandwidth(bytes: &[u8], threads: usize) -> Result<f64> {
    const CHUNK: usize = 1 << 18;
    let mut pool = Pool::new(threads)?;
    let mut sums = vec![0.0f32; bytes.len().div_ceil(CHUNK)];
    let mut best = f64::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        pool.for_each_chunk([&mut sums], 1, &|_, index, sum| {
            let chunk = &bytes[index * CHUNK..bytes.len().min((index + 1) * CHUNK)];
            sum[0] = f32::from_bits(xor_words(chunk) as u32);
        });
        std::hint::black_box(&sums);
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(bytes.len() as f64 / best)
}

/// Reads every word of `bytes`, as four streams.
fn xor_words(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks::<8>().0;
    let quarter = words.len() / 4;
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| &words[i * quarter..][..quarter]);
    let mut sum = [0u64; 4];
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        for (sum, word) in sum.iter_mut().zip([a, b, c, d]) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sum.iter().fold(0, |x, y| x ^ y)
}

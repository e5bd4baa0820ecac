//! The measurements as text and as JSON.

use std::io::{self, Write};
use std::time::Duration;

use rwkv_edge::model::{Phase, Profile};
use rwkv_edge::{Model, host, stdio};

use crate::args::model_name;
use crate::json::{Object, array};

use super::cold::FirstToken;
use super::measure::Measured;
use super::{BenchArgs, Choice, SEED};

/// Everything that was measured.
pub(super) struct Report<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) model: &'a Model,
    pub(super) first_token: Option<FirstToken>,
    pub(super) runs: Vec<Measured>,
}

impl Report<'_> {
    pub(super) fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { args, model, first_token, runs } = self;
        writeln!(out, "model             {} ({})", model_name(args.file.path()), model.config().version())?;
        writeln!(out, "kernels           {}", model.kernels().isa())?;
        if args.depth > 0 {
            writeln!(out, "depth             {} tokens", args.depth)?;
        }
        if args.choose == Choice::Sample {
            writeln!(out, "seed              {SEED}")?;
        }
        if let Some(FirstToken { cold, warm }) = first_token {
            let [cold, warm] = [cold, warm].map(Duration::as_secs_f64);
            writeln!(
                out,
                "first token       {cold:.3} s with nothing of the file cached, {warm:.3} s after that"
            )?;
        }
        for run in runs {
            writeln!(out, "threads           {}", run.threads)?;
            writeln!(
                out,
                "  prompt          {:.2} tokens/s, {} at a time",
                run.prompt_tokens_per_second(),
                run.prompt_chunk
            )?;
            writeln!(out, "  peak            {:.2} GMAC/s of bytes in registers", run.peak() / 1e9)?;
            writeln!(out, "  share of peak   {:.1} %", 100.0 * run.share_of_peak())?;
            if args.profile {
                text_profile(out, run.prompt_profile())?;
            }
            write!(out, "  decode          {:.2} tokens/s", run.tokens_per_second())?;
            match run.sessions {
                1 => writeln!(out)?,
                n => writeln!(out, ", the sum over {n} texts")?,
            }
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
                text_profile(out, (run.profile, run.tokens()))?;
            }
        }
        writeln!(out, "peak RSS          {}", stdio::peak_rss())
    }

    pub(super) fn json(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { args, model, first_token, runs } = self;
        let mut object = Object::new()
            .text("model", model_name(args.file.path()))
            .text("version", model.config().version())
            .text("isa", model.kernels().isa().name());
        if args.choose == Choice::Sample {
            object = object.raw("seed", SEED);
        }
        object = object.raw("sessions", args.sessions).raw("depth", args.depth);
        if let Some(FirstToken { cold, warm }) = first_token {
            let [cold, warm] = [cold, warm].map(Duration::as_secs_f64);
            let times = Object::new().fixed("cold", cold, 4).fixed("warm", warm, 4);
            object = object.raw("first_token_seconds", times.end());
        }
        object = object.raw("runs", array(runs.iter().map(|run| json_run(run, args.profile))));
        let rss = host::peak_rss_bytes().map_or("null".into(), |bytes| bytes.to_string());
        writeln!(out, "{}", object.raw("peak_rss_bytes", rss).end())
    }
}

fn json_run(run: &Measured, with_profile: bool) -> String {
    let mut object = Object::new()
        .raw("threads", run.threads)
        .raw("prompt_chunk", run.prompt_chunk)
        .fixed("prompt_tokens_per_second", run.prompt_tokens_per_second(), 4)
        .fixed("multiply_accumulate_peak_per_second", run.peak(), 0)
        .fixed("prompt_share_of_peak", run.share_of_peak(), 4)
        .fixed("decode_tokens_per_second", run.tokens_per_second(), 4)
        .fixed("bytes_per_token", run.bytes_per_token(), 0)
        .fixed("read_bandwidth_bytes_per_second", run.bandwidth(), 0)
        .fixed("share_of_limit", run.share_of_limit(), 4)
        .raw("disturbed", run.is_disturbed())
        .fixed("ffn_zeros", run.zeros(), 4);
    if let Some(share) = run.residual_rows() {
        object = object.fixed("head_residual_rows", share, 4);
    }
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| run.latency(q));
    let latency = Object::new().fixed("p50", p50, 4).fixed("p99", p99, 4).fixed("max", max, 4);
    object = object.raw("latency_ms", latency.end());
    if with_profile {
        let phases = Phase::ALL.iter().fold(Object::new(), |phases, &phase| {
            phases.fixed(phase.name(), run.profile.nanos(phase) as f64 / 1e3 / run.tokens(), 3)
        });
        object = object.raw("profile_us_per_token", phases.end());
    }
    object.end()
}

/// The time of each phase for one of `tokens` tokens.
fn text_profile(out: &mut impl Write, (profile, tokens): (Profile, f64)) -> io::Result<()> {
    let total = profile.total().max(1) as f64;
    for phase in Phase::ALL {
        let nanos = profile.nanos(phase) as f64;
        let (micros, share) = (nanos / 1e3 / tokens, 100.0 * nanos / total);
        writeln!(out, "    {:<22} {micros:>10.1} us  {share:>5.1} %", phase.name())?;
    }
    Ok(())
}

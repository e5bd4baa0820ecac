//! The measurements as text and as JSON.

use std::io::{self, Write};
use std::time::Duration;

use rwkv_edge::model::{Phase, Profile};
use rwkv_edge::{Model, host, stdio};

use crate::args::model_name;
use crate::json::json_string;

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
        write!(out, "{{\"model\":{},", json_string(&model_name(args.file.path())))?;
        write!(out, "\"version\":{},", json_string(&model.config().version().to_string()))?;
        write!(out, "\"isa\":{},", json_string(model.kernels().isa().name()))?;
        if args.choose == Choice::Sample {
            write!(out, "\"seed\":{SEED},")?;
        }
        write!(out, "\"sessions\":{},\"depth\":{},", args.sessions, args.depth)?;
        if let Some(FirstToken { cold, warm }) = first_token {
            let [cold, warm] = [cold, warm].map(Duration::as_secs_f64);
            write!(out, "\"first_token_seconds\":{{\"cold\":{cold:.4},\"warm\":{warm:.4}}},")?;
        }
        write!(out, "\"runs\":[")?;
        for (i, run) in runs.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(out, "{comma}{{\"threads\":{},", run.threads)?;
            write!(out, "\"prompt_chunk\":{},", run.prompt_chunk)?;
            write!(out, "\"prompt_tokens_per_second\":{:.4},", run.prompt_tokens_per_second())?;
            write!(out, "\"multiply_accumulate_peak_per_second\":{:.0},", run.peak())?;
            write!(out, "\"prompt_share_of_peak\":{:.4},", run.share_of_peak())?;
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

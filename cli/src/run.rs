//! `rwkv-edge run`: continue a text.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rwkv_edge::{
    End, Model, SamplingParams, Session, SessionOptions, StopRules, Verify, input, signals, stdio,
};

use crate::args::ModelArgs;
use crate::progress::Progress;
use crate::utf16::hint_at_utf16;

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue [default: standard input, unless that is a terminal]
    #[arg(short, long, conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(short = 'f', long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Stop after N tokens; 0 means no limit
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 256)]
    n_tokens: u64,
    /// Randomness: 0 always takes the likeliest token [default: the model's]
    #[arg(long)]
    temperature: Option<f32>,
    /// Keep the likeliest tokens that together reach this probability [default: the model's]
    #[arg(long)]
    top_p: Option<f32>,
    /// Keep at most this many tokens; 0 means all [default: the model's]
    #[arg(long)]
    top_k: Option<u32>,
    /// Subtracted from the logit of a token that occurred [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it occurred [default: the model's]
    #[arg(long, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Factor by which occurrences fade with every token [default: the model's]
    #[arg(long)]
    penalty_decay: Option<f32>,
    /// Seed of the random numbers; the same seed gives the same text on every machine [default: the
    /// clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let model = args.model.load(Verify::WhileRunning)?;
    let prompt = args.prompt()?;
    hint_at_utf16(&prompt);
    let options = args.session_options(&model);
    let mut session = Session::new(Arc::clone(&model), &options)?;
    let interrupted = signals::catch(signals::STOPPING)?;
    let result = args.write_text(&mut session, &model, &prompt, interrupted);
    // A damaged file explains any other failure, so the rest is checked. A user who interrupts does
    // not want to wait for that.
    if !matches!(result, Ok(Written { complete: false, .. })) {
        model.verify_rest()?;
    }
    let written = result?;
    args.summary(&session, &written, options.seed);
    drop(session);
    if !written.complete {
        signals::die_if_caught();
    }
    Ok(())
}

impl RunArgs {
    /// Feeds the prompt and streams the generated text.
    fn write_text(
        &self,
        session: &mut Session,
        model: &Model,
        prompt: &[u8],
        interrupted: &AtomicBool,
    ) -> Result<Written> {
        let started = Instant::now();
        let tokens = model.encode_prompt(prompt)?;
        let fed = feed(session, &tokens, interrupted)?;
        let prompt_rate = Rate { tokens: fed as u64, time: started.elapsed() };

        let started = Instant::now();
        let (tokens, complete) = self.generate(session, interrupted)?;
        Ok(Written { prompt: prompt_rate, text: Rate { tokens, time: started.elapsed() }, complete })
    }

    fn prompt(&self) -> Result<Vec<u8>> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone().into_bytes());
        }
        if let Some(path) = &self.prompt_file {
            return Ok(input::read_text(path)?);
        }
        if io::stdin().is_terminal() {
            return Ok(Vec::new());
        }
        input::read_stream(&mut stdio::Stdin).context("standard input")
    }

    fn session_options(&self, model: &Model) -> SessionOptions {
        let defaults = model.chat().sampling;
        SessionOptions {
            engine: self.model.compute.engine_options(),
            sampling: Some(SamplingParams {
                temperature: self.temperature.unwrap_or(defaults.temperature),
                top_p: self.top_p.unwrap_or(defaults.top_p),
                top_k: self.top_k.unwrap_or(defaults.top_k),
                presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
                frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
                penalty_decay: self.penalty_decay.unwrap_or(defaults.penalty_decay),
            }),
            seed: self.seed.unwrap_or_else(clock_seed),
        }
    }

    /// Streams text to standard output until a stop rule, the limit or a signal ends it. Returns
    /// the number of tokens, and whether the text is complete.
    fn generate(&self, session: &mut Session, interrupted: &AtomicBool) -> Result<(u64, bool)> {
        let max_tokens = (self.n_tokens > 0).then_some(self.n_tokens);
        let mut text = session.generate(&StopRules { max_tokens, stop_texts: &self.stop })?;
        let mut out = stdio::stdout();
        loop {
            if interrupted.load(Ordering::Relaxed) {
                text.end_here();
            }
            let Some(piece) = text.next_piece()? else { break };
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        if io::stdout().is_terminal() {
            writeln!(out)?;
        }
        out.flush()?;
        Ok((text.tokens(), text.end() != Some(End::Caller)))
    }

    fn summary(&self, session: &Session, written: &Written, seed: u64) {
        let model = session.model();
        stdio::eprint_line(format_args!("prompt:     {}", written.prompt));
        stdio::eprint_line(format_args!("generation: {}", written.text));
        stdio::eprint_line(format_args!(
            "model: {} ({}), isa: {}, threads: {}, seed: {seed}, peak RSS: {}",
            self.model.name(),
            model.config().version(),
            model.kernels().isa(),
            session.engine().options().thread_count(),
            stdio::peak_rss(),
        ));
    }
}

/// Feeds tokens until a signal comes. Returns their number.
fn feed(session: &mut Session, tokens: &[u32], interrupted: &AtomicBool) -> Result<usize> {
    let mut progress = Progress::new(tokens.len());
    let fed = session.feed_with(tokens, &mut |fed| {
        progress.show(fed, String::new);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(fed)
}

/// The result of a run.
struct Written {
    prompt: Rate,
    text: Rate,
    /// Whether the text ended by itself, not by a signal.
    complete: bool,
}

/// A number of tokens and the time they took.
struct Rate {
    tokens: u64,
    time: Duration,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.time.as_secs_f64();
        let rate = if self.tokens > 0 { self.tokens as f64 / seconds } else { 0.0 };
        write!(f, "{} tokens in {seconds:.3} s, {rate:.1} tokens/s", self.tokens)
    }
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}

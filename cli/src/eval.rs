//! `rwkv-edge eval`: how well a model predicts a text.
//!
//! The text is read once from the initial state, after the model's start tokens, without resets. If
//! there are start tokens, the first token of the text is predicted too.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use rwkv_edge::stdio::StatusLine;
use rwkv_edge::{Model, Session, SessionOptions, Verify, input, stdio};

use crate::args::{ModelArgs, load};
use crate::utf16::hint_at_utf16;

#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Another file of the same model (f32, say): print the KL divergence from it and the share of
    /// equal best tokens
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Stop after this many tokens of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let text = input::read_text(&args.text)?;
    hint_at_utf16(&text);
    let model = args.model.load(Verify::AtOnce)?;
    let reference = args
        .against
        .as_ref()
        .map(|path| load(Some(path), &args.model.compute.kernels, Verify::AtOnce))
        .transpose()?;
    if let Some(reference) = &reference {
        check_comparable(&model, reference)?;
    }
    let start = &model.chat().start_tokens;
    let mut tokens = model.encode_prompt(&text)?;
    tokens.truncate(args.max_tokens.map_or(tokens.len(), |n| n.saturating_add(start.len())));
    let first = start.len().max(1);
    ensure!(tokens.len() > first, "{}: too short to predict anything", args.text.display());

    let options = SessionOptions::with_threads(args.model.compute.threads());
    let mut session = Session::new(Arc::clone(&model), &options)?;
    let mut other = reference.map(|model| Session::new(model, &options)).transpose()?;
    let mut totals = Totals::default();
    let mut progress = Progress::new(tokens.len() - first);
    for (i, pair) in tokens.windows(2).enumerate() {
        session.feed(&pair[..1])?;
        if let Some(other) = &mut other {
            other.feed(&pair[..1])?;
        }
        if i + 1 < first {
            continue;
        }
        let logits = LogSoftmax::new(session.logits()?);
        totals.predict(&logits, pair[1]);
        if let Some(other) = &mut other {
            totals.compare(&LogSoftmax::new(other.logits()?), &logits);
        }
        progress.step(&totals);
    }
    drop(progress);
    let tokenizer = model.tokenizer();
    let bytes: usize = tokens[first..].iter().map(|&id| tokenizer.token(id).len()).sum();
    totals.report(bytes)
}

fn check_comparable(model: &Model, reference: &Model) -> Result<()> {
    ensure!(
        model.config() == reference.config(),
        "the files hold different models: {:?} against {:?}",
        model.config(),
        reference.config()
    );
    ensure!(
        model.file().tokenizer_bytes() == reference.file().tokenizer_bytes(),
        "the files have different tokenizers"
    );
    Ok(())
}

/// Log-probabilities over the vocabulary, normalised in f64.
struct LogSoftmax<'a> {
    logits: &'a [f32],
    log_sum: f64,
    best: usize,
}

impl<'a> LogSoftmax<'a> {
    fn new(logits: &'a [f32]) -> Self {
        let mut best = 0;
        for (i, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = i;
            }
        }
        let max = f64::from(logits[best]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Self { logits, log_sum: max + sum.ln(), best }
    }

    fn at(&self, i: usize) -> f64 {
        f64::from(self.logits[i]) - self.log_sum
    }

    /// `KL(self || other)` in nats.
    fn kl(&self, other: &Self) -> f64 {
        (0..self.logits.len())
            .map(|i| {
                let log_p = self.at(i);
                log_p.exp() * (log_p - other.at(i))
            })
            .sum()
    }
}

/// A mean with its standard error.
#[derive(Default)]
struct Mean {
    n: usize,
    sum: f64,
    sum_squares: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.n += 1;
        self.sum += value;
        self.sum_squares += value * value;
    }

    fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    fn standard_error(&self) -> f64 {
        let n = self.n as f64;
        ((self.sum_squares / n - self.mean().powi(2)).max(0.0) / n).sqrt()
    }
}

#[derive(Default)]
struct Totals {
    tokens: usize,
    nats: Mean,
    kl: Mean,
    agreements: usize,
}

impl Totals {
    fn predict(&mut self, logits: &LogSoftmax<'_>, next: u32) {
        self.tokens += 1;
        self.nats.add(-logits.at(next as usize));
    }

    fn compare(&mut self, reference: &LogSoftmax<'_>, logits: &LogSoftmax<'_>) {
        self.kl.add(reference.kl(logits));
        self.agreements += usize::from(reference.best == logits.best);
    }

    fn report(&self, bytes: usize) -> Result<()> {
        let mut out = stdio::stdout();
        let nats = self.nats.mean();
        writeln!(out, "tokens            {}", self.tokens)?;
        writeln!(out, "bytes             {bytes}")?;
        writeln!(out, "nats/token        {nats:.5} +- {:.5}", self.nats.standard_error())?;
        writeln!(out, "perplexity        {:.4}", nats.exp())?;
        writeln!(out, "bits/byte         {:.5}", self.nats.sum / std::f64::consts::LN_2 / bytes as f64)?;
        if self.kl.n > 0 {
            let share = 100.0 * self.agreements as f64 / self.kl.n as f64;
            writeln!(out, "mean KL           {:.6} +- {:.6} nats", self.kl.mean(), self.kl.standard_error())?;
            writeln!(out, "top-1 agreement   {share:.2} %")?;
        }
        Ok(out.flush()?)
    }
}

/// Progress on standard error: a line that is rewritten on a terminal, or one line every ten
/// seconds elsewhere.
struct Progress {
    total: usize,
    started: Instant,
    shown: Instant,
    terminal: Option<StatusLine>,
}

impl Progress {
    const INTERVAL: Duration = Duration::from_secs(10);

    fn new(total: usize) -> Self {
        let now = Instant::now();
        Self { total, started: now, shown: now, terminal: StatusLine::on_terminal() }
    }

    fn step(&mut self, totals: &Totals) {
        let Self { total, started, .. } = *self;
        let text = || {
            let rate = totals.tokens as f64 / started.elapsed().as_secs_f64();
            let nats = totals.nats.mean();
            format!("{}/{total} tokens, {rate:.0} tokens/s, {nats:.4} nats/token", totals.tokens)
        };
        match &mut self.terminal {
            Some(line) => line.show(text),
            None if self.shown.elapsed() >= Self::INTERVAL => {
                self.shown = Instant::now();
                stdio::eprint_line(format_args!("{}", text()));
            }
            None => {}
        }
    }
}

//! `rwkv-edge eval`: how well a model predicts a text.
//!
//! The text is read once from the initial state, after the model's start tokens, without resets. If
//! there are start tokens, the first token of the text is predicted too.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Args;
use rwkv_edge::format::ModelHeader;
use rwkv_edge::memory::Region;
use rwkv_edge::{Engine, EngineOptions, Model, State, Verify, input, stdio};

use crate::args::{ALL_LOGITS_BATCH, KernelArgs, ModelArgs, load};
use crate::json::Object;
use crate::memory::Demand;
use crate::progress::Progress;
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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let kernels = &args.model.compute.kernels;
    let engine = EngineOptions { head_batch: ALL_LOGITS_BATCH, ..args.model.compute.engine_options() };
    let mut demand = Demand::new(engine);
    if let Some(path) = &args.against {
        demand.buffers.push(Reference::memory(path, kernels, engine)?);
    }
    let model = args.model.load(Verify::AtOnce, &demand)?;
    let text = input::read_text(&args.text, args.model.text_limit(&model, &demand)?)?;
    hint_at_utf16(&text);
    let load_reference = |path| load(Some(path), kernels, Verify::AtOnce);
    let reference = args.against.as_deref().map(load_reference).transpose()?;
    if let Some(reference) = &reference {
        check_comparable(&model, reference)?;
    }
    let start = &model.chat().start_tokens;
    let mut tokens = model.encode_prompt(&text)?;
    tokens.truncate(args.max_tokens.map_or(tokens.len(), |n| n.saturating_add(start.len())));
    let first = start.len().max(1);
    ensure!(tokens.len() > first, "{}: too short to predict anything", args.text.display());

    let mut reader = Reader::new(Arc::clone(&model), &engine, &tokens[..first - 1])?;
    let mut reference = reference
        .map(|model| anyhow::Ok(Reference::new(Reader::new(model, &engine, &tokens[..first - 1])?)))
        .transpose()?;
    let totals = predict(&mut reader, reference.as_mut(), &tokens[first - 1..])?;
    let tokenizer = model.tokenizer();
    let bytes: usize = tokens[first..].iter().map(|&id| tokenizer.token(id).len()).sum();
    let mut out = stdio::stdout();
    match args.json {
        true => writeln!(out, "{}", totals.json(bytes))?,
        false => totals.report(&mut out, bytes)?,
    }
    Ok(out.flush()?)
}

/// Predicts each of `tokens` but the first from those before it.
fn predict(reader: &mut Reader, mut reference: Option<&mut Reference>, tokens: &[u32]) -> Result<Totals> {
    let predicted = &tokens[1..];
    let mut totals = Totals::default();
    let mut progress = Progress::new(predicted.len());
    let block = if reference.is_some() { Reference::TOKENS } else { tokens.len() };
    let known = tokens[..predicted.len()].chunks(block);
    for (known, predicted) in known.zip(predicted.chunks(block)) {
        if let Some(reference) = &mut reference {
            reference.read(known)?;
        }
        reader.read(known, |i, logits| {
            let logits = LogSoftmax::new(logits);
            totals.predict(&logits, predicted[i]);
            if let Some(reference) = &reference {
                totals.compare(&LogSoftmax::new(reference.logits(i)), &logits);
            }
            progress.show(totals.tokens, || format!(", {:.4} nats/token", totals.nats.mean()));
        })?;
    }
    Ok(totals)
}

/// A model that reads the text.
struct Reader {
    engine: Engine<'static>,
    state: State,
}

impl Reader {
    /// A model that has read `start`.
    fn new(model: Arc<Model>, options: &EngineOptions, start: &[u32]) -> Result<Self> {
        let mut state = model.initial_state()?;
        let mut engine = Engine::new(model, options)?;
        engine.feed(&mut state, start)?;
        Ok(Self { engine, state })
    }

    /// Reads on, and calls `each` with the index of each token and the logits after it.
    fn read(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        self.engine.feed_all(&mut self.state, tokens, |i, logits| {
            each(i, logits);
            Ok(())
        })?;
        Ok(())
    }
}

/// Another file of the model. It reads a block of the text ahead.
struct Reference {
    reader: Reader,
    /// The logits after each token of the block, `[TOKENS, n_vocab]`.
    logits: Vec<f32>,
}

impl Reference {
    /// Tokens of a block.
    const TOKENS: usize = 32;

    /// The memory of another file.
    fn memory(path: &Path, kernels: &KernelArgs, engine: EngineOptions) -> Result<Region> {
        let plan = kernels.plan(Some(path), &Demand::new(engine))?;
        let n_vocab = ModelHeader::open(path)?.config().n_vocab;
        let logits = Self::TOKENS * n_vocab * size_of::<f32>();
        let bytes = (plan.resident_bytes() - plan.program_bytes) as usize + logits;
        Ok(Region { name: "the other model", bytes })
    }

    fn new(reader: Reader) -> Self {
        let n_vocab = reader.engine.model().config().n_vocab;
        Self { reader, logits: vec![0.0; Self::TOKENS * n_vocab] }
    }

    /// Reads a block of at most [`TOKENS`](Self::TOKENS).
    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let logits = &mut self.logits;
        self.reader.read(tokens, |i, row| logits[i * row.len()..][..row.len()].copy_from_slice(row))
    }

    /// The logits after token `i` of the block, `[n_vocab]`.
    fn logits(&self, i: usize) -> &[f32] {
        let n_vocab = self.logits.len() / Self::TOKENS;
        &self.logits[i * n_vocab..][..n_vocab]
    }
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

    fn bits_per_byte(&self, bytes: usize) -> f64 {
        self.nats.sum / std::f64::consts::LN_2 / bytes as f64
    }

    /// Share of the tokens of which both models find the same one likeliest.
    fn agreement(&self) -> f64 {
        self.agreements as f64 / self.kl.n as f64
    }

    fn json(&self, bytes: usize) -> String {
        let nats = self.nats.mean();
        let object = Object::new()
            .raw("tokens", self.tokens)
            .raw("bytes", bytes)
            .float("nats_per_token", nats)
            .float("nats_per_token_error", self.nats.standard_error())
            .float("perplexity", nats.exp())
            .float("bits_per_byte", self.bits_per_byte(bytes));
        if self.kl.n == 0 {
            return object.end();
        }
        object
            .float("mean_kl", self.kl.mean())
            .float("mean_kl_error", self.kl.standard_error())
            .float("top1_agreement", self.agreement())
            .end()
    }

    fn report(&self, out: &mut impl Write, bytes: usize) -> io::Result<()> {
        let nats = self.nats.mean();
        writeln!(out, "tokens            {}", self.tokens)?;
        writeln!(out, "bytes             {bytes}")?;
        writeln!(out, "nats/token        {nats:.5} +- {:.5}", self.nats.standard_error())?;
        writeln!(out, "perplexity        {:.4}", nats.exp())?;
        writeln!(out, "bits/byte         {:.5}", self.bits_per_byte(bytes))?;
        if self.kl.n > 0 {
            let share = 100.0 * self.agreement();
            writeln!(out, "mean KL           {:.6} +- {:.6} nats", self.kl.mean(), self.kl.standard_error())?;
            writeln!(out, "top-1 agreement   {share:.2} %")?;
        }
        Ok(())
    }
}

//! `rwkv-edge run`: continue a text.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use clap::Args;
use rwkv_edge::format::Template;
use rwkv_edge::{End, Model, Session, Snapshot, StateNotes, StopRules, Verify, input, signals, stdio};

use crate::args::{ModelArgs, NoContext, TokenLimit};
use crate::memory::Demand;
use crate::progress::{Rate, feed};
use crate::sampling::SamplingArgs;
use crate::saved;
use crate::utf16::hint_at_utf16;

/// What a text begins with that has no prompt, if the model has no start token: the end of another
/// document.
const START_TOKEN: u32 = 0;

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue [default: standard input, unless that is a terminal or --state is given]
    #[arg(short, long, conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// Text to continue, after the model
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "prompt_file"])]
    text: Option<String>,
    #[command(flatten)]
    context: NoContext,
    /// File with the text to continue
    #[arg(short = 'f', long, alias = "file", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Go on with a text that --save-state or `bake` has saved, with its sampling and random
    /// numbers
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Save the text at the end, also of an interrupted run, so that --state goes on exactly from
    /// there
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Stop after N tokens; 0 or -1 means no limit
    #[arg(short = 'n', long = "tokens", aliases = ["n-predict", "predict"], value_name = "N", default_value = "256")]
    n_tokens: TokenLimit,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Write what belongs between the prompt and this text, for models that were trained to
    #[arg(long, value_name = "TEXT", conflicts_with = "suffix_file")]
    suffix: Option<String>,
    /// File with the text for --suffix
    #[arg(long, value_name = "FILE")]
    suffix_file: Option<PathBuf>,
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let saved = args.save_state.as_deref().map(saved::target).transpose()?;
    let demand = Demand::new(args.model.compute.engine_options());
    let model = args.model.load(Verify::WhileRunning, &demand).map_err(|error| args.hint_at_prompt(error))?;
    let mut run = Run::default();
    let text = args.text(&model, &mut run)?;
    let limit = args.model.text_limit(&model, &demand)?;
    let prompt = args.prompt(limit)?;
    hint_at_utf16(&prompt);
    let (prompt, stops) = args.fill(&model, prompt, limit)?;
    let seed = text.sampler.seed();
    let mut session = Session::resume(Arc::clone(&model), &demand.engine, text)?;
    let interrupted = signals::catch(signals::STOPPING)?;
    let result = args.write_text(&mut session, (&prompt, &stops), &mut run, interrupted);
    // A damaged file explains any other failure, so the rest is checked. A user who interrupts does
    // not want to wait for that.
    if result.is_err() || run.complete {
        model.verify_rest()?;
    }
    // A reader that went away has interrupted the run.
    let text_is_over = result.as_ref().err().is_none_or(|error| stdio::is_broken_pipe(&**error));
    if let Some(target) = saved.filter(|_| text_is_over) {
        let started = Instant::now();
        let notes = StateNotes { unshown: mem::take(&mut run.unshown), ..StateNotes::default() };
        saved::warn(&session.text().save_as(&notes, target)?);
        run.saved = Some(started.elapsed());
    }
    result?;
    args.summary(&session, &run, seed);
    drop(session);
    if !run.complete {
        signals::die_if_caught();
    }
    Ok(())
}

impl RunArgs {
    /// Tells how to give a text, if the argument is no file.
    fn hint_at_prompt(&self, error: Error) -> Error {
        match self.model.path() {
            Some(path) if !path.exists() => {
                error.context("the first argument is a model file; -p TEXT gives a text to continue")
            }
            _ => error,
        }
    }

    /// Feeds the prompt and streams the generated text.
    fn write_text(
        &self,
        session: &mut Session,
        (prompt, stops): (&[u8], &[String]),
        run: &mut Run,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let started = Instant::now();
        let mut tokens = session.encode(prompt)?;
        if tokens.is_empty() && session.text().state.tokens_read() == 0 && session.text().pending.is_none() {
            tokens.push(START_TOKEN);
        }
        if !prompt.is_empty() {
            // What follows is a new reply.
            session.begin_reply();
            run.unshown.clear();
        }
        run.prompt.tokens = feed(session, &tokens, interrupted)? as u64;
        run.prompt.time = started.elapsed();

        let started = Instant::now();
        let result = self.generate(session, stops, run, interrupted);
        run.text.time = started.elapsed();
        result
    }

    /// The text to go on with.
    fn text(&self, model: &Model, run: &mut Run) -> Result<Snapshot> {
        let (sampling, seed) = (model.chat().sampling, self.sampling.seed_or_clock());
        let mut text = match &self.state {
            None => Snapshot::new(model, sampling, seed)?,
            Some(path) => {
                let started = Instant::now();
                let (text, notes) = saved::open(model, sampling, seed, path)?;
                (run.loaded, run.unshown) = (Some(started.elapsed()), notes.unshown);
                text
            }
        };
        self.sampling.apply(&mut text.sampler)?;
        Ok(text)
    }

    /// The prompt, of at most `limit` bytes.
    fn prompt(&self, limit: u64) -> Result<Vec<u8>> {
        if let Some(prompt) = self.prompt.as_ref().or(self.text.as_ref()) {
            return Ok(prompt.clone().into_bytes());
        }
        if let Some(path) = &self.prompt_file {
            return Ok(input::read_text(path, limit)?);
        }
        if self.state.is_some() || io::stdin().is_terminal() {
            return Ok(Vec::new());
        }
        input::read_stream(&mut stdio::Stdin, limit).context("standard input")
    }

    /// The prompt with the text after it, if there is one, and the texts that end what is written.
    fn fill(&self, model: &Model, prompt: Vec<u8>, limit: u64) -> Result<(Vec<u8>, Vec<String>)> {
        let suffix = match (&self.suffix, &self.suffix_file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(path)) => input::read_text(path, limit)?,
            (None, None) => return Ok((prompt, self.stop.clone())),
        };
        let by_vocab = || Template::for_vocab(model.config().n_vocab).chat().fill;
        let fill = model.chat().fill.clone().or_else(by_vocab);
        let fill = fill.context("the model was not trained to write text between two others")?;
        let stops = self.stop.iter().cloned().chain([fill.stop_text.clone()]).collect();
        Ok((fill.prompt_between(&prompt, &suffix), stops))
    }

    /// Streams text to standard output until a stop rule, the limit or a signal ends it.
    fn generate(
        &self,
        session: &mut Session,
        stops: &[String],
        run: &mut Run,
        interrupted: &AtomicBool,
    ) -> Result<()> {
        let TokenLimit(max_tokens) = self.n_tokens;
        let mut text = session.generate(&StopRules { max_tokens, stop_texts: stops })?;
        text.begin_with(&mem::take(&mut run.unshown));
        if self.save_state.is_some() {
            text.keep_unshown();
        }
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
        run.text.tokens = text.tokens();
        run.unshown = text.unshown();
        run.complete = text.end() != Some(End::Caller);
        Ok(())
    }

    fn summary(&self, session: &Session, run: &Run, seed: u64) {
        let model = session.model();
        let state = |done: &str, time: Option<Duration>| {
            let milliseconds = time.map(|time| 1000.0 * time.as_secs_f64());
            if let Some(time) = milliseconds {
                stdio::eprint_line(format_args!("state:      {done} in {time:.1} ms"));
            }
        };
        state("loaded", run.loaded);
        stdio::eprint_line(format_args!("prompt:     {}", run.prompt));
        stdio::eprint_line(format_args!("generation: {}", run.text));
        state("saved", run.saved);
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

/// What a run has done.
#[derive(Default)]
struct Run {
    prompt: Rate,
    text: Rate,
    /// Whether the text ended by itself, not by a signal.
    complete: bool,
    /// Bytes of the last tokens that were not written: before the run, then after it.
    unshown: Vec<u8>,
    /// How long the state took to load and to save.
    loaded: Option<Duration>,
    saved: Option<Duration>,
}

//! `rwkv-edge bake`: a prompt becomes a state file, so that texts begin after it at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use rwkv_edge::{Model, Session, SessionOptions, State, StateNotes, Verify, input, signals, stdio};

use crate::args::ModelArgs;
use crate::memory::Demand;
use crate::progress::feed;
use crate::saved;
use crate::utf16::hint_at_utf16;

#[derive(Args)]
pub(super) struct BakeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with the prompt, which is read as it is after the model's start tokens
    #[arg(short = 'f', long, value_name = "FILE")]
    prompt_file: PathBuf,
    /// State file to write; texts begin with it by --state
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// A prompt, and what the file says about it.
struct Prompt {
    text: Vec<u8>,
    notes: StateNotes,
}

pub(super) fn run(args: &BakeArgs) -> Result<()> {
    let target = saved::target(&args.output)?;
    let engine = args.model.compute.engine_options();
    let demand = Demand::new(engine);
    let model = args.model.load(Verify::WhileRunning, &demand)?;
    let Prompt { text, notes } = args.prompt(&model, args.model.text_limit(&model, &demand)?)?;
    let options = SessionOptions { engine, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(&model), &options)?;
    let tokens = session.encode(&text)?;
    ensure!(!tokens.is_empty(), "{}: the prompt is empty", args.prompt_file.display());
    let interrupted = signals::catch(signals::STOPPING)?;
    let started = Instant::now();
    let fed = feed(&mut session, &tokens, interrupted);
    if matches!(fed, Ok(fed) if fed < tokens.len()) {
        signals::die_if_caught();
    }
    // A damaged file explains any other failure.
    model.verify_rest()?;
    let (tokens, seconds) = (fed?, started.elapsed().as_secs_f64());
    saved::warn(&session.state().save_as(&notes, target)?);
    stdio::eprint_line(format_args!(
        "{}: {tokens} tokens in {seconds:.3} s, a state of {} bytes",
        args.output.display(),
        State::bytes(model.config())
    ));
    Ok(())
}

impl BakeArgs {
    fn prompt(&self, _model: &Model, limit: u64) -> Result<Prompt> {
        let text = input::read_text(&self.prompt_file, limit)?;
        hint_at_utf16(&text);
        Ok(Prompt { text, notes: StateNotes::default() })
    }
}

//! `rwkv-edge bake`: a prompt becomes a state file, so that texts begin after it at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rwkv_edge::format::Template;
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
    #[arg(short = 'f', long, value_name = "FILE", required_unless_present = "system")]
    prompt_file: Option<PathBuf>,
    /// File with a text for the system, which is put into the chat template; `chat` begins with it
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_file")]
    system: Option<PathBuf>,
    /// Chat template of --system: world, think, flower or raven [default: the model's]
    #[arg(long, value_name = "TEMPLATE", requires = "system")]
    chat: Option<Template>,
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
    ensure!(!tokens.is_empty(), "{}: the prompt is empty", args.file().display());
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
    /// The file with the prompt.
    fn file(&self) -> &Path {
        self.system.as_deref().or(self.prompt_file.as_deref()).unwrap_or(Path::new(""))
    }

    fn prompt(&self, model: &Model, limit: u64) -> Result<Prompt> {
        let text = input::read_text(self.file(), limit)?;
        hint_at_utf16(&text);
        if self.system.is_none() {
            return Ok(Prompt { text, notes: StateNotes::default() });
        }
        let chat = self.chat.map_or_else(|| model.chat().clone(), Template::chat);
        let in_file = || self.file().display().to_string();
        let text = String::from_utf8(text).with_context(in_file)?;
        let text = chat.system_prompt(&text).with_context(in_file)?;
        let notes =
            StateNotes { template: Some(chat.name), history: Some(text.clone()), ..StateNotes::default() };
        Ok(Prompt { text: text.into_bytes(), notes })
    }
}

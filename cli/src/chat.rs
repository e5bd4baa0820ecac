//! `rwkv-edge chat`: talk with a model.

mod command;
mod input;
mod show;

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use rwkv_edge::format::{Chat, Template, ThinkMode};
use rwkv_edge::printable::PrintableText;
use rwkv_edge::{
    Conversation, ConversationOptions, End, EngineOptions, Model, ReadProgress, SessionOptions, State,
    Verify, input as files, signals, stdio,
};

use self::command::{Command, HELP};
use self::input::{Event, Input};
use self::show::Show;
use crate::args::{ModelArgs, NoContext, TokenLimit};
use crate::memory::Demand;
use crate::progress::{Progress, Rate};
use crate::sampling::SamplingArgs;
use crate::saved;

#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Message to answer; without it, a conversation begins
    text: Option<String>,
    /// Chat template: world, think, flower or raven [default: the model's]
    #[arg(long, value_name = "TEMPLATE")]
    chat: Option<Template>,
    /// How replies begin: off, fast (an empty think block), on, short, medium or long [default: the
    /// template's]
    #[arg(long, value_name = "HOW")]
    think: Option<ThinkMode>,
    /// File with a text for the system
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    system: Option<PathBuf>,
    /// Begin with a saved conversation, a baked prompt or a tuned state; /reset goes back to it
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Save the conversation after every reply. If the file exists, go on with it
    #[arg(long, value_name = "FILE")]
    autosave: Option<PathBuf>,
    /// States kept for /undo and /fork; each takes the memory of one
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(..=1024))]
    undo: u16,
    /// Stop a reply after N tokens; 0 or -1 means no limit
    #[arg(short = 'n', long = "tokens", aliases = ["n-predict", "predict"], value_name = "N", default_value = "2048")]
    n_tokens: TokenLimit,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    context: NoContext,
}

pub(super) fn run(args: &ChatArgs) -> Result<()> {
    let engine = args.model.compute.engine_options();
    let demand =
        Demand { sessions: usize::from(args.undo) + Conversation::OWN_STATES, ..Demand::new(engine) };
    let model = args.model.load(Verify::WhileRunning, &demand)?;
    let text_limit = args.model.text_limit(&model, &demand)?;
    let chat = args.template(&model)?;
    let options = args.options(&chat, engine);
    let talk = Conversation::new(Arc::clone(&model), &options)?;
    let interrupted = signals::catch(signals::STOPPING)?;
    let mut talk = Talk { args, talk, show: Show::new(), interrupted, last: Last::default() };
    let result = talk.begin(text_limit).and_then(|()| match &args.text {
        Some(text) => talk.send(text),
        None => talk.converse(),
    });
    // A damaged file explains any other failure, so the rest is checked. A user who ends a
    // conversation does not want to wait for that.
    let is_talk = args.text.is_none() && io::stdin().is_terminal();
    if result.is_err() || !(is_talk || interrupted.load(Ordering::Relaxed)) {
        model.verify_rest()?;
    }
    result?;
    drop(talk);
    signals::die_if_caught();
    Ok(())
}

impl ChatArgs {
    /// The settings of the conversation.
    fn template(&self, model: &Model) -> Result<Chat> {
        let chat = self.chat.map_or_else(|| model.chat().clone(), Template::chat);
        if chat.user.is_none() {
            bail!(
                "{}: the model has no chat template, it only continues text: use `rwkv-edge run`, \
                 or give it a template with --chat world",
                self.model.name()
            );
        }
        Ok(chat)
    }

    fn options(&self, chat: &Chat, engine: EngineOptions) -> ConversationOptions {
        ConversationOptions {
            session: SessionOptions {
                engine,
                sampling: Some(self.sampling.over(chat.sampling)),
                seed: self.sampling.seed_or_clock(),
            },
            chat: Some(chat.clone()),
            think: self.think,
            undo: self.undo.into(),
            max_tokens: self.n_tokens.0,
        }
    }
}

/// A conversation and its user.
struct Talk<'a> {
    args: &'a ChatArgs,
    talk: Conversation,
    show: Show,
    interrupted: &'static AtomicBool,
    last: Last,
}

/// The speed of the last turn.
#[derive(Default)]
struct Last {
    message: Rate,
    reply: Rate,
}

/// Whether the conversation goes on.
type Flow = ControlFlow<()>;

impl Talk<'_> {
    /// Begins as the command line says. A text for the system has at most `text_limit` bytes.
    fn begin(&mut self, text_limit: u64) -> Result<()> {
        let args = self.args;
        if let Some(path) = &args.system {
            let text = files::read_text(path, text_limit)?;
            let text = String::from_utf8(text).with_context(|| path.display().to_string())?;
            self.talk.set_system(Some(&text))?;
        }
        let open = |path| {
            let (sampling, seed) =
                (*self.talk.session().text().sampler.params(), args.sampling.seed_or_clock());
            saved::open(self.talk.session().model(), sampling, seed, path)
        };
        if let Some(path) = &args.state {
            let (text, notes) = open(path)?;
            self.talk.set_beginning(&text, &notes).with_context(|| path.display().to_string())?;
        }
        if let Some(path) = args.autosave.as_ref().filter(|path| path.exists()) {
            self.load(path)?;
        }
        Ok(())
    }

    /// Takes lines until the user ends.
    fn converse(&mut self) -> Result<()> {
        let mut input = Input::new()?;
        if input.is_terminal() {
            let (model, chat) = (self.args.model.name(), &self.talk.chat().name);
            say(format_args!("{model}, template {chat}; /help lists commands, Ctrl-D ends"));
        }
        let mut edited = String::new();
        let mut interrupts = 0;
        loop {
            let prompt = match self.talk.name() {
                "main" => "> ".to_owned(),
                name => format!("{name}> "),
            };
            match input.next(&prompt, &std::mem::take(&mut edited))? {
                Event::End => return Ok(()),
                Event::Interrupt if interrupts > 0 => return Ok(()),
                Event::Interrupt => {
                    say(format_args!("Ctrl-C again or Ctrl-D ends"));
                    interrupts += 1;
                }
                Event::Line(line) if line.trim().is_empty() => {}
                Event::Line(line) => {
                    interrupts = 0;
                    let result = self.line(&line, &mut edited);
                    if input.is_terminal() {
                        // A mistake of the user does not end the conversation.
                        match result {
                            Ok(flow) if flow.is_break() => return Ok(()),
                            Ok(_) => {}
                            Err(error) => say(format_args!("{error:#}")),
                        }
                        if self.interrupted.load(Ordering::Relaxed) {
                            interrupts = 1;
                            if !signals::take_interruption() {
                                return Ok(());
                            }
                        }
                    } else if result?.is_break() || self.interrupted.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Does what a line says. `edited` becomes the text with which the editor begins.
    fn line(&mut self, line: &str, edited: &mut String) -> Result<Flow> {
        match Command::parse(line)? {
            Command::Send(text) => self.send(&text)?,
            Command::Undo => {
                let turn = self.talk.undo()?;
                say(format_args!("undone: {}", PrintableText(&turn.user)));
                self.autosave()?;
            }
            Command::Retry => self.answer(Conversation::retry_with)?,
            Command::Edit(Some(text)) => self.answer(|talk, progress| talk.edit_with(&text, progress))?,
            Command::Edit(None) => {
                let turn = self.talk.turns().last().context("there is no message to edit")?;
                *edited = format!("/edit {}", turn.user);
            }
            Command::Fork(name) => self.talk.fork(&name)?,
            Command::Switch(name) => self.talk.switch(&name)?,
            Command::Drop(name) => self.talk.remove(&name)?,
            Command::List => self.list(),
            Command::Save(path) => {
                let published = self.talk.save_as(saved::target(&path)?)?;
                saved::warn(&published);
                say(format_args!("saved: {}", path.display()));
            }
            Command::Load(path) => {
                self.load(&path)?;
                self.autosave()?;
            }
            Command::System(text) => {
                self.talk.set_system(text.as_deref())?;
                self.autosave()?;
            }
            Command::Set(None) => self.settings(),
            Command::Set(Some((name, value))) => self.set(&name, &value)?,
            Command::Stats => self.stats(),
            Command::Reset => {
                self.talk.reset()?;
                self.autosave()?;
            }
            Command::Help => HELP.lines().for_each(|line| say(format_args!("{line}"))),
            Command::Quit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a message and shows the reply.
    fn send(&mut self, text: &str) -> Result<()> {
        self.answer(|talk, progress| talk.send_with(text, progress))
    }

    /// Shows the reply that `begin` begins, unless it returns that the message was dropped.
    fn answer(
        &mut self,
        begin: impl FnOnce(&mut Conversation, &mut ReadProgress<'_>) -> rwkv_edge::Result<bool>,
    ) -> Result<()> {
        let tokens_read = |talk: &Conversation| talk.session().state().tokens_read();
        let (started, before) = (Instant::now(), tokens_read(&self.talk));
        let mut progress = reading(self.interrupted);
        let has_begun = begin(&mut self.talk, &mut progress)?;
        drop(progress);
        if !has_begun {
            say(format_args!("the message is dropped"));
            return Ok(());
        }
        let tokens = tokens_read(&self.talk).saturating_sub(before);
        self.last.message = Rate { tokens, time: started.elapsed() };
        let started = Instant::now();
        let mut tokens = 0;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                self.talk.stop();
            }
            let Some(piece) = self.talk.next_piece()? else { break };
            tokens += 1;
            self.show.piece(piece)?;
        }
        self.show.end()?;
        self.last.reply = Rate { tokens, time: started.elapsed() };
        if self.talk.end() == Some(End::MaxTokens) {
            say(format_args!("the reply has as many tokens as --tokens allows"));
        }
        self.autosave()
    }

    fn autosave(&mut self) -> Result<()> {
        if let Some(path) = &self.args.autosave {
            self.talk.save_as(saved::target(path)?)?;
        }
        Ok(())
    }

    /// Goes on with a saved conversation and shows it.
    fn load(&mut self, path: &Path) -> Result<()> {
        let session = self.talk.session();
        let (sampling, seed) = (*session.text().sampler.params(), session.text().sampler.seed());
        let (mut text, notes) = saved::open(session.model(), sampling, seed, path)?;
        self.args.sampling.apply(&mut text.sampler)?;
        self.talk.resume(&text, &notes).with_context(|| path.display().to_string())?;
        let history = self.talk.history();
        history.trim_end().lines().for_each(|line| say(format_args!("{line}")));
        Ok(())
    }

    fn list(&self) {
        for (name, turns) in self.talk.list() {
            let mark = if name == self.talk.name() { '*' } else { ' ' };
            say(format_args!("{mark} {name}: {turns} turns"));
        }
    }

    fn settings(&self) {
        let s = self.talk.session().text().sampler.params();
        say(format_args!(
            "temperature {}, top-p {}, top-k {}, presence-penalty {}, frequency-penalty {}, penalty-decay {}",
            s.temperature, s.top_p, s.top_k, s.presence_penalty, s.frequency_penalty, s.penalty_decay
        ));
        let (tokens, mode) = (self.talk.max_tokens().unwrap_or(0), self.talk.think_mode());
        say(format_args!("tokens {tokens}, think {mode}"));
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let not_a_number = || format!("{name}: {value:?} is not a number");
        match name {
            "think" => self.talk.set_think_mode(value.parse()?)?,
            "tokens" => self.talk.set_max_tokens(value.parse::<TokenLimit>().with_context(not_a_number)?.0),
            "seed" => self.talk.set_seed(value.parse().with_context(not_a_number)?),
            _ => {
                let mut params = *self.talk.session().text().sampler.params();
                params.set(name, value)?;
                self.talk.set_sampling(params)?;
            }
        }
        Ok(())
    }

    fn stats(&self) {
        let session = self.talk.session();
        let (turns, undo) = (self.talk.turns().len(), self.talk.undo_depth());
        say(format_args!(
            "tokens:  {} read, {turns} turns, {undo} can be undone",
            session.state().tokens_read()
        ));
        say(format_args!("message: {}", self.last.message));
        say(format_args!("reply:   {}", self.last.reply));
        let bytes = State::bytes(session.model().config());
        say(format_args!("memory:  a state has {bytes} bytes; peak RSS: {}", stdio::peak_rss()));
    }
}

/// Shows how far a message is read, and stops that when the user interrupts.
fn reading(interrupted: &AtomicBool) -> impl FnMut(usize, usize) -> ControlFlow<()> {
    let mut progress = None;
    move |done, total| progress.get_or_insert_with(|| Progress::new(total)).step(done, interrupted)
}

/// Tells the user something that is no reply.
fn say(line: std::fmt::Arguments<'_>) {
    stdio::eprint_line(line);
}

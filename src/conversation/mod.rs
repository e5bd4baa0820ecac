//! A conversation: turns in a chat template, with undo, other answers and forks.

mod branch;
mod reply;
mod slots;
mod template;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

pub use self::branch::Turn;
use self::branch::{Branch, Branches};
use self::reply::Reply;
use crate::error::{Error, Result};
use crate::format::{Chat, Published, SamplingParams, StateNotes, Target, ThinkMode};
use crate::generation::End;
use crate::memory::MemoryPlan;
use crate::model::{Model, State};
use crate::session::{Session, SessionOptions, Snapshot};
use crate::text::Status;

/// How a conversation runs.
#[derive(Clone, Debug)]
pub struct ConversationOptions {
    /// How its session runs.
    pub session: SessionOptions,
    /// Template, stop texts and sampling; `None` takes the model's. Start and stop tokens are always
    /// the model's.
    pub chat: Option<Chat>,
    /// How replies begin; `None` takes the template's way.
    pub think: Option<ThinkMode>,
    /// States kept for undo. Each turn that can be undone takes one, and so does each fork.
    pub undo: usize,
    /// Most tokens of a reply; `None` for no limit.
    pub max_tokens: Option<u64>,
}

impl Default for ConversationOptions {
    /// The model's template, 8 turns to undo, and replies of any length.
    fn default() -> Self {
        Self { session: SessionOptions::default(), chat: None, think: None, undo: 8, max_tokens: None }
    }
}

/// The text of one token of a reply. Both parts are empty if the token ends inside a character or
/// could begin a stop text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Text of the think block, with what begins and ends it. It comes before `said`.
    pub thought: &'a str,
    /// Visible text.
    pub said: &'a str,
}

/// Called with `(tokens read, tokens to read)` while a message is read. `Break` ends that.
pub type ReadProgress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// A conversation with a model in its chat template.
///
/// [`send`](Self::send) reads a message, and [`next_piece`](Self::next_piece) gives the reply. After
/// a reply the model has read its visible text and one separator of turns, however the reply ended.
/// It has not read a think block: the reply is read again without it.
///
/// The last turns can be undone, and a conversation can be forked. Both copy a state of fixed size,
/// so they take the same time after any number of tokens. Undoing a turn also restores the random
/// numbers: the same message gets the same reply. After [`new`](Self::new) only text is allocated.
///
/// ```no_run
/// # fn main() -> rwkv_edge::Result<()> {
/// use rwkv_edge::{Conversation, ConversationOptions, LoadOptions, Model};
/// let model = Model::open("world.rwkv", &LoadOptions::default())?;
/// let mut talk = Conversation::new(model, &ConversationOptions::default())?;
/// talk.send("Which rivers flow through Dresden?")?;
/// while let Some(piece) = talk.next_piece()? {
///     print!("{}", piece.said);
/// }
/// talk.retry()?;
/// # Ok(())
/// # }
/// ```
pub struct Conversation {
    session: Session,
    chat: Chat,
    mode: ThinkMode,
    max_tokens: Option<u64>,
    plan: MemoryPlan,
    branches: Branches,
    /// The state after the last message, before its reply.
    before_reply: State,
    /// Whether `before_reply` is that of the last turn.
    can_retry: bool,
    /// The state before text of the reply that is held back.
    whole: State,
    /// What a new conversation begins with, instead of the model's state before the first token.
    beginning: Option<Beginning>,
    /// The reply that is being made.
    reply: Option<Reply>,
    end: Option<End>,
}

/// A text that conversations begin with.
struct Beginning {
    state: State,
    history: String,
}

impl Conversation {
    /// States that a conversation has besides those for undo and forks: that of the text, that of
    /// the reply's beginning, and that of its last whole text.
    pub const OWN_STATES: usize = 3;

    /// The memory of a conversation with `model`. A [beginning](Self::set_beginning) takes another
    /// state.
    ///
    /// # Errors
    /// As [`Session::plan`].
    pub fn plan(model: &Model, options: &ConversationOptions) -> Result<MemoryPlan> {
        let plan = Session::plan(model, &options.session)?;
        let states = options.undo.saturating_add(Self::OWN_STATES);
        Ok(MemoryPlan { state_bytes: plan.state_bytes.saturating_mul(states), ..plan })
    }

    /// Allocates a conversation and starts its threads. Its name is `main`. The states for undo and
    /// forks become resident when they are used.
    ///
    /// # Errors
    /// As [`Session::new`], or if there is no chat template, or it has no think blocks and the
    /// options ask for some.
    pub fn new(model: Arc<Model>, options: &ConversationOptions) -> Result<Self> {
        let chat = options.chat.clone().unwrap_or_else(|| model.chat().clone());
        if chat.user.is_none() {
            return Err(Error::invalid("there is no chat template: the model only continues text"));
        }
        chat.validate(model.config().n_vocab)?;
        let mode = options.think.or(chat.think.as_ref().map(|think| think.mode)).unwrap_or_default();
        check_mode(&chat, mode)?;
        let mut session = options.session.clone();
        session.sampling.get_or_insert(chat.sampling);
        Ok(Self {
            plan: Self::plan(&model, options)?,
            branches: Branches::new(&model, options.undo)?,
            before_reply: model.state_memory()?,
            whole: model.state_memory()?,
            session: Session::new(model, &session)?,
            mode,
            max_tokens: options.max_tokens,
            chat,
            can_retry: false,
            reply: None,
            end: None,
            beginning: None,
        })
    }

    /// The session that computes.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The template.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// The memory of the conversation.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Samples with other parameters from here on.
    ///
    /// # Errors
    /// If a parameter is out of range.
    pub fn set_sampling(&mut self, params: SamplingParams) -> Result<()> {
        self.session.set_sampling(params)
    }

    /// Restarts the random numbers.
    pub fn set_seed(&mut self, seed: u64) {
        self.session.set_seed(seed);
    }

    /// How replies begin.
    pub fn think_mode(&self) -> ThinkMode {
        self.mode
    }

    /// Begins replies in another way, from the next one on.
    ///
    /// # Errors
    /// If the template has no think blocks.
    pub fn set_think_mode(&mut self, mode: ThinkMode) -> Result<()> {
        check_mode(&self.chat, mode)?;
        self.mode = mode;
        // The last message may end in a hint of the old mode.
        self.can_retry = false;
        Ok(())
    }

    /// Most tokens of a reply.
    pub fn max_tokens(&self) -> Option<u64> {
        self.max_tokens
    }

    /// Limits the tokens of a reply.
    pub fn set_max_tokens(&mut self, max_tokens: Option<u64>) {
        self.max_tokens = max_tokens;
    }

    /// Reads a message. [`next_piece`](Self::next_piece) then gives the reply. A reply that is being
    /// made ends first.
    ///
    /// # Errors
    /// As [`send_with`](Self::send_with).
    pub fn send(&mut self, message: &str) -> Result<()> {
        self.send_with(message, &mut |_, _| ControlFlow::Continue(())).map(drop)
    }

    /// As [`send`](Self::send), and calls `progress` while the message is read. If that breaks, the
    /// message is dropped and the conversation is as before. Returns whether the message was read.
    ///
    /// # Errors
    /// If the message is empty when it is [clean](Chat::clean), or as [`Session::feed`].
    pub fn send_with(&mut self, message: &str, progress: &mut ReadProgress<'_>) -> Result<bool> {
        let message = self.chat.clean(message);
        if message.is_empty() {
            return Err(Error::invalid("the message is empty"));
        }
        self.settle()?;
        if self.session.state().tokens_read() == 0 && !self.read_beginning(progress)? {
            self.forget_text()?;
            return Ok(false);
        }
        let seed = self.session.text().sampler.seed();
        self.before_reply.copy_from(self.session.state())?;
        self.can_retry = false;
        self.branches.begin_turn(message, self.session.state(), seed)?;
        let text = self.chat.user_text(self.branches.last_message(), self.mode);
        let read = self.read(&text, progress);
        if !matches!(read, Ok(true)) {
            self.branches.drop_turn();
            self.session.set_state(&self.before_reply)?;
            return read;
        }
        self.before_reply.copy_from(self.session.state())?;
        self.can_retry = true;
        self.begin_reply()?;
        Ok(true)
    }

    /// The next piece of the reply; `None` if there is none. The reply is complete then, and the
    /// conversation ready for the next turn.
    ///
    /// # Errors
    /// As [`Session::next_token`].
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>> {
        let Some(reply) = &mut self.reply else { return Ok(None) };
        if self.max_tokens.is_some_and(|most| reply.tokens >= most) {
            reply.end.get_or_insert(End::MaxTokens);
        }
        let is_over = reply.end.is_some() || !self.take_next(Session::sample)?;
        if is_over && !self.flush() {
            self.settle()?;
        }
        Ok(self.reply.as_ref().map(|Reply { text, .. }| Piece { thought: &text.thought, said: &text.said }))
    }

    /// Ends the reply. The next piece is the text that was held back.
    pub fn stop(&mut self) {
        if let Some(reply) = &mut self.reply {
            reply.end.get_or_insert(End::Caller);
        }
    }

    /// Why the last reply ended; `None` before the first one and while one is being made.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Undoes the last turn and returns it. A reply that is being made ends.
    ///
    /// # Errors
    /// If there is no turn, or it is too old.
    pub fn undo(&mut self) -> Result<Arc<Turn>> {
        let (turn, slot) = self.branches.undo()?;
        self.session.set_state(&slot.state)?;
        self.session.set_seed(slot.seed);
        (self.reply, self.can_retry) = (None, false);
        Ok(turn)
    }

    /// Replaces the last reply by another one, which [`next_piece`](Self::next_piece) gives. The
    /// random numbers go on, so it is another one unless the temperature is 0.
    ///
    /// The state before the last reply is copied. If it is gone, because a turn was undone or the
    /// conversation switched, the message is read again.
    ///
    /// # Errors
    /// If there is no turn, or its message must be read again and the turn is too old.
    pub fn retry(&mut self) -> Result<()> {
        self.retry_with(&mut |_, _| ControlFlow::Continue(())).map(drop)
    }

    /// As [`retry`](Self::retry), and calls `progress` if the message is read again, as
    /// [`send_with`](Self::send_with) does.
    ///
    /// # Errors
    /// As `retry`.
    pub fn retry_with(&mut self, progress: &mut ReadProgress<'_>) -> Result<bool> {
        self.reply = None;
        if self.can_retry {
            self.branches.forget_reply();
            self.session.set_state(&self.before_reply)?;
            return self.begin_reply().map(|()| true);
        }
        let seed = self.session.text().sampler.seed();
        let turn = self.undo()?;
        self.session.set_seed(seed);
        self.send_with(&turn.user, progress)
    }

    /// Replaces the last message and its reply, as [`undo`](Self::undo) and
    /// [`send_with`](Self::send_with) do.
    ///
    /// # Errors
    /// As these.
    pub fn edit_with(&mut self, message: &str, progress: &mut ReadProgress<'_>) -> Result<bool> {
        if self.chat.clean(message).is_empty() {
            return Err(Error::invalid("the message is empty"));
        }
        self.undo()?;
        self.send_with(message, progress)
    }

    /// Copies the conversation under another name and goes on with the copy.
    ///
    /// # Errors
    /// If the name is empty or taken, or every state is kept for another fork.
    pub fn fork(&mut self, name: &str) -> Result<()> {
        self.settle()?;
        let seed = self.session.text().sampler.seed();
        self.branches.fork(name, self.session.state(), seed)
    }

    /// Goes on with another conversation. The current one is kept.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn switch(&mut self, name: &str) -> Result<()> {
        self.settle()?;
        let Some(slot) = self.branches.switch(name)? else { return Ok(()) };
        self.whole.copy_from(self.session.state())?;
        let seed = self.session.text().sampler.seed();
        self.session.set_state(&slot.state)?;
        self.session.set_seed(slot.seed);
        slot.state.copy_from(&self.whole)?;
        slot.seed = seed;
        self.can_retry = false;
        Ok(())
    }

    /// Forgets a conversation that is not the current one.
    ///
    /// # Errors
    /// If there is none of this name, or it is the current one.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.branches.remove(name)
    }

    /// The conversations: names and numbers of turns.
    pub fn list(&self) -> impl Iterator<Item = (&str, usize)> {
        self.branches.list().map(|branch| (branch.name.as_str(), branch.turns.len()))
    }

    /// The name of the current conversation.
    pub fn name(&self) -> &str {
        &self.branches.current().name
    }

    /// How many turns can be undone.
    pub fn undo_depth(&self) -> usize {
        self.branches.current().marks.len()
    }

    /// Begins anew with this system text, or without one. It is read with the first message. It
    /// takes the place of a [beginning](Self::set_beginning).
    ///
    /// # Errors
    /// If the template has no place for a system text.
    pub fn set_system(&mut self, system: Option<&str>) -> Result<()> {
        let system = system.map(|text| self.chat.clean(text)).filter(|text| !text.is_empty());
        if let Some(system) = &system {
            self.chat.system_text(system)?;
        }
        self.beginning = None;
        self.branches.current_mut().system = system;
        self.reset()
    }

    /// The system text.
    pub fn system(&self) -> Option<&str> {
        self.branches.current().system.as_deref()
    }

    /// Begins anew, with the same system text or beginning. The random numbers go on.
    ///
    /// # Errors
    /// If the beginning belongs to another model, which cannot be.
    pub fn reset(&mut self) -> Result<()> {
        (self.reply, self.end, self.can_retry) = (None, None, false);
        self.branches.reset(self.beginning.as_ref().map_or("", |beginning| &beginning.history));
        self.forget_text()
    }

    /// Begins anew with a saved text, which every later [`reset`](Self::reset) goes back to. Sampling
    /// and random numbers stay.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn set_beginning(&mut self, text: &Snapshot, notes: &StateNotes) -> Result<()> {
        self.check(text, notes)?;
        let history = notes.history.clone().unwrap_or_default();
        self.beginning = Some(Beginning { state: text.state.clone(), history });
        self.branches.current_mut().system = None;
        self.reset()
    }

    /// Goes on with a saved conversation, sampling included, in the place of the current one.
    ///
    /// # Errors
    /// If the text belongs to another model, is no conversation in this template, or ends inside a
    /// reply. Nothing has changed then.
    pub fn resume(&mut self, text: &Snapshot, notes: &StateNotes) -> Result<()> {
        self.check(text, notes)?;
        self.session.restore(text)?;
        (self.reply, self.end, self.can_retry) = (None, None, false);
        self.branches.reset(notes.history.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Saves the conversation to the file of `target`, as [`Snapshot::save_as`] does. A reply that is
    /// being made ends first.
    ///
    /// # Errors
    /// As `save_as`, or as [`settle`](Self::settle).
    pub fn save_as(&mut self, target: Target) -> Result<Published> {
        self.settle()?;
        let notes = StateNotes {
            template: Some(self.chat.name.clone()),
            history: Some(self.history()),
            ..StateNotes::default()
        };
        self.session.text().save_as(&notes, target)
    }

    /// The turns, the oldest first. A long conversation keeps the last MiB of them.
    pub fn turns(&self) -> &[Arc<Turn>] {
        &self.branches.current().turns
    }

    /// The conversation as text in its template, without think blocks. The last MiB of a saved
    /// conversation comes first.
    pub fn history(&self) -> String {
        let Branch { system, turns, earlier, .. } = self.branches.current();
        let mut text = earlier.clone();
        if let (true, Some(Ok(system))) =
            (text.is_empty(), system.as_deref().map(|system| self.chat.system_text(system)))
        {
            text = system;
        }
        for turn in turns {
            text += &self.chat.user_text(&turn.user, ThinkMode::Off);
            text += &self.chat.assistant_text(&turn.reply);
        }
        text
    }

    /// Ends the reply, if one is being made, and brings the state to the beginning of the next turn.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn settle(&mut self) -> Result<()> {
        self.stop();
        self.flush();
        let Some(reply) = self.reply.take() else { return Ok(()) };
        self.end = reply.end;
        let said = self.branches.end_turn(reply.end);
        let rest = if reply.text.has_block() {
            self.session.set_state(&self.before_reply)?;
            self.chat.assistant_text(&said)
        } else if reply.is_whole {
            self.chat.separator().to_owned()
        } else {
            match reply.is_saved {
                true => self.session.set_state(&self.whole)?,
                false => self.session.forget_pending(),
            }
            reply.tail + self.chat.separator()
        };
        self.read(&rest, &mut |_, _| ControlFlow::Continue(())).map(drop)
    }

    /// Refuses a text that is no beginning of a conversation in this template.
    fn check(&self, text: &Snapshot, notes: &StateNotes) -> Result<()> {
        let name = &self.chat.name;
        // A tuned state has read nothing, so it has no template.
        let is_empty = text.state.tokens_read() == 0 && notes.template.is_none();
        match &notes.template {
            None if !is_empty => {
                return Err(Error::invalid("the saved text is no conversation: `run` goes on with it"));
            }
            Some(other) if other != name => {
                return Err(Error::invalid(format!(
                    "the saved conversation has the chat template {other}, and this one {name}"
                )));
            }
            _ => {}
        }
        if text.pending.is_some() || !notes.unshown.is_empty() {
            return Err(Error::invalid("the saved text ends inside a reply: `run` goes on with it"));
        }
        text.state.check(self.session.model().file().model_id())
    }

    /// Goes back to the state before the first turn.
    fn forget_text(&mut self) -> Result<()> {
        match &self.beginning {
            Some(beginning) => self.session.set_state(&beginning.state)?,
            None => self.session.reset(),
        }
        Ok(())
    }

    /// Reads what is before the first turn.
    fn read_beginning(&mut self, progress: &mut ReadProgress<'_>) -> Result<bool> {
        let mut tokens = self.session.model().chat().start_tokens.clone();
        if let Some(system) = &self.branches.current().system {
            let text = self.chat.system_text(system)?;
            self.session.model().tokenizer().encode(text.as_bytes(), &mut tokens)?;
        }
        self.feed(&tokens, progress)
    }

    /// Reads a text; returns whether it was read whole.
    fn read(&mut self, text: &str, progress: &mut ReadProgress<'_>) -> Result<bool> {
        let mut tokens = Vec::new();
        self.session.model().tokenizer().encode(text.as_bytes(), &mut tokens)?;
        self.feed(&tokens, progress)
    }

    fn feed(&mut self, tokens: &[u32], progress: &mut ReadProgress<'_>) -> Result<bool> {
        let fed = self.session.feed_with(tokens, &mut |fed| match fed < tokens.len() {
            true => progress(fed, tokens.len()),
            false => ControlFlow::Continue(()),
        })?;
        Ok(fed == tokens.len())
    }

    fn begin_reply(&mut self) -> Result<()> {
        let opening = self.chat.opening(self.mode).to_owned();
        self.session.begin_reply();
        self.read(&opening, &mut |_, _| ControlFlow::Continue(()))?;
        (self.reply, self.end) = (Some(Reply::new(&self.chat, &opening)?), None);
        Ok(())
    }

    /// Adds a token to the reply, which `sample` draws. Returns whether it is part of it, and no stop
    /// token.
    fn take_next(&mut self, sample: impl FnOnce(&mut Session) -> Result<u32>) -> Result<bool> {
        let Some(reply) = &mut self.reply else { return Ok(false) };
        if reply.text.is_whole() {
            reply.is_saved = false;
            reply.tail.clear();
        } else if !reply.is_saved && !reply.text.has_block() {
            // The pending token, whose text is held back, is fed next.
            self.whole.copy_from(self.session.state())?;
            reply.is_saved = true;
        }
        let token = sample(&mut self.session)?;
        let model = self.session.model();
        if model.is_stop_token(token) {
            reply.end = Some(End::StopToken(token));
            return Ok(false);
        }
        reply.clear();
        reply.tokens += 1;
        if reply.text.push(model.tokenizer().token(token)) == Status::Stopped {
            reply.end = reply.text.stopped_by().map(End::StopText);
        }
        reply.tail += &reply.text.said;
        self.branches.say(&reply.text);
        Ok(true)
    }

    /// Passes on the text of an ended reply that was held back. Returns whether there was some.
    fn flush(&mut self) -> bool {
        let Some(reply) = &mut self.reply else { return false };
        if reply.is_flushed {
            return false;
        }
        reply.clear();
        (reply.is_flushed, reply.is_whole) = (true, reply.text.is_whole());
        reply.text.finish();
        reply.tail += &reply.text.said;
        self.branches.say(&reply.text);
        !(reply.text.thought.is_empty() && reply.text.said.is_empty())
    }
}

/// Refuses a mode that the template does not have.
fn check_mode(chat: &Chat, mode: ThinkMode) -> Result<()> {
    if chat.think.is_none() && mode != ThinkMode::Off {
        return Err(Error::invalid(format!("the chat template {} has no think blocks", chat.name)));
    }
    Ok(())
}

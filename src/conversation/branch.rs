//! The conversations that share a text's slots: the current one and its forks.

use std::collections::VecDeque;
use std::sync::Arc;

use super::reply::ReplyText;
use super::slots::{Slot, Slots};
use crate::error::{Error, Result};
use crate::generation::End;
use crate::model::{Model, State};

/// Most bytes of turns that a conversation keeps, and of what was said before them.
const MAX_TURNS_BYTES: usize = 1 << 20;

/// The end of what was said earlier, from the beginning of a line on.
fn latest(earlier: &str) -> &str {
    let Some(cut) = earlier.len().checked_sub(MAX_TURNS_BYTES) else { return earlier };
    let cut = (cut..).find(|&cut| earlier.is_char_boundary(cut)).unwrap_or_default();
    let line = earlier[cut..].find('\n').map_or(cut, |at| cut + at + 1);
    &earlier[line..]
}

/// A message and its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The message, cleaned.
    pub user: String,
    /// The reply's think block, with what begins and ends it.
    pub thought: String,
    /// The visible reply, so far.
    pub reply: String,
    /// Why the reply ended; `None` while it goes on.
    pub end: Option<End>,
}

/// A conversation.
#[derive(Clone, Default)]
pub(super) struct Branch {
    pub(super) name: String,
    pub(super) system: Option<String>,
    /// What was said before the turns, in a saved conversation.
    pub(super) earlier: String,
    pub(super) turns: Vec<Arc<Turn>>,
    /// Slots of the states before the last turns.
    pub(super) marks: VecDeque<usize>,
    /// Slot of the state; `None` for the current conversation.
    tip: Option<usize>,
}

/// All conversations. There is always a current one.
pub(super) struct Branches {
    branches: Vec<Branch>,
    current: usize,
    slots: Slots,
}

impl Branches {
    pub(super) fn new(model: &Model, slots: usize) -> Result<Self> {
        let main = Branch { name: "main".into(), ..Branch::default() };
        Ok(Self { branches: vec![main], current: 0, slots: Slots::new(model, slots)? })
    }

    pub(super) fn current(&self) -> &Branch {
        &self.branches[self.current]
    }

    pub(super) fn current_mut(&mut self) -> &mut Branch {
        &mut self.branches[self.current]
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &Branch> {
        self.branches.iter()
    }

    /// Begins a turn after the text of `state`.
    pub(super) fn begin_turn(&mut self, user: String, state: &State, seed: u64) -> Result<()> {
        let mark = self.keep(state, seed)?;
        let branch = self.current_mut();
        branch.marks.extend(mark);
        branch.turns.push(Arc::new(Turn { user, ..Turn::default() }));
        Ok(())
    }

    /// Takes back the turn that has just begun.
    pub(super) fn drop_turn(&mut self) {
        let branch = &mut self.branches[self.current];
        branch.turns.pop();
        branch.marks.pop_back().into_iter().for_each(|mark| self.slots.release(mark));
    }

    /// The message of the last turn.
    pub(super) fn last_message(&self) -> &str {
        self.current().turns.last().map_or("", |turn| &turn.user)
    }

    /// Adds a piece to the last reply.
    pub(super) fn say(&mut self, piece: &ReplyText) {
        if let Some(turn) = self.last_turn_mut() {
            turn.thought += &piece.thought;
            turn.reply += &piece.said;
        }
    }

    /// Ends the last reply and returns it, without blanks at its ends.
    pub(super) fn end_turn(&mut self, end: Option<End>) -> String {
        let Some(turn) = self.last_turn_mut() else { return String::new() };
        let reply = turn.reply.trim().to_owned();
        (turn.reply, turn.end) = (reply.clone(), end);
        self.current_mut().forget_old_turns();
        reply
    }

    /// Takes back the reply of the last turn.
    pub(super) fn forget_reply(&mut self) {
        if let Some(turn) = self.last_turn_mut() {
            *turn = Turn { user: std::mem::take(&mut turn.user), ..Turn::default() };
        }
    }

    /// Takes back the last turn. Returns it and the slot before it.
    pub(super) fn undo(&mut self) -> Result<(Arc<Turn>, &Slot)> {
        let count = self.slots.len();
        let branch = self.current_mut();
        if branch.turns.is_empty() {
            return Err(Error::invalid("there is no turn to undo"));
        }
        let too_old = || {
            Error::invalid(format!("the last turn can no longer be undone: {count} states are kept for that"))
        };
        let mark = branch.marks.pop_back().ok_or_else(too_old)?;
        let turn = branch.turns.pop().unwrap_or_default();
        self.slots.release(mark);
        Ok((turn, self.slots.slot_mut(mark)))
    }

    /// Copies the current conversation, with the text of `state`, and makes the copy the current one.
    pub(super) fn fork(&mut self, name: &str, state: &State, seed: u64) -> Result<()> {
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Error::invalid(format!("{name:?} cannot be the name of a conversation")));
        }
        if self.find(name).is_ok() {
            return Err(Error::invalid(format!("there is a conversation {name} already")));
        }
        let count = self.slots.len();
        let tip = self.keep(state, seed)?.ok_or_else(|| {
            Error::invalid(format!("no room for a fork: {count} states are kept for forks and undo"))
        })?;
        let branch = self.current_mut();
        let copy = Branch { name: name.into(), ..branch.clone() };
        branch.tip = Some(tip);
        copy.marks.iter().for_each(|&mark| self.slots.hold(mark));
        self.branches.push(copy);
        self.current = self.branches.len() - 1;
        Ok(())
    }

    /// Makes another conversation the current one. Returns the slot with its state, in which the
    /// caller leaves that of the one before; `None` if it is the current one.
    pub(super) fn switch(&mut self, name: &str) -> Result<Option<&mut Slot>> {
        let index = self.find(name)?;
        let Some(tip) = self.branches[index].tip.take() else { return Ok(None) };
        self.current_mut().tip = Some(tip);
        self.current = index;
        Ok(Some(self.slots.slot_mut(tip)))
    }

    /// Forgets a conversation that is not the current one.
    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        let index = self.find(name)?;
        if index == self.current {
            return Err(Error::invalid(format!("{name} is the current conversation")));
        }
        let Branch { marks, tip, .. } = self.branches.remove(index);
        marks.into_iter().chain(tip).for_each(|slot| self.slots.release(slot));
        self.current -= usize::from(index < self.current);
        Ok(())
    }

    /// Forgets the turns of the current conversation. Something else was said `earlier`.
    pub(super) fn reset(&mut self, earlier: &str) {
        let branch = &mut self.branches[self.current];
        latest(earlier).clone_into(&mut branch.earlier);
        branch.turns.clear();
        branch.marks.drain(..).for_each(|mark| self.slots.release(mark));
    }

    fn find(&self, name: &str) -> Result<usize> {
        let index = self.branches.iter().position(|branch| branch.name == name);
        index.ok_or_else(|| Error::invalid(format!("there is no conversation {name:?}")))
    }

    fn last_turn_mut(&mut self) -> Option<&mut Turn> {
        self.current_mut().turns.last_mut().map(Arc::make_mut)
    }

    /// Copies a state into a slot. If none is free, the oldest mark of the conversation that has the
    /// most goes. `None` if all slots hold forks.
    fn keep(&mut self, state: &State, seed: u64) -> Result<Option<usize>> {
        loop {
            if let Some(slot) = self.slots.keep(state, seed)? {
                return Ok(Some(slot));
            }
            let longest = self.branches.iter_mut().max_by_key(|branch| branch.marks.len());
            let Some(mark) = longest.and_then(|branch| branch.marks.pop_front()) else { return Ok(None) };
            self.slots.release(mark);
        }
    }
}

impl Branch {
    fn forget_old_turns(&mut self) {
        let bytes = |turn: &Arc<Turn>| turn.user.len() + turn.thought.len() + turn.reply.len();
        let mut total: usize = self.turns.iter().map(bytes).sum();
        let most = self.turns.len() - self.marks.len().clamp(1, self.turns.len());
        let old = self.turns[..most].iter().take_while(|turn| {
            let is_old = total > MAX_TURNS_BYTES;
            total -= bytes(turn);
            is_old
        });
        let count = old.count();
        self.turns.drain(..count);
    }
}

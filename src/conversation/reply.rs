//! A reply, piece by piece: what is thought, what is said, and where it ends.

use std::mem;

use crate::error::Result;
use crate::format::Chat;
use crate::generation::End;
use crate::text::{Status, TextStream};

/// Most blanks before a think block.
const MAX_LEAD: usize = 16;

/// A reply that is being made.
pub(super) struct Reply {
    pub(super) text: ReplyText,
    pub(super) tokens: u64,
    pub(super) end: Option<End>,
    /// Whether the text that was held back has been passed on.
    pub(super) is_flushed: bool,
    /// Whether no text was held back then.
    pub(super) is_whole: bool,
    /// Visible text after the state to which the end of the reply may have to return.
    pub(super) tail: String,
    /// Whether that state has been saved. Otherwise it is the session's, without a pending token.
    pub(super) is_saved: bool,
}

impl Reply {
    /// A reply that begins with `opening`.
    pub(super) fn new(chat: &Chat, opening: &str) -> Result<Self> {
        let mut text = ReplyText::new(chat)?;
        text.push(opening.as_bytes());
        Ok(Self {
            text,
            tokens: 0,
            end: None,
            is_flushed: false,
            is_whole: false,
            tail: String::new(),
            is_saved: false,
        })
    }

    /// Forgets the text that was passed on. The opening is passed on with the first token.
    pub(super) fn clear(&mut self) {
        if self.tokens > 0 {
            self.text.clear();
        }
    }
}

/// Divides the bytes of a reply into a think block and visible text. Only visible text has stop
/// texts.
pub(super) struct ReplyText {
    phase: Phase,
    /// What a think block begins with. Empty if there are none.
    open: String,
    close: String,
    /// Bytes before it is clear whether there is a think block.
    lead: Vec<u8>,
    block: TextStream,
    visible: TextStream,
    /// Text of the think block since the last [`clear`](Self::clear).
    pub(super) thought: String,
    /// Visible text since the last [`clear`](Self::clear).
    pub(super) said: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There may be a think block.
    Start,
    /// In the think block.
    Block,
    /// Blanks after the think block.
    Gap,
    /// In the visible text; after a think block or without one.
    Visible { after_block: bool },
}

impl ReplyText {
    fn new(chat: &Chat) -> Result<Self> {
        let think = chat.think.as_ref();
        let close = think.map_or(String::new(), |think| think.close.clone());
        Ok(Self {
            phase: Phase::Start,
            open: think.map_or(String::new(), |think| think.open.trim().to_owned()),
            lead: Vec::new(),
            block: TextStream::new(think.map(|_| &close).as_slice())?,
            visible: TextStream::new(&chat.stop_texts)?,
            close,
            thought: String::new(),
            said: String::new(),
        })
    }

    /// Takes the bytes of a token.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Status {
        for &byte in bytes {
            match self.phase {
                Phase::Start => self.begin(byte),
                Phase::Block => self.think(byte),
                Phase::Gap if byte.is_ascii_whitespace() => {}
                Phase::Gap => {
                    self.phase = Phase::Visible { after_block: true };
                    self.visible.push_to(&[byte], &mut self.said);
                }
                Phase::Visible { .. } => {
                    self.visible.push_to(&[byte], &mut self.said);
                }
            }
        }
        match self.stopped_by() {
            Some(_) => Status::Stopped,
            None => Status::Running,
        }
    }

    /// Index of the stop text that ended the reply.
    pub(super) fn stopped_by(&self) -> Option<usize> {
        self.visible.stopped_by()
    }

    /// Whether all bytes so far have been passed on as visible text.
    pub(super) fn is_whole(&self) -> bool {
        match self.phase {
            Phase::Start => self.lead.is_empty(),
            Phase::Visible { after_block: false } => self.visible.is_idle(),
            _ => false,
        }
    }

    /// Whether the reply has a think block.
    pub(super) fn has_block(&self) -> bool {
        matches!(self.phase, Phase::Block | Phase::Gap | Phase::Visible { after_block: true })
    }

    /// Forgets the text that was passed on.
    fn clear(&mut self) {
        self.thought.clear();
        self.said.clear();
    }

    /// Passes on what was held back, without blanks at the end.
    pub(super) fn finish(&mut self) {
        let lead = mem::take(&mut self.lead);
        self.visible.push_to(&lead, &mut self.said);
        self.block.finish_to(&mut self.thought);
        let passed_on = self.said.len();
        self.visible.finish_to(&mut self.said);
        let held = self.said[passed_on..].trim_end().len();
        self.said.truncate(passed_on + held);
    }

    fn begin(&mut self, byte: u8) {
        self.lead.push(byte);
        let text = self.lead.trim_ascii_start();
        let blanks = self.lead.len() - text.len();
        let may_open = self.open.as_bytes().starts_with(text) && !self.open.is_empty();
        if !may_open || blanks > MAX_LEAD || byte == b'\n' {
            self.phase = Phase::Visible { after_block: false };
            let lead = mem::take(&mut self.lead);
            self.visible.push_to(&lead, &mut self.said);
        } else if text.len() == self.open.len() {
            self.phase = Phase::Block;
            self.lead.clear();
            let open = mem::take(&mut self.open);
            self.block.push_to(open.as_bytes(), &mut self.thought);
        }
    }

    fn think(&mut self, byte: u8) {
        if self.block.push_to(&[byte], &mut self.thought) == Status::Stopped {
            self.block.reset();
            self.thought.push_str(&self.close);
            self.phase = Phase::Gap;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Template;

    /// Think text and visible text of a reply whose bytes come `step` at a time, and whether it
    /// stopped.
    fn divided(template: Template, reply: &str, step: usize) -> (String, String, bool) {
        let mut text = ReplyText::new(&template.chat()).unwrap();
        for bytes in reply.as_bytes().chunks(step) {
            text.push(bytes);
        }
        let stopped = text.stopped_by().is_some();
        text.finish();
        (text.thought, text.said, stopped)
    }

    #[test]
    fn blank_lines_and_turns_inside_a_think_block_do_not_stop_a_reply() {
        for (reply, thought, said, stopped) in [
            (" Hi.\n\nUser: x", "", " Hi.", true),
            (" <think>a\n\nUser: b</think>\n\nHi.\n\nUser", "<think>a\n\nUser: b</think>", "Hi.", true),
            ("<think>\n</think> Hi", "<think>\n</think>", "Hi", false),
            ("<think>never ends\n\n", "<think>never ends\n\n", "", false),
            ("<thin", "", "<thin", false),
            (" <thought>\n\nx", "", " <thought>", true),
            ("\n\n<think>", "", "", true),
            ("Hi <think>a\n\nb", "", "Hi <think>a", true),
            ("<think></think></think>\n\nx", "<think></think>", "</think>", true),
            ("Hi\n", "", "Hi", false),
            ("Hi\nUs", "", "Hi\nUs", false),
            ("", "", "", false),
        ] {
            for step in [1, 2, 3, 100] {
                let found = divided(Template::World, reply, step);
                assert_eq!(found, (thought.into(), said.into(), stopped), "{reply:?} by {step}");
            }
        }
    }

    #[test]
    fn a_template_without_think_blocks_has_none() {
        let found = divided(Template::Raven, "<think>a\n\nb", 1);
        assert_eq!(found, (String::new(), "<think>a".into(), true));
    }

    #[test]
    fn flower_replies_may_have_blank_lines_and_end_at_the_flower() {
        let found = divided(Template::Flower, "<think>a✿</think>b\n\nc✿\nUser", 2);
        assert_eq!(found, ("<think>a✿</think>".into(), "b\n\nc".into(), true));
    }
}

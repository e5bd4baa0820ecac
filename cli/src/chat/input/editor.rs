//! The line editor. Android's C library has too few functions of terminals before level 28.

use anyhow::Result;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use rwkv_edge::signals;

use super::Event;

/// Lines that the editor remembers.
const MAX_HISTORY: usize = 1000;

pub(super) type LineEditor = Editor<Continuation, MemHistory>;

pub(super) fn new() -> Result<LineEditor> {
    let config = Config::builder().max_history_size(MAX_HISTORY)?.auto_add_history(true).build();
    let history = MemHistory::with_config(&config);
    let mut editor = Editor::with_history(config, history)?;
    editor.set_helper(Some(Continuation));
    Ok(editor)
}

/// The next line, which begins with `text`.
pub(super) fn next(editor: &mut LineEditor, prompt: &str, text: &str) -> Result<Event> {
    match signals::while_waiting(|| editor.readline_with_initial(prompt, (text, ""))) {
        Ok(line) => Ok(Event::Line(line.replace("\\\n", "\n"))),
        Err(ReadlineError::Interrupted) => Ok(Event::Interrupt),
        Err(ReadlineError::Eof) => Ok(Event::End),
        Err(error) => Err(error.into()),
    }
}

/// A message ends at the end of a line, unless that is a backslash.
pub(in crate::chat) struct Continuation;

impl Validator for Continuation {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Continuation {
    type Candidate = String;
}

impl Hinter for Continuation {
    type Hint = String;
}

impl Highlighter for Continuation {}
impl Helper for Continuation {}

//! Where the lines of a chat come from: an editor on a terminal, or a pipe.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};

use anyhow::{Result, ensure};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use rwkv_edge::{signals, stdio};

/// Longest line from a pipe, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Lines that the editor remembers.
const MAX_HISTORY: usize = 1000;

/// Where lines come from.
pub(super) enum Input {
    Editor(Box<Editor<Lines, MemHistory>>),
    Pipe(BufReader<stdio::Stdin>),
}

/// What the user did.
pub(super) enum Event {
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// The end of the input, or Ctrl-D.
    End,
}

impl Input {
    /// An editor if a user sits at a terminal, else a line at a time from standard input.
    pub(super) fn new() -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Pipe(BufReader::new(stdio::Stdin)));
        }
        let config = Config::builder().max_history_size(MAX_HISTORY)?.auto_add_history(true).build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history)?;
        editor.set_helper(Some(Lines));
        Ok(Self::Editor(Box::new(editor)))
    }

    /// Whether a user sits at a terminal.
    pub(super) fn is_editor(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// The next line. The editor begins with `text`.
    pub(super) fn next(&mut self, prompt: &str, text: &str) -> Result<Event> {
        match self {
            Self::Editor(editor) => {
                match signals::while_waiting(|| editor.readline_with_initial(prompt, (text, ""))) {
                    Ok(line) => Ok(Event::Line(line.replace("\\\n", "\n"))),
                    Err(ReadlineError::Interrupted) => Ok(Event::Interrupt),
                    Err(ReadlineError::Eof) => Ok(Event::End),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Pipe(pipe) => {
                let mut line = Vec::new();
                let mut limited = pipe.take(MAX_LINE + 1);
                signals::while_waiting(|| limited.read_until(b'\n', &mut line))?;
                ensure!(line.len() as u64 <= MAX_LINE, "a line has more than {MAX_LINE} bytes");
                match line.is_empty() {
                    true => Ok(Event::End),
                    false => Ok(Event::Line(String::from_utf8_lossy(&line).into_owned())),
                }
            }
        }
    }
}

/// Ends a message at the end of a line, unless that is a backslash.
pub(super) struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}
impl Helper for Lines {}

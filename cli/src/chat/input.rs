//! Where the lines of a chat come from: a terminal, with an editor where there is one, or a pipe.

#[cfg(not(target_os = "android"))]
mod editor;

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};

use anyhow::{Result, ensure};
use rwkv_edge::{signals, stdio};

/// Longest line from a pipe, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Where lines come from.
pub(super) enum Input {
    #[cfg(not(target_os = "android"))]
    Editor(Box<editor::LineEditor>),
    /// A pipe, or a terminal of a system that the editor does not know.
    Lines { input: BufReader<stdio::Stdin>, is_terminal: bool },
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
    /// A terminal if a user sits at one, else standard input line by line.
    pub(super) fn new() -> Result<Self> {
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        #[cfg(not(target_os = "android"))]
        if is_terminal {
            return Ok(Self::Editor(Box::new(editor::new()?)));
        }
        Ok(Self::Lines { input: BufReader::new(stdio::Stdin), is_terminal })
    }

    /// Whether a user sits at a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        match self {
            #[cfg(not(target_os = "android"))]
            Self::Editor(_) => true,
            Self::Lines { is_terminal, .. } => *is_terminal,
        }
    }

    /// The next line. An editor begins with `text`.
    pub(super) fn next(&mut self, prompt: &str, text: &str) -> Result<Event> {
        match self {
            #[cfg(not(target_os = "android"))]
            Self::Editor(editor) => editor::next(editor, prompt, text),
            Self::Lines { input, is_terminal } => {
                if *is_terminal {
                    let mut out = stdio::stdout();
                    write!(out, "{prompt}")?;
                    out.flush()?;
                }
                let mut line = Vec::new();
                let mut limited = input.take(MAX_LINE + 1);
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

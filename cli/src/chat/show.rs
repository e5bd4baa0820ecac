//! How replies are shown.

use std::io::{self, BufWriter, IsTerminal, Write};

use rwkv_edge::printable::PrintableText;
use rwkv_edge::{Piece, stdio};

/// Writes replies to standard output. A terminal also gets think blocks, dimmed. A pipe gets visible
/// text only.
pub(super) struct Show {
    out: BufWriter<stdio::Stdout>,
    is_terminal: bool,
    dims: bool,
    /// Whether the terminal is dimmed.
    is_dim: bool,
    /// Whether visible text of the reply has been shown.
    has_begun: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let dims = stdio::may_style(&io::stdout());
        Self { out: stdio::stdout(), is_terminal, dims, is_dim: false, has_begun: false }
    }

    /// Shows a piece at once.
    pub(super) fn piece(&mut self, piece: Piece<'_>) -> io::Result<()> {
        if self.is_terminal && !piece.thought.is_empty() {
            self.dim(true)?;
            write!(self.out, "{}", PrintableText(piece.thought))?;
        }
        let mut said = piece.said;
        if !self.has_begun {
            // The blank before the first word belongs to its token.
            said = said.trim_start();
        }
        if !said.is_empty() {
            if self.is_dim {
                self.dim(false)?;
                writeln!(self.out)?;
            }
            self.has_begun = true;
            match self.is_terminal {
                true => write!(self.out, "{}", PrintableText(said))?,
                false => self.out.write_all(said.as_bytes())?,
            }
        }
        self.out.flush()
    }

    /// Ends a reply.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.dim(false)?;
        self.has_begun = false;
        writeln!(self.out)?;
        self.out.flush()
    }

    fn dim(&mut self, dim: bool) -> io::Result<()> {
        if self.dims && self.is_dim != dim {
            self.out.write_all(if dim { b"\x1b[2m" } else { b"\x1b[0m" })?;
        }
        self.is_dim = dim;
        Ok(())
    }
}

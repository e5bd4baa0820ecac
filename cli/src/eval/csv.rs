//! The table of all scored tokens.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use rwkv_edge::format::{Output, Replace, Target};

use crate::saved;

use super::scores::{Comparison, Prediction};

/// The columns. `docs/COMMANDS.md` explains them.
const HEADER: &str = "model,text,window,position,token,nats,reference_nats,kl,same_best\n";

/// A table that appears when it is complete.
pub(super) struct Table(BufWriter<Output>);

impl Table {
    /// # Errors
    /// If there is another file at `path`, or none can be created.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut table = BufWriter::new(Output::create(Target::new(path, Replace::Tables(HEADER))?, 0)?);
        table.write_all(HEADER.as_bytes())?;
        Ok(Self(table))
    }

    /// Adds the row of a token in the window of this number.
    pub(super) fn add(
        &mut self,
        (model, text, window): (&str, &str, usize),
        prediction: &Prediction,
    ) -> io::Result<()> {
        let Prediction { position, token, nats, reference, .. } = prediction;
        let (model, text, nats) = (field(model), field(text), *nats as f32);
        write!(self.0, "{model},{text},{window},{position},{token},{nats},")?;
        match reference {
            Some(Comparison { nats, kl, same_best }) => {
                writeln!(self.0, "{},{},{}", *nats as f32, *kl as f32, u8::from(*same_best))
            }
            None => writeln!(self.0, ",,"),
        }
    }

    pub(super) fn publish(self) -> Result<()> {
        let output = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        saved::warn(&output.publish()?);
        Ok(())
    }
}

/// A field, in quotes if it needs them.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        assert_eq!(field("a b.txt"), "a b.txt");
        assert_eq!(field("a,b"), "\"a,b\"");
        assert_eq!(field("the \"best\""), "\"the \"\"best\"\"\"");
    }
}

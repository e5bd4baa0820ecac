//! `rwkv-edge logits`: the logits themselves, for comparisons with other implementations.

use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use rwkv_edge::{Engine, EngineOptions, Verify, stdio};

use crate::args::{ALL_LOGITS_BATCH, ModelArgs};

#[derive(Args)]
pub(super) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids to feed, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// Print the logits after every token, not only the last: one line per token, separated by
    /// blanks
    #[arg(long)]
    all: bool,
    /// Write raw little-endian f32 instead of text
    #[arg(long)]
    binary: bool,
}

pub(super) fn run(args: &LogitsArgs) -> Result<()> {
    let model = args.model.load(Verify::AtOnce)?;
    let options = args.model.compute.engine_options();
    let mut state = model.initial_state()?;
    let mut out = stdio::stdout();
    if args.all {
        let mut engine = Engine::new(model, &EngineOptions { head_batch: ALL_LOGITS_BATCH, ..options })?;
        engine.feed_all(&mut state, &args.tokens, |_, logits| Ok(args.write(&mut out, logits)?))?;
    } else {
        let mut engine = Engine::new(model, &options)?;
        engine.feed(&mut state, &args.tokens)?;
        args.write(&mut out, engine.logits(&state)?)?;
    }
    Ok(out.flush()?)
}

impl LogitsArgs {
    /// Writes the logits after a token, `[n_vocab]`.
    fn write(&self, out: &mut impl Write, logits: &[f32]) -> io::Result<()> {
        if self.binary {
            return logits.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes()));
        }
        let separator = if self.all { ' ' } else { '\n' };
        let (first, rest) = logits.split_first().unwrap_or((&f32::NAN, &[]));
        write!(out, "{first}")?;
        rest.iter().try_for_each(|logit| write!(out, "{separator}{logit}"))?;
        writeln!(out)
    }
}

//! `rwkv-edge logits`: the logits themselves, for comparisons with other implementations.

use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use rwkv_edge::{Engine, EngineOptions, Verify, stdio};

use crate::args::{ALL_LOGITS_BATCH, ModelArgs};
use crate::json::{Object, array, number};
use crate::memory::Demand;

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
    /// Print JSON: one object for each token
    #[arg(long, conflicts_with = "binary")]
    json: bool,
}

pub(super) fn run(args: &LogitsArgs) -> Result<()> {
    let head_batch = if args.all { ALL_LOGITS_BATCH } else { 1 };
    let options = EngineOptions { head_batch, ..args.model.compute.engine_options() };
    let model = args.model.load(Verify::AtOnce, &Demand::new(options))?;
    let mut state = model.initial_state()?;
    let mut engine = Engine::new(model, &options)?;
    let mut out = stdio::stdout();
    if args.all {
        engine.feed_all(&mut state, &args.tokens, |t, logits| Ok(args.write(&mut out, t, logits)?))?;
    } else {
        engine.feed(&mut state, &args.tokens)?;
        args.write(&mut out, args.tokens.len() - 1, engine.logits(&state)?)?;
    }
    Ok(out.flush()?)
}

impl LogitsArgs {
    /// Writes the logits after token `t`, `[n_vocab]`.
    fn write(&self, out: &mut impl Write, t: usize, logits: &[f32]) -> io::Result<()> {
        if self.json {
            let logits = array(logits.iter().map(|&logit| number(logit)));
            return writeln!(
                out,
                "{}",
                Object::new().raw("token", self.tokens[t]).raw("logits", logits).end()
            );
        }
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

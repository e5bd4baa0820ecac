//! `rwkv-edge logits`: the logits themselves, for comparisons with other implementations.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use rwkv_edge::{Engine, Verify, stdio};

use crate::args::ModelArgs;

#[derive(Args)]
pub(super) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids to feed, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// Write raw little-endian f32 instead of lines of text
    #[arg(long)]
    binary: bool,
}

pub(super) fn run(args: &LogitsArgs) -> Result<()> {
    let options = args.model.compute.engine_options();
    let mut engine = Engine::new(args.model.load(Verify::AtOnce)?, &options)?;
    let mut state = engine.model().initial_state()?;
    engine.feed(&mut state, &args.tokens)?;
    let mut out = stdio::stdout();
    for logit in engine.logits(&state)? {
        if args.binary {
            out.write_all(&logit.to_le_bytes())?;
        } else {
            writeln!(out, "{logit}")?;
        }
    }
    Ok(out.flush()?)
}

//! `rwkv-edge logits`: the numbers themselves, for comparisons with other implementations.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use rwkv_edge::{Session, SessionOptions, Verify, console};

use super::ModelArgs;

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
    let Some((&last, rest)) = args.tokens.split_last() else { bail!("--tokens is empty") };
    let options = SessionOptions { threads: args.model.compute.threads(), ..Default::default() };
    let mut session = Session::new(Arc::clone(&args.model.load(Verify::AtOnce)?), &options)?;
    session.feed_all(rest)?;
    let mut out = console::stdout();
    for logit in session.forward(last)? {
        if args.binary {
            out.write_all(&logit.to_le_bytes())?;
        } else {
            writeln!(out, "{logit}")?;
        }
    }
    Ok(out.flush()?)
}

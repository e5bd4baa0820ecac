//! `rwkv-edge eval`: how well models predict texts, and how far they are from another file.
//!
//! A text, or each window of it, is read from the initial state, after the model's start tokens. If
//! there are start tokens, its first token is predicted too. All models read a text at the same
//! time, so that the reference reads it once.

mod arguments;
mod bootstrap;
mod csv;
mod pass;
mod readers;
mod report;
mod scores;
mod windows;

use std::io::Write;

use anyhow::Result;
use rwkv_edge::{EngineOptions, stdio};

use crate::args::ALL_LOGITS_BATCH;
pub(super) use arguments::EvalArgs;
use pass::{Pass, Text};
use readers::Readers;

/// Scored tokens that the bootstrap draws together if the texts are not cut into windows.
const STRETCH: usize = 512;

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let engine = EngineOptions { head_batch: ALL_LOGITS_BATCH, ..args.compute.engine_options() };
    let demand = Readers::demand(args, engine)?;
    let (model, readers) = Readers::load(args, &engine, &demand)?;
    let texts = Text::read_all(args, &model, &demand)?;
    let report = Pass::new(args, &model, readers, &texts)?.run(texts)?;
    let mut out = stdio::stdout();
    match args.json {
        true => report.json(&mut out)?,
        false => report.text(&mut out)?,
    }
    Ok(out.flush()?)
}

//! `rwkv-edge tokenize`: text to token ids and back.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rwkv_edge::{Verify, input, stdio};

use crate::args::ModelArgs;
use crate::memory::Demand;
use crate::utf16::hint_at_utf16;

#[derive(Args)]
pub(super) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Read ids, separated by blanks or commas, and write their bytes
    #[arg(long)]
    decode: bool,
}

pub(super) fn run(args: &TokenizeArgs) -> Result<()> {
    let demand = Demand::header();
    let model = args.model.load(Verify::Never, &demand)?;
    let limit = args.model.text_limit(&model, &demand)?;
    let tokenizer = model.tokenizer();
    let input = input::read_stream(&mut stdio::Stdin, limit).context("standard input")?;
    let mut out = stdio::stdout();
    if args.decode {
        let text = str::from_utf8(&input).context("standard input")?;
        // The model can give ids that the tokenizer does not have. They stand for nothing.
        let n = model.config().n_vocab;
        let is_between = |c: char| c.is_whitespace() || c == ',';
        for word in text.split(is_between).filter(|word| !word.is_empty()) {
            let id: u32 = word.parse().with_context(|| format!("{word:?} is not a token id"))?;
            ensure!((id as usize) < n, "token {id} is outside 0..{n}");
            out.write_all(tokenizer.token(id))?;
        }
    } else {
        hint_at_utf16(&input);
        let mut ids = Vec::new();
        tokenizer.encode(&input, &mut ids)?;
        for id in ids {
            writeln!(out, "{id}")?;
        }
    }
    Ok(out.flush()?)
}

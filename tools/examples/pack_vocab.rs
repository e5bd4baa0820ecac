//! Packs a World vocabulary: `pack_vocab rwkv_vocab_v20230424.txt data/world_vocab.bin`.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use rwkv_edge::format::{Output, Replace, Target};
use rwkv_quantize::vocab;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(from), Some(to), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: pack_vocab <vocabulary> <packed>");
    };
    let text = fs::read_to_string(&from).with_context(|| from.clone())?;
    let tokens = vocab::world_file(&text).with_context(|| from.clone())?;
    let packed =
        vocab::pack(&tokens).context("ids are not 1, 2, 3, ..., or a token is longer than 255 bytes")?;
    let mut output = Output::create(Target::new(Path::new(&to), Replace::Any)?, packed.len() as u64)?;
    output.write_all(&packed).with_context(|| to.clone())?;
    output.publish()?;
    Ok(())
}

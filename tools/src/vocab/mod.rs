//! Vocabulary files, and the tokenizer sections made of them.

mod error;
mod hf_json;
mod hf_pipeline;
mod id_map;
mod literal;
mod stored;
mod world;

use std::path::Path;

pub use error::{Result, VocabError};
use rwkv_edge::input;
use rwkv_edge::tokenizer::compile;
use serde_json::Value;
pub use stored::stored;
pub use world::{pack, world_builtin, world_file};

/// Longest vocabulary file; those of 250,000 tokens have 20 MB.
const MAX_FILE: u64 = 64 << 20;

/// Reads a vocabulary file and makes the tokenizer section of it.
///
/// The content tells what it is: a tokenizer.json of Hugging Face, a World vocabulary, or web-rwkv's
/// JSON of one. A byte order mark in front is skipped.
///
/// # Errors
/// The file is no regular file, longer than 64 MiB, or cannot be read or used.
pub fn load(path: &Path) -> Result<Vec<u8>> {
    from_bytes(&input::read_file(path, MAX_FILE).map_err(VocabError::File)?)
}

/// Makes the tokenizer section of the content of a vocabulary file, as [`load`] does.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(content: &[u8]) -> Result<Vec<u8>> {
    let content = input::without_byte_order_mark(content);
    match content.trim_ascii_start().first() {
        Some(b'{') => from_json(&hf_json::parse(content)?),
        _ if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") => {
            Err(VocabError::Unrecognised("the text is UTF-16; save it as UTF-8".into()))
        }
        Some(b'0'..=b'9') => {
            let text = str::from_utf8(content).map_err(|error| {
                let line = 1 + content[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                VocabError::Line { line, problem: "not UTF-8".into() }
            })?;
            Ok(compile::greedy(&world_file(text)?)?)
        }
        _ => Err(VocabError::Unrecognised(
            "neither a World vocabulary (lines `id literal length`, or JSON) nor a tokenizer.json of \
             byte-level BPE or words"
                .into(),
        )),
    }
}

fn from_json(root: &Value) -> Result<Vec<u8>> {
    Ok(match root {
        Value::Object(map) if id_map::is_id_map(map) => compile::greedy(&id_map::id_map(map)?)?,
        _ if hf_json::is_words(root) => compile::words(&hf_json::words(root)?)?,
        _ => compile::bpe(&hf_json::bpe(root)?)?,
    })
}

/// Whether a vocabulary of that many ids is part of this program.
pub fn has_builtin(n_vocab: usize) -> bool {
    matches!(n_vocab, 65_536 | 256)
}

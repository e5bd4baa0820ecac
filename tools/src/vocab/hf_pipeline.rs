//! The steps around the model of a tokenizer.json. Each step may stand alone or as the only one of
//! a `Sequence`.

use serde_json::Value;

use super::error::Result;
use super::hf_json::{is_off, name, unsupported};

/// The splitting pattern of GPT-2, in its two spellings.
const GPT2_PATTERNS: [&str; 2] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

/// Refuses steps that byte-level BPE here does not take; tells whether there is NFC.
pub(super) fn check_byte_level(root: &Value) -> Result<bool> {
    let nfc = match steps(&root["normalizer"], "normalizers")[..] {
        [] => false,
        [step] if step["type"] == "NFC" => true,
        [step, ..] => return Err(unsupported(format!("normalizer {}", name(&step["type"])))),
    };
    check_splitter(&root["pre_tokenizer"])?;
    match steps(&root["decoder"], "decoders")[..] {
        [step] if step["type"] == "ByteLevel" => {}
        _ => return Err(unsupported(format!("decoder {}", name(&root["decoder"]["type"])))),
    }
    match steps(&root["post_processor"], "processors")[..] {
        [] => {}
        [step] if step["type"] == "ByteLevel" => {}
        [step, ..] => return Err(unsupported(format!("post_processor {}", name(&step["type"])))),
    }
    Ok(nfc)
}

/// Text is split by the pattern of GPT-2: by ByteLevel itself, or by a step before.
fn check_splitter(splitter: &Value) -> Result<()> {
    let (split, bytes) = match steps(splitter, "pretokenizers")[..] {
        [bytes] => (None, bytes),
        [split, bytes] if split["type"] == "Split" => (Some(split), bytes),
        _ => return Err(unsupported(format!("pre_tokenizer {}", name(&splitter["type"])))),
    };
    if bytes["type"] != "ByteLevel" {
        return Err(unsupported(format!("pre_tokenizer {}", name(&bytes["type"]))));
    }
    if bytes["add_prefix_space"] != false {
        return Err(unsupported("add_prefix_space"));
    }
    match split {
        Some(split) if !is_gpt2(split) => Err(unsupported("pre_tokenizer Split with another pattern")),
        Some(_) if bytes["use_regex"] != false => {
            Err(unsupported("pre_tokenizer ByteLevel with a pattern after Split"))
        }
        None if bytes["use_regex"] == false => {
            Err(unsupported("pre_tokenizer ByteLevel without its pattern"))
        }
        _ => Ok(()),
    }
}

/// Whether a `Split` keeps the matches of the pattern, and the text between them, which there is
/// none of.
fn is_gpt2(split: &Value) -> bool {
    let pattern = split["pattern"]["Regex"].as_str();
    pattern.is_some_and(|pattern| GPT2_PATTERNS.contains(&pattern))
        && split["behavior"] == "Isolated"
        && is_off(&split["invert"])
}

/// Refuses steps that words here do not take; tells whether text becomes lower case.
pub(super) fn check_words(root: &Value) -> Result<bool> {
    let lowercase = match steps(&root["normalizer"], "normalizers")[..] {
        [] => false,
        [step] if step["type"] == "Lowercase" => true,
        [step, ..] => return Err(unsupported(format!("normalizer {}", name(&step["type"])))),
    };
    match steps(&root["pre_tokenizer"], "pretokenizers")[..] {
        [step] if step["type"] == "WhitespaceSplit" => {}
        _ => return Err(unsupported(format!("pre_tokenizer {}", name(&root["pre_tokenizer"]["type"])))),
    }
    for part in ["decoder", "post_processor"] {
        if !root[part].is_null() {
            return Err(unsupported(format!("{part} {}", name(&root[part]["type"]))));
        }
    }
    Ok(lowercase)
}

/// The steps of a part: those in the list `list` of a `Sequence`, itself, or none.
fn steps<'v>(part: &'v Value, list: &str) -> Vec<&'v Value> {
    match (part, part[list].as_array()) {
        (Value::Null, _) => Vec::new(),
        (_, Some(steps)) if part["type"] == "Sequence" => steps.iter().collect(),
        _ => vec![part],
    }
}

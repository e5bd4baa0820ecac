//! Hugging Face's tokenizer.json, as far as it is byte-level BPE or whole words.

use std::collections::{HashMap, HashSet};

use rwkv_edge::tokenizer::compile::{AddedToken, BpeSource, MAX_TOKENS, Merge, WordsSource};
use serde_json::{Map, Value};

use super::error::{Result, VocabError};
use super::hf_pipeline;

/// Most memory that the parsed text may take, in values of 32 bytes: 640 MB. A tokenizer of 250,000
/// tokens takes a sixth of it.
const MAX_COST: usize = 20 << 20;

/// Parses the JSON of a vocabulary.
///
/// # Errors
/// It is damaged, or has more values than a tokenizer may have.
pub(super) fn parse(json: &[u8]) -> Result<Value> {
    check_size(json)?;
    serde_json::from_slice(json).map_err(|error| VocabError::Json { error })
}

/// The byte-level BPE of a tokenizer.json.
///
/// # Errors
/// It asks for anything but: BPE over the byte-level alphabet; no normalisation or NFC; the
/// splitting pattern of GPT-2 without a blank in front of the text; no tokens put around the text;
/// added tokens that are cut out wherever they occur, without white space next to them.
pub(super) fn bpe(root: &Value) -> Result<BpeSource> {
    check_options(root)?;
    let nfc = hf_pipeline::check_byte_level(root)?;
    let model = &root["model"];
    check_model(model)?;
    let added = added_tokens(&root["added_tokens"])?;
    let ids = ids(vocabulary(model)?, &added)?;
    let tokens = tokens(&ids, &added)?;
    let merges = merges(&model["merges"], &ids)?;
    Ok(BpeSource { tokens, merges, added, nfc })
}

/// Whether a tokenizer.json takes whole words as tokens.
pub(super) fn is_words(root: &Value) -> bool {
    root["model"]["type"] == "WordLevel"
}

/// The words of a tokenizer.json, as the MIDI models have them.
///
/// # Errors
/// It asks for anything but: words between white space; no normalisation or lower case; added
/// tokens as for [`bpe`]; no decoder.
pub(super) fn words(root: &Value) -> Result<WordsSource> {
    check_options(root)?;
    let lowercase = hf_pipeline::check_words(root)?;
    let model = &root["model"];
    let added = added_tokens(&root["added_tokens"])?;
    let ids = ids(vocabulary(model)?, &added)?;
    let unknown = match &model["unk_token"] {
        Value::String(token) => {
            let id = ids.get(token.as_str()).copied();
            Some(id.ok_or_else(|| malformed(format!("unk_token {token:?} is not in the vocabulary")))?)
        }
        _ => None,
    };
    let mut words: Vec<_> = ids.into_iter().map(|(word, id)| (id, word.to_owned())).collect();
    words.sort_unstable();
    Ok(WordsSource { words, added, lowercase, unknown })
}

fn vocabulary(model: &Value) -> Result<&Map<String, Value>> {
    let vocab = object(&model["vocab"], "model.vocab")?;
    if vocab.len() > MAX_TOKENS {
        return Err(malformed(format!("it has {} tokens, the limit is {MAX_TOKENS}", vocab.len())));
    }
    Ok(vocab)
}

/// Refuses what would change the number of tokens of a text.
fn check_options(root: &Value) -> Result<()> {
    match ["truncation", "padding"].into_iter().find(|part| !is_off(&root[*part])) {
        None => Ok(()),
        Some(part) => Err(unsupported(part)),
    }
}

/// Refuses a text that would take far more memory than its own length once it is parsed.
fn check_size(json: &[u8]) -> Result<()> {
    let (mut cost, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            // An object has room for eleven members at once, a list for four values.
            b'{' => cost += 16,
            b'[' => cost += 4,
            b':' => cost += 3,
            b',' => cost += 1,
            _ => {}
        }
    }
    if cost > MAX_COST {
        return Err(malformed("it has more values than a tokenizer may have"));
    }
    Ok(())
}

/// Refuses models other than plain BPE.
fn check_model(model: &Value) -> Result<()> {
    let kind = &model["type"];
    if !(kind.is_null() && model["merges"].is_array()) && kind != "BPE" {
        return Err(unsupported(format!("model {}", name(kind))));
    }
    for option in [
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    ] {
        if !is_off(&model[option]) {
            return Err(unsupported(format!("BPE with {option}")));
        }
    }
    Ok(())
}

fn added_tokens(list: &Value) -> Result<Vec<AddedToken>> {
    let list = if list.is_null() { &[] } else { array(list, "added_tokens")?.as_slice() };
    let mut tokens = Vec::new();
    for entry in list {
        let content = entry["content"].as_str().ok_or_else(|| malformed("an added token without content"))?;
        for option in ["single_word", "lstrip", "rstrip"] {
            if !is_off(&entry[option]) {
                return Err(unsupported(format!("added token {content:?} with {option}")));
            }
        }
        let special = entry["special"] == true;
        tokens.push(AddedToken {
            id: id(&entry["id"], content)?,
            content: content.into(),
            special,
            // If absent, it depends on the other flag.
            normalized: entry["normalized"].as_bool().unwrap_or(!special),
        });
    }
    Ok(tokens)
}

fn ids<'v>(vocab: &'v Map<String, Value>, added: &[AddedToken]) -> Result<HashMap<&'v str, u32>> {
    let mut ids = HashMap::with_capacity(vocab.len());
    for (token, value) in vocab {
        ids.insert(token.as_str(), id(value, token)?);
    }
    match added.iter().find(|token| ids.get(token.content.as_str()).is_some_and(|id| *id != token.id)) {
        Some(token) => {
            Err(malformed(format!("added token {:?} has another id in the vocabulary", token.content)))
        }
        None => Ok(ids),
    }
}

/// The tokens as bytes, by rising id. Names of added tokens need not be of the byte-level alphabet.
fn tokens(ids: &HashMap<&str, u32>, added: &[AddedToken]) -> Result<Vec<(u32, Vec<u8>)>> {
    let alphabet = byte_alphabet();
    let added: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
    let mut tokens = Vec::new();
    for (&token, &id) in ids {
        let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
        match bytes {
            Some(bytes) => tokens.push((id, bytes)),
            None if added.contains(token) => {}
            None => {
                return Err(unsupported(format!(
                    "token {token:?}, which is not of the byte-level alphabet,"
                )));
            }
        }
    }
    tokens.sort_unstable();
    Ok(tokens)
}

/// Which byte each character of the byte-level alphabet stands for: printable bytes of Latin-1 for
/// themselves, the others in order for the characters from U+0100.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut others = '\u{100}'..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
            _ => (others.next().unwrap_or_default(), byte),
        })
        .collect()
}

/// Merges are written `"left right"` or `["left", "right"]`. Of several with the same sides the
/// last one counts, with its rank: Hugging Face's `tokenizers` collects them into a map from the
/// sides (`BpeBuilder::build`).
fn merges(list: &Value, ids: &HashMap<&str, u32>) -> Result<Vec<Merge>> {
    let mut merges = Vec::new();
    for (rank, entry) in array(list, "model.merges")?.iter().enumerate() {
        let sides = match entry {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        };
        let (left, right) = sides.ok_or_else(|| malformed(format!("merge {rank} is not two tokens")))?;
        let id = |token: &str| {
            let id = ids.get(token).copied();
            id.ok_or_else(|| malformed(format!("merge {rank}: {token:?} is not in the vocabulary")))
        };
        merges.push(Merge { left: id(left)?, right: id(right)?, merged: id(&format!("{left}{right}"))? });
    }
    let mut sides = HashSet::with_capacity(merges.len());
    merges.reverse();
    merges.retain(|merge| sides.insert((merge.left, merge.right)));
    merges.reverse();
    Ok(merges)
}

/// Null, absent, false, zero or empty.
pub(super) fn is_off(value: &Value) -> bool {
    value.is_null() || value == false || value == "" || value.as_f64() == Some(0.0)
}

fn id(value: &Value, token: &str) -> Result<u32> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| malformed(format!("token {token:?} has no id")))
}

pub(super) fn name(kind: &Value) -> &str {
    kind.as_str().unwrap_or("without a type")
}

fn array<'v>(value: &'v Value, what: &str) -> Result<&'v Vec<Value>> {
    value.as_array().ok_or_else(|| malformed(format!("{what} is not a list")))
}

fn object<'v>(value: &'v Value, what: &str) -> Result<&'v Map<String, Value>> {
    value.as_object().ok_or_else(|| malformed(format!("{what} is not an object")))
}

fn malformed(what: impl Into<String>) -> VocabError {
    VocabError::Malformed(what.into())
}

pub(super) fn unsupported(what: impl Into<String>) -> VocabError {
    VocabError::Unsupported(what.into())
}

//! The vocabulary of web-rwkv: a JSON object from ids to tokens.

use serde_json::{Map, Value};

use super::error::{Result, VocabError};

/// Whether all keys of an object are ids, as in no tokenizer.json.
pub(super) fn is_id_map(root: &Map<String, Value>) -> bool {
    !root.is_empty() && root.keys().all(|key| key.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Ids and bytes of the tokens. A token is a text, or a list of bytes. Id 0 is the end of a
/// document, whatever its text.
///
/// # Errors
/// A key is too large for an id, or a value is neither a text nor a list of bytes.
pub(super) fn id_map(root: &Map<String, Value>) -> Result<Vec<(u32, Vec<u8>)>> {
    let mut tokens = Vec::with_capacity(root.len());
    for (key, value) in root {
        let error = |what: &str| VocabError::Unrecognised(format!("token {key}: {what}"));
        let id: u32 = key.parse().map_err(|_| error("its id is too large"))?;
        let bytes = match value {
            Value::String(text) => Some(text.clone().into_bytes()),
            Value::Array(list) => list.iter().map(byte).collect(),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| error("expected a text or a list of bytes"))?;
        if id != 0 {
            tokens.push((id, bytes));
        }
    }
    Ok(tokens)
}

fn byte(value: &Value) -> Option<u8> {
    value.as_u64().and_then(|byte| u8::try_from(byte).ok())
}

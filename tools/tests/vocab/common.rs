//! Text to tokens and back, by a compiled vocabulary.

use rwkv_edge::Tokenizer;

pub(crate) fn encode(tokenizer: Tokenizer<'_>, text: impl AsRef<[u8]>) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text.as_ref(), &mut ids).unwrap();
    ids
}

pub(crate) fn decode(tokenizer: Tokenizer<'_>, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| tokenizer.token(*id)).copied().collect()
}

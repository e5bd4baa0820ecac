//! The vocabulary in a GGUF file.

use super::super::error::SourceError;
use super::super::file::Source;
use super::bytes::Bytes;
use super::metadata::{I32, List, Metadata, TEXT};

/// Longest text of a token: 1024 bytes, each of which may be an escape of four characters.
const MAX_TEXT: usize = 4096;

/// Most bytes of all texts together; those of 65,536 tokens have 1 MB.
const MAX_TEXTS: usize = 64 << 20;

/// Most tokens.
const MAX_TOKENS: u64 = 1 << 20;

/// Longest name of a tokenizer.
const MAX_NAME: usize = 256;

/// A vocabulary of a checkpoint, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Name of the tokenizer: `rwkv` for vocabularies of the World kind.
    pub tokenizer: String,
    /// The tokens, by their ids.
    pub tokens: Vec<StoredToken>,
}

/// A token of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What stands between the quotes of a Python bytes literal, in vocabularies of the World kind.
    pub text: String,
    /// Its kind, if the file has kinds: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6
    /// byte.
    pub kind: Option<i32>,
}

/// Where a vocabulary is in its file.
#[derive(Debug, Clone)]
pub(in crate::source) struct VocabularyPlace {
    tokenizer: String,
    tokens: List,
    kinds: Option<List>,
}

impl VocabularyPlace {
    /// The place of the vocabulary that the metadata have.
    pub(super) fn of(source: &Source, metadata: &Metadata<'_>) -> Result<Option<Self>, SourceError> {
        let Some(tokenizer) = metadata.text("tokenizer.ggml.model", MAX_NAME)? else { return Ok(None) };
        let Some(tokens) = metadata.list("tokenizer.ggml.tokens", TEXT, "a list of texts")? else {
            return Ok(None);
        };
        let kinds = metadata.list("tokenizer.ggml.token_type", I32, "a list of 32-bit integers")?;
        if tokens.len > MAX_TOKENS {
            return Err(source.malformed(format!("{} tokens, the limit is {MAX_TOKENS}", tokens.len)));
        }
        if let Some(kinds) = kinds
            && kinds.len != tokens.len
        {
            return Err(
                source.malformed(format!("{} kinds of {} tokens in its vocabulary", kinds.len, tokens.len))
            );
        }
        Ok(Some(Self { tokenizer, tokens, kinds }))
    }

    /// Reads the vocabulary from the file that has the metadata.
    pub(in crate::source) fn read(&self, source: &Source) -> Result<Vocabulary, SourceError> {
        let mut texts = Bytes::new(source, self.tokens.at);
        let mut kinds = self.kinds.map(|kinds| Bytes::new(source, kinds.at));
        let (mut tokens, mut total) = (Vec::new(), 0);
        for _ in 0..self.tokens.len {
            let text = texts.text(MAX_TEXT, "a token")?;
            total += text.len();
            if total > MAX_TEXTS {
                return Err(source.malformed(format!("a vocabulary of more than {MAX_TEXTS} bytes")));
            }
            let kind = kinds.as_mut().map(|kinds| kinds.array().map(i32::from_le_bytes)).transpose()?;
            tokens.push(StoredToken { text, kind });
        }
        Ok(Vocabulary { tokenizer: self.tokenizer.clone(), tokens })
    }
}

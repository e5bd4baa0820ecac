//! Whole words between white space, as in Hugging Face's `tokenizers` for the MIDI models.

use super::bpe::{Piece, split};
use super::no_token;
use super::section::{MAX_TOKEN_LEN, NONE, Reader, malformed, unsupported};
use super::trie::Trie;
use crate::error::{Error, Result};

/// Flag: text becomes lower case.
pub(super) const FLAG_LOWERCASE: u32 = 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    lowercase: bool,
    /// The token of words that are none; without it they are an error.
    unknown: Option<u32>,
    /// Tokens that are searched in the original text.
    added: Trie<'a>,
    /// Tokens that are searched in the text in lower case.
    added_normalized: Trie<'a>,
    words: Trie<'a>,
}

impl<'a> Words<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, n_tokens: usize) -> Result<Self> {
        let flags = reader.u32()?;
        if flags & !FLAG_LOWERCASE != 0 {
            return Err(unsupported(format!("tokenizer flags {flags:#x}")));
        }
        let unknown = Some(reader.u32()?).filter(|id| *id != NONE);
        if unknown.is_some_and(|id| id as usize >= n_tokens) {
            return Err(malformed("the unknown token is outside the vocabulary"));
        }
        let mut trie = || Trie::read(reader, n_tokens, MAX_TOKEN_LEN);
        let [added, added_normalized, words] = [trie()?, trie()?, trie()?];
        Ok(Self { lowercase: flags & FLAG_LOWERCASE != 0, unknown, added, added_normalized, words })
    }

    pub(super) fn encode(&self, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        let text = str::from_utf8(text).map_err(|error| {
            let offset = error.valid_up_to();
            no_token(text.get(offset).copied().unwrap_or_default(), offset)
        })?;
        let mut result = Ok(());
        split(&self.added, text, |piece| match piece {
            Piece::Token(id) => out.push(id),
            Piece::Text(text) if result.is_err() || text.is_empty() => {}
            Piece::Text(text) if self.lowercase => {
                let text: String = text.chars().flat_map(char::to_lowercase).collect();
                result = self.normalized(&text, out);
            }
            Piece::Text(text) => result = self.normalized(text, out),
        });
        result
    }

    fn normalized(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut result = Ok(());
        split(&self.added_normalized, text, |piece| match piece {
            Piece::Token(id) => out.push(id),
            Piece::Text(text) => {
                for word in text.split_whitespace() {
                    match self.word(word) {
                        Some(id) => out.push(id),
                        None => result = Err(Error::invalid(format!("no token for the word {word:?}"))),
                    }
                }
            }
        });
        result
    }

    fn word(&self, word: &str) -> Option<u32> {
        let found = self.words.longest_match(word.as_bytes());
        found.filter(|(_, len)| *len == word.len()).map(|(id, _)| id).or(self.unknown)
    }
}

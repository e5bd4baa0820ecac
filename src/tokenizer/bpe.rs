//! Byte-level byte pair encoding, as in Hugging Face's `tokenizers` for GPT-NeoX 20B.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::merge::{Merges, Scratch};
use super::section::{MAX_TOKEN_LEN, NONE, Reader, U32s, malformed, unsupported};
use super::trie::Trie;
use super::{no_token, pattern};
use crate::error::{Error, Result};

/// Flag: text is converted to normalisation form C.
pub(super) const FLAG_NFC: u32 = 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bpe<'a> {
    nfc: bool,
    /// `[256]`: the token of each byte, or `NONE`.
    byte_token: U32s<'a>,
    merges: Merges<'a>,
    /// Tokens that are searched in the original text.
    added: Trie<'a>,
    /// Tokens that are searched in the normalised text.
    added_normalized: Trie<'a>,
}

impl<'a> Bpe<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, n_tokens: usize) -> Result<Self> {
        let flags = reader.u32()?;
        if flags & !FLAG_NFC != 0 {
            return Err(unsupported(format!("tokenizer flags {flags:#x}")));
        }
        let byte_token = reader.u32s(256)?;
        for (byte, id) in (0..=255).zip(byte_token.iter()) {
            if id == NONE && is_in_utf8(byte) || id != NONE && id as usize >= n_tokens {
                return Err(malformed("a byte has no token, or one outside the vocabulary"));
            }
        }
        Ok(Self {
            nfc: flags & FLAG_NFC != 0,
            byte_token,
            merges: Merges::read(reader, n_tokens)?,
            added: Trie::read(reader, n_tokens, MAX_TOKEN_LEN)?,
            added_normalized: Trie::read(reader, n_tokens, MAX_TOKEN_LEN)?,
        })
    }

    pub(super) fn encode(&self, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::invalid("text of more than 4 GiB"));
        }
        let mut encoder = Encoder { bpe: self, word: Vec::new(), scratch: Scratch::default(), out };
        let mut offset = 0;
        for chunk in text.utf8_chunks() {
            encoder.text(chunk.valid());
            offset += chunk.valid().len();
            for &byte in chunk.invalid() {
                encoder.out.push(self.token_of(byte).ok_or_else(|| no_token(byte, offset))?);
                offset += 1;
            }
        }
        Ok(())
    }

    fn token_of(&self, byte: u8) -> Option<u32> {
        self.byte_token.get(byte.into()).filter(|id| *id != NONE)
    }

    #[cfg(test)]
    pub(super) fn merges(&self) -> &Merges<'a> {
        &self.merges
    }
}

/// Whether a byte occurs in UTF-8.
pub(super) fn is_in_utf8(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff)
}

/// One call of [`Bpe::encode`].
struct Encoder<'b, 'a, 'o> {
    bpe: &'b Bpe<'a>,
    word: Vec<u32>,
    scratch: Scratch,
    out: &'o mut Vec<u32>,
}

impl Encoder<'_, '_, '_> {
    fn text(&mut self, text: &str) {
        let Bpe { nfc, added, .. } = self.bpe;
        split(added, text, |piece| match piece {
            Piece::Token(id) => self.out.push(id),
            Piece::Text(text) if *nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes => {
                self.normalized(&text.nfc().collect::<String>());
            }
            Piece::Text(text) => self.normalized(text),
        });
    }

    fn normalized(&mut self, text: &str) {
        let added = &self.bpe.added_normalized;
        split(added, text, |piece| match piece {
            Piece::Token(id) => self.out.push(id),
            Piece::Text(text) => self.words(text),
        });
    }

    fn words(&mut self, mut text: &str) {
        while !text.is_empty() {
            let (word, rest) = text.split_at(pattern::word_len(text));
            self.word.clear();
            // Text has only bytes of UTF-8, and all of these have tokens.
            self.word.extend(word.bytes().filter_map(|byte| self.bpe.token_of(byte)));
            self.bpe.merges.encode(&self.word, &mut self.scratch, self.out);
            text = rest;
        }
    }
}

pub(super) enum Piece<'t> {
    Token(u32),
    Text(&'t str),
}

/// Cuts `text` at the tokens of a trie, from left to right. The longest matching token wins.
///
/// Tokens are whole characters, so matches begin and end at characters.
pub(super) fn split<'t>(tokens: &Trie<'_>, text: &'t str, mut emit: impl FnMut(Piece<'t>)) {
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        let Some((id, len)) = tokens.longest_match(&text.as_bytes()[at..]) else {
            at += 1;
            continue;
        };
        let Some(before) = text.get(start..at).filter(|_| text.is_char_boundary(at + len)) else {
            at += 1;
            continue;
        };
        if !before.is_empty() {
            emit(Piece::Text(before));
        }
        emit(Piece::Token(id));
        at += len;
        start = at;
    }
    if start < text.len() {
        emit(Piece::Text(&text[start..]));
    }
}

//! Tokenizers, used in place from the TOKN section of a model file.
//!
//! `docs/TOKENIZER.md` defines the section and the encoding of each kind. A section is untrusted:
//! [`Tokenizer::parse`] checks every offset and index once. Later accesses are bounds-checked too.

mod bpe;
pub mod compile;
mod merge;
mod pattern;
mod section;
mod trie;
mod words;

use crate::error::{Error, Result};
use bpe::Bpe;
use section::{DecodeTable, Reader};
use trie::Trie;
use words::Words;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every byte is a token. Its id is the value of the byte.
    Bytes,
    /// The longest matching token, over bytes, from left to right: RWKV World.
    Greedy,
    /// Byte-level byte pair encoding: GPT-NeoX 20B.
    Bpe,
    /// Whole words between white space: MIDI models.
    Words,
}

/// A tokenizer: a view into its section, cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'a> {
    rules: Rules<'a>,
    n_tokens: usize,
    max_token_len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rules<'a> {
    Bytes,
    Greedy(DecodeTable<'a>, Trie<'a>),
    Bpe(DecodeTable<'a>, Bpe<'a>),
    Words(DecodeTable<'a>, Words<'a>),
}

impl<'a> Tokenizer<'a> {
    /// Reads a section at any alignment. Scans the whole section once and allocates nothing.
    ///
    /// # Errors
    /// The section is damaged, or its kind is unknown to this program.
    pub fn parse(section: &'a [u8]) -> Result<Self> {
        Self::read(Reader::new(section))
    }

    /// Reads a section that [`parse`](Self::parse) has accepted, in constant time.
    ///
    /// # Panics
    /// If `parse` has not accepted the section.
    pub(crate) fn of_checked(section: &'a [u8]) -> Self {
        Self::read(Reader::of_checked(section)).expect("a section that was checked")
    }

    fn read(mut reader: Reader<'a>) -> Result<Self> {
        let header = reader.header()?;
        let (n_tokens, max_token_len) = (header.n_tokens, header.max_token_len);
        let rules = match header.kind {
            section::KIND_BYTES if n_tokens == 256 && max_token_len == 1 => Rules::Bytes,
            section::KIND_BYTES => {
                return Err(Error::malformed("tokenizer: a byte vocabulary has 256 tokens"));
            }
            section::KIND_GREEDY => {
                let table = DecodeTable::read(&mut reader, n_tokens, max_token_len)?;
                Rules::Greedy(table, Trie::read(&mut reader, n_tokens, max_token_len)?)
            }
            section::KIND_BPE => {
                let table = DecodeTable::read(&mut reader, n_tokens, max_token_len)?;
                Rules::Bpe(table, Bpe::read(&mut reader, n_tokens)?)
            }
            section::KIND_WORDS => {
                let table = DecodeTable::read(&mut reader, n_tokens, max_token_len)?;
                Rules::Words(table, Words::read(&mut reader, n_tokens)?)
            }
            kind => return Err(section::unsupported(format!("tokenizer kind {kind}"))),
        };
        reader.finish()?;
        Ok(Self { rules, n_tokens, max_token_len })
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self.rules {
            Rules::Bytes => Kind::Bytes,
            Rules::Greedy(..) => Kind::Greedy,
            Rules::Bpe(..) => Kind::Bpe,
            Rules::Words(..) => Kind::Words,
        }
    }

    /// Highest id + 1. A model may have more logits.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The largest number of bytes that [`Self::token`] returns.
    pub fn max_token_len(&self) -> usize {
        self.max_token_len
    }

    /// Appends the ids of `text` to `out`.
    ///
    /// Bytes and Greedy use no memory besides `out`. Bpe needs up to 64 bytes per byte of the
    /// longest word, and copies text that is not in normalisation form C. Words copies text that
    /// becomes lower case.
    ///
    /// # Errors
    /// A byte of `text` is in no token. The message gives its offset, and `out` is then unchanged.
    /// With Words: a word is no token, and there is none for unknown words.
    /// Vocabularies with all 256 bytes, such as World, take any text. The 20B vocabulary has the
    /// 243 bytes of UTF-8.
    pub fn encode(&self, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        let start = out.len();
        let result = match &self.rules {
            Rules::Bytes => {
                out.extend(text.iter().map(|&byte| u32::from(byte)));
                Ok(())
            }
            Rules::Greedy(_, trie) => encode_greedy(trie, text, out),
            Rules::Bpe(_, bpe) => bpe.encode(text, out),
            Rules::Words(_, words) => words.encode(text, out),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// The bytes of a token. They may end inside a character. Empty for ids outside the vocabulary
    /// and for control tokens such as the end of a document.
    pub fn token(&self, id: u32) -> &'a [u8] {
        match &self.rules {
            Rules::Bytes => ALL_BYTES.get(id as usize).map_or(&[], std::slice::from_ref),
            Rules::Greedy(table, _) | Rules::Bpe(table, _) | Rules::Words(table, _) => table.get(id),
        }
    }
}

static ALL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

fn encode_greedy(trie: &Trie<'_>, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let Some((id, len)) = trie.longest_match(rest) else {
            return Err(no_token(rest[0], text.len() - rest.len()));
        };
        out.push(id);
        rest = &rest[len..];
    }
    Ok(())
}

/// The minor version of the file format that has the kind of `section`.
pub(crate) fn minor_version(section: &[u8]) -> u16 {
    let kind = section.get(section::MAGIC.len()..).and_then(<[u8]>::first_chunk);
    u16::from(kind.is_some_and(|kind| u32::from_le_bytes(*kind) == section::KIND_WORDS))
}

/// The error of [`Tokenizer::encode`].
fn no_token(byte: u8, offset: usize) -> Error {
    Error::invalid(format!("no token for byte {byte:#04x} at offset {offset} of the text"))
}

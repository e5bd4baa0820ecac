//! The bytes of a tokenizer section: header, arrays, decode table. `docs/TOKENIZER.md` describes
//! them.

use crate::error::{Error, ErrorKind, Result};

pub(super) const MAGIC: [u8; 4] = *b"RWTK";
pub(super) const KIND_BYTES: u32 = 0;
pub(super) const KIND_GREEDY: u32 = 1;
pub(super) const KIND_BPE: u32 = 2;
pub(super) const KIND_WORDS: u32 = 3;

/// In arrays of ids: no token.
pub(super) const NONE: u32 = u32::MAX;

/// Ids are below this number.
pub const MAX_TOKENS: usize = 1 << 20;

/// Most nodes of a trie.
pub(super) const MAX_NODES: usize = 1 << 24;

/// Longest token in bytes. It bounds the work of a longest match.
pub(super) const MAX_TOKEN_LEN: usize = 1024;

/// The first 16 bytes of a section.
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) n_tokens: usize,
    pub(super) max_token_len: usize,
}

/// An array of little-endian u32, of any alignment.
#[derive(Clone, Copy, Debug)]
pub(super) struct U32s<'a>(&'a [[u8; 4]]);

impl<'a> U32s<'a> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    pub(super) fn get(&self, i: usize) -> Option<u32> {
        self.0.get(i).map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Elements `i` and `i + 1`.
    #[inline]
    pub(super) fn pair(&self, i: usize) -> Option<(usize, usize)> {
        let pair = self.0.get(i..)?.first_chunk::<2>()?;
        Some((u32::from_le_bytes(pair[0]) as usize, u32::from_le_bytes(pair[1]) as usize))
    }

    #[inline]
    pub(super) fn slice(&self, from: usize, to: usize) -> Option<U32s<'a>> {
        self.0.get(from..to).map(U32s)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Index of `value` in a rising array.
    #[inline]
    pub(super) fn find(&self, value: u32) -> Option<usize> {
        self.0.binary_search_by_key(&value, |bytes| u32::from_le_bytes(*bytes)).ok()
    }

    /// Whether the elements never fall and go from 0 to `last`.
    pub(super) fn are_offsets_to(&self, last: usize) -> bool {
        let ends = (self.get(0), self.len().checked_sub(1).and_then(|i| self.get(i)));
        ends == (Some(0), u32::try_from(last).ok()) && self.iter().is_sorted()
    }
}

/// Takes the parts of a section in order.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Whether the contents of the parts are checked too, not only their positions.
    checks: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(section: &'a [u8]) -> Self {
        Self { rest: section, checks: true }
    }

    /// A reader of a section whose contents have been checked.
    pub(super) fn of_checked(section: &'a [u8]) -> Self {
        Self { rest: section, checks: false }
    }

    pub(super) fn checks(&self) -> bool {
        self.checks
    }

    pub(super) fn header(&mut self) -> Result<Header> {
        if self.bytes(4)? != MAGIC {
            return Err(malformed("does not begin with RWTK"));
        }
        let header = Header { kind: self.u32()?, n_tokens: self.len()?, max_token_len: self.len()? };
        if header.n_tokens > MAX_TOKENS || header.max_token_len > MAX_TOKEN_LEN {
            return Err(malformed("too many or too long tokens"));
        }
        Ok(header)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(self.u32s(1)?.get(0).unwrap_or_default())
    }

    /// A u32 that is a number of items.
    pub(super) fn len(&mut self) -> Result<usize> {
        Ok(self.u32()? as usize)
    }

    pub(super) fn u32s(&mut self, n: usize) -> Result<U32s<'a>> {
        let n_bytes = n.checked_mul(4).ok_or_else(cut_off)?;
        Ok(U32s(self.take(n_bytes)?.as_chunks().0))
    }

    /// `n` bytes; skips the zeros that follow up to a multiple of 4.
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let bytes = self.take(n)?;
        let padding = self.take(n.wrapping_neg() % 4)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(malformed("padding is not zero"));
        }
        Ok(bytes)
    }

    pub(super) fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(malformed("bytes after the last part")) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// The bytes of every token.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeTable<'a> {
    offsets: U32s<'a>,
    blob: &'a [u8],
}

impl<'a> DecodeTable<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, n_tokens: usize, max_token_len: usize) -> Result<Self> {
        let blob_len = reader.len()?;
        let offsets = reader.u32s(n_tokens + 1)?;
        let blob = reader.bytes(blob_len)?;
        if !reader.checks() {
            return Ok(Self { offsets, blob });
        }
        if !offsets.are_offsets_to(blob_len) {
            return Err(malformed("decode table: offsets do not rise from 0 to the end of the bytes"));
        }
        let lens = offsets.iter().skip(1).zip(offsets.iter()).map(|(end, start)| (end - start) as usize);
        if lens.max().unwrap_or(0) != max_token_len {
            return Err(malformed("decode table: the longest token is not as long as the header says"));
        }
        Ok(Self { offsets, blob })
    }

    pub(super) fn get(&self, id: u32) -> &'a [u8] {
        let range = self.offsets.pair(id as usize);
        range.and_then(|(start, end)| self.blob.get(start..end)).unwrap_or_default()
    }
}

pub(super) fn malformed(what: &str) -> Error {
    Error::malformed(format!("tokenizer: {what}"))
}

pub(super) fn unsupported(what: String) -> Error {
    ErrorKind::Unsupported(what).into()
}

fn cut_off() -> Error {
    malformed("cut off")
}

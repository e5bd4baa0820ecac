//! The front of a GGUF file, read from beginning to end through one small buffer.

use super::super::error::SourceError;
use super::super::file::Source;

/// Bytes read at once.
const BLOCK: usize = 64 * 1024;

/// Reads numbers and texts one after the other. Every length is compared with the bytes that there
/// are before anything is allocated.
pub(super) struct Bytes<'a> {
    source: &'a Source,
    /// The next byte.
    at: u64,
    buffer: Vec<u8>,
    /// Where the buffer's first byte is in the file.
    buffer_at: u64,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(source: &'a Source, at: u64) -> Self {
        Self { source, at, buffer: Vec::new(), buffer_at: 0 }
    }

    /// The place of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Leaves out bytes, which must be in the file.
    pub(super) fn skip(&mut self, len: u64) -> Result<(), SourceError> {
        self.at = self.end(Some(len))?;
        Ok(())
    }

    /// Leaves out `count` elements of `size` bytes.
    pub(super) fn skip_many(&mut self, count: u64, size: u64) -> Result<(), SourceError> {
        self.at = self.end(count.checked_mul(size))?;
        Ok(())
    }

    /// Where so many bytes end; `None` are more than any file has.
    fn end(&self, len: Option<u64>) -> Result<u64, SourceError> {
        let end = len.and_then(|len| self.at.checked_add(len)).filter(|&end| end <= self.source.len());
        end.ok_or_else(|| match len {
            Some(len) => {
                let end = self.at.saturating_add(len);
                self.source.malformed(format!("it ends before byte {end}, inside the header"))
            }
            None => self.source.malformed(format!("a list without end at byte {}", self.at)),
        })
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), SourceError> {
        let end = self.end(Some(out.len() as u64))?;
        while !out.is_empty() {
            let here = self.at.checked_sub(self.buffer_at).and_then(|from| usize::try_from(from).ok());
            let Some(buffered @ [_, ..]) = here.and_then(|from| self.buffer.get(from..)) else {
                self.buffer.resize(BLOCK.min((self.source.len() - self.at) as usize), 0);
                self.buffer_at = self.at;
                self.source.read_at(&mut self.buffer, self.at)?;
                continue;
            };
            let len = buffered.len().min(out.len());
            let (part, rest) = out.split_at_mut(len);
            part.copy_from_slice(&buffered[..len]);
            self.at += len as u64;
            out = rest;
        }
        debug_assert_eq!(self.at, end);
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SourceError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, SourceError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, SourceError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text of at most `limit` bytes; `what` names it in errors.
    pub(super) fn text(&mut self, limit: usize, what: &str) -> Result<String, SourceError> {
        let (at, len) = (self.at, self.u64()?);
        if len > limit as u64 {
            return Err(self.source.malformed(format!("{what} of {len} bytes at byte {at}")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| self.source.malformed(format!("{what} that is not UTF-8 at byte {at}")))
    }
}

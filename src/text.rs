//! Text output: whole characters out of a stream of token bytes, and stop texts.

use std::io;

use crate::error::{Error, Result};

/// Whether the text goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No stop text has been completed.
    Running,
    /// A stop text was completed. Everything before it has been passed on; nothing more will be.
    Stopped,
}

/// Turns the bytes of successive tokens into text, and watches for stop texts.
///
/// A token may end inside a character. The stream passes on whole characters only. Bytes that are
/// not UTF-8 become U+FFFD exactly as [`String::from_utf8_lossy`] does over the whole stream,
/// however the bytes are split.
///
/// The stream searches stop texts in the decoded text, so they match across token borders and
/// inside tokens. It holds back text that could be the beginning of a stop text. The stop text
/// whose last byte comes first wins; of those that end at the same byte, the longest. The stream
/// never passes on the stop text itself.
///
/// After construction nothing is allocated.
#[derive(Clone, Debug)]
pub struct TextStream {
    stops: Vec<Matcher>,
    /// Decoded text that is not passed on yet: the beginning of a stop text, shorter than the
    /// longest one.
    held: String,
    /// First bytes of a character that is not complete.
    partial: [u8; 4],
    n_partial: usize,
    stopped_by: Option<usize>,
}

impl TextStream {
    /// A stream that ends at any of `stop_texts`.
    ///
    /// # Errors
    /// A stop text is empty.
    pub fn new<S: AsRef<str>>(stop_texts: &[S]) -> Result<Self> {
        let stops = stop_texts.iter().map(|s| Matcher::new(s.as_ref())).collect::<Result<Vec<_>>>()?;
        let longest = stops.iter().map(|s| s.text.len()).max().unwrap_or(0);
        Ok(Self {
            stops,
            held: String::with_capacity(longest),
            partial: [0; 4],
            n_partial: 0,
            stopped_by: None,
        })
    }

    /// Takes the bytes of one token (or any other piece). Passes on the text that is certain, in
    /// calls of `sink` with non-empty text.
    ///
    /// After [`Status::Stopped`] the stream ignores bytes until [`Self::reset`].
    ///
    /// # Errors
    /// Those of `sink`. The text it refused is lost.
    pub fn push(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<Status> {
        let rest = self.complete_partial(bytes, sink)?;
        let mut chunks = rest.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text(chunk.valid(), sink)?;
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_incomplete(invalid) {
                self.partial[..invalid.len()].copy_from_slice(invalid);
                self.n_partial = invalid.len();
            } else if !invalid.is_empty() {
                self.text(REPLACEMENT, sink)?;
            }
        }
        Ok(self.status())
    }

    /// As [`push`](Self::push), and appends the text to `out`.
    pub fn push_to(&mut self, bytes: &[u8], out: &mut String) -> Status {
        let _ = self.push(bytes, &mut appending(out));
        self.status()
    }

    /// As [`finish`](Self::finish), and appends the text to `out`.
    pub fn finish_to(&mut self, out: &mut String) -> Status {
        let status = self.status();
        let _ = self.finish(&mut appending(out));
        status
    }

    /// Whether all bytes so far have been passed on: no text is held back, and the text goes on.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.n_partial == 0 && self.stopped_by.is_none()
    }

    /// The bytes that the stream holds back: the beginning of a stop text, and that of a character.
    /// A new stream of the same stop texts that takes them first goes on as this one.
    pub fn held(&self) -> Vec<u8> {
        match self.status() {
            Status::Running => [self.held.as_bytes(), &self.partial[..self.n_partial]].concat(),
            Status::Stopped => Vec::new(),
        }
    }

    /// Most bytes of text that the stream holds back.
    pub(crate) fn most_held(&self) -> usize {
        self.held.capacity()
    }

    /// Ends the text: passes on the text that was held back. The stream is then ready for another
    /// text.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(&mut self, sink: &mut impl FnMut(&str) -> io::Result<()>) -> io::Result<Status> {
        if self.n_partial > 0 {
            self.n_partial = 0;
            self.text(REPLACEMENT, sink)?;
        }
        let status = self.status();
        if status == Status::Running && !self.held.is_empty() {
            sink(&self.held)?;
        }
        self.reset();
        Ok(status)
    }

    /// Forgets everything but the stop texts.
    pub fn reset(&mut self) {
        self.held.clear();
        self.n_partial = 0;
        self.stopped_by = None;
        for stop in &mut self.stops {
            stop.matched = 0;
        }
    }

    /// Index of the stop text that ended the stream.
    pub fn stopped_by(&self) -> Option<usize> {
        self.stopped_by
    }

    fn status(&self) -> Status {
        if self.stopped_by.is_some() { Status::Stopped } else { Status::Running }
    }

    /// Adds bytes to an unfinished character until it is whole or broken; returns the unused bytes.
    fn complete_partial<'b>(
        &mut self,
        mut bytes: &'b [u8],
        sink: &mut impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<&'b [u8]> {
        while self.n_partial > 0 {
            let Some((&first, rest)) = bytes.split_first() else { break };
            let mut character = self.partial;
            character[self.n_partial] = first;
            let candidate = &character[..self.n_partial + 1];
            if let Ok(text) = std::str::from_utf8(candidate) {
                self.n_partial = 0;
                bytes = rest;
                self.text(text, sink)?;
            } else if is_incomplete(candidate) {
                self.n_partial += 1;
                self.partial = character;
                bytes = rest;
            } else {
                // The new byte is not part of the broken character and is looked at again.
                self.n_partial = 0;
                self.text(REPLACEMENT, sink)?;
            }
        }
        Ok(bytes)
    }

    /// Advances the matchers over `text` and passes on what cannot belong to a stop text.
    fn text(&mut self, text: &str, sink: &mut impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
        if self.stopped_by.is_some() || text.is_empty() {
            return Ok(());
        }
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            for stop in &mut self.stops {
                stop.advance(byte);
            }
            if let Some(found) = self.completed() {
                self.stopped_by = Some(found);
                let end = self.held.len() + i + 1;
                return self.release(text, end - self.stops[found].text.len(), sink);
            }
        }
        let hold = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        self.release(text, self.held.len() + text.len() - hold, sink)
    }

    /// The longest stop text that ends at the last byte.
    fn completed(&self) -> Option<usize> {
        let complete = self.stops.iter().enumerate().filter(|(_, s)| s.matched == s.text.len());
        complete.max_by_key(|(i, s)| (s.text.len(), std::cmp::Reverse(*i))).map(|(i, _)| i)
    }

    /// Passes on the first `n` bytes of the held text followed by `text`. Holds the rest, unless
    /// the stream has stopped.
    ///
    /// `n` is at a character border: it is the end of `text`, or a place where a stop text begins
    /// or could begin.
    fn release(
        &mut self,
        text: &str,
        n: usize,
        sink: &mut impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<()> {
        let from_held = n.min(self.held.len());
        let (now, later) = text.split_at(n - from_held);
        let result = [&self.held[..from_held], now].into_iter().filter(|s| !s.is_empty()).try_for_each(sink);
        self.held.drain(..from_held);
        if self.stopped_by.is_none() {
            self.held.push_str(later);
        }
        result
    }
}

/// A sink that cannot fail.
fn appending(out: &mut String) -> impl FnMut(&str) -> io::Result<()> + '_ {
    |text| {
        out.push_str(text);
        Ok(())
    }
}

/// Replaces bytes that are not UTF-8.
const REPLACEMENT: &str = "\u{FFFD}";

/// Whether `bytes` is an incomplete character, as opposed to a broken one.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

/// One stop text, with the automaton of Knuth, Morris and Pratt.
#[derive(Clone, Debug)]
struct Matcher {
    text: Box<[u8]>,
    /// `fallback[n]`: the longest proper prefix of the first `n` bytes that is also their suffix.
    fallback: Box<[usize]>,
    /// Bytes of `text` that the stream currently ends with.
    matched: usize,
}

impl Matcher {
    fn new(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("a stop text is empty"));
        }
        let text: Box<[u8]> = text.as_bytes().into();
        let mut fallback = vec![0; text.len() + 1].into_boxed_slice();
        let mut n = 0;
        for end in 1..text.len() {
            while n > 0 && text[n] != text[end] {
                n = fallback[n];
            }
            n += usize::from(text[n] == text[end]);
            fallback[end + 1] = n;
        }
        Ok(Self { text, fallback, matched: 0 })
    }

    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
    }
}

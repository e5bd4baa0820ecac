//! Deflated zip entries, read at any place.
//!
//! The first read unpacks an entry once from beginning to end, compares its checksum, and keeps the
//! decoder's state at a few hundred places. Any block is then unpacked from the state before it. The
//! states of one entry and a few blocks are in memory, whatever the entry's size.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::file::{ReadAt, Source, check_range};

/// Bytes of a block that is kept unpacked.
const BLOCK: u64 = 1 << 20;

/// Blocks that are kept: more than the threads that read.
const KEPT_BLOCKS: usize = 24;

/// Most states of a decoder that are kept, each of about 45 kB.
const MAX_STATES: u64 = 256;

/// Bytes between two of them, if there are not more.
const MIN_DISTANCE: u64 = 4 * BLOCK;

/// Unpacked bytes that a decoder refers to: the window of deflate.
const WINDOW: usize = 1 << 15;

/// Packed bytes that are read at a time.
const INPUT: usize = 1 << 16;

/// A deflated entry of a file.
#[derive(Debug)]
pub(super) struct Deflated {
    pub(super) file: Source,
    /// Its name, for errors.
    pub(super) name: String,
    /// First packed byte.
    pub(super) start: u64,
    pub(super) packed_len: u64,
    pub(super) len: u64,
    /// CRC-32 of the unpacked bytes.
    pub(super) crc: u32,
    /// Shared by the entries of a file.
    pub(super) unpacked: Arc<Unpacked>,
}

/// Blocks of the entries of a file, and the states of the entry that was read last.
#[derive(Debug, Default)]
pub(super) struct Unpacked(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// First packed byte of the entry, and its states by place.
    entry: Option<(u64, Vec<Decoder>)>,
    /// First packed byte of the entry, number of the block, and its bytes; the newest last.
    blocks: VecDeque<(u64, u64, Vec<u8>)>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("blocks", &self.blocks.len()).finish()
    }
}

/// A decoder in the middle of an entry.
#[derive(Clone)]
struct Decoder {
    state: Box<DecompressorOxide>,
    /// The last unpacked bytes, as a ring.
    window: Box<[u8; WINDOW]>,
    /// Packed bytes that were taken.
    taken: u64,
    /// Bytes that were unpacked.
    given: u64,
    ended: bool,
}

impl Decoder {
    fn new() -> Self {
        let window = Box::new([0; WINDOW]);
        Self { state: Box::default(), window, taken: 0, given: 0, ended: false }
    }

    /// Unpacks up to the next end of the window; returns the new bytes. There are none at the end.
    fn step(&mut self, entry: &Deflated, input: &mut Input) -> io::Result<&[u8]> {
        let at = (self.given % WINDOW as u64) as usize;
        loop {
            let bytes = input.from(entry, self.taken)?;
            let more = self.taken + (bytes.len() as u64) < entry.packed_len;
            let flags = if more { inflate_flags::TINFL_FLAG_HAS_MORE_INPUT } else { 0 };
            let (status, taken, given) =
                decompress(&mut self.state, bytes, self.window.as_mut_slice(), at, flags);
            self.taken += taken as u64;
            self.given += given as u64;
            self.ended = match status {
                TINFLStatus::Done => true,
                TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => false,
                _ => return Err(entry.damaged("its deflated data are invalid")),
            };
            if self.given > entry.len {
                return Err(entry.damaged("it unpacks to more bytes than it says"));
            }
            if given > 0 || self.ended {
                return Ok(&self.window[at..at + given]);
            }
            if taken == 0 {
                return Err(entry.damaged("its deflated data are cut off"));
            }
        }
    }
}

/// Packed bytes that were read ahead.
struct Input {
    at: u64,
    bytes: Vec<u8>,
}

impl Input {
    fn new() -> Self {
        Self { at: 0, bytes: Vec::new() }
    }

    /// Some bytes from `offset` of an entry on; none at its end.
    fn from(&mut self, entry: &Deflated, offset: u64) -> io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        if !(self.at..end).contains(&offset) {
            let count = (entry.packed_len - offset).min(INPUT as u64);
            self.bytes.resize(count as usize, 0);
            entry.file.read_exact_at(&mut self.bytes, entry.start + offset)?;
            self.at = offset;
        }
        Ok(&self.bytes[(offset - self.at) as usize..])
    }
}

impl Deflated {
    fn damaged(&self, why: &str) -> io::Error {
        io::Error::other(self.file.malformed(format!("zip entry {}: {why}", self.name)))
    }

    /// Bytes between two states that are kept.
    fn distance(&self) -> u64 {
        MIN_DISTANCE.max(self.len.div_ceil(MAX_STATES).next_multiple_of(BLOCK))
    }

    /// Unpacks the whole entry, checks it, and returns the states on the way.
    fn survey(&self) -> io::Result<Vec<Decoder>> {
        let mut decoder = Decoder::new();
        let mut states = vec![decoder.clone()];
        let (mut input, mut crc) = (Input::new(), crc32fast::Hasher::new());
        while !decoder.ended {
            crc.update(decoder.step(self, &mut input)?);
            if decoder.given >= states.len() as u64 * self.distance() && !decoder.ended {
                states.push(decoder.clone());
            }
        }
        if decoder.given != self.len {
            return Err(self.damaged("it unpacks to fewer bytes than it says"));
        }
        if crc.finalize() != self.crc {
            return Err(io::Error::other(self.file.checksum(format!("zip entry {}", self.name))));
        }
        Ok(states)
    }

    /// Unpacks the block of this number, from the state before it.
    fn block(&self, states: &[Decoder], number: u64) -> io::Result<Vec<u8>> {
        let (start, end) = (number * BLOCK, self.len.min((number + 1) * BLOCK));
        let before = states.partition_point(|state| state.given <= start).max(1) - 1;
        let mut decoder = states[before].clone();
        let (mut input, mut block) = (Input::new(), Vec::with_capacity((end - start) as usize));
        while decoder.given < end {
            let from = decoder.given;
            let bytes = decoder.step(self, &mut input)?;
            let skip = start.saturating_sub(from).min(bytes.len() as u64) as usize;
            let count = (end - start) as usize - block.len();
            block.extend(bytes[skip..].iter().take(count));
            if bytes.is_empty() {
                return Err(self.damaged("it changed while it was read"));
            }
        }
        Ok(block)
    }
}

impl ReadAt for Deflated {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self, buffer, offset)?;
        let mut kept = self.unpacked.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let bytes = kept.block(self, at / BLOCK)?;
            let from = &bytes[(at % BLOCK) as usize..];
            let count = from.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }
}

impl Kept {
    /// A block of an entry.
    fn block(&mut self, entry: &Deflated, number: u64) -> io::Result<&[u8]> {
        let known = self.blocks.iter().position(|(start, n, _)| (*start, *n) == (entry.start, number));
        let block = match known.and_then(|index| self.blocks.remove(index)) {
            Some(block) => block,
            None => {
                if self.entry.as_ref().is_none_or(|(start, _)| *start != entry.start) {
                    self.entry = None;
                    self.entry = Some((entry.start, entry.survey()?));
                }
                let states = self.entry.as_ref().map_or(&[][..], |(_, states)| states);
                let block = (entry.start, number, entry.block(states, number)?);
                if self.blocks.len() == KEPT_BLOCKS {
                    self.blocks.pop_front();
                }
                block
            }
        };
        self.blocks.push_back(block);
        Ok(self.blocks.back().map_or(&[], |(_, _, bytes)| bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let from = rest.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(from);
            Ok(())
        }
    }

    fn deflated(bytes: &[u8], len: u64) -> Deflated {
        let packed = miniz_oxide::deflate::compress_to_vec(bytes, 1);
        let packed_len = packed.len() as u64;
        let file = Bytes([b"head".as_slice(), &packed, b"tail"].concat());
        let file = Source::computed("a.pth".into(), Box::new(file));
        let (name, crc) = ("data/0".to_owned(), crc32fast::hash(bytes));
        Deflated { file, name, start: 4, packed_len, len, crc, unpacked: Arc::default() }
    }

    /// Bytes that repeat over a distance near the window's length.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i % 32_749 * (i % 11) % 253) as u8).collect()
    }

    #[test]
    fn any_range_of_an_entry_of_several_states_is_the_slice_of_the_whole() {
        let whole = bytes(2 * MIN_DISTANCE as usize + 70_001);
        let entry = deflated(&whole, whole.len() as u64);
        assert_eq!(entry.survey().unwrap().len(), 3);
        let end = whole.len();
        let mut ranges = vec![(end, 0), (end - 5, 5), (0, 3), (1_048_570, 20), (0, 0), (9_000, 2_000_000)];
        ranges.extend((0..40).map(|i| (i * 7_919_777 % (end - 40_000), 40_000)));
        for (start, count) in ranges {
            let mut out = vec![0; count];
            entry.read_exact_at(&mut out, start as u64).unwrap();
            assert!(out == whole[start..start + count], "{start} {count}");
        }
        assert!(entry.read_exact_at(&mut [0; 6], end as u64 - 5).is_err());
    }

    #[test]
    fn entries_that_are_not_what_they_say_are_refused() {
        let whole = bytes(100_000);
        let message = |entry: &Deflated| entry.read_exact_at(&mut [0; 4], 0).unwrap_err().to_string();
        assert!(message(&deflated(&whole, 99_999)).contains("more bytes"));
        assert!(message(&deflated(&whole, 100_001)).contains("fewer bytes"));
        let entry = deflated(&whole, 100_000);
        assert!(message(&Deflated { crc: 1, unpacked: Arc::default(), ..entry }).contains("checksum"));
        let entry = deflated(&whole, 100_000);
        let packed_len = entry.packed_len - 1;
        assert!(message(&Deflated { packed_len, ..entry }).contains("damaged"));
        let entry = deflated(&whole, 100_000);
        assert!(message(&Deflated { start: 3, ..entry }).contains("damaged"));
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_its_states() {
        let whole = vec![0; 40 << 20];
        let entry = deflated(&whole, whole.len() as u64);
        assert!(entry.packed_len < 200_000);
        assert!(entry.survey().unwrap().len() <= 10);
        let bomb = Deflated { len: 1 << 50, ..entry };
        assert!((1u64 << 50) / bomb.distance() <= MAX_STATES);
        assert!(bomb.read_exact_at(&mut [0; 4], 1 << 49).unwrap_err().to_string().contains("fewer bytes"));
    }
}

//! Checksums of the records of a file, compared while the file is read from beginning to end.

use super::error::SourceError;
use super::file::Source;

/// Bytes of a file whose CRC-32 the file knows.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Which of several files; 0 if there is one.
    pub(super) shard: usize,
    /// First byte.
    pub(super) start: u64,
    /// Number of bytes.
    pub(super) len: u64,
    pub(super) crc: u32,
    /// Tensor that the bytes belong to, as the file names it.
    pub(super) tensor: String,
}

impl Record {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Refuses records of one file that overlap; they come by place.
pub(super) fn check_apart(source: &Source, records: &[Record]) -> Result<(), SourceError> {
    match records.windows(2).find(|pair| pair[0].end() > pair[1].start) {
        None => Ok(()),
        Some(pair) => {
            let [one, other] = [&pair[0], &pair[1]].map(|record| record.tensor.escape_debug());
            Err(source.malformed(format!("the zip entries of {one} and {other} overlap")))
        }
    }
}

/// Compares the records of one file as its bytes pass.
pub(super) struct Check<'a> {
    source: &'a Source,
    /// Records whose end has not passed, in the order of their places.
    rest: &'a [Record],
    /// CRC-32 of the first record's bytes that have passed.
    hasher: crc32fast::Hasher,
}

impl<'a> Check<'a> {
    /// `records` are those of this file, by place; they do not overlap.
    pub(super) fn new(source: &'a Source, records: &'a [Record]) -> Self {
        Self { source, rest: records, hasher: crc32fast::Hasher::new() }
    }

    /// Takes the bytes from `offset` on, which follow those of the last call.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SourceError> {
        let end = offset + bytes.len() as u64;
        while let Some((record, rest)) = self.rest.split_first()
            && record.start < end
        {
            let part = record.start.max(offset) - offset..record.end().min(end) - offset;
            self.hasher.update(&bytes[part.start as usize..part.end as usize]);
            if record.end() > end {
                break;
            }
            if std::mem::take(&mut self.hasher).finalize() != record.crc {
                return Err(self.source.checksum(format!("tensor {}", record.tensor.escape_debug())));
            }
            self.rest = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tensor: &str, bytes: &[u8], start: usize, len: usize) -> Record {
        let crc = crc32fast::hash(&bytes[start..start + len]);
        Record { shard: 0, start: start as u64, len: len as u64, crc, tensor: tensor.to_owned() }
    }

    fn source(bytes: &[u8]) -> Source {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Source::open(file.path()).unwrap()
    }

    #[test]
    fn every_changed_byte_of_a_record_is_found_in_blocks_of_any_size() {
        let bytes: Vec<u8> = (1..=60).collect();
        let records = [record("a", &bytes, 3, 10), record("b", &bytes, 13, 1), record("c", &bytes, 20, 40)];
        let source = source(&bytes);
        for block in [1, 2, 3, 7, 20, 64] {
            for changed in 0..=bytes.len() {
                let mut bytes = bytes.clone();
                if let Some(byte) = bytes.get_mut(changed) {
                    *byte ^= 0x10;
                }
                let mut check = Check::new(&source, &records);
                let mut blocks = (0..).step_by(block).zip(bytes.chunks(block));
                let found = blocks.try_for_each(|(offset, bytes)| check.take(offset, bytes));
                let expected = match changed {
                    3..13 => Some("a"),
                    13 => Some("b"),
                    20..60 => Some("c"),
                    _ => None,
                };
                match (found, expected) {
                    (Ok(()), None) => {}
                    (Err(error), Some(tensor)) => {
                        assert!(
                            error.to_string().contains(&format!("checksum of tensor {tensor} ")),
                            "{error}"
                        );
                    }
                    (found, _) => panic!("byte {changed} in blocks of {block}: {found:?}"),
                }
            }
        }
    }

    #[test]
    fn overlapping_records_are_refused() {
        let bytes = [7; 20];
        let mut records = [record("a", &bytes, 0, 5), record("b", &bytes, 5, 5)];
        check_apart(&source(&bytes), &records).unwrap();
        records[0].len = 6;
        let message = check_apart(&source(&bytes), &records).unwrap_err().to_string();
        assert!(message.contains("entries of a and b overlap"), "{message}");
    }
}

//! The 64-byte header and the section table.

use std::fmt;

use super::bytes::{Cursor, all_zero};
use super::{LINE_ALIGN, PAGE_ALIGN};
use crate::error::{Error, ErrorKind, Result};

/// First bytes of every model file.
pub(super) const MAGIC: [u8; 8] = *b"\x89RWKV\r\n\x1a";
/// Newest major version this build reads; it writes this one.
pub const MAJOR_VERSION: u16 = 1;
/// Newest minor version this build writes; it reads any. A file gets the oldest one that has
/// everything in it.
pub const MINOR_VERSION: u16 = 1;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const SECTION_BYTES: usize = 32;
/// Bound of the number of sections, above that of any version. It limits the bytes read before the
/// checksum has been checked.
const MAX_SECTIONS: usize = 64;
/// Bytes of the header under its checksum.
const CHECKED_HEADER_BYTES: usize = 24;
/// Most bytes of header and section table.
pub(super) const MOST_HEADER_BYTES: usize = HEADER_BYTES + SECTION_BYTES * MAX_SECTIONS;
/// Section flag: a reader that does not know the kind must refuse the file.
pub(super) const MUST_UNDERSTAND: u32 = 1;

/// Four ASCII characters that name a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SectionKind([u8; 4]);

impl SectionKind {
    /// Hyperparameters.
    pub const CONF: Self = Self(*b"CONF");
    /// Tensor table.
    pub const TENS: Self = Self(*b"TENS");
    /// Tokenizer.
    pub const TOKN: Self = Self(*b"TOKN");
    /// Chat template, stop rules, sampling defaults.
    pub const CHAT: Self = Self(*b"CHAT");
    /// Provenance.
    pub const PROV: Self = Self(*b"PROV");
    /// Self-test.
    pub const TEST: Self = Self(*b"TEST");
    /// Tensor bytes.
    pub const DATA: Self = Self(*b"DATA");

    /// The kinds of sections in every file of this major version, in the order in which they are
    /// written.
    pub(super) const ALL: [Self; 7] =
        [Self::CONF, Self::TENS, Self::TOKN, Self::CHAT, Self::PROV, Self::TEST, Self::DATA];

    /// Alignment of a section of this kind.
    pub(super) fn align(self) -> u64 {
        if self == Self::DATA { PAGE_ALIGN } else { LINE_ALIGN }
    }

    /// Flags that a writer gives a section of this kind.
    pub(super) fn flags(self) -> u32 {
        if self == Self::PROV || self == Self::TEST { 0 } else { MUST_UNDERSTAND }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// One row of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What the section holds.
    pub kind: SectionKind,
    /// Bit 0: a reader that does not know the kind must refuse the file.
    pub flags: u32,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// CRC-32 of the bytes; 0 for DATA, whose tensors have their own.
    pub crc32: u32,
}

impl Section {
    /// First byte after the section, or `None` past `u64::MAX`.
    pub(super) fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    fn emit(&self, out: &mut Vec<u8>) {
        out.extend(self.kind.0);
        out.extend(self.flags.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.crc32.to_le_bytes());
        out.extend([0; 4]);
    }

    fn parse(cursor: &mut Cursor<'_>) -> Option<(Self, u32)> {
        let kind = SectionKind(cursor.take(4)?.try_into().ok()?);
        let flags = cursor.u32()?;
        let (offset, len) = (cursor.u64()?, cursor.u64()?);
        let (crc32, reserved) = (cursor.u32()?, cursor.u32()?);
        Some((Self { kind, flags, offset, len, crc32 }, reserved))
    }
}

/// The header and the section table, checked against each other and against the length of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) minor: u16,
    pub(super) file_len: u64,
    pub(super) sections: Vec<Section>,
    /// Checksum of header and section table. It covers the whole file through the sections'
    /// checksums.
    pub(super) crc32: u32,
}

impl Header {
    /// Header and section table for sections that end at the end of the file.
    pub(super) fn new(minor: u16, file_len: u64, sections: Vec<Section>) -> Self {
        debug_assert!(minor <= MINOR_VERSION);
        let mut header = Self { minor, file_len, sections, crc32: 0 };
        header.crc32 = checksum(&header.emit());
        header
    }

    /// The bytes of header and section table.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + SECTION_BYTES * self.sections.len());
        out.extend(MAGIC);
        out.extend(MAJOR_VERSION.to_le_bytes());
        out.extend(self.minor.to_le_bytes());
        out.extend((self.sections.len() as u32).to_le_bytes());
        out.extend(self.file_len.to_le_bytes());
        out.extend(self.crc32.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        self.sections.iter().for_each(|section| section.emit(&mut out));
        out
    }

    /// Reads header and section table from the first bytes of a file of `found` bytes. These are
    /// all bytes before section DATA, or more.
    ///
    /// # Errors
    /// As [`parse_tables`](Self::parse_tables), or if the sections do not fit the file.
    pub(super) fn parse(front: &[u8], found: u64) -> Result<Self> {
        let header = Self::parse_tables(front, found)?;
        header.check_placement(front)?;
        Ok(header)
    }

    /// As [`parse`](Self::parse), from at least [`MOST_HEADER_BYTES`] of the file or all
    /// of it. The places of the sections are not checked.
    ///
    /// It checks the version first, because a newer one may change everything after it. Then it
    /// checks the length, because a partial copy is the likeliest damage. The checksum and the
    /// table follow.
    pub(super) fn parse_tables(front: &[u8], found: u64) -> Result<Self> {
        let mut cursor = Cursor::new(front);
        let magic = cursor.take(MAGIC.len().min(front.len())).unwrap_or_default();
        if !MAGIC.starts_with(magic) {
            return Err(ErrorKind::NotAModel("it does not begin like a .rwkv file".into()).into());
        }
        let short = || Error::from(ErrorKind::Truncated { expected: HEADER_BYTES as u64, found });
        let (major, minor) = cursor.u16().zip(cursor.u16()).ok_or_else(short)?;
        if major > MAJOR_VERSION {
            return Err(ErrorKind::NewerFormat { found: major, supported: MAJOR_VERSION }.into());
        }
        if major == 0 {
            return Err(Error::malformed("the format version is 0"));
        }
        let (count, file_len) = cursor.u32().zip(cursor.u64()).ok_or_else(short)?;
        if file_len != found {
            return Err(ErrorKind::Truncated { expected: file_len, found }.into());
        }
        let crc32 = cursor.u32().ok_or_else(short)?;
        let reserved = cursor.take(HEADER_BYTES - CHECKED_HEADER_BYTES - 4).ok_or_else(short)?;
        if !all_zero(reserved) {
            return Err(Error::malformed("reserved bytes of the header are not zero"));
        }
        let table = section_table(front, count)?;
        if checksum(&front[..HEADER_BYTES + table.len()]) != crc32 {
            return Err(ErrorKind::Checksum { what: "the header".into() }.into());
        }
        Ok(Self { minor, file_len, sections: parse_sections(table)?, crc32 })
    }

    /// The section of a kind.
    pub(super) fn section(&self, kind: SectionKind) -> Result<&Section> {
        self.sections
            .iter()
            .find(|section| section.kind == kind)
            .ok_or_else(|| Error::malformed(format!("section {kind} is missing")))
    }

    /// Sections follow each other in the order of the table, aligned, with only zeros between them.
    /// The last one, DATA, ends with the file.
    fn check_placement(&self, front: &[u8]) -> Result<()> {
        let mut end = (HEADER_BYTES + SECTION_BYTES * self.sections.len()) as u64;
        for section in &self.sections {
            let kind = section.kind;
            let (start, stop) = (section.offset, section.end().filter(|&stop| stop <= self.file_len));
            let is_there = start <= front.len() as u64;
            let (true, Some(stop)) = (is_there, stop) else {
                return Err(Error::malformed(format!("section {kind} lies outside the file")));
            };
            if start % kind.align() != 0 {
                return Err(Error::malformed(format!("section {kind} is not aligned")));
            }
            if start < end {
                return Err(Error::malformed(format!("section {kind} overlaps what is before it")));
            }
            let gap = &front[end as usize..start as usize];
            if gap.len() as u64 >= PAGE_ALIGN || !all_zero(gap) {
                return Err(Error::malformed(format!("unused bytes before section {kind}")));
            }
            end = stop;
        }
        if self.sections.last().is_none_or(|last| last.kind != SectionKind::DATA) {
            return Err(Error::malformed("the last section is not DATA"));
        }
        if end != self.file_len {
            return Err(Error::malformed("unused bytes after the last section"));
        }
        Ok(())
    }
}

/// The bytes of the section table of `count` entries.
fn section_table(file: &[u8], count: u32) -> Result<&[u8]> {
    let count = count as usize;
    if count > MAX_SECTIONS {
        return Err(Error::malformed(format!("{count} sections; there may be {MAX_SECTIONS}")));
    }
    file.get(HEADER_BYTES..HEADER_BYTES + SECTION_BYTES * count)
        .ok_or_else(|| Error::malformed("the section table does not fit the file"))
}

fn parse_sections(table: &[u8]) -> Result<Vec<Section>> {
    let mut sections: Vec<Section> = Vec::with_capacity(table.len() / SECTION_BYTES);
    let mut cursor = Cursor::new(table);
    while let Some((section, reserved)) = Section::parse(&mut cursor) {
        let kind = section.kind;
        if !kind.0.iter().all(u8::is_ascii_graphic) {
            return Err(Error::malformed(format!("section name {kind} is not ASCII")));
        }
        if section.flags & !MUST_UNDERSTAND != 0 || reserved != 0 {
            return Err(Error::malformed(format!("reserved bits of section {kind} are not zero")));
        }
        if kind == SectionKind::DATA && section.crc32 != 0 {
            return Err(Error::malformed("section DATA has a checksum of its own"));
        }
        if sections.iter().any(|other| other.kind == kind) {
            return Err(Error::malformed(format!("section {kind} occurs twice")));
        }
        sections.push(section);
    }
    Ok(sections)
}

/// CRC-32 of header and section table without the header's checksum and reserved bytes.
fn checksum(front: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&front[..CHECKED_HEADER_BYTES]);
    hasher.update(&front[HEADER_BYTES..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_file() -> Vec<u8> {
        let section = |kind, offset, len| Section { kind, flags: 1, offset, len, crc32: 0 };
        let sections = vec![section(SectionKind::CONF, 128, 10), section(SectionKind::DATA, PAGE_ALIGN, 64)];
        let mut file = Header::new(MINOR_VERSION, PAGE_ALIGN + 64, sections).emit();
        file.resize(PAGE_ALIGN as usize + 64, 0);
        file
    }

    fn parse(file: &[u8]) -> Result<Header> {
        Header::parse(file, file.len() as u64)
    }

    #[test]
    fn emitted_header_parses_back() {
        let header = parse(&small_file()).unwrap();
        assert_eq!(header.emit(), &small_file()[..128]);
        assert_eq!(header.section(SectionKind::CONF).unwrap().len, 10);
        assert!(header.section(SectionKind::TOKN).is_err());
    }

    #[test]
    fn newer_minor_version_is_read() {
        let mut header = parse(&small_file()).unwrap();
        header.minor = 9;
        header.crc32 = checksum(&header.emit());
        let mut file = small_file();
        file[..128].copy_from_slice(&header.emit());
        assert_eq!(parse(&file).unwrap().minor, 9);
    }

    #[test]
    fn bytes_between_sections_must_be_zero() {
        let mut file = small_file();
        file[500] = 1;
        assert!(matches!(parse(&file).unwrap_err().kind(), ErrorKind::Malformed(_)));
    }
}

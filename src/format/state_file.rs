//! The `.rwstate` file: a text that can go on elsewhere, or later. `docs/FORMAT.md` describes every
//! byte.
//!
//! A file is untrusted: any byte string may give an error, never a panic. Nothing is allocated by a
//! length that the file only claims.

use std::io::{self, Read, Write};

use super::SamplingParams;
use super::bytes::{Cursor, all_zero};
use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use super::metadata::check_line;
use super::sampling::SamplingFields;
use super::sniff::FileKind;
use crate::error::{Error, ErrorKind, Result};

/// First bytes of every state file.
pub(super) const MAGIC: [u8; 8] = *b"\x89RWST\r\n\x1a";
/// Newest major version this build reads; it writes this one.
const MAJOR_VERSION: u16 = 1;
/// Minor version this build writes; it reads any.
const MINOR_VERSION: u16 = 0;

const HEADER_BYTES: usize = 64;
/// Most bytes of fields. It limits the memory that a field list takes.
const MAX_FIELDS: u64 = 1 << 28;
/// Longest history, in bytes.
const MAX_HISTORY: usize = 1 << 27;
/// Most bytes of text that has not been shown: an unfinished character and the beginning of a stop
/// text.
const MAX_UNSHOWN: usize = 1 << 16;

/// Most tokens that a text may have read: so many that nobody reaches the end of a u64 from there.
const MAX_TOKENS_READ: u64 = 1 << 62;

/// What a state file says about its text, besides what the text needs to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateNotes {
    /// Name of the chat template that the text follows; `None` for a text without turns.
    pub template: Option<String>,
    /// The text, to show it again.
    pub history: Option<String>,
    /// Bytes of the text's last tokens that nobody has seen yet. They precede the text that
    /// follows; see [`Generation::begin_with`](crate::Generation::begin_with).
    pub unshown: Vec<u8>,
}

impl StateNotes {
    fn validate(&self) -> Result<()> {
        check_line("template", self.template.as_deref().unwrap_or_default())?;
        if self.history.as_ref().is_some_and(|text| text.len() > MAX_HISTORY) {
            return Err(Error::invalid(format!("the history is longer than {MAX_HISTORY} bytes")));
        }
        if self.unshown.len() > MAX_UNSHOWN {
            return Err(Error::invalid(format!("the text not shown is longer than {MAX_UNSHOWN} bytes")));
        }
        Ok(())
    }
}

/// What a sampler needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedSampler {
    pub(crate) params: SamplingParams,
    /// State of the random numbers.
    pub(crate) random: u64,
    /// Tokens of the reply with their counts, in the order of their first appearance.
    pub(crate) counts: Vec<(u32, f32)>,
}

/// Everything in a state file but the values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateHead {
    pub(crate) model_id: u64,
    pub(crate) tokens_read: u64,
    pub(crate) tokens_hash: [u8; 32],
    pub(crate) pending: Option<u32>,
    pub(crate) sampler: Option<SavedSampler>,
    pub(crate) notes: StateNotes,
}

const MODEL_ID: FieldSpec = FieldSpec::required_to_read(1, "model_id", FieldType::Bytes);
const TOKENS_READ: FieldSpec = FieldSpec::required_to_read(2, "tokens_read", FieldType::Bytes);
const TOKENS_HASH: FieldSpec = FieldSpec::required_to_read(3, "tokens_hash", FieldType::Bytes);
const PENDING: FieldSpec = FieldSpec::required_to_read(4, "pending", FieldType::U32);
const RANDOM: FieldSpec = FieldSpec::required_to_read(5, "random", FieldType::Bytes);
const COUNTED: FieldSpec = FieldSpec::required_to_read(6, "counted", FieldType::U32List);
const COUNTS: FieldSpec = FieldSpec::required_to_read(7, "counts", FieldType::Bytes);
const SAMPLING: SamplingFields = SamplingFields::REQUIRED;
const TEMPLATE: FieldSpec = FieldSpec::optional(14, "template", FieldType::Text);
const HISTORY: FieldSpec = FieldSpec::optional(15, "history", FieldType::Text);
const UNSHOWN: FieldSpec = FieldSpec::optional(16, "unshown", FieldType::Bytes);

/// The fields of a sampler: all are there, or none.
fn sampler_schema() -> Vec<FieldSpec> {
    [&[RANDOM, COUNTED, COUNTS], SAMPLING.specs()].concat()
}

fn schema() -> Vec<FieldSpec> {
    let others = [MODEL_ID, TOKENS_READ, TOKENS_HASH, PENDING, TEMPLATE, HISTORY, UNSHOWN];
    [&others[..], &sampler_schema()].concat()
}

impl StateHead {
    /// The field list. The notes must be valid.
    fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.bytes(&MODEL_ID, &self.model_id.to_le_bytes());
        out.bytes(&TOKENS_READ, &self.tokens_read.to_le_bytes());
        out.bytes(&TOKENS_HASH, &self.tokens_hash);
        if let Some(pending) = self.pending {
            out.u32(&PENDING, pending);
        }
        if let Some(sampler) = &self.sampler {
            sampler.emit(&mut out);
        }
        let StateNotes { template, history, unshown } = &self.notes;
        for (spec, text) in [(&TEMPLATE, template), (&HISTORY, history)] {
            if let Some(text) = text {
                out.text(spec, text);
            }
        }
        if !unshown.is_empty() {
            out.bytes(&UNSHOWN, unshown);
        }
        out.finish()
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse("state", bytes, &schema())?;
        let unshown = if fields.has(&UNSHOWN) { fields.bytes(&UNSHOWN)?.to_vec() } else { Vec::new() };
        let notes = StateNotes {
            template: fields.find_text(&TEMPLATE),
            history: fields.find_text(&HISTORY),
            unshown,
        };
        notes.validate().map_err(|error| Error::malformed(format!("state: {error}")))?;
        let tokens_read = u64::from_le_bytes(fields.array(&TOKENS_READ)?);
        let tokens_hash = fields.array(&TOKENS_HASH)?;
        if tokens_read > MAX_TOKENS_READ || tokens_read == 0 && !all_zero(&tokens_hash) {
            return Err(Error::malformed(
                "state: the number of tokens is impossible, or has a hash of others",
            ));
        }
        Ok(Self {
            model_id: u64::from_le_bytes(fields.array(&MODEL_ID)?),
            tokens_read,
            tokens_hash,
            pending: fields.find_u32(&PENDING),
            sampler: SavedSampler::parse(&fields)?,
            notes,
        })
    }
}

impl SavedSampler {
    fn emit(&self, out: &mut FieldWriter) {
        let (tokens, counts): (Vec<u32>, Vec<f32>) = self.counts.iter().copied().unzip();
        out.bytes(&RANDOM, &self.random.to_le_bytes());
        out.u32_list(&COUNTED, &tokens);
        out.bytes(&COUNTS, bytemuck::cast_slice(&counts));
        SAMPLING.emit(&self.params, out);
    }

    fn parse(fields: &Fields<'_>) -> Result<Option<Self>> {
        if !sampler_schema().iter().any(|spec| fields.has(spec)) {
            return Ok(None);
        }
        let tokens = fields.u32_list(&COUNTED)?;
        let (counts, rest) = fields.bytes(&COUNTS)?.as_chunks::<4>();
        if !rest.is_empty() || counts.len() != tokens.len() {
            return Err(Error::malformed("state: there is not one count for each counted token"));
        }
        let counts = counts.iter().map(|&bytes| f32::from_le_bytes(bytes));
        Ok(Some(Self {
            params: SAMPLING.parse(fields)?,
            random: u64::from_le_bytes(fields.array(&RANDOM)?),
            counts: tokens.into_iter().zip(counts).collect(),
        }))
    }
}

/// The fixed part at the start of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    minor: u16,
    fields_len: u32,
    file_len: u64,
    fields_crc32: u32,
    values_crc32: u32,
}

impl Header {
    fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(MAJOR_VERSION.to_le_bytes());
        out.extend(self.minor.to_le_bytes());
        out.extend(self.fields_len.to_le_bytes());
        out.extend(self.file_len.to_le_bytes());
        out.extend(self.fields_crc32.to_le_bytes());
        out.extend(self.values_crc32.to_le_bytes());
        let crc32 = crc32fast::hash(&out);
        out.extend(crc32.to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header[..out.len()].copy_from_slice(&out);
        header
    }

    /// Reads the first bytes of a file. The version comes first, because a newer one may change
    /// everything after it.
    fn parse(start: &[u8]) -> Result<Self> {
        if !MAGIC.starts_with(&start[..start.len().min(MAGIC.len())]) || start.is_empty() {
            return Err(ErrorKind::NotAState(advice(start).into()).into());
        }
        let short =
            || Error::from(ErrorKind::Truncated { expected: HEADER_BYTES as u64, found: start.len() as u64 });
        let mut cursor = Cursor::new(start);
        cursor.take(MAGIC.len()).ok_or_else(short)?;
        let (major, minor) = cursor.u16().zip(cursor.u16()).ok_or_else(short)?;
        if major > MAJOR_VERSION {
            return Err(ErrorKind::NewerFormat { found: major, supported: MAJOR_VERSION }.into());
        }
        if start.len() < HEADER_BYTES {
            return Err(short());
        }
        let header = Self::parse_numbers(&mut cursor, minor).ok_or_else(short)?;
        let checked = start.len() - cursor.rest().len();
        if cursor.u32() != Some(crc32fast::hash(&start[..checked])) {
            return Err(ErrorKind::Checksum { what: "the header".into() }.into());
        }
        if major == 0 || !all_zero(cursor.rest()) {
            return Err(Error::malformed(
                "the header has a version of 0 or reserved bytes that are not zero",
            ));
        }
        Ok(header)
    }

    fn parse_numbers(cursor: &mut Cursor<'_>, minor: u16) -> Option<Self> {
        Some(Self {
            minor,
            fields_len: cursor.u32()?,
            file_len: cursor.u64()?,
            fields_crc32: cursor.u32()?,
            values_crc32: cursor.u32()?,
        })
    }
}

/// What a file that is no saved state is, and what to do with it.
fn advice(start: &[u8]) -> &'static str {
    match FileKind::of(start) {
        Some(FileKind::Empty) => "the file is empty",
        Some(FileKind::Model) => "it is a model",
        Some(FileKind::Zip | FileKind::LegacyTorch | FileKind::Safetensors) => {
            "it is a checkpoint; `rwkv-quantize --state-only` makes a saved state of a tuned one"
        }
        _ if start.starts_with(&MAGIC[..5]) => {
            "a transfer in text mode changed it; copy it again in binary mode"
        }
        _ => "it does not begin like a .rwstate file",
    }
}

/// Gives the values of a state to a sink in pieces, always in the same order.
pub(crate) type Values<'a> = dyn Fn(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> + 'a;

/// A file that is ready to be written.
pub(crate) struct StateWriter<'a> {
    header: Header,
    fields: Vec<u8>,
    values: &'a Values<'a>,
}

impl<'a> StateWriter<'a> {
    /// # Errors
    /// If the notes are too long, or the name of the template has control characters.
    pub(crate) fn new(head: &StateHead, values: &'a Values<'a>) -> Result<Self> {
        head.notes.validate()?;
        let fields = head.emit();
        let (mut values_len, mut hasher) = (0, crc32fast::Hasher::new());
        values(&mut |piece| {
            values_len += piece.len();
            hasher.update(piece);
            Ok(())
        })?;
        let header = Header {
            minor: MINOR_VERSION,
            fields_len: fields.len() as u32,
            file_len: (HEADER_BYTES + fields.len() + values_len) as u64,
            fields_crc32: crc32fast::hash(&fields),
            values_crc32: hasher.finalize(),
        };
        Ok(Self { header, fields, values })
    }

    /// Bytes of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.header.file_len
    }

    /// Writes the file.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header.emit())?;
        out.write_all(&self.fields)?;
        (self.values)(&mut |piece| out.write_all(piece))
    }
}

/// A file whose header and fields have been read and checked.
pub(crate) struct StateReader<'r> {
    from: &'r mut dyn Read,
    header: Header,
    head: StateHead,
}

impl<'r> StateReader<'r> {
    /// Reads header and fields. `len` is the length of the file, if it is known.
    ///
    /// # Errors
    /// If this is no state file, or one for a newer reader, or it is cut short or damaged.
    pub(crate) fn new(from: &'r mut dyn Read, len: Option<u64>) -> Result<Self> {
        let start = read_up_to(from, HEADER_BYTES as u64)?;
        let header = Header::parse(&start)?;
        let expected = header.file_len;
        match len {
            Some(found) if found != expected => return Err(ErrorKind::Truncated { expected, found }.into()),
            _ => {}
        }
        let fields_len = u64::from(header.fields_len);
        if fields_len > MAX_FIELDS || expected < HEADER_BYTES as u64 + fields_len {
            return Err(Error::malformed("the length of the fields does not fit the file"));
        }
        let fields = read_up_to(from, fields_len)?;
        if fields.len() as u64 != fields_len {
            return Err(header.cut(HEADER_BYTES + fields.len()));
        }
        if crc32fast::hash(&fields) != header.fields_crc32 {
            return Err(ErrorKind::Checksum { what: "the fields".into() }.into());
        }
        Ok(Self { head: StateHead::parse(&fields)?, from, header })
    }

    /// Everything but the values.
    pub(crate) fn head(&self) -> &StateHead {
        &self.head
    }

    /// Checks that the values have `bytes` bytes together.
    pub(crate) fn check_values(&self, bytes: u64) -> Result<()> {
        let found = self.header.file_len - HEADER_BYTES as u64 - u64::from(self.header.fields_len);
        if found == bytes {
            return Ok(());
        }
        Err(Error::malformed(format!("the values have {found} bytes; the model's state has {bytes}")))
    }

    /// Reads the values. Nothing is read beyond them.
    ///
    /// # Errors
    /// If they are cut short or damaged. The values may have changed then.
    pub(crate) fn read_values(self, values: [&mut [f32]; 2]) -> Result<StateHead> {
        let Self { from, header, head } = self;
        let mut hasher = crc32fast::Hasher::new();
        let mut found = HEADER_BYTES + header.fields_len as usize;
        for part in values {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(part);
            let read = fill(from, bytes)?;
            found += read;
            if read < bytes.len() {
                return Err(header.cut(found));
            }
            hasher.update(bytes);
        }
        if hasher.finalize() != header.values_crc32 {
            return Err(ErrorKind::Checksum { what: "the values".into() }.into());
        }
        Ok(head)
    }
}

impl Header {
    /// The error of a file that ends after `found` bytes.
    fn cut(&self, found: usize) -> Error {
        ErrorKind::Truncated { expected: self.file_len, found: found as u64 }.into()
    }
}

/// The next `len` bytes, or fewer at the end. The memory grows with the bytes that arrive.
fn read_up_to(from: &mut dyn Read, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Fills a slice as far as there are bytes. Returns their number.
fn fill(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

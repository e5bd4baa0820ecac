//! The metadata of a GGUF file: values by name, before the tensors.

use std::collections::BTreeMap;

use super::super::error::SourceError;
use super::super::file::Source;
use super::super::names::MAX_NAME;
use super::bytes::Bytes;

/// Most keys; files of large models have fifty.
const MAX_KEYS: u64 = 1 << 16;

/// Most lists around a value.
const MAX_DEPTH: usize = 4;

/// Number of the type of texts.
pub(super) const TEXT: u32 = 8;

/// Number of the type of 32-bit integers.
pub(super) const I32: u32 = 5;

/// Number of the type of lists.
const LIST: u32 = 9;

/// A value. Texts and lists stay in the file until they are asked for.
#[derive(Debug, Clone, Copy)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool,
    Text { at: u64 },
    List(List),
}

/// A list in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// Number of the type of its elements.
    pub(super) kind: u32,
    /// How many there are.
    pub(super) len: u64,
    /// Where the first one is.
    pub(super) at: u64,
}

/// The metadata of one file.
pub(super) struct Metadata<'a> {
    source: &'a Source,
    values: BTreeMap<String, Value>,
}

impl<'a> Metadata<'a> {
    /// Reads `count` pairs.
    pub(super) fn read(bytes: &mut Bytes<'a>, source: &'a Source, count: u64) -> Result<Self, SourceError> {
        if count > MAX_KEYS {
            return Err(source.malformed(format!("{count} metadata keys, the limit is {MAX_KEYS}")));
        }
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = bytes.text(MAX_NAME, "a metadata key")?;
            let kind = bytes.u32()?;
            let value = value(bytes, source, kind)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(source.malformed(format!("the metadata key {} occurs twice", key.escape_debug())));
            }
        }
        Ok(Self { source, values })
    }

    /// A whole number that is not negative.
    pub(super) fn integer(&self, key: &str) -> Result<Option<usize>, SourceError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Integer(number)) => match usize::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.source.malformed(format!("its {key} is {number}"))),
            },
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A floating-point number, rounded to single precision.
    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, SourceError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Float(number)) => Ok(Some(number as f32)),
            Some(_) => Err(self.wrong(key, "a floating-point number")),
        }
    }

    /// A text of at most `limit` bytes.
    pub(super) fn text(&self, key: &str, limit: usize) -> Result<Option<String>, SourceError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Text { at }) => Bytes::new(self.source, at).text(limit, key).map(Some),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A list of elements of type `kind`, which `what` names in errors.
    pub(super) fn list(&self, key: &str, kind: u32, what: &str) -> Result<Option<List>, SourceError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::List(list)) if list.kind == kind => Ok(Some(*list)),
            Some(_) => Err(self.wrong(key, what)),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> SourceError {
        self.source.malformed(format!("its {key} is not {expected}"))
    }
}

fn value(bytes: &mut Bytes<'_>, source: &Source, kind: u32) -> Result<Value, SourceError> {
    Ok(match kind {
        0 => Value::Integer(bytes.array().map(u8::from_le_bytes)?.into()),
        1 => Value::Integer(bytes.array().map(i8::from_le_bytes)?.into()),
        2 => Value::Integer(bytes.array().map(u16::from_le_bytes)?.into()),
        3 => Value::Integer(bytes.array().map(i16::from_le_bytes)?.into()),
        4 => Value::Integer(bytes.u32()?.into()),
        I32 => Value::Integer(bytes.array().map(i32::from_le_bytes)?.into()),
        6 => Value::Float(bytes.array().map(f32::from_le_bytes)?.into()),
        7 => bytes.skip(1).map(|()| Value::Bool)?,
        TEXT => {
            let at = bytes.at();
            skip_text(bytes)?;
            Value::Text { at }
        }
        LIST => Value::List(skip_list(bytes, source, 1)?),
        10 => Value::Integer(bytes.u64()?.into()),
        11 => Value::Integer(bytes.array().map(i64::from_le_bytes)?.into()),
        12 => Value::Float(bytes.array().map(f64::from_le_bytes)?),
        _ => return Err(unknown(bytes, source, kind)),
    })
}

fn unknown(bytes: &Bytes<'_>, source: &Source, kind: u32) -> SourceError {
    source.malformed(format!("metadata of the unknown type {kind} before byte {}", bytes.at()))
}

fn skip_text(bytes: &mut Bytes<'_>) -> Result<(), SourceError> {
    let len = bytes.u64()?;
    bytes.skip(len)
}

/// Leaves out a list, which has `depth` lists around its elements.
fn skip_list(bytes: &mut Bytes<'_>, source: &Source, depth: usize) -> Result<List, SourceError> {
    if depth > MAX_DEPTH {
        return Err(source.malformed(format!("more than {MAX_DEPTH} lists in each other")));
    }
    let (kind, len) = (bytes.u32()?, bytes.u64()?);
    let list = List { kind, len, at: bytes.at() };
    match kind {
        0 | 1 | 7 => bytes.skip(len)?,
        2 | 3 => bytes.skip_many(len, 2)?,
        4..=6 => bytes.skip_many(len, 4)?,
        10..=12 => bytes.skip_many(len, 8)?,
        TEXT => (0..len).try_for_each(|_| skip_text(bytes))?,
        LIST => (0..len).try_for_each(|_| skip_list(bytes, source, depth + 1).map(drop))?,
        _ => return Err(unknown(bytes, source, kind)),
    }
    Ok(list)
}

//! The field lists inside the small sections:
//! `{u16 id, u8 type, u8 flags, u32 len, payload padded to 4}`.

use super::bytes::{Cursor, all_zero, pad_to};
use crate::error::{Error, ErrorKind, Result};
use byteorder::{ByteOrder, LittleEndian};

/// Field flag: a reader that does not know the id must refuse the file.
const MUST_UNDERSTAND: u8 = 1;

/// Payload type of a field; the number is the one in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldType {
    U32 = 1,
    F32 = 2,
    Text = 3,
    Bytes = 4,
    U32List = 5,
}

/// The schema of one field of a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldSpec {
    pub(super) id: u16,
    pub(super) name: &'static str,
    pub(super) kind: FieldType,
    /// Older readers must refuse a file with this field instead of skipping it.
    pub(super) must_understand: bool,
    pub(super) repeatable: bool,
}

impl FieldSpec {
    /// A field without which the file cannot be read correctly.
    pub(super) const fn required_to_read(id: u16, name: &'static str, kind: FieldType) -> Self {
        Self { id, name, kind, must_understand: true, repeatable: false }
    }

    /// A field that a reader may skip.
    pub(super) const fn optional(id: u16, name: &'static str, kind: FieldType) -> Self {
        Self { id, name, kind, must_understand: false, repeatable: false }
    }

    /// The same field, allowed several times.
    pub(super) const fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }
}

/// The known fields of one section. Types, lengths, UTF-8 and repetition have been checked against
/// the schema.
pub(super) struct Fields<'a> {
    section: &'static str,
    known: Vec<(u16, &'a [u8])>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(section: &'static str, bytes: &'a [u8], schema: &[FieldSpec]) -> Result<Self> {
        let mut fields = Self { section, known: Vec::with_capacity(schema.len()) };
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let raw = RawField::parse(&mut cursor)
                .ok_or_else(|| Error::malformed(format!("{section}: a field runs past the end")))?;
            fields.accept(&raw, schema)?;
        }
        Ok(fields)
    }

    fn accept(&mut self, raw: &RawField<'a>, schema: &[FieldSpec]) -> Result<()> {
        let section = self.section;
        let id = raw.id;
        if raw.flags & !MUST_UNDERSTAND != 0 || !all_zero(raw.padding) {
            return Err(Error::malformed(format!("{section}: reserved bits of field {id} are not zero")));
        }
        let Some(spec) = schema.iter().find(|spec| spec.id == id) else {
            return match raw.flags & MUST_UNDERSTAND {
                0 => Ok(()),
                _ => Err(ErrorKind::Unsupported(format!("{section}: field {id} is not known here")).into()),
            };
        };
        let name = spec.name;
        if raw.kind != spec.kind as u8 {
            return Err(Error::malformed(format!("{section}: field {name} has type {}", raw.kind)));
        }
        if !payload_fits(spec.kind, raw.payload) {
            return Err(Error::malformed(format!("{section}: field {name} has a bad length or encoding")));
        }
        if !spec.repeatable && self.known.iter().any(|&(known, _)| known == id) {
            return Err(Error::malformed(format!("{section}: field {name} occurs twice")));
        }
        self.known.push((id, raw.payload));
        Ok(())
    }

    fn all(&self, spec: &FieldSpec) -> impl Iterator<Item = &'a [u8]> {
        let id = spec.id;
        self.known.iter().filter(move |&&(known, _)| known == id).map(|&(_, payload)| payload)
    }

    pub(super) fn has(&self, spec: &FieldSpec) -> bool {
        self.all(spec).next().is_some()
    }

    fn missing(&self, spec: &FieldSpec) -> Error {
        Error::malformed(format!("{}: field {} is missing", self.section, spec.name))
    }

    pub(super) fn find_u32(&self, spec: &FieldSpec) -> Option<u32> {
        self.all(spec).next().map(LittleEndian::read_u32)
    }

    pub(super) fn u32(&self, spec: &FieldSpec) -> Result<u32> {
        self.find_u32(spec).ok_or_else(|| self.missing(spec))
    }

    pub(super) fn find_f32(&self, spec: &FieldSpec) -> Option<f32> {
        self.all(spec).next().map(LittleEndian::read_f32)
    }

    pub(super) fn f32(&self, spec: &FieldSpec) -> Result<f32> {
        self.find_f32(spec).ok_or_else(|| self.missing(spec))
    }

    pub(super) fn bytes(&self, spec: &FieldSpec) -> Result<&'a [u8]> {
        self.all(spec).next().ok_or_else(|| self.missing(spec))
    }

    /// A payload of exactly `N` bytes.
    pub(super) fn array<const N: usize>(&self, spec: &FieldSpec) -> Result<[u8; N]> {
        let bytes = self.bytes(spec)?;
        bytes.try_into().map_err(|_| {
            let (section, name, found) = (self.section, spec.name, bytes.len());
            Error::malformed(format!("{section}: field {name} has {found} bytes instead of {N}"))
        })
    }

    pub(super) fn texts(&self, spec: &FieldSpec) -> Vec<String> {
        self.all(spec).map(|payload| String::from_utf8_lossy(payload).into_owned()).collect()
    }

    pub(super) fn find_text(&self, spec: &FieldSpec) -> Option<String> {
        self.all(spec).next().map(|payload| String::from_utf8_lossy(payload).into_owned())
    }

    pub(super) fn text(&self, spec: &FieldSpec) -> Result<String> {
        self.find_text(spec).ok_or_else(|| self.missing(spec))
    }

    pub(super) fn u32_list(&self, spec: &FieldSpec) -> Result<Vec<u32>> {
        Ok(self.bytes(spec)?.chunks_exact(4).map(LittleEndian::read_u32).collect())
    }
}

struct RawField<'a> {
    id: u16,
    kind: u8,
    flags: u8,
    payload: &'a [u8],
    padding: &'a [u8],
}

impl<'a> RawField<'a> {
    fn parse(cursor: &mut Cursor<'a>) -> Option<Self> {
        let (id, kind, flags) = (cursor.u16()?, cursor.u8()?, cursor.u8()?);
        let len = usize::try_from(cursor.u32()?).ok()?;
        let payload = cursor.take(len)?;
        let padding = cursor.take(len.checked_next_multiple_of(4)? - len)?;
        Some(Self { id, kind, flags, payload, padding })
    }
}

fn payload_fits(kind: FieldType, payload: &[u8]) -> bool {
    match kind {
        FieldType::U32 | FieldType::F32 => payload.len() == 4,
        FieldType::Text => std::str::from_utf8(payload).is_ok(),
        FieldType::Bytes => true,
        FieldType::U32List => payload.len().is_multiple_of(4),
    }
}

/// Builds a field list. Every section checks its values before it emits them, so payloads are far
/// below 4 GiB.
#[derive(Default)]
pub(super) struct FieldWriter {
    out: Vec<u8>,
}

impl FieldWriter {
    pub(super) fn u32(&mut self, spec: &FieldSpec, value: u32) {
        self.field(spec, FieldType::U32, &value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, spec: &FieldSpec, value: f32) {
        self.field(spec, FieldType::F32, &value.to_le_bytes());
    }

    pub(super) fn text(&mut self, spec: &FieldSpec, value: &str) {
        self.field(spec, FieldType::Text, value.as_bytes());
    }

    pub(super) fn bytes(&mut self, spec: &FieldSpec, value: &[u8]) {
        self.field(spec, FieldType::Bytes, value);
    }

    pub(super) fn u32_list(&mut self, spec: &FieldSpec, values: &[u32]) {
        let payload: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.field(spec, FieldType::U32List, &payload);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn field(&mut self, spec: &FieldSpec, kind: FieldType, payload: &[u8]) {
        debug_assert_eq!(spec.kind, kind, "{}", spec.name);
        self.out.extend(spec.id.to_le_bytes());
        self.out.extend([kind as u8, if spec.must_understand { MUST_UNDERSTAND } else { 0 }]);
        self.out.extend((payload.len() as u32).to_le_bytes());
        self.out.extend(payload);
        pad_to(&mut self.out, 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: FieldSpec = FieldSpec::required_to_read(1, "count", FieldType::U32);
    const NAME: FieldSpec = FieldSpec::optional(2, "name", FieldType::Text).repeatable();
    const LIST: FieldSpec = FieldSpec::optional(3, "list", FieldType::U32List);
    const SCHEMA: [FieldSpec; 3] = [COUNT, NAME, LIST];

    fn parse(bytes: &[u8]) -> Result<Fields<'_>> {
        Fields::parse("XXXX", bytes, &SCHEMA)
    }

    #[test]
    fn written_fields_read_back() {
        let mut writer = FieldWriter::default();
        writer.u32(&COUNT, 7);
        writer.text(&NAME, "äb");
        writer.text(&NAME, "");
        writer.u32_list(&LIST, &[1, u32::MAX]);
        let bytes = writer.finish();
        assert_eq!(bytes.len() % 4, 0);
        let fields = parse(&bytes).unwrap();
        assert_eq!(fields.u32(&COUNT).unwrap(), 7);
        assert_eq!(fields.texts(&NAME), ["äb", ""]);
        assert_eq!(fields.u32_list(&LIST).unwrap(), [1, u32::MAX]);
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = parse(&[]).unwrap().u32(&COUNT).unwrap_err().to_string();
        assert!(error.contains("XXXX: field count is missing"), "{error}");
    }

    #[test]
    fn every_cut_inside_a_field_is_refused() {
        let mut writer = FieldWriter::default();
        writer.text(&NAME, "abcde");
        let bytes = writer.finish();
        for cut in 1..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn unknown_optional_field_is_skipped_and_unknown_vital_one_refused() {
        let field = |flags| [99, 0, 77, flags, 4, 0, 0, 0, 1, 2, 3, 4];
        assert!(parse(&field(0)).is_ok());
        let error = parse(&field(1)).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
        assert!(parse(&field(2)).is_err());
    }

    #[test]
    fn wrong_type_length_padding_utf8_or_repetition_is_refused() {
        let count = [1, 0, 1, 1, 4, 0, 0, 0, 5, 0, 0, 0];
        assert!(parse(&count).is_ok());
        assert!(parse(&[count, count].concat()).is_err(), "twice");
        assert!(parse(&[1, 0, 2, 1, 4, 0, 0, 0, 5, 0, 0, 0]).is_err(), "type f32");
        assert!(parse(&[1, 0, 1, 1, 3, 0, 0, 0, 5, 0, 0, 0]).is_err(), "length 3");
        assert!(parse(&[2, 0, 3, 0, 1, 0, 0, 0, b'a', 0, 0, 1]).is_err(), "padding");
        assert!(parse(&[2, 0, 3, 0, 1, 0, 0, 0, 0xff, 0, 0, 0]).is_err(), "UTF-8");
        assert!(parse(&[2, 0, 3, 0, 255, 255, 255, 255, b'a', 0, 0, 0]).is_err(), "length 2^32-1");
    }
}

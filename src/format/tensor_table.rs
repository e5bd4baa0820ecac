//! The tensor table: the TENS section.

use std::collections::HashMap;
use std::ops::Range;

use super::bytes::{Cursor, all_zero};
use super::{ElementType, TensorInfo, TensorLayout};
use crate::error::{Error, ErrorKind, Result};

/// Bytes before the entries.
const TABLE_HEADER_BYTES: usize = 16;
/// Bytes of one entry.
const ENTRY_BYTES: usize = 64;
/// Entry flag: a table `<name>.crc32` has a checksum for each record, and the entry itself has
/// none.
const CHECKED_BY_RECORD: u32 = 1;

/// Checks the tensors against each other. They cover `data` in order, each as early as its
/// alignment allows. Names are unique. Every tensor that is checked by record has its table of
/// checksums.
pub(super) fn check_tensors(tensors: &[TensorInfo], data: Range<u64>) -> Result<()> {
    let fail = |tensor: &TensorInfo, what: &str| {
        Err(Error::malformed(format!("tensor {}: {what}", tensor.name.escape_debug())))
    };
    if tensors.is_empty() {
        return Err(Error::malformed("the file has no tensors"));
    }
    let mut by_name = HashMap::with_capacity(tensors.len());
    let mut end = data.start;
    for tensor in tensors {
        tensor.check()?;
        let tensor_end = tensor.offset.checked_add(tensor.len).filter(|&end| end <= data.end);
        let Some(tensor_end) = tensor_end.filter(|_| tensor.offset >= data.start) else {
            return fail(tensor, "the data lies outside section DATA");
        };
        if tensor.offset < end {
            return fail(tensor, "the data overlaps the tensor before it");
        }
        if tensor.offset - end >= tensor.align() {
            return fail(tensor, "there are unused bytes before the data");
        }
        if by_name.insert(tensor.name.as_str(), tensor).is_some() {
            return fail(tensor, "the name occurs twice");
        }
        end = tensor_end;
    }
    if end != data.end {
        return Err(Error::malformed("section DATA has unused bytes at its end"));
    }
    for tensor in tensors.iter().filter(|tensor| tensor.checked_by_record) {
        let table = by_name.get(tensor.record_crc_name().as_str()).copied();
        if !table.is_some_and(|table| is_record_table(table, tensor)) {
            return fail(tensor, "the vector of record checksums is missing or has another shape");
        }
    }
    Ok(())
}

/// Whether `table` can hold a checksum for each record of `tensor`.
fn is_record_table(table: &TensorInfo, tensor: &TensorInfo) -> bool {
    (table.dtype, table.layout) == (ElementType::U32, TensorLayout::Vector)
        && table.shape == [tensor.shape[0], 1]
}

/// The TENS section. The tensors must have passed [`check_tensors`].
pub(super) fn emit(tensors: &[TensorInfo]) -> Vec<u8> {
    let mut out = Vec::new();
    let names: usize = tensors.iter().map(|tensor| tensor.name.len()).sum();
    out.extend((tensors.len() as u32).to_le_bytes());
    out.extend((names as u32).to_le_bytes());
    out.resize(TABLE_HEADER_BYTES, 0);
    let mut name_offset = 0;
    for tensor in tensors {
        emit_entry(&mut out, tensor, name_offset);
        name_offset += tensor.name.len() as u32;
    }
    tensors.iter().for_each(|tensor| out.extend(tensor.name.as_bytes()));
    out
}

fn emit_entry(out: &mut Vec<u8>, tensor: &TensorInfo, name_offset: u32) {
    let end = out.len() + ENTRY_BYTES;
    out.extend(name_offset.to_le_bytes());
    out.extend((tensor.name.len() as u16).to_le_bytes());
    out.extend([tensor.dtype as u8, tensor.layout as u8]);
    tensor.shape.iter().for_each(|&n| out.extend((n as u32).to_le_bytes()));
    out.extend(tensor.scale.to_le_bytes());
    out.extend(tensor.rel_error.to_le_bytes());
    out.extend(tensor.offset.to_le_bytes());
    out.extend(tensor.len.to_le_bytes());
    out.extend(tensor.crc32.to_le_bytes());
    out.extend(if tensor.checked_by_record { CHECKED_BY_RECORD } else { 0 }.to_le_bytes());
    out.resize(end, 0);
}

/// What identifies the contents of a tensor: the bytes 4..20 and 32..48 of its entry, from the
/// length of the name to the scale and from the length of the data to the flags.
pub(super) fn identity(tensor: &TensorInfo) -> [u8; 32] {
    let mut entry = Vec::with_capacity(ENTRY_BYTES);
    emit_entry(&mut entry, tensor, 0);
    let mut identity = [0; 32];
    identity[..16].copy_from_slice(&entry[4..20]);
    identity[16..].copy_from_slice(&entry[32..48]);
    identity
}

/// Reads the TENS section and checks it against the bounds of DATA.
pub(super) fn parse(section: &[u8], data: Range<u64>) -> Result<Vec<TensorInfo>> {
    let mut cursor = Cursor::new(section);
    let entries = split_entries(&mut cursor)
        .ok_or_else(|| Error::malformed("TENS: the counts do not fit the section"))?;
    let names = cursor.rest();
    let mut tensors = Vec::with_capacity(entries.len() / ENTRY_BYTES);
    let mut name_start = 0;
    for bytes in entries.chunks_exact(ENTRY_BYTES) {
        let (tensor, name_end) = parse_entry(bytes, names, name_start).map_err(|kind| match kind {
            ErrorKind::Malformed(what) => Error::malformed(format!("TENS: entry {}: {what}", tensors.len())),
            kind => kind.into(),
        })?;
        tensors.push(tensor);
        name_start = name_end;
    }
    if name_start != names.len() {
        return Err(Error::malformed("TENS: unused bytes after the names"));
    }
    check_tensors(&tensors, data)?;
    Ok(tensors)
}

/// The bytes of all entries. The names are exactly the rest of the cursor.
fn split_entries<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let (count, names_len) = (cursor.u32()?, cursor.u32()?);
    let reserved = cursor.take(8)?;
    let entries = cursor.take(usize::try_from(count).ok()?.checked_mul(ENTRY_BYTES)?)?;
    (all_zero(reserved) && u64::from(names_len) == cursor.rest().len() as u64).then_some(entries)
}

/// One entry, and the end of its name. Names follow each other without gaps, in the order of the
/// entries.
fn parse_entry(bytes: &[u8], names: &[u8], name_start: usize) -> Result<(TensorInfo, usize), ErrorKind> {
    let damaged = |what: &str| ErrorKind::Malformed(what.into());
    let unknown = |what: &str, code: u8| ErrorKind::Unsupported(format!("{what} {code} is not known here"));
    let raw = RawEntry::parse(bytes).ok_or_else(|| damaged("it is too short"))?;
    if raw.flags & !CHECKED_BY_RECORD != 0 || !raw.reserved_is_zero {
        return Err(damaged("reserved bits are not zero"));
    }
    if usize::try_from(raw.name_offset) != Ok(name_start) {
        return Err(damaged("the name is not where the one before it ends"));
    }
    let name_end = name_start + usize::from(raw.name_len);
    let name = names.get(name_start..name_end).ok_or_else(|| damaged("the name lies outside the section"))?;
    let name = std::str::from_utf8(name).map_err(|_| damaged("the name is not UTF-8"))?;
    let tensor = TensorInfo {
        name: name.to_owned(),
        dtype: ElementType::from_code(raw.dtype).ok_or_else(|| unknown("element type", raw.dtype))?,
        layout: TensorLayout::from_code(raw.layout).ok_or_else(|| unknown("tensor layout", raw.layout))?,
        shape: raw.shape.map(|n| n as usize),
        scale: raw.scale,
        rel_error: raw.rel_error,
        offset: raw.offset,
        len: raw.len,
        crc32: raw.crc32,
        checked_by_record: raw.flags & CHECKED_BY_RECORD != 0,
    };
    Ok((tensor, name_end))
}

struct RawEntry {
    name_offset: u32,
    name_len: u16,
    dtype: u8,
    layout: u8,
    shape: [u32; 2],
    scale: f32,
    rel_error: f32,
    offset: u64,
    len: u64,
    crc32: u32,
    flags: u32,
    reserved_is_zero: bool,
}

impl RawEntry {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        Some(Self {
            name_offset: cursor.u32()?,
            name_len: cursor.u16()?,
            dtype: cursor.u8()?,
            layout: cursor.u8()?,
            shape: [cursor.u32()?, cursor.u32()?],
            scale: cursor.f32()?,
            rel_error: cursor.f32()?,
            offset: cursor.u64()?,
            len: cursor.u64()?,
            crc32: cursor.u32()?,
            flags: cursor.u32()?,
            reserved_is_zero: all_zero(cursor.rest()),
        })
    }
}

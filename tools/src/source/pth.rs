//! Torch zip files. The central directory gives the places of the storages, the pickle their
//! meaning.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use byteorder::{ByteOrder, LittleEndian};
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::error::SourceError;
use super::file::Source;
use super::location::Location;
use super::names;
use super::pickle::{self, MAX_PICKLE};
use super::pickle_values::{Object, Pickle, PickleError, Tensor, Value};
use super::records::{self, Record};
use super::tensor::{Index, SourceTensor};

/// Keys under which trainers keep the weights.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "module"];

/// Most wrappers inside each other; a dict can contain itself.
const MAX_WRAPPERS: usize = 8;

/// Longest `byteorder` entry.
const MAX_BYTE_ORDER: u64 = 64;

/// Most bytes that opening reads. Nearly all of them are the zip file's directory, which has 0.2 MB
/// for a 61-layer model.
const MAX_DIRECTORY: u64 = 16 << 20;

type Archive<'a> = ZipArchive<BufReader<Bounded<'a>>>;

/// A reader that seeks in a file and reads at most `left` more bytes.
struct Bounded<'a> {
    source: &'a Source,
    at: u64,
    left: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.source.len().saturating_sub(self.at);
        let count = rest.min(buffer.len() as u64);
        self.source.read_exact_at(&mut buffer[..count as usize], self.at)?;
        self.left = self.left.checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?;
        self.at += count;
        Ok(count as usize)
    }
}

impl Seek for Bounded<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(distance) => self.source.len().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.at.checked_add_signed(distance),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Reads the index of a torch zip file.
pub(super) fn index(source: &Source) -> Result<Index, SourceError> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let file = Bounded { source, at: 0, left: MAX_DIRECTORY };
    let archive =
        Archive::with_config(config, BufReader::new(file)).map_err(|error| zip_error(source, error))?;
    if archive.has_duplicate_names() {
        return Err(source.malformed("two zip entries have the same name"));
    }
    let top = top_folder(source, &archive)?;
    let mut entries = Entries { source, archive, top, known: HashMap::new(), records: BTreeMap::new() };
    entries.check_byte_order()?;
    let data = entries.read("data.pkl", MAX_PICKLE)?;
    let pickle = pickle::read(&data).map_err(|error| pickle_error(source, error))?;
    tensors_of(&pickle, &mut entries)
}

fn zip_error(source: &Source, error: ZipError) -> SourceError {
    match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => source.malformed(format!(
            "the zip file is cut off or inconsistent (no directory in {MAX_DIRECTORY} bytes)"
        )),
        ZipError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => source.io(error),
        _ => source.malformed(format!("the zip file is cut off or inconsistent ({error})")),
    }
}

fn pickle_error(source: &Source, error: PickleError) -> SourceError {
    match error {
        PickleError::Malformed(what) => source.malformed(what),
        PickleError::Unsupported(what) => source.unsupported(what),
        PickleError::Global { global, reason } => {
            SourceError::PickleGlobal { file: source.path().to_owned(), global, reason: reason.to_owned() }
        }
    }
}

/// The folder of the only `data.pkl`, with its slash.
fn top_folder(source: &Source, archive: &Archive<'_>) -> Result<Vec<u8>, SourceError> {
    let mut tops = archive.file_names_raw().filter_map(|name| {
        let top = name.strip_suffix(b"data.pkl")?;
        (top.is_empty() || top.ends_with(b"/")).then_some(top)
    });
    match (tops.next(), tops.next()) {
        (Some(top), None) => Ok(top.to_owned()),
        (None, _) => {
            Err(source.not_a_checkpoint("this zip file has no data.pkl, so torch.save did not write it"))
        }
        (Some(_), Some(_)) => Err(source.malformed("the zip file has more than one data.pkl")),
    }
}

/// Bytes of a stored zip entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    len: u64,
    /// CRC-32; 0 where the writer did not compute it.
    crc: u32,
}

/// The zip entries below the top folder.
struct Entries<'s> {
    source: &'s Source,
    archive: Archive<'s>,
    top: Vec<u8>,
    known: HashMap<String, Entry>,
    /// The checksums of the tensors' entries, by place.
    records: BTreeMap<u64, Record>,
}

impl Entries<'_> {
    /// Finds an entry, which must be stored as it is.
    fn find(&mut self, name: &str) -> Result<Option<Entry>, SourceError> {
        if let Some(&entry) = self.known.get(name) {
            return Ok(Some(entry));
        }
        let full = [self.top.as_slice(), name.as_bytes()].concat();
        let Some(index) = self.archive.index_for_name_raw(&full) else {
            return Ok(None);
        };
        let entry = self.archive.by_index_data(index).map_err(|error| zip_error(self.source, error))?;
        let shown = name.escape_debug();
        if entry.encrypted() {
            return Err(self.source.unsupported(format!("the zip entry {shown} is encrypted")));
        }
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
            return Err(self.source.unsupported(format!(
                "the zip entry {shown} is compressed; torch stores entries as they are, so unpack and save again"
            )));
        }
        let (header, len, crc) = (entry.header_start(), entry.size(), entry.crc32());
        let start = self.data_start(header)?;
        let directory = self.archive.central_directory_start();
        if start.checked_add(len).is_none_or(|end| end > directory) {
            return Err(self.source.malformed(format!("the zip entry {shown} reaches outside the data")));
        }
        let entry = Entry { start, len, crc };
        self.known.insert(name.to_owned(), entry);
        Ok(Some(entry))
    }

    /// First byte after a local header. Only its two lengths count: torch leaves the sizes there
    /// zero.
    fn data_start(&self, header: u64) -> Result<u64, SourceError> {
        let mut bytes = [0; 30];
        self.source.read_at(&mut bytes, header)?;
        if !bytes.starts_with(b"PK\x03\x04") {
            return Err(self.source.malformed(format!("no zip entry begins at byte {header}")));
        }
        let name_len = LittleEndian::read_u16(&bytes[26..28]);
        let extra_len = LittleEndian::read_u16(&bytes[28..30]);
        header
            .checked_add(30 + u64::from(name_len) + u64::from(extra_len))
            .ok_or_else(|| self.source.malformed("a zip entry begins outside the file"))
    }

    /// Reads a whole entry of at most `limit` bytes.
    fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        let entry = self.find(name)?.ok_or_else(|| self.source.malformed(format!("no zip entry {name}")))?;
        if entry.len > limit {
            return Err(self
                .source
                .malformed(format!("{name} has {} bytes, the limit is {limit}", entry.len)));
        }
        let mut bytes = vec![0; entry.len as usize];
        self.source.read_at(&mut bytes, entry.start)?;
        if entry.crc != 0 && entry.crc != crc32fast::hash(&bytes) {
            return Err(self.source.checksum(name));
        }
        Ok(bytes)
    }

    /// Keeps the checksum of a tensor's entry, if there is one.
    fn keep_checksum(&mut self, entry: Entry, tensor: &str) {
        let Entry { start, len, crc } = entry;
        if crc != 0 && len != 0 {
            let record = || Record { shard: 0, start, len, crc, tensor: tensor.to_owned() };
            self.records.entry(start).or_insert_with(record);
        }
    }

    fn check_byte_order(&mut self) -> Result<(), SourceError> {
        if self.find("byteorder")?.is_none() {
            return Ok(());
        }
        let order = self.read("byteorder", MAX_BYTE_ORDER)?;
        if order.trim_ascii() != b"little" {
            return Err(self.source.unsupported(format!(
                "the byte order of the tensors is {:?}, only little is read",
                order.escape_ascii().to_string()
            )));
        }
        Ok(())
    }
}

/// Collects the tensors of the saved dict, or of the dict that a trainer wrapped.
fn tensors_of(pickle: &Pickle<'_>, entries: &mut Entries<'_>) -> Result<Index, SourceError> {
    let mut index = Index::default();
    for &(key, value) in weights(pickle, entries.source)? {
        let Value::Text(name) = key else {
            continue;
        };
        match object(pickle, value) {
            Some(Object::Tensor(tensor)) => index.tensors.push(locate(name, tensor, entries)?),
            _ => index.other_entries.push(name.to_owned()),
        }
        names::check_count(entries.source, index.tensors.len() + index.other_entries.len())?;
    }
    if index.tensors.is_empty() {
        return Err(entries.source.not_a_checkpoint("the saved dict holds no tensors"));
    }
    index.records = std::mem::take(&mut entries.records).into_values().collect();
    records::check_apart(entries.source, &index.records)?;
    Ok(index)
}

fn object<'p, 'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Option<&'p Object<'a>> {
    match value {
        Value::Object(index) => pickle.objects.get(index),
        _ => None,
    }
}

type Items<'a> = [(Value<'a>, Value<'a>)];

fn dict<'p, 'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Option<&'p Items<'a>> {
    match object(pickle, value)? {
        Object::Dict(items) => Some(items),
        _ => None,
    }
}

/// The items of the saved dict, inside of its wrappers.
fn weights<'p, 'a>(pickle: &'p Pickle<'a>, source: &Source) -> Result<&'p Items<'a>, SourceError> {
    let Some(mut items) = dict(pickle, pickle.root) else {
        return Err(source.not_a_checkpoint("what was saved is no dict of tensors; save the state_dict()"));
    };
    for _ in 0..MAX_WRAPPERS {
        let inner = WRAPPERS.iter().find_map(|wrapper| {
            let (_, value) =
                items.iter().find(|(key, _)| matches!(key, Value::Text(key) if key == wrapper))?;
            dict(pickle, *value)
        });
        match inner {
            Some(inner) => items = inner,
            None => return Ok(items),
        }
    }
    Err(source.malformed("the weights are wrapped too often"))
}

/// Turns a stored tensor into rows of contiguous elements inside the file.
fn locate(name: &str, tensor: &Tensor<'_>, entries: &mut Entries<'_>) -> Result<SourceTensor, SourceError> {
    let source = entries.source;
    let storage = tensor.storage;
    let Some(entry) = entries.find(&format!("data/{}", storage.key))? else {
        return Err(source.malformed(format!(
            "no zip entry data/{} for tensor {}",
            storage.key.escape_debug(),
            name.escape_debug()
        )));
    };
    let size = storage.dtype.size() as u64;
    // torch writes all of a storage and counts whole elements, so another number means another
    // element type.
    if storage.elements != entry.len / size {
        return Err(source.tensor(
            name,
            format!("a storage of {} elements of {size} bytes", storage.elements),
            format!("a zip entry of {} bytes", entry.len),
        ));
    }
    let Some(shape) = checked_shape(tensor) else {
        return Err(source.tensor(
            name,
            format!("a view inside its storage of {} elements", storage.elements),
            format!("offset {}, size {:?}, stride {:?}", tensor.offset, tensor.size, tensor.stride),
        ));
    };
    let Some((row_len, stride)) = rows(&tensor.size, &tensor.stride) else {
        return Err(source.tensor(
            name,
            "rows of contiguous elements (save it with .contiguous())",
            format!("size {:?}, stride {:?}", tensor.size, tensor.stride),
        ));
    };
    entries.keep_checksum(entry, name);
    let location = Location {
        shard: 0,
        offset: entry.start + tensor.offset.min(storage.elements) * size,
        row_len: row_len as usize,
        row_stride: stride * size,
    };
    Ok(SourceTensor { name: name.to_owned(), shape, dtype: storage.dtype, transposed: false, location })
}

/// The shape, if every element is inside the storage and there are not more of them than the
/// storage has.
fn checked_shape(tensor: &Tensor<'_>) -> Option<Vec<usize>> {
    let shape = tensor.size.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>()?;
    if shape.contains(&0) {
        return (tensor.offset <= tensor.storage.elements).then_some(shape);
    }
    let elements = tensor.size.iter().try_fold(1, |product: u64, &n| product.checked_mul(n))?;
    let last = tensor
        .size
        .iter()
        .zip(&tensor.stride)
        .try_fold(tensor.offset, |sum, (&n, &stride)| sum.checked_add((n - 1).checked_mul(stride)?))?;
    (last < tensor.storage.elements && elements <= tensor.storage.elements).then_some(shape)
}

/// Length and stride, in elements, of the contiguous rows that make up a view; `None` if there are
/// no such rows.
///
/// Dimensions of one element do not count. A contiguous view is one row.
fn rows(size: &[u64], stride: &[u64]) -> Option<(u64, u64)> {
    if size.contains(&0) {
        return Some((0, 0));
    }
    let (mut row_len, mut row_stride, mut count) = (1, None, 1);
    for (&n, &stride) in size.iter().zip(stride).rev().filter(|&(&n, _)| n != 1) {
        match row_stride {
            None if stride == row_len => row_len *= n,
            None if row_len > 1 => (row_stride, count) = (Some(stride), n),
            Some(step) if stride == step * count => count *= n,
            _ => return None,
        }
    }
    Some((row_len, row_stride.unwrap_or(0)))
}

//! Torch zip files. The central directory gives the places of the storages, the pickle their
//! meaning.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use byteorder::{ByteOrder, LittleEndian};
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::error::SourceError;
use super::file::{ReadAt, Source};
use super::inflate::{Deflated, Unpacked};
use super::location::{Location, VIEWS};
use super::names::{self, MAX_STORED_NAME};
use super::pickle::{self, MAX_PICKLE};
use super::pickle_values::{ElementType, Object, Pickle, PickleError, Tensor, Value};
use super::pth_weights;
use super::records::{self, Record};
use super::strided::{Panels, Strided};
use super::tensor::{Index, SourceDType, SourceTensor, Unreadable};

/// Keys that ChatRWKV adds when it converts a checkpoint.
const CHAT_RWKV: [&str; 2] = ["_strategy", "_rescale_layer"];

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
    let mut entries = Entries {
        source,
        archive,
        top,
        known: HashMap::new(),
        records: BTreeMap::new(),
        views: Vec::new(),
        unpacked: Arc::default(),
        panels: Arc::default(),
    };
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

/// A zip entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// First byte of the entry in the file, packed or not.
    start: u64,
    /// Bytes without packing.
    len: u64,
    /// CRC-32; 0 where the writer did not compute it.
    crc: u32,
    /// Bytes in the file and the view that unpacks them, if they are deflated.
    deflated: Option<(u64, usize)>,
}

/// The zip entries below the top folder.
struct Entries<'s> {
    source: &'s Source,
    archive: Archive<'s>,
    top: Vec<u8>,
    known: HashMap<String, Entry>,
    /// The checksums of the tensors' entries, by place.
    records: BTreeMap<u64, Record>,
    views: Vec<Source>,
    unpacked: Arc<Unpacked>,
    panels: Arc<Panels>,
}

impl Entries<'_> {
    /// Finds an entry, which must be stored as it is or deflated.
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
        let (header, len, packed, crc) =
            (entry.header_start(), entry.size(), entry.compressed_size(), entry.crc32());
        let is_deflated = entry.compression() == CompressionMethod::DEFLATE;
        if !is_deflated && (entry.compression() != CompressionMethod::Stored || packed != len) {
            return Err(self.source.unsupported(format!(
                "the zip entry {shown} is compressed, and not with deflate; unpack the zip file and pack it again \
                 without compression (zip -0)"
            )));
        }
        let start = self.data_start(header)?;
        let directory = self.archive.central_directory_start();
        if start.checked_add(packed).is_none_or(|end| end > directory) {
            return Err(self.source.malformed(format!("the zip entry {shown} reaches outside the data")));
        }
        let mut entry = Entry { start, len, crc, deflated: None };
        if is_deflated {
            entry.deflated = Some((packed, self.views.len()));
            self.views.push(self.source.view(Deflated {
                file: self.source.clone(),
                name: shown.to_string(),
                start,
                packed_len: packed,
                len,
                crc,
                unpacked: Arc::clone(&self.unpacked),
            }));
        }
        self.known.insert(name.to_owned(), entry);
        Ok(Some(entry))
    }

    /// The bytes of an entry without packing, and where it begins in them.
    fn bytes(&self, entry: Entry) -> (&Source, u64) {
        match entry.deflated.and_then(|(_, view)| self.views.get(view)) {
            Some(view) => (view, 0),
            None => (self.source, entry.start),
        }
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
        let (source, start) = self.bytes(entry);
        source.read_at(&mut bytes, start)?;
        if entry.crc != 0 && entry.crc != crc32fast::hash(&bytes) {
            return Err(self.source.checksum(name));
        }
        Ok(bytes)
    }

    /// Keeps the checksum of a tensor's entry, if there is one. Unpacking compares it by itself.
    fn keep_checksum(&mut self, entry: Entry, tensor: &str) {
        let Entry { start, len, crc, deflated } = entry;
        if crc != 0 && len != 0 && deflated.is_none() {
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

/// Collects the tensors of the dict of the weights.
fn tensors_of(pickle: &Pickle<'_>, entries: &mut Entries<'_>) -> Result<Index, SourceError> {
    let source = entries.source;
    let weights = pth_weights::find(pickle, source)?;
    let mut index = Index { other_entries: weights.beside, ..Index::default() };
    let is_chat_rwkv = |key: &Value<'_>| matches!(key, Value::Text(key) if CHAT_RWKV.contains(key));
    if weights.items.iter().any(|(key, _)| is_chat_rwkv(key)) {
        return Err(source.unsupported(
            "a file converted by ChatRWKV (the rwkv Python package): its matrices are transposed and maybe uint8; \
             use the original checkpoint",
        ));
    }
    for &(key, value) in weights.items {
        let Value::Text(name) = key else {
            continue;
        };
        if name.len() > MAX_STORED_NAME {
            return Err(source.malformed("a key is longer than a tensor's name may be"));
        }
        match pickle.object(value) {
            Some(Object::Tensor(tensor)) => match tensor.elements {
                ElementType::Float(dtype) => index.tensors.push(locate(name, tensor, dtype, entries)?),
                other => index.unreadable.push(unreadable_type(name, &pickle.type_name(other))),
            },
            Some(&Object::Opaque(global)) => {
                index.unreadable.push(unreadable_object(name, &pickle.global_name(global)));
            }
            _ => index.other_entries.push(name.to_owned()),
        }
        let count = index.tensors.len() + index.unreadable.len() + index.other_entries.len();
        names::check_count(source, count)?;
    }
    index.records = std::mem::take(&mut entries.records).into_values().collect();
    index.views = std::mem::take(&mut entries.views);
    records::check_apart(source, &index.records)?;
    Ok(index)
}

fn unreadable_type(name: &str, dtype: &str) -> Unreadable {
    let found = format!("{dtype}; use the original checkpoint, before it was quantized");
    Unreadable { name: name.to_owned(), found }
}

fn unreadable_object(name: &str, global: &str) -> Unreadable {
    let found = format!(
        "an object of {global}, which is not looked up because that could run code; load the file with its own \
         program, and save plain tensors"
    );
    Unreadable { name: name.to_owned(), found }
}

/// Turns a stored tensor into rows of contiguous elements inside the file, or inside of a view.
fn locate(
    name: &str,
    tensor: &Tensor<'_>,
    dtype: SourceDType,
    entries: &mut Entries<'_>,
) -> Result<SourceTensor, SourceError> {
    let source = entries.source;
    let storage = tensor.storage;
    let Some(entry) = entries.find(&format!("data/{}", storage.key))? else {
        return Err(source.malformed(format!(
            "no zip entry data/{} for tensor {}",
            storage.key.escape_debug(),
            name.escape_debug()
        )));
    };
    let size = dtype.size() as u64;
    // torch writes all of a storage and counts whole elements, so another number means another
    // element type.
    let (len, unit) =
        if storage.elements == ElementType::Untyped { (entry.len, 1) } else { (entry.len / size, size) };
    if storage.len != len {
        return Err(source.tensor(
            name,
            format!("a storage of {} elements of {unit} bytes", storage.len),
            format!("a zip entry of {} bytes", entry.len),
        ));
    }
    let elements = entry.len / size;
    let Some(shape) = checked_shape(tensor, elements) else {
        return Err(source.tensor(
            name,
            format!("a view inside its storage of {elements} elements"),
            format!("offset {}, size {:?}, stride {:?}", tensor.offset, tensor.size, tensor.stride),
        ));
    };
    let offset = tensor.offset.min(elements) * size;
    let location = match rows(&tensor.size, &tensor.stride) {
        Some((row_len, stride)) => {
            let (shard, start) = entry.deflated.map_or((0, entry.start), |(_, view)| (VIEWS + view, 0));
            let (row_len, row_stride) = (row_len as usize, stride * size);
            Location { shard, offset: start + offset, row_len, row_stride }
        }
        None => {
            let (source, start) = entries.bytes(entry);
            let id = (entries.views.len(), Arc::clone(&entries.panels));
            let geometry = (&tensor.size[..], &tensor.stride[..]);
            let Some(view) = Strided::new(source.clone(), id, start + offset, size, geometry) else {
                return Err(entries.source.tensor(
                    name,
                    "rows of contiguous elements (save it with .contiguous())",
                    format!("size {:?}, stride {:?}", tensor.size, tensor.stride),
                ));
            };
            let location = Location::contiguous(0, (view.len() / size) as usize);
            let location = Location { shard: VIEWS + entries.views.len(), ..location };
            entries.views.push(entries.source.view(view));
            location
        }
    };
    entries.keep_checksum(entry, name);
    Ok(SourceTensor { name: name.to_owned(), shape, dtype, transposed: false, location })
}

/// The shape, if every element is inside a storage of so many elements, and there are not more of
/// them than the storage has.
fn checked_shape(tensor: &Tensor<'_>, in_storage: u64) -> Option<Vec<usize>> {
    let shape = tensor.size.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>()?;
    if shape.contains(&0) {
        return (tensor.offset <= in_storage).then_some(shape);
    }
    let elements = tensor.size.iter().try_fold(1, |product: u64, &n| product.checked_mul(n))?;
    let last = tensor
        .size
        .iter()
        .zip(&tensor.stride)
        .try_fold(tensor.offset, |sum, (&n, &stride)| sum.checked_add((n - 1).checked_mul(stride)?))?;
    (last < in_storage && elements <= in_storage).then_some(shape)
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

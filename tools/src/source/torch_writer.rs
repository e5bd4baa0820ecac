//! Writes a dict of tensors as `torch.save` does, in one pass and with constant memory.
//!
//! For tests; the converter itself never writes this format. The layout is torch's: the pickle
//! comes first, entries are stored with their data on 64-byte boundaries, sizes stand behind the
//! data and in the central directory, and files beyond 4 GiB use zip64.

use std::io::{self, Write};

use byteorder::{LittleEndian as LE, WriteBytesExt};

use super::tensor::SourceDType;

/// Boundary on which the data of an entry begins.
const ALIGNMENT: u64 = 64;

/// Value of a 32-bit field whose real value is in the zip64 extra field.
const IN_ZIP64: u32 = u32::MAX;

/// Flags of every entry: sizes behind the data (bit 3), names in UTF-8 (bit 11).
const FLAGS: u16 = 0x0808;

/// Pairs per batch, as in Python's pickler.
const BATCH: usize = 1000;

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Name, as in the dict.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: SourceDType,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Bytes of its storage.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size() as u64
    }
}

/// Writes a checkpoint: the index at once, then the bytes of every tensor in the order given.
#[derive(Debug)]
pub struct TorchWriter<W> {
    zip: ZipWriter<W>,
    /// Bytes of each storage, in order.
    sizes: Vec<u64>,
    top: String,
    /// Storages begun.
    begun: usize,
}

impl<W: Write> TorchWriter<W> {
    /// Begins a file whose entries are in the folder `top`.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written, or torch has no such element type.
    pub fn new(out: W, top: &str, tensors: &[TensorSpec]) -> io::Result<Self> {
        if let Some(tensor) = tensors.iter().find(|tensor| storage_class(tensor.dtype).is_none()) {
            let problem = format!("tensor {}: torch has no type {}", tensor.name, tensor.dtype);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let mut zip = ZipWriter::new(out);
        zip.entry(&format!("{top}/data.pkl"), &pickle(tensors))?;
        zip.entry(&format!("{top}/.format_version"), b"1")?;
        zip.entry(&format!("{top}/.storage_alignment"), b"64")?;
        zip.entry(&format!("{top}/byteorder"), b"little")?;
        let sizes = tensors.iter().map(TensorSpec::bytes).collect();
        Ok(Self { zip, sizes, top: top.to_owned(), begun: 0 })
    }

    /// Appends little-endian elements. A call must not go past the end of a tensor.
    ///
    /// # Errors
    ///
    /// When the output cannot be written, or more is written than the tensors hold.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        while self.zip.missing() == 0 {
            self.begin_storage()?;
        }
        self.zip.write(bytes)
    }

    fn begin_storage(&mut self) -> io::Result<()> {
        self.zip.end()?;
        let Some(&size) = self.sizes.get(self.begun) else {
            return Err(io::Error::other("more bytes than the tensors hold"));
        };
        self.zip.begin(&format!("{}/data/{}", self.top, self.begun), size)?;
        self.begun += 1;
        Ok(())
    }

    /// Ends the file and returns the output.
    ///
    /// # Errors
    ///
    /// When the output cannot be written, or tensors are incomplete.
    pub fn finish(mut self) -> io::Result<W> {
        while self.begun < self.sizes.len() {
            self.begin_storage()?;
        }
        self.zip.end()?;
        self.zip.entry(&format!("{}/version", self.top), b"3\n")?;
        self.zip.entry(&format!("{}/.data/serialization_id", self.top), &[b'0'; 40])?;
        self.zip.finish()
    }
}

/// The pickle of a dict of contiguous tensors; storage `n` belongs to tensor `n`.
pub fn pickle(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut out = b"\x80\x02}".to_vec();
    for (batch, tensors) in tensors.chunks(BATCH).enumerate() {
        out.push(b'(');
        for (index, tensor) in tensors.iter().enumerate() {
            pickle_tensor(&mut out, batch * BATCH + index, tensor);
        }
        out.push(b'u');
    }
    out.push(b'.');
    out
}

/// Torch's name for storages of a type; `None` if torch has none.
fn storage_class(dtype: SourceDType) -> Option<&'static str> {
    match dtype {
        SourceDType::F64 => Some("DoubleStorage"),
        SourceDType::F32 => Some("FloatStorage"),
        SourceDType::F16 => Some("HalfStorage"),
        SourceDType::BF16 => Some("BFloat16Storage"),
        SourceDType::Block(_) => None,
    }
}

fn pickle_tensor(out: &mut Vec<u8>, index: usize, tensor: &TensorSpec) {
    let storage = storage_class(tensor.dtype).unwrap_or_default();
    pickle_text(out, &tensor.name);
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_text(out, "storage");
    out.extend(format!("ctorch\n{storage}\n").bytes());
    pickle_text(out, &index.to_string());
    pickle_text(out, "cpu");
    pickle_integer(out, tensor.elements());
    out.extend(b"tQK\0(");
    tensor.shape.iter().for_each(|&n| pickle_integer(out, n as u64));
    out.extend(b"t(");
    for inner in 1..=tensor.shape.len() {
        pickle_integer(out, tensor.shape[inner..].iter().map(|&n| n as u64).product());
    }
    out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
}

fn pickle_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn pickle_integer(out: &mut Vec<u8>, value: u64) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([b'K', value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(b'M');
        out.extend(value.to_le_bytes());
    } else if let Ok(value) = i32::try_from(value) {
        out.push(b'J');
        out.extend(value.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend(value.to_le_bytes());
    }
}

/// An entry of the central directory.
#[derive(Debug)]
struct Entry {
    name: String,
    header: u64,
    size: u64,
    crc: u32,
}

/// Writes a zip file of stored entries, the way torch lays it out.
#[derive(Debug)]
pub struct ZipWriter<W> {
    out: W,
    at: u64,
    entries: Vec<Entry>,
    crc: crc32fast::Hasher,
    missing: u64,
    open: bool,
}

impl<W: Write> ZipWriter<W> {
    /// Begins a zip file.
    pub fn new(out: W) -> Self {
        Self { out, at: 0, entries: Vec::new(), crc: crc32fast::Hasher::new(), missing: 0, open: false }
    }

    /// Writes a whole entry.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn entry(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(name, bytes.len() as u64)?;
        self.write(bytes)?;
        self.end()
    }

    /// Begins an entry of `size` bytes.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        let header = self.at;
        let fixed = header + 30 + name.len() as u64 + 4;
        let padding = fixed.next_multiple_of(ALIGNMENT) - fixed;
        let mut bytes = b"PK\x03\x04\0\0".to_vec();
        bytes.write_u16::<LE>(FLAGS)?;
        // Method, time, date, checksum and sizes.
        bytes.extend([0; 18]);
        bytes.write_u16::<LE>(field(name.len())?)?;
        bytes.write_u16::<LE>(4 + padding as u16)?;
        bytes.extend(name.bytes());
        bytes.extend(b"FB");
        bytes.write_u16::<LE>(padding as u16)?;
        bytes.resize(bytes.len() + padding as usize, b'Z');
        self.put(&bytes)?;
        self.entries.push(Entry { name: name.to_owned(), header, size, crc: 0 });
        self.missing = size;
        self.open = true;
        Ok(())
    }

    /// Bytes the open entry still lacks.
    fn missing(&self) -> u64 {
        self.missing
    }

    /// Appends to the open entry.
    ///
    /// # Errors
    ///
    /// When the output cannot be written, or the entry would become longer than was said.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(missing) = self.missing.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::other("a zip entry would become longer than its size"));
        };
        self.missing = missing;
        self.crc.update(bytes);
        self.put(bytes)
    }

    /// Ends the open entry, if there is one, with its data descriptor.
    ///
    /// # Errors
    ///
    /// When the output cannot be written, or bytes are missing.
    pub fn end(&mut self) -> io::Result<()> {
        if self.missing != 0 {
            return Err(io::Error::other("a zip entry is shorter than its size"));
        }
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        let crc = std::mem::take(&mut self.crc).finalize();
        let Some(entry) = self.entries.last_mut() else { return Ok(()) };
        entry.crc = crc;
        let size = entry.size;
        let mut bytes = b"PK\x07\x08".to_vec();
        bytes.write_u32::<LE>(crc)?;
        for _ in ["compressed", "uncompressed"] {
            if narrow(size) == IN_ZIP64 {
                bytes.write_u64::<LE>(size)?;
            } else {
                bytes.write_u32::<LE>(narrow(size))?;
            }
        }
        self.put(&bytes)
    }

    /// Writes the central directory and returns the output.
    ///
    /// # Errors
    ///
    /// When the output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        let start = self.at;
        let mut bytes = Vec::new();
        self.entries.iter().try_for_each(|entry| central_header(&mut bytes, entry))?;
        end_of_directory(&mut bytes, self.entries.len() as u64, start)?;
        self.put(&bytes)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

fn central_header(out: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    let mut wide = Vec::new();
    for value in [entry.size, entry.size, entry.header] {
        if narrow(value) == IN_ZIP64 {
            wide.write_u64::<LE>(value)?;
        }
    }
    let extra = if wide.is_empty() { 0 } else { 4 + wide.len() };
    out.extend(b"PK\x01\x02");
    out.write_u32::<LE>(if wide.is_empty() { 0 } else { 0x002d_002d })?;
    out.write_u16::<LE>(FLAGS)?;
    // Method, time and date.
    out.extend([0; 6]);
    out.write_u32::<LE>(entry.crc)?;
    out.write_u32::<LE>(narrow(entry.size))?;
    out.write_u32::<LE>(narrow(entry.size))?;
    out.write_u16::<LE>(field(entry.name.len())?)?;
    out.write_u16::<LE>(field(extra)?)?;
    // Comment, disk and attributes.
    out.extend([0; 10]);
    out.write_u32::<LE>(narrow(entry.header))?;
    out.extend(entry.name.bytes());
    if !wide.is_empty() {
        out.write_u16::<LE>(1)?;
        out.write_u16::<LE>(field(wide.len())?)?;
        out.extend(wide);
    }
    Ok(())
}

/// The records behind a central directory that begins at `start` and is all of `out`.
fn end_of_directory(out: &mut Vec<u8>, entries: u64, start: u64) -> io::Result<()> {
    let size = out.len() as u64;
    let short_count = u16::try_from(entries).unwrap_or(u16::MAX);
    if short_count == u16::MAX || narrow(start) == IN_ZIP64 || narrow(size) == IN_ZIP64 {
        out.extend(b"PK\x06\x06");
        out.write_u64::<LE>(44)?;
        out.write_u32::<LE>(0x002d_002d)?;
        out.write_u64::<LE>(0)?;
        out.write_u64::<LE>(entries)?;
        out.write_u64::<LE>(entries)?;
        out.write_u64::<LE>(size)?;
        out.write_u64::<LE>(start)?;
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.write_u64::<LE>(start + size)?;
        out.write_u32::<LE>(1)?;
    }
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.write_u16::<LE>(short_count)?;
    out.write_u16::<LE>(short_count)?;
    out.write_u32::<LE>(narrow(size))?;
    out.write_u32::<LE>(narrow(start))?;
    out.write_u16::<LE>(0)
}

/// The 32-bit field for a value, which sends larger ones to the zip64 field.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(IN_ZIP64)
}

fn field(value: usize) -> io::Result<u16> {
    u16::try_from(value).map_err(|_| io::Error::other("a zip field is too long"))
}

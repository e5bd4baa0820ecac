//! Readers of RWKV checkpoints: torch zip files (`.pth`), `.safetensors` and rwkv.cpp `.bin`.
//!
//! [`Checkpoint::open`] reads the container's index and nothing else, and refuses what is damaged, hostile or not a
//! checkpoint with one line that says why. [`Checkpoint::read`] then decodes any range of a tensor to `f32` with
//! positioned reads: memory stays bounded whatever the size of the file, and several threads may read at once.
//! [`detect()`] tells the RWKV version from tensor names and shapes.
//!
//! A `.pth` file contains a pickle, a format that can run code. The reader here builds numbers, strings, containers
//! and tensor descriptions, knows the names of seven globals, and refuses any other one by name.

mod decode;
mod detect;
mod error;
mod file;
mod inventory;
mod names;
mod pickle;
mod pickle_globals;
mod pickle_values;
mod pth;
mod rwkvcpp;
mod safetensors;
mod sniff;
pub mod torch_writer;

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

pub use detect::detect;
pub use error::SourceError;
use file::Source;

/// Bytes of one scratch buffer: it stays in the second-level cache between reading and decoding.
const SCRATCH: usize = 256 * 1024;

/// Scratch buffers kept for reuse, at most 4 MiB together; one per thread that reads at the same time.
const KEPT_SCRATCH: usize = 16;

/// File format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// What `torch.save` writes: a zip file with a pickle and one entry per storage.
    TorchZip,
    /// A JSON header and the tensors after it.
    Safetensors,
    /// FP32 or FP16 `.bin` of rwkv.cpp, version 100 or 101. Some of its tensors are stored already transformed.
    RwkvCpp,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TorchZip => "pth",
            Self::Safetensors => "safetensors",
            Self::RwkvCpp => "rwkv.cpp",
        })
    }
}

/// Element type of a tensor in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceDType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
}

impl SourceDType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for SourceDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        })
    }
}

/// A tensor of a checkpoint: its description, not its data.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Name without the prefixes of wrappers.
    pub name: String,
    /// Shape as stored, row-major.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: SourceDType,
    location: Location,
}

impl SourceTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        // Opening checked that the product fits.
        self.shape.iter().product()
    }
}

/// Where the elements are: rows of `row_len` contiguous elements, `row_stride` bytes apart.
///
/// Opening a file checks that all of them lie inside it. A contiguous tensor is one row.
#[derive(Debug, Clone, Copy)]
struct Location {
    offset: u64,
    row_len: usize,
    row_stride: u64,
}

/// An opened checkpoint: the file and the index of its tensors.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    container: Container,
    tensors: Vec<SourceTensor>,
    other_entries: Vec<String>,
    scratch: Mutex<Vec<Vec<u8>>>,
}

/// What a container's reader finds: tensors, and the names of entries that are no tensors.
struct Index {
    tensors: Vec<SourceTensor>,
    other_entries: Vec<String>,
}

impl Checkpoint {
    /// Opens a checkpoint and reads its index.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no checkpoint, or breaks a rule of its container.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let source = Source::open(path)?;
        let container = sniff::container(&source)?;
        let mut index = match container {
            Container::TorchZip => pth::index(&source)?,
            Container::Safetensors => safetensors::index(&source)?,
            Container::RwkvCpp => rwkvcpp::index(&source)?,
        };
        names::clean(&source, &mut index.tensors)?;
        Ok(Self {
            source,
            container,
            tensors: index.tensors,
            other_entries: index.other_entries,
            scratch: Mutex::default(),
        })
    }

    /// Format of the file.
    pub fn container(&self) -> Container {
        self.container
    }

    /// All tensors, in natural order of their names (`blocks.2` before `blocks.10`), each name once.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&SourceTensor> {
        let index = self.tensors.binary_search_by(|tensor| names::natural_cmp(&tensor.name, name)).ok()?;
        self.tensors.get(index)
    }

    /// Names of the entries beside the tensors, such as a trainer's step count. They are not read.
    pub fn other_entries(&self) -> &[String] {
        &self.other_entries
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.source.len()
    }

    /// File name without its folder.
    pub fn file_name(&self) -> String {
        let path = self.source.path();
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Decodes elements `start .. start + out.len()` of `tensor`, counted in row-major order.
    ///
    /// # Errors
    ///
    /// When the range is not inside the tensor, or the file cannot be read any more.
    pub fn read(&self, tensor: &SourceTensor, start: usize, out: &mut [f32]) -> Result<(), SourceError> {
        let elements = tensor.elements();
        if start.checked_add(out.len()).is_none_or(|end| end > elements) {
            return Err(self.source.tensor(
                &tensor.name,
                format!("a range inside its {elements} elements"),
                format!("{} elements from {start}", out.len()),
            ));
        }
        let mut scratch = self.take_scratch();
        let result = self.read_rows(tensor, start, out, &mut scratch);
        self.keep_scratch(scratch);
        result
    }

    fn read_rows(
        &self,
        tensor: &SourceTensor,
        mut start: usize,
        mut out: &mut [f32],
        scratch: &mut [u8],
    ) -> Result<(), SourceError> {
        let Location { offset, row_len, row_stride } = tensor.location;
        let size = tensor.dtype.size();
        while !out.is_empty() {
            let (row, column) = (start / row_len, start % row_len);
            let count = out.len().min(row_len - column).min(scratch.len() / size);
            let (values, rest) = out.split_at_mut(count);
            let bytes = &mut scratch[..count * size];
            self.source.read_at(bytes, offset + row as u64 * row_stride + (column * size) as u64)?;
            decode::decode(tensor.dtype, bytes, values);
            start += count;
            out = rest;
        }
        Ok(())
    }

    fn take_scratch(&self) -> Vec<u8> {
        let kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; SCRATCH])
    }

    fn keep_scratch(&self, buffer: Vec<u8>) {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_SCRATCH {
            kept.push(buffer);
        }
    }
}

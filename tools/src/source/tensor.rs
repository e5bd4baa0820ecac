//! The tensors of a checkpoint: container, element type, name, shape and place.

use std::fmt;

use super::file::Source;
use super::gguf::{About, BlockType};
use super::location::Location;
use super::records::Record;

/// File format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// The format of `torch.save`: a zip file with a pickle and one entry per storage.
    TorchZip,
    /// A JSON header and the tensors after it.
    Safetensors,
    /// FP32 or FP16 `.bin` of rwkv.cpp, version 100 or 101. It stores some tensors already
    /// transformed.
    RwkvCpp,
    /// GGUF of llama.cpp, version 3, in one file or in parts.
    Gguf,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TorchZip => "pth",
            Self::Safetensors => "safetensors",
            Self::RwkvCpp => "rwkv.cpp",
            Self::Gguf => "gguf",
        })
    }
}

/// Element type of a tensor in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceDType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// Blocks of quantized elements.
    Block(BlockType),
}

impl SourceDType {
    /// Bytes of one element; of one block if elements lie in blocks.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Block(block) => block.size(),
        }
    }

    /// Elements of a block; 1 if elements do not lie in blocks.
    pub fn block_len(self) -> usize {
        match self {
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Block(block) => block.block_len(),
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
            Self::Block(block) => return block.fmt(f),
        })
    }
}

/// A tensor of a checkpoint: its description, not its data.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// BlinkDL's name.
    pub name: String,
    /// Shape as stored, row-major: where `transposed` is set, BlinkDL's has the last two dimensions
    /// swapped.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: SourceDType,
    /// The last two dimensions are swapped against BlinkDL's checkpoint.
    ///
    /// BlinkDL has low-rank factors as `[in, out]` and tuned states as `[head, value, key]`.
    pub transposed: bool,
    pub(super) location: Location,
}

impl SourceTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        // Opening checked that the product fits.
        self.shape.iter().product()
    }
}

/// An entry under a tensor's name that is not read.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    pub(super) name: String,
    /// What it is, and what to do.
    pub(super) found: String,
}

/// Result of a container's reader: tensors, the names of entries that are no tensors, checksums,
/// and what else the container says.
#[derive(Default)]
pub(super) struct Index {
    pub(super) tensors: Vec<SourceTensor>,
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) other_entries: Vec<String>,
    /// Bytes that are computed from those of the file, for tensors whose elements do not lie there
    /// in rows. Their shards are numbered from [`VIEWS`](super::location::VIEWS) on.
    pub(super) views: Vec<Source>,
    /// By place.
    pub(super) records: Vec<Record>,
    pub(super) about: About,
}

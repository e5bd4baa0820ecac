//! The index of one file: each container's reader finds the tensors in it.

use super::error::SourceError;
use super::file::Source;
use super::tensor::{Container, Index};
use super::{gguf, pth, rwkvcpp, safetensors};

/// Reads the index of one file.
pub(super) fn read(source: &Source, container: Container) -> Result<Index, SourceError> {
    match container {
        Container::TorchZip => pth::index(source),
        Container::Safetensors => safetensors::index(source),
        Container::RwkvCpp => rwkvcpp::index(source),
        Container::Gguf => gguf::open(source).map(|opened| opened.index),
    }
}

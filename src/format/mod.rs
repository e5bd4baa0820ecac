//! The `.rwkv` model file: one memory-mapped file with hyperparameters, tokenizer, chat settings,
//! provenance, self-test and weights. `docs/FORMAT.md` is the normative description of every byte.
//!
//! [`ModelFile`] checks a file completely before it hands out anything. Only the checksums of the
//! weights are left; [`ModelFile::verify`] checks them on demand. [`FileLayout`] lays out a file
//! without touching the disk, and [`ModelWriter`] streams it. Model files are untrusted: any byte
//! string may give an error, never a panic.

mod bytes;
mod chat;
mod config;
mod fields;
mod file_layout;
mod handles;
mod header;
mod mapping;
mod metadata;
mod model_id;
mod output;
mod reader;
#[cfg(test)]
mod round_trip;
mod sampling;
mod sniff;
pub(crate) mod state_file;
mod template;
mod tensor;
mod tensor_table;
#[cfg(test)]
mod testing;
mod variant;
mod verifier;
mod writer;

pub use chat::{Chat, Fill, Think, ThinkMode};
pub use config::{Arch, Config, Heads, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7, Version};
pub use file_layout::{FileContents, FileLayout, WriteSpec};
pub use handles::{MatrixHandle, RecordsHandle, U32Handle, VectorHandle};
pub use header::{MAJOR_VERSION, MINOR_VERSION, Section, SectionKind};
pub use mapping::{Load, Mapping, MappingKind};
pub use metadata::{Calibration, Provenance, SelfTest};
pub use output::{Output, Published, Replace, Target};
pub use reader::{ModelFile, ModelHeader};
pub use sampling::SamplingParams;
pub use sniff::FileKind;
pub use state_file::StateNotes;
pub use template::Template;
pub use tensor::{ElementType, TensorInfo, TensorLayout};
pub use variant::Variant;
pub use verifier::Verifier;
pub use writer::ModelWriter;

#[cfg(target_endian = "big")]
compile_error!(
    "rwkv-edge reads weights in place, which are little-endian; big-endian targets are not supported"
);

/// Alignment of sections and of small tensors: a cache line.
pub const LINE_ALIGN: u64 = 64;
/// Alignment of the DATA section and of large tensors: the largest page size of common ARM systems.
pub const PAGE_ALIGN: u64 = 16 * 1024;
/// Tensors of at least this many bytes start on [`PAGE_ALIGN`].
pub const LARGE_TENSOR_BYTES: u64 = 64 * 1024;

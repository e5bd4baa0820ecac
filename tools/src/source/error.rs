//! Why a checkpoint cannot be read.

use std::io;
use std::path::PathBuf;

/// Why a checkpoint cannot be read; every message is one line that starts with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused to open or read.
    #[error("{}: {error}", file.display())]
    Io {
        /// The checkpoint.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is no checkpoint at all; says what it looks like and what to do.
    #[error("{}: not a checkpoint: {what}", file.display())]
    NotACheckpoint {
        /// The file.
        file: PathBuf,
        /// The kind of file that it looks like.
        what: String,
    },
    /// The container is cut off, inconsistent or hostile.
    #[error("{}: damaged checkpoint: {what}", file.display())]
    Malformed {
        /// The checkpoint.
        file: PathBuf,
        /// The inconsistency.
        what: String,
    },
    /// A part of the file does not match its checksum.
    #[error(
        "{}: damaged checkpoint: the checksum of {part} does not match; copy or download the file again",
        file.display()
    )]
    Checksum {
        /// The checkpoint.
        file: PathBuf,
        /// The tensor or the entry.
        part: String,
    },
    /// The pickle names a global that a plain dict of tensors does not need.
    #[error("{}: refusing pickle global {global}: {reason}", file.display())]
    PickleGlobal {
        /// The checkpoint.
        file: PathBuf,
        /// `module.name` as the pickle spells it.
        global: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A tensor does not fit its place in the model.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", file.display())]
    Tensor {
        /// The checkpoint.
        file: PathBuf,
        /// Tensor name.
        tensor: String,
        /// The form that is needed.
        expected: String,
        /// The form in the file.
        found: String,
    },
    /// A file beside the checkpoint cannot be read; says its path.
    #[error(transparent)]
    Beside(rwkv_edge::Error),
    /// The `config.json` beside the checkpoint is damaged, or asks for what the converter cannot
    /// do.
    #[error("{}: {what}", file.display())]
    Config {
        /// The `config.json`.
        file: PathBuf,
        /// The key, and what is wrong with it.
        what: String,
    },
    /// The file is well-formed but holds something this converter does not read.
    #[error("{}: unsupported: {what}", file.display())]
    Unsupported {
        /// The checkpoint.
        file: PathBuf,
        /// What it is and why it is refused.
        what: String,
    },
}

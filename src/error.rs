//! The library's error type: what went wrong, in which file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the file it concerns if there is one.
///
/// Displays as one line: `path: what was expected and what was found`.
#[derive(Debug)]
pub struct Error {
    path: Option<PathBuf>,
    kind: ErrorKind,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused to open, map, read or write.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is not an rwkv-edge model. The text says what it looks like and what to do.
    #[error("not an rwkv-edge model: {0}")]
    NotAModel(String),
    /// The file was written for a newer reader.
    #[error(
        "format version {found} is newer than {supported}, the newest this program reads; update rwkv-edge"
    )]
    NewerFormat {
        /// Major version in the file.
        found: u16,
        /// Newest major version understood.
        supported: u16,
    },
    /// The file is shorter (or longer) than its header says.
    #[error("the file has {found} bytes, its header says {expected}; it was not copied completely")]
    Truncated {
        /// Bytes the header promises.
        expected: u64,
        /// Bytes the file has.
        found: u64,
    },
    /// A checksum does not match: the bytes changed after the file was written.
    #[error("checksum mismatch in {what}; the file is damaged")]
    Checksum {
        /// The section, tensor or row.
        what: String,
    },
    /// A structure of the file is inconsistent.
    #[error("damaged file: {0}")]
    Malformed(String),
    /// A tensor does not fit the model's hyperparameters.
    #[error("tensor {name}: expected {expected}, found {found}")]
    Tensor {
        /// Tensor name.
        name: String,
        /// What the model needs.
        expected: String,
        /// What the file contains.
        found: String,
    },
    /// The file is well-formed but needs something this build does not have.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A file at the path of an output is neither empty nor of the kind of the output.
    #[error("it exists and is no rwkv-edge {expected}, so it is not replaced")]
    NotReplaced {
        /// The kind of the output: `model`, `state` or `table`.
        expected: &'static str,
    },
    /// There is no room for an output.
    #[error("{needed} bytes are needed, {available} are available {place}")]
    NoRoom {
        /// Bytes of the output.
        needed: u64,
        /// Bytes available for it.
        available: u64,
        /// Where they are available.
        place: &'static str,
    },
    /// An argument of the caller is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The file is not a saved state. The text says what it looks like and what to do.
    #[error("not a saved state: {0}")]
    NotAState(String),
    /// A state belongs to another model: the numbers of one quantization mean nothing to another.
    #[error("the state belongs to another model: that has the id {found:016x}, this one {expected:016x}")]
    OtherModel {
        /// [`model_id`](crate::format::ModelFile::model_id) of the state's model.
        found: u64,
        /// Id of the model that should continue it.
        expected: u64,
    },
}

impl ErrorKind {
    /// A number for the kind. A kind keeps its number in later versions.
    pub const fn code(&self) -> u32 {
        match self {
            ErrorKind::Io(_) => 1,
            ErrorKind::NotAModel(_) => 2,
            ErrorKind::NewerFormat { .. } => 3,
            ErrorKind::Truncated { .. } => 4,
            ErrorKind::Checksum { .. } => 5,
            ErrorKind::Malformed(_) => 6,
            ErrorKind::Tensor { .. } => 7,
            ErrorKind::Unsupported(_) => 8,
            ErrorKind::NotReplaced { .. } => 9,
            ErrorKind::NoRoom { .. } => 10,
            ErrorKind::Invalid(_) => 11,
            ErrorKind::NotAState(_) => 12,
            ErrorKind::OtherModel { .. } => 13,
        }
    }
}

impl Error {
    /// The kind of error.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The file concerned, if any.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The same error, about `path`. A path that the error already has stays.
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path.get_or_insert_with(|| path.into());
        self
    }

    /// A structure of the file is inconsistent.
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        ErrorKind::Malformed(what.into()).into()
    }

    /// An argument of the caller is out of range.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        ErrorKind::Invalid(what.into()).into()
    }
}

impl<K: Into<ErrorKind>> From<K> for Error {
    fn from(kind: K) -> Self {
        Self { path: None, kind: kind.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            // The kind displays the I/O error itself, so the source is the error behind it.
            ErrorKind::Io(error) => error.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_errors_are_those_of_earlier_versions() {
        let kinds = [
            ErrorKind::Io(io::ErrorKind::NotFound.into()),
            ErrorKind::NotAModel(String::new()),
            ErrorKind::NewerFormat { found: 2, supported: 1 },
            ErrorKind::Truncated { expected: 2, found: 1 },
            ErrorKind::Checksum { what: String::new() },
            ErrorKind::Malformed(String::new()),
            ErrorKind::Tensor { name: String::new(), expected: String::new(), found: String::new() },
            ErrorKind::Unsupported(String::new()),
            ErrorKind::NotReplaced { expected: "" },
            ErrorKind::NoRoom { needed: 2, available: 1, place: "" },
            ErrorKind::Invalid(String::new()),
            ErrorKind::NotAState(String::new()),
            ErrorKind::OtherModel { found: 2, expected: 1 },
        ];
        assert!(kinds.iter().map(ErrorKind::code).eq(1..=13));
    }
}

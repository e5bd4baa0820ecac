//! The opened checkpoint file, or one that is computed: positioned reads, and errors that name it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::synth::{Image, Recipe};

/// An opened file with its length at opening.
#[derive(Debug)]
pub(super) struct Source {
    bytes: Bytes,
    path: PathBuf,
    len: u64,
}

/// Where bytes come from.
#[derive(Debug)]
enum Bytes {
    File(File),
    /// They are computed; the path is a description.
    Synthetic(Image),
}

impl Source {
    /// Opens `path`, which must be a regular, non-empty file.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let io = |error| SourceError::Io { file: path.to_owned(), error };
        let meta = std::fs::metadata(path).map_err(io)?;
        let refuse =
            |what: &str| Err(SourceError::NotACheckpoint { file: path.to_owned(), what: what.to_owned() });
        if meta.is_dir() {
            return refuse("this is a folder; name the checkpoint file inside it");
        }
        if !meta.is_file() {
            return refuse("this is a device or pipe; the converter needs a regular file");
        }
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        if len == 0 {
            return refuse("the file is empty; the download did not start or was interrupted");
        }
        Ok(Self { bytes: Bytes::File(file), path: path.to_owned(), len })
    }

    /// The file that a recipe describes.
    pub(super) fn synthetic(recipe: &Recipe) -> Result<Self, SourceError> {
        let path = PathBuf::from(recipe.to_string());
        match Image::new(recipe) {
            Ok(image) => Ok(Self { len: image.len(), bytes: Bytes::Synthetic(image), path }),
            Err(what) => Err(SourceError::Unsupported { file: path, what }),
        }
    }

    /// Whether the file is computed.
    pub(super) fn is_synthetic(&self) -> bool {
        matches!(self.bytes, Bytes::Synthetic(_))
    }

    /// The path the file was opened by.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A second handle for readers that seek. Both share one cursor, which positioned reads may move on Windows.
    pub(super) fn cursor(&self) -> Result<File, SourceError> {
        match &self.bytes {
            Bytes::File(file) => file.try_clone().map_err(|error| self.io(error)),
            Bytes::Synthetic(_) => Err(self.unsupported("a synthetic checkpoint of this format")),
        }
    }

    /// Fills `buffer` from byte `offset`.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), SourceError> {
        let end = offset.saturating_add(buffer.len() as u64);
        let result = match &self.bytes {
            Bytes::File(file) => read_exact_at(file, buffer, offset),
            Bytes::Synthetic(_) if end > self.len => Err(io::ErrorKind::UnexpectedEof.into()),
            Bytes::Synthetic(image) => {
                image.read_at(buffer, offset);
                Ok(())
            }
        };
        result.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.malformed(format!("it ends before byte {end}")),
            _ => self.io(error),
        })
    }

    /// An error of the operating system.
    pub(super) fn io(&self, error: io::Error) -> SourceError {
        SourceError::Io { file: self.path.clone(), error }
    }

    /// The file is no checkpoint.
    pub(super) fn not_a_checkpoint(&self, what: impl Into<String>) -> SourceError {
        SourceError::NotACheckpoint { file: self.path.clone(), what: what.into() }
    }

    /// The container is inconsistent.
    pub(super) fn malformed(&self, what: impl Into<String>) -> SourceError {
        SourceError::Malformed { file: self.path.clone(), what: what.into() }
    }

    /// A part does not match its checksum.
    pub(super) fn checksum(&self, part: impl Into<String>) -> SourceError {
        SourceError::Checksum { file: self.path.clone(), part: part.into() }
    }

    /// The file holds something that is not read.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> SourceError {
        SourceError::Unsupported { file: self.path.clone(), what: what.into() }
    }

    /// One tensor is not what its place asks for.
    pub(super) fn tensor(
        &self,
        tensor: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> SourceError {
        SourceError::Tensor {
            file: self.path.clone(),
            tensor: tensor.escape_debug().to_string(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

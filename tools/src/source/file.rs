//! The opened checkpoint file: positioned reads, and errors that name it.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SourceError;

/// Bytes that can be read at any place, by several threads at once.
pub(crate) trait ReadAt: Debug + Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] where the bytes end before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Refuses a range that `bytes` do not have.
pub(crate) fn check_range(bytes: &impl ReadAt, buffer: &[u8], offset: u64) -> io::Result<()> {
    match offset.checked_add(buffer.len() as u64) {
        Some(end) if end <= bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A file with its length at opening.
#[derive(Debug)]
struct OnDisk {
    file: File,
    len: u64,
}

/// An opened file. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    bytes: Arc<dyn ReadAt>,
    /// A description of a file that is computed.
    path: PathBuf,
    is_computed: bool,
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
        Ok(Self { bytes: Arc::new(OnDisk { file, len }), path: path.to_owned(), is_computed: false })
    }

    /// A file whose bytes are computed when read.
    pub(super) fn computed(description: PathBuf, bytes: Box<dyn ReadAt>) -> Self {
        Self { bytes: bytes.into(), path: description, is_computed: true }
    }

    /// Bytes that are computed from this file, by whose name errors call them.
    pub(super) fn view(&self, bytes: impl ReadAt + 'static) -> Self {
        Self { bytes: Arc::new(bytes), path: self.path.clone(), is_computed: true }
    }

    /// Whether the file is computed.
    pub(super) fn is_computed(&self) -> bool {
        self.is_computed
    }

    /// The path the file was opened by.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.bytes.len()
    }

    /// Fills `buffer` from byte `offset`.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), SourceError> {
        let end = offset.saturating_add(buffer.len() as u64);
        self.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.malformed(format!("it ends before byte {end}")),
            // A view has an error of its own.
            _ => error.downcast::<SourceError>().unwrap_or_else(|error| self.io(error)),
        })
    }

    /// The same, with the system's error.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.read_exact_at(buffer, offset)
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

    /// The file holds something that the converter does not read.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> SourceError {
        SourceError::Unsupported { file: self.path.clone(), what: what.into() }
    }

    /// One tensor does not fit its place in the model.
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

impl ReadAt for OnDisk {
    fn len(&self) -> u64 {
        self.len
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, buffer, offset) {
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
}

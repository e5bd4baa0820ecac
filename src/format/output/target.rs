//! The place of an output, and the files it may replace.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::super::{header, state_file};
use super::{folder, look, system};
use crate::error::{Error, ErrorKind, Result};

/// Most symbolic links that are followed: as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Files that an output may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// Empty files, and files that begin like a model file.
    Models,
    /// Empty files, and files that begin like a saved state.
    States,
    /// Empty files, and tables that begin with this text.
    Tables(&'static str),
    /// Any regular file.
    Any,
}

/// The place of an output file, which may be written.
#[derive(Clone, Debug)]
pub struct Target {
    /// The path as given, for messages.
    path: PathBuf,
    /// The path behind all symbolic links.
    file: PathBuf,
    replace: Replace,
}

impl Target {
    /// Follows symbolic links, also to a file that does not exist yet.
    ///
    /// # Errors
    /// If `path` is no regular file (a folder, device, pipe or socket), or its folder does not
    /// exist. [`ErrorKind::NotReplaced`] if a file at `path` must not be replaced.
    pub fn new(path: &Path, replace: Replace) -> Result<Self> {
        Self::find(path, replace).map_err(|error| error.with_path(path))
    }

    fn find(path: &Path, replace: Replace) -> Result<Self> {
        let file = follow_links(path)?;
        let target = Self { path: path.to_owned(), file, replace };
        let found = target.replaced()?;
        let name = target.file.as_os_str().as_encoded_bytes();
        if target.file.file_name().is_none() || name.ends_with(b"/") || name.ends_with(b"/.") {
            return Err(Error::invalid("it is not the name of a file"));
        }
        let folder = folder(&target.file);
        let beside = fs::metadata(folder).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::invalid(format!("there is no folder {}", folder.display())),
            _ => error.into(),
        })?;
        if let Some(found) = found {
            system::check_removable(&target.file, &found, &beside)?;
        }
        Ok(target)
    }

    /// The path that was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the output would replace the file at `path`, under whatever name.
    pub fn is(&self, path: &Path) -> bool {
        let (Ok(ours), Ok(other)) = (fs::metadata(&self.file), fs::metadata(path)) else { return false };
        let canonical = |path: &Path| fs::canonicalize(path).ok();
        system::is_same(&ours, &other).unwrap_or_else(|| canonical(&self.file) == canonical(path))
    }

    /// The file behind all links.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The file that would be replaced at this moment, if any.
    ///
    /// # Errors
    /// If it must not be replaced.
    pub(super) fn replaced(&self) -> Result<Option<Metadata>> {
        let Some(found) = look(&self.file)? else { return Ok(None) };
        if found.is_dir() {
            return Err(Error::invalid("it is a directory"));
        }
        if !found.is_file() {
            return Err(Error::invalid("it is not a regular file"));
        }
        let (magic, expected) = match self.replace {
            Replace::Models => (&header::MAGIC[..], "model"),
            Replace::States => (&state_file::MAGIC[..], "state"),
            Replace::Tables(start) => (start.as_bytes(), "table"),
            Replace::Any => return Ok(Some(found)),
        };
        if found.len() > 0 && !begins_with(&self.file, magic)? {
            return Err(ErrorKind::NotReplaced { expected }.into());
        }
        Ok(Some(found))
    }
}

/// The path behind all symbolic links at `path`.
fn follow_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if !look(&path)?.is_some_and(|found| found.is_symlink()) {
            return Ok(path);
        }
        let folder = folder(&path);
        if system::has_links_to_open_files(folder) {
            return Err(Error::invalid("it is an open file of a process, not the name of a file"));
        }
        path = folder.join(fs::read_link(&path)?);
    }
    Err(Error::invalid("too many symbolic links"))
}

/// Whether a file begins with `magic`.
fn begins_with(file: &Path, magic: &[u8]) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(file)?.take(magic.len() as u64).read_to_end(&mut start)?;
    Ok(start == magic)
}

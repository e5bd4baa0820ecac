//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use crate::error::{Error, Result};

/// Names tried for the temporary file.
const MAX_ATTEMPTS: u32 = 100;

/// A file under a temporary name beside its target: [`publish`](Self::publish) moves it there, and an abandoned one
/// is removed.
#[derive(Debug)]
pub struct TempFile {
    target: PathBuf,
    /// Empty when there is nothing to remove.
    path: PathBuf,
}

impl TempFile {
    /// A new file in the directory of `target`, under a name that no other process uses. A symbolic link at
    /// `target` will be replaced, not followed.
    ///
    /// # Errors
    /// If `target` is a directory or no file can be created beside it.
    pub fn create_beside(target: &Path) -> Result<(Self, File)> {
        Self::create(target).map_err(|error| error.with_path(target))
    }

    fn create(target: &Path) -> Result<(Self, File)> {
        if target.is_dir() {
            return Err(Error::invalid("it is a directory"));
        }
        let name = target.file_name().ok_or_else(|| Error::invalid("it is not the name of a file"))?;
        for attempt in 0..MAX_ATTEMPTS {
            let mut temp_name = OsString::from(".");
            temp_name.push(name);
            temp_name.push(format!(".{}.{attempt}.tmp", process::id()));
            let path = target.with_file_name(temp_name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Self { target: target.to_owned(), path }, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::invalid("too many temporary files beside it"))
    }

    /// Its name until it is published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file, of which `file` is the handle, durable and moves it to the target.
    ///
    /// # Errors
    /// If the system refuses; the temporary file is then removed with `self`.
    pub fn publish(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        fs::rename(&self.path, &self.target)?;
        self.path = PathBuf::new();
        sync_directory(&self.target)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the new name of a file durable.
fn sync_directory(file: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

//! Temporary names beside an output.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{look, system};
use crate::error::{Error, Result};

/// Runs that may write the same output at the same time.
const MAX_RUNS: usize = 16;

/// Characters of an output's name that become part of the temporary name. If a file system cannot
/// store them, the error comes at once. The length is far below the limit of file systems.
const MAX_PREFIX: usize = 25;

/// A temporary name of a file. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct TempName {
    /// Empty if there is nothing to remove.
    path: PathBuf,
}

impl TempName {
    /// Renames the file to its final name and replaces a file there.
    pub(super) fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates a file under a temporary name and takes its lock.
pub(super) fn create(target: &Path) -> Result<(File, TempName)> {
    for path in paths(target) {
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            // Until it is locked, another run may take the file for a leftover.
            Ok(file) if matches!(system::lock(&file), Ok(false)) || !is_at(&file, &path) => {}
            Ok(file) => return Ok((file, TempName { path })),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_many())
}

/// Gives a temporary name to a file without a name, whose lock is held.
pub(super) fn link(file: &File, target: &Path) -> Result<TempName> {
    for path in paths(target) {
        match system::link(file, &path) {
            Ok(()) => return Ok(TempName { path }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_many())
}

/// Removes temporary files for `target` that no process holds.
pub(super) fn clear(target: &Path) {
    for path in paths(target) {
        if look(&path).is_ok_and(|found| found.is_some_and(|found| found.is_file()))
            && let Ok(file) = open(&path)
            && matches!(system::lock(&file), Ok(true))
            && is_at(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Opens a file to lock it. Network file systems lock only files that are open for writing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path).or_else(|_| File::open(path))
}

/// Whether `path` is still a name of `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(found)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    system::is_same(&ours, &found).unwrap_or(true)
}

/// The temporary names for `target`. Every run has the same ones, and no other output has them.
fn paths(target: &Path) -> impl Iterator<Item = PathBuf> {
    let name = target.file_name().unwrap_or_default();
    let prefix: String = name.to_str().unwrap_or_default().chars().take(MAX_PREFIX).collect();
    let mut stem = format!(".{prefix}.");
    for byte in &Sha256::digest(name.as_encoded_bytes())[..8] {
        let _ = write!(stem, "{byte:02x}");
    }
    (0..MAX_RUNS).map(move |run| target.with_file_name(OsStr::new(&format!("{stem}-{run}.tmp"))))
}

fn too_many() -> Error {
    Error::invalid(format!("{MAX_RUNS} other runs write it"))
}

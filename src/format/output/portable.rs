//! Replacements for the system calls of [`linux`](super). Files have temporary names, and only
//! writing shows whether there is room.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::path::Path;

use crate::error::Result;

/// A file without a name.
pub(super) fn unnamed(_folder: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives a name to a file without one.
pub(super) fn link(_file: &File, _to: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Takes the lock of a file until the file is closed; `false` if another process has it.
///
/// # Errors
/// If the system has no locks.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the metadata are of one file; `None` if the system cannot tell.
pub(super) fn is_same(_a: &Metadata, _b: &Metadata) -> Option<bool> {
    None
}

/// Whether links in `folder` stand for open files. Such files have no name that could be replaced.
pub(super) fn has_links_to_open_files(_folder: &Path) -> bool {
    false
}

/// Refuses a file that could not be replaced at the end.
pub(super) fn check_removable(_path: &Path, _file: &Metadata, _folder: &Metadata) -> Result<()> {
    Ok(())
}

/// Lets only the owner access a new file.
pub(super) fn make_private(_file: &File) {}

/// Gives a file the permissions of `model`.
pub(super) fn keep_permissions(_file: &File, _model: &Metadata) {}

/// The limit of this process for the length of a file.
pub(super) fn max_file_len() -> Option<u64> {
    None
}

/// Free bytes for this user on the file system of `file`.
pub(super) fn available(_file: &File) -> Option<u64> {
    None
}

/// Reserves room for a file to grow.
pub(super) fn allocate(_file: &File, _len: u64) -> io::Result<()> {
    Ok(())
}

//! Room for a file, before its first byte is written.

use std::fs::File;
use std::io;

use super::system;
use crate::error::{ErrorKind, Result};

/// Checks that an empty file can grow to `len` bytes, as far as the system can tell.
///
/// # Errors
/// [`ErrorKind::NoRoom`], or the error of the system.
pub(super) fn reserve(file: &File, len: u64) -> Result<()> {
    check(len, system::max_file_len(), "within the limit of file sizes (ulimit -f)")?;
    check(len, system::available(file), ON_DISK)?;
    match system::allocate(file, len) {
        Ok(()) => Ok(()),
        // Another process took the free space.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            let available = system::available(file).unwrap_or(0).min(len - 1);
            check(len, Some(available), ON_DISK)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("{len} bytes are needed: {error}")).into()),
    }
}

const ON_DISK: &str = "on its file system";

fn check(needed: u64, available: Option<u64>, place: &'static str) -> Result<()> {
    match available {
        Some(available) if available < needed => Err(ErrorKind::NoRoom { needed, available, place }.into()),
        _ => Ok(()),
    }
}

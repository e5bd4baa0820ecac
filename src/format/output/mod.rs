//! Output files that appear whole or not at all.
//!
//! A file is written without a name (`O_TMPFILE`) and gets its name when it is complete. A process
//! that dies therefore leaves nothing behind. If the system has no such files, or cannot name them,
//! the file has a temporary name beside its target. The writer of a file holds its lock (`flock`).
//! A later run for the same output removes a temporary file that nobody holds.

mod room;
#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(miri)), path = "linux.rs")]
#[cfg_attr(not(all(any(target_os = "linux", target_os = "android"), not(miri))), path = "portable.rs")]
mod system;
mod target;
mod temp_name;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, Result};
pub use target::{Replace, Target};
use temp_name::TempName;

/// A file that takes the place of its target when it is complete.
#[derive(Debug)]
pub struct Output {
    target: Target,
    /// Declared before `name`, so that the file is closed before it is removed.
    file: File,
    /// `None` while the file has no name.
    name: Option<TempName>,
    /// The file at the target when the output was created.
    replaced: Option<Metadata>,
}

/// How safe a published file is. It is complete and in place in both cases.
#[derive(Debug)]
pub enum Published {
    /// It survives a power failure.
    Durable,
    /// The system does not synchronize the folder, so a power failure may bring back the earlier
    /// file.
    Unsynchronized(Error),
}

impl Published {
    /// A warning for the user, in one line.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Durable => None,
            Self::Unsynchronized(error) => {
                Some(format!("{error}: the file is complete, but a power failure may undo it"))
            }
        }
    }
}

impl Output {
    /// A new file for `target` with room for `len` bytes, reserved if the file system can do that.
    /// Removes the leftovers of an earlier run for the same output.
    ///
    /// # Errors
    /// If no file can be created in the target's folder, or there is no room.
    pub fn create(target: Target, len: u64) -> Result<Self> {
        Self::create_as(target, len, true)
    }

    /// As [`create`](Self::create). The file has a temporary name from the start unless
    /// `anonymous`.
    fn create_as(target: Target, len: u64, anonymous: bool) -> Result<Self> {
        let path = target.path().to_owned();
        Self::begin(target, len, anonymous).map_err(|error| error.with_path(path))
    }

    fn begin(target: Target, len: u64, anonymous: bool) -> Result<Self> {
        temp_name::clear(target.file());
        let (file, name) = match anonymous.then(|| unnamed(target.file())).flatten() {
            Some(file) => (file, None),
            None => temp_name::create(target.file()).map(|(file, name)| (file, Some(name)))?,
        };
        let replaced = target.replaced()?;
        if replaced.is_some() {
            // The file that it replaces may be private too.
            system::make_private(&file);
        }
        room::reserve(&file, len)?;
        Ok(Self { target, file, name, replaced })
    }

    /// The file, for reading back the written bytes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path that the file will have.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Makes the file durable and moves it to its target. It keeps the permissions of a file that
    /// it replaces, and the owner as far as the system allows.
    ///
    /// # Errors
    /// If the system refuses, or the target can no longer be replaced. The target is then
    /// unchanged.
    pub fn publish(self) -> Result<Published> {
        let path = self.target.path().to_owned();
        self.put_in_place().map_err(|error| error.with_path(path))
    }

    fn put_in_place(self) -> Result<Published> {
        let Self { target, file, name, replaced } = self;
        let keep_permissions = |found: Option<Metadata>| {
            if let Some(model) = found.as_ref().or(replaced.as_ref()) {
                system::keep_permissions(&file, model);
            }
        };
        file.sync_all()?;
        if name.is_none() && target.replaced()?.is_none() {
            keep_permissions(None);
            match system::link(&file, target.file()) {
                Ok(()) => return Ok(synchronize_folder(&target)),
                // The target was created meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        let name = match name {
            Some(name) => name,
            None => temp_name::link(&file, target.file())?,
        };
        keep_permissions(target.replaced()?);
        name.rename(target.file())?;
        Ok(synchronize_folder(&target))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A file without a name in the folder of `target`; `None` if the system has no such files or
/// cannot name them.
fn unnamed(target: &Path) -> Option<File> {
    let create = || system::unnamed(folder(target)).ok();
    // Some file systems and sandboxes refuse the name. The probe fails now instead of at the end.
    let probe = locked(create()?);
    drop(temp_name::link(&probe, target).ok()?);
    Some(locked(create()?))
}

/// The file, with its lock if the file system has locks.
fn locked(file: File) -> File {
    let _ = system::lock(&file);
    file
}

/// Makes the new name of a file durable.
fn synchronize_folder(target: &Target) -> Published {
    if !cfg!(unix) {
        return Published::Durable;
    }
    match File::open(folder(target.file())).and_then(|folder| folder.sync_all()) {
        Ok(()) => Published::Durable,
        Err(error) => Published::Unsynchronized(Error::from(error).with_path(target.path())),
    }
}

/// The folder that a file is in.
fn folder(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The metadata at `path`, if anything is there. A symbolic link is not followed.
fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

//! System calls of Linux and Android.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, PROC_SUPER_MAGIC, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use rustix::process::{Resource, geteuid, getrlimit};

use crate::error::{Error, Result};

/// Bit of a folder's mode: only the owner of a file may remove it.
const STICKY: u32 = 0o1000;

/// A file without a name, in the file system of `folder`.
pub(super) fn unnamed(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::TMPFILE.bits() as i32).open(folder)
}

/// Gives a name to a file without one.
pub(super) fn link(file: &File, to: &Path) -> io::Result<()> {
    match rustix::fs::linkat(file, "", CWD, to, AtFlags::EMPTY_PATH) {
        // Old kernels require a privilege for this call, but not for the same link through /proc.
        Err(error) if error != Errno::EXIST => {
            let open = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, open, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
        }
        result => Ok(result?),
    }
}

/// Takes the lock of a file until the file is closed; `false` if another process has it.
///
/// # Errors
/// If the file system has no locks.
pub(super) fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

/// Whether the metadata `a` and `b` are of one file; `None` if the system cannot tell.
pub(super) fn is_same(a: &Metadata, b: &Metadata) -> Option<bool> {
    Some((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Whether links in `folder` stand for open files. Such files have no name that could be replaced.
pub(super) fn has_links_to_open_files(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)
}

/// Refuses a file that could not be replaced at the end.
pub(super) fn check_removable(path: &Path, file: &Metadata, folder: &Metadata) -> Result<()> {
    let user = geteuid();
    let owns = |found: &Metadata| user.is_root() || found.uid() == user.as_raw();
    if folder.mode() & STICKY != 0 && !owns(file) && !owns(folder) {
        return Err(Error::invalid("it belongs to somebody else, in a folder where only they may remove it"));
    }
    // Attributes that the system does not report count as not set.
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    let set = found.map_or(StatxAttributes::empty(), |found| found.stx_attributes);
    if set.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::invalid("it is a mount point, which cannot be replaced"));
    }
    if set.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Err(Error::invalid("it has an attribute that forbids to replace it (lsattr)"));
    }
    Ok(())
}

/// Lets only the owner access a new file.
pub(super) fn make_private(file: &File) {
    let _ = file.set_permissions(Permissions::from_mode(0o600));
}

/// Gives a file the mode of `model`, and its owner and group as far as allowed. Another group does
/// not get the rights of the group of `model`.
pub(super) fn keep_permissions(file: &File, model: &Metadata) {
    let mut mode = model.mode() & 0o777;
    if fchown(file, None, Some(model.gid())).is_err() {
        mode = mode & 0o707 | (mode & 0o007) << 3;
    }
    let _ = fchown(file, Some(model.uid()), None);
    let _ = file.set_permissions(Permissions::from_mode(mode));
}

/// The limit of this process for the length of a file.
pub(super) fn max_file_len() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// Free bytes for this user on the file system of `file`.
pub(super) fn available(file: &File) -> Option<u64> {
    let found = rustix::fs::fstatvfs(file).ok()?;
    let free = if geteuid().is_root() { found.f_bfree } else { found.f_bavail };
    // A file system that reports no blocks does not count them.
    (found.f_blocks != 0).then(|| free.saturating_mul(found.f_frsize))
}

/// Reserves room for a file to grow, if the file system can do that.
///
/// # Errors
/// If there is no room, or files of this length are not allowed.
pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    loop {
        return match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len) {
            Err(Errno::INTR) => continue,
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
            _ => Ok(()),
        };
    }
}

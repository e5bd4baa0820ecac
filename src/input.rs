//! Texts and small files that are read whole. Each has a limit, so that no input fills the memory.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Longest text in bytes.
pub const MAX_TEXT: u64 = 128 << 20;

/// Most bytes from a device, such as a terminal.
const MAX_DEVICE: u64 = 1 << 20;

/// Reads a text of at most `limit` bytes from a regular file or a pipe. Waits for a pipe that
/// nobody has opened for writing.
///
/// # Errors
/// The text cannot be opened or read, or is too long. The limit for a device is 1 MiB.
pub fn read_text(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read = || {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let limit = if is_device(&metadata) { limit.min(MAX_DEVICE) } else { limit };
        if metadata.len() > limit {
            return Err(too_long(limit));
        }
        read_at_most(&mut file, limit)
    };
    read().map_err(|error| error.with_path(path))
}

/// Reads the rest of a stream, at most `limit` bytes.
///
/// # Errors
/// Reading fails, or there is more.
pub fn read_stream(stream: &mut dyn Read, limit: u64) -> Result<Vec<u8>> {
    read_at_most(stream, limit)
}

/// Reads a regular file of at most `limit` bytes. Never waits for anyone.
///
/// # Errors
/// The file cannot be opened or read, is too long, or is a folder, a device or a pipe.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read = || {
        // Checked before the file is opened, because opening may wait.
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(Error::invalid("this is a folder; name a file inside it"));
        }
        if !metadata.is_file() {
            return Err(Error::invalid("this is a device or pipe; name a regular file"));
        }
        if metadata.len() > limit {
            return Err(too_long(limit));
        }
        read_at_most(&mut File::open(path)?, limit)
    };
    read().map_err(|error| error.with_path(path))
}

/// A text without the byte order mark that some editors put in front of UTF-8.
pub fn without_byte_order_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

fn read_at_most(stream: &mut dyn Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long(limit));
    }
    Ok(bytes)
}

fn too_long(limit: u64) -> Error {
    Error::invalid(format!("there are more than {limit} bytes, which is the limit here"))
}

#[cfg(unix)]
fn is_device(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    kind.is_char_device() || kind.is_block_device()
}

#[cfg(not(unix))]
fn is_device(_metadata: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_limit_is_read_and_a_longer_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        assert_eq!(read_text(&path, MAX_TEXT).unwrap(), b"12345");
        let message = read_file(&path, 4).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("{}: there are more than 4 bytes, which is the limit here", path.display())
        );
        let message = read_file(folder.path(), 4).unwrap_err().to_string();
        assert!(message.ends_with("this is a folder; name a file inside it"), "{message}");
    }

    #[test]
    fn a_stream_of_the_limit_is_read_and_an_endless_one_is_not() {
        assert_eq!(read_at_most(&mut &b"12345"[..], 5).unwrap(), b"12345");
        assert!(read_at_most(&mut &b"12345"[..], 4).is_err());
        assert!(read_at_most(&mut std::io::repeat(0), 1000).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn endless_devices_are_refused_and_the_empty_one_is_an_empty_text() {
        let zero = Path::new("/dev/zero");
        let message = read_text(zero, MAX_TEXT).unwrap_err().to_string();
        assert!(message.starts_with("/dev/zero: there are more than 1048576 bytes"), "{message}");
        let message = read_file(zero, 1 << 20).unwrap_err().to_string();
        assert_eq!(message, "/dev/zero: this is a device or pipe; name a regular file");
        assert_eq!(read_text(Path::new("/dev/null"), MAX_TEXT).unwrap(), b"");
    }
}

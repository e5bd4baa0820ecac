//! The bytes of a model file: mapped, built in, or read into memory.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek};
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use super::LINE_ALIGN;
use crate::error::{Error, ErrorKind, Result};

/// The bytes of a whole file, starting on a 64-byte line.
///
/// If another process shortens a mapped file, later reads beyond its new end raise `SIGBUS`. If
/// another process writes to it, the weights of the model change. The writer of this crate does
/// neither: it replaces files by renaming. Use [`Mapping::read`] for files that others may change
/// in place.
pub struct Mapping {
    storage: Storage,
}

/// How the bytes of a file come to this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Mapped; read into memory if the file system has no mappings.
    #[default]
    MapOrCopy,
    /// Mapped.
    Map,
    /// Read into memory of this process.
    Copy,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MappingKind {
    /// Pages of the file, which the system may drop and read again.
    #[default]
    Mapped,
    /// A part of the program.
    BuiltIn,
    /// Memory of this process.
    Memory,
}

enum Storage {
    /// The pages, and the file that they belong to.
    Mapped(Mmap, File),
    Static(&'static [u8]),
    Owned(AlignedBytes),
}

impl Mapping {
    /// Maps a file. Reads it into memory if it cannot be mapped; [`kind`](Self::kind) tells which.
    ///
    /// # Errors
    /// If `path` is no regular file, is empty, does not fit the address space, or can neither be
    /// mapped nor read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, Load::MapOrCopy)
    }

    /// Maps a file or reads it into memory.
    ///
    /// # Errors
    /// As [`open`](Self::open). If `load` is [`Load::Map`], also if it cannot be mapped.
    pub fn open_as(path: &Path, load: Load) -> Result<Self> {
        match load {
            Load::Copy => Self::read(path),
            Load::Map | Load::MapOrCopy => Self::open_with(path, load, map),
        }
    }

    /// The first bytes of a file, at most `most`, and the length of the whole file. The rest is
    /// neither mapped nor read.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_start(path: &Path, most: u64) -> Result<(Self, u64)> {
        with_file(path, |file| {
            let file_len = len_of(file)?;
            Ok((Self::load(file, file_len.min(most), Load::MapOrCopy, map)?, file_len))
        })
    }

    /// As [`open`](Self::open), for a file that is already open for reading. Its position may move.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_file(file: &File) -> Result<Self> {
        Self::load(file, len_of(file)?, Load::MapOrCopy, map)
    }

    /// Reads a file into memory.
    ///
    /// # Errors
    /// If `path` is no regular file, is empty, cannot be read or does not fit the memory.
    pub fn read(path: &Path) -> Result<Self> {
        Self::open_with(path, Load::Copy, |_, _| Err(io::ErrorKind::Unsupported.into()))
    }

    /// Uses bytes that are part of the program.
    ///
    /// # Errors
    /// If they do not start on a 64-byte line. `include_bytes!` alone does not ensure this; put the
    /// bytes in a struct with `#[repr(C, align(64))]`.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        if !bytes.as_ptr().addr().is_multiple_of(LINE_ALIGN as usize) {
            return Err(Error::invalid("a built-in model must be aligned to 64 bytes"));
        }
        Ok(Self { storage: Storage::Static(bytes) })
    }

    /// Uses bytes in memory; copies them if they do not start on a 64-byte line.
    ///
    /// # Errors
    /// If there is no memory for the copy.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self> {
        let len = bytes.len();
        let owned = if bytes.as_ptr().addr().is_multiple_of(LINE_ALIGN as usize) {
            AlignedBytes { start: 0, len, bytes }
        } else {
            AlignedBytes::read(&mut bytes.as_slice(), len)?
        };
        Ok(Self { storage: Storage::Owned(owned) })
    }

    /// Where the bytes are.
    pub fn kind(&self) -> MappingKind {
        match self.storage {
            Storage::Mapped(..) => MappingKind::Mapped,
            Storage::Static(_) => MappingKind::BuiltIn,
            Storage::Owned(_) => MappingKind::Memory,
        }
    }

    /// Asks the system to read a range ahead. The advice covers whole pages around the range;
    /// failure is ignored.
    pub fn will_need(&self, range: Range<usize>) {
        self.advise(range, Advice::WillNeed);
    }

    /// Asks the system for large pages in a range that is read whole, again and again. The
    /// processor then looks up fewer addresses. The advice covers whole pages around the range.
    /// Nothing happens if the system or its file system has no large pages for files.
    pub fn large_pages(&self, range: Range<usize>) {
        self.advise(range, Advice::LargePages);
    }

    /// Tells the system that a range is read in random order. The advice covers whole pages around
    /// the range; failure is ignored.
    pub fn random(&self, range: Range<usize>) {
        self.advise(range, Advice::Random);
    }

    /// Copies the bytes from `start` on to `out`. Pages of a mapped file do not become resident in
    /// this process: the system maps up to 2 MiB around a byte that is read in place.
    ///
    /// # Errors
    /// If the file has no such bytes or cannot be read.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        if let Storage::Mapped(_, file) = &self.storage {
            return std::os::unix::fs::FileExt::read_exact_at(file, out, start as u64);
        }
        let bytes = self.get(start..).and_then(|bytes| bytes.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Locks the pages around a range in memory: the system neither drops nor swaps them. Pages that
    /// are not resident are read first.
    ///
    /// # Errors
    /// If the range is outside the file, or the system refuses: processes have a limit of locked
    /// bytes.
    pub fn lock(&self, range: Range<usize>) -> io::Result<()> {
        lock(self.get(range).ok_or(io::ErrorKind::InvalidInput)?)
    }

    /// Removes the pages around a range from this process. The next read brings them back from the
    /// file. Does nothing for bytes that are not mapped from a file; failure is ignored.
    pub fn release(&self, range: Range<usize>) {
        self.advise(range, Advice::Release);
    }

    /// Checks that a file can be mapped once it has `len` bytes.
    ///
    /// # Errors
    /// If it does not fit the address space.
    pub(super) fn check_room(file: &File, len: u64) -> Result<()> {
        let len = addressable(len)?;
        match map(file, len) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(no_address_space(len)),
            _ => Ok(()),
        }
    }

    fn open_with(
        path: &Path,
        load: Load,
        map: impl FnOnce(&File, usize) -> io::Result<Mmap>,
    ) -> Result<Self> {
        with_file(path, |file| Self::load(file, len_of(file)?, load, map))
    }

    /// The first `len` bytes of a file.
    fn load(
        mut file: &File,
        len: u64,
        load: Load,
        map: impl FnOnce(&File, usize) -> io::Result<Mmap>,
    ) -> Result<Self> {
        let len = addressable(len)?;
        let storage = match map(file, len) {
            Ok(mapped) => Storage::Mapped(mapped, file.try_clone()?),
            // Memory for a copy would come from the same address space.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(no_address_space(len)),
            Err(error) if load == Load::Map => {
                return Err(ErrorKind::Unsupported(format!("the file cannot be mapped here: {error}")).into());
            }
            Err(_) => {
                file.rewind()?;
                Storage::Owned(AlignedBytes::read(&mut file, len)?)
            }
        };
        Ok(Self { storage })
    }

    /// Whether the advice was given. Bytes in memory and ranges outside the file get none.
    fn advise(&self, range: Range<usize>, advice: Advice) -> bool {
        match &self.storage {
            Storage::Mapped(mapped, _) if range.start < range.end && range.end <= mapped.len() => {
                advice.give(mapped, range);
                true
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({:?}, {} bytes)", self.kind(), self.len())
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(mapped, _) => mapped,
            Storage::Static(bytes) => bytes,
            Storage::Owned(owned) => owned.as_slice(),
        }
    }
}

/// Opens a file for `open`, and adds its path to an error.
fn with_file<T>(path: &Path, open: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    let result = || {
        // Opening a pipe would wait until its other end is opened.
        check_kind(&fs::metadata(path)?)?;
        open(&File::open(path)?)
    };
    result().map_err(|error: Error| error.with_path(path))
}

/// The length of a regular file that is not empty.
fn len_of(file: &File) -> Result<u64> {
    let found = file.metadata()?;
    check_kind(&found)?;
    match found.len() {
        0 => Err(ErrorKind::NotAModel("the file is empty".into()).into()),
        len => Ok(len),
    }
}

/// The length of a file as the length of a slice. On a 32-bit system it is below 2 GiB.
fn addressable(len: u64) -> Result<usize> {
    match isize::try_from(len) {
        Ok(len) => Ok(len as usize),
        Err(_) => Err(ErrorKind::Unsupported(format!(
            "{len} bytes are more than a {}-bit program can address at once",
            usize::BITS
        ))
        .into()),
    }
}

fn check_kind(found: &Metadata) -> Result<()> {
    if found.is_dir() {
        return Err(ErrorKind::NotAModel("it is a directory; give the .rwkv file".into()).into());
    }
    if !found.is_file() {
        return Err(ErrorKind::NotAModel("it is not a regular file".into()).into());
    }
    Ok(())
}

fn no_address_space(len: usize) -> Error {
    ErrorKind::Unsupported(format!("the address space of this process has no room for {len} bytes")).into()
}

/// Maps a file with the pages that all processes share. Some file systems (FUSE, virtiofs and 9p
/// without a cache) have only private mappings. Nobody writes to a private mapping here, so its
/// pages equal those of the file.
fn map(file: &File, len: usize) -> io::Result<Mmap> {
    map_shared(file, len).or_else(|_| map_private(file, len))
}

fn map_shared(file: &File, len: usize) -> io::Result<Mmap> {
    if cfg!(miri) {
        // Miri cannot map files.
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the mapping is read-only and private to this type. Its bytes are only valid as long
    // as nobody changes or shortens the file; `Mapping` documents that as a condition of its use.
    // Readers check every bound against the length at this moment. So changed bytes can give wrong
    // numbers but no access outside the mapping, and a shortened file ends the process with SIGBUS.
    // Nothing reads the mapping that `check_room` makes.
    unsafe { MmapOptions::new().len(len).map(file) }
}

fn map_private(file: &File, len: usize) -> io::Result<Mmap> {
    if cfg!(miri) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: as for `map_shared`. A private mapping is the same for a reader.
    unsafe { MmapOptions::new().len(len).map_copy_read_only(file) }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn lock(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are borrowed, so their pages exist. Locking changes no byte of them, and
    // the lock of a page ends with its mapping.
    unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len())? };
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn lock(_: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[derive(Clone, Copy)]
enum Advice {
    WillNeed,
    LargePages,
    Random,
    Release,
}

impl Advice {
    /// Gives advice about the pages around a non-empty range. memmap2 rounds the start down to the
    /// system's real page size, and the system rounds the end up.
    #[cfg(unix)]
    fn give(self, mapped: &Mmap, range: Range<usize>) {
        let len = range.end - range.start;
        let _ = match self {
            Advice::WillNeed => mapped.advise_range(memmap2::Advice::WillNeed, range.start, len),
            #[cfg(target_os = "linux")]
            Advice::LargePages => mapped.advise_range(memmap2::Advice::HugePage, range.start, len),
            #[cfg(not(target_os = "linux"))]
            Advice::LargePages => Ok(()),
            Advice::Random => mapped.advise_range(memmap2::Advice::Random, range.start, len),
            // SAFETY: the range lies inside the mapping, which is read-only and backed by a file.
            // Its pages are clean, so dropping them loses nothing: the next read brings the same
            // bytes back.
            Advice::Release => unsafe {
                mapped.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len)
            },
        };
    }

    #[cfg(not(unix))]
    fn give(self, _mapped: &Mmap, _range: Range<usize>) {}
}

/// Bytes read at a time, on the stack.
const CHUNK_BYTES: usize = 16 * 1024;

/// Bytes in memory that start on a 64-byte line.
struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// Reads exactly `len` bytes.
    fn read(source: &mut dyn Read, len: usize) -> Result<Self> {
        let align = LINE_ALIGN as usize;
        let mut bytes: Vec<u8> = Vec::new();
        let capacity = len.saturating_add(align);
        if bytes.try_reserve_exact(capacity).is_err() {
            return Err(
                io::Error::new(io::ErrorKind::OutOfMemory, format!("no memory for {len} bytes")).into()
            );
        }
        let start = bytes.as_ptr().addr().next_multiple_of(align) - bytes.as_ptr().addr();
        bytes.resize(start, 0);
        let mut chunk = [0; CHUNK_BYTES];
        while bytes.len() < start + len {
            let wanted = (start + len - bytes.len()).min(CHUNK_BYTES);
            match source.read(&mut chunk[..wanted]) {
                Ok(0) => return Err(Error::malformed("the file became shorter while it was read")),
                // The bytes never exceed the capacity, so the start stays aligned.
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { bytes, start, len })
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C, align(64))]
    struct Aligned<const N: usize>([u8; N]);

    static BYTES: Aligned<128> = Aligned([7; 128]);

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    fn is_aligned(mapping: &Mapping) -> bool {
        mapping.as_ptr().addr().is_multiple_of(64)
    }

    #[test]
    fn mapped_and_read_files_have_the_same_aligned_bytes() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let file = file(&bytes);
        let (mapped, read) = (Mapping::open(file.path()).unwrap(), Mapping::read(file.path()).unwrap());
        let expected = if cfg!(miri) { MappingKind::Memory } else { MappingKind::Mapped };
        assert_eq!((mapped.kind(), read.kind()), (expected, MappingKind::Memory));
        assert!(mapped[..] == bytes && read[..] == bytes);
        assert!(is_aligned(&mapped) && is_aligned(&read));
    }

    #[test]
    fn advice_changes_no_byte() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
        let file = file(&bytes);
        for mapping in [Mapping::open(file.path()).unwrap(), Mapping::read(file.path()).unwrap()] {
            for range in [0..100_000, 5..6, 4095..70_000, 99_999..100_000] {
                mapping.will_need(range.clone());
                mapping.large_pages(range.clone());
                mapping.random(range.clone());
                mapping.release(range);
                assert!(mapping[..] == bytes);
            }
        }
    }

    #[cfg(not(miri))]
    #[test]
    fn a_private_mapping_has_the_same_bytes_and_gives_its_pages_back() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 5) as u8).collect();
        let file = file(&bytes);
        let mapping = Mapping::open_with(file.path(), Load::Map, map_private).unwrap();
        assert_eq!(mapping.kind(), MappingKind::Mapped);
        mapping.release(0..100_000);
        assert!(mapping[..] == bytes && is_aligned(&mapping));
    }

    #[test]
    fn advice_about_other_bytes_than_the_files_is_not_given() {
        let file = file(&[1; 5000]);
        let mapping = Mapping::open(file.path()).unwrap();
        assert!(mapping.advise(4999..5000, Advice::Release) == (mapping.kind() == MappingKind::Mapped));
        for (start, end) in [(3, 3), (4, 3), (4999, 5001), (5000, 5001), (usize::MAX - 1, usize::MAX)] {
            assert!(!mapping.advise(start..end, Advice::Release), "{start}..{end}");
        }
        assert!(!Mapping::read(file.path()).unwrap().advise(0..5000, Advice::Release));
    }

    #[test]
    fn bytes_read_at_a_place_are_those_of_the_file_and_none_are_beyond_its_end() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i / 3) as u8).collect();
        let file = file(&bytes);
        for load in [Load::MapOrCopy, Load::Copy] {
            let mapping = Mapping::open_as(file.path(), load).unwrap();
            let mut out = [0; 100];
            mapping.read_at(9_900, &mut out).unwrap();
            assert_eq!(out, bytes[9_900..]);
            for start in [9_901, 10_000, usize::MAX / 2] {
                assert!(mapping.read_at(start, &mut out).is_err(), "{start}");
            }
        }
    }

    #[test]
    fn only_the_start_of_a_file_is_mapped() {
        let file = file(&[3; 9000]);
        for (most, expected) in [(1, 1), (5000, 5000), (u64::MAX, 9000)] {
            let (start, len) = Mapping::open_start(file.path(), most).unwrap();
            assert_eq!((start.len(), len), (expected, 9000));
        }
    }

    #[test]
    fn a_file_that_must_be_mapped_is_not_read_into_memory_instead() {
        let file = file(&[1; 100]);
        let none = |_: &_, _| Err(io::ErrorKind::Unsupported.into());
        let error = Mapping::open_with(file.path(), Load::Map, none).unwrap_err().to_string();
        assert!(error.contains("cannot be mapped"), "{error}");
        assert_eq!(
            Mapping::open_with(file.path(), Load::MapOrCopy, none).unwrap().kind(),
            MappingKind::Memory
        );
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn locked_bytes_are_resident_and_a_range_outside_is_refused() {
        let file = file(&[1; 20_000]);
        for load in [Load::Map, Load::Copy] {
            let mapping = Mapping::open_as(file.path(), load).unwrap();
            mapping.lock(100..5000).unwrap();
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let locked = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
            assert!(!locked.contains("\t       0 kB"), "{locked}");
            assert!(mapping.lock(0..20_001).is_err());
        }
    }

    #[test]
    fn a_vec_is_moved_to_an_aligned_place() {
        for skip in 0..3 {
            let mut bytes = vec![1; 1000 + skip];
            bytes.drain(..skip);
            let mapping = Mapping::from_vec(bytes).unwrap();
            assert!(is_aligned(&mapping) && mapping.len() == 1000);
        }
    }

    #[test]
    fn unaligned_static_bytes_are_refused() {
        assert_eq!(Mapping::from_static(&BYTES.0).unwrap().len(), 128);
        assert!(Mapping::from_static(&BYTES.0[1..]).is_err());
    }

    #[test]
    fn lengths_beyond_a_slice_are_refused() {
        let largest = isize::MAX as u64;
        assert_eq!(addressable(largest).unwrap(), isize::MAX as usize);
        for len in [largest + 1, u64::MAX] {
            let error = addressable(len).unwrap_err().to_string();
            assert!(error.contains(&len.to_string()) && error.contains("address"), "{error}");
        }
    }

    #[test]
    fn a_file_without_room_in_the_address_space_is_not_read_into_memory() {
        let file = file(&[1; 100]);
        let full = |_: &_, _| Err(io::ErrorKind::OutOfMemory.into());
        let error = Mapping::open_with(file.path(), Load::MapOrCopy, full).unwrap_err();
        assert_eq!(error.path(), Some(file.path()));
        assert!(error.to_string().contains("address space"), "{error}");
    }

    #[cfg(target_pointer_width = "32")]
    #[test]
    fn files_too_large_for_32_bits_are_refused() {
        let file = file(b"");
        for gigabytes in [2, 3, 4, 5] {
            file.as_file().set_len(gigabytes << 30).unwrap();
            for error in [Mapping::open(file.path()).unwrap_err(), Mapping::read(file.path()).unwrap_err()] {
                assert!(error.to_string().contains("32-bit"), "{error}");
            }
        }
    }

    #[test]
    fn directories_empty_and_missing_files_are_refused_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let empty = file(b"");
        for (path, word) in [
            (directory.path().to_owned(), "directory"),
            (empty.path().to_owned(), "empty"),
            (directory.path().join("none.rwkv"), "No such file"),
            ("/dev/null".into(), "regular"),
        ] {
            for error in [Mapping::open(&path).unwrap_err(), Mapping::read(&path).unwrap_err()] {
                assert_eq!(error.path(), Some(path.as_path()));
                assert!(error.to_string().contains(word), "{error}");
            }
        }
    }
}

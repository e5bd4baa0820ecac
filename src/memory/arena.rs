//! The memory of an engine's buffers, and of a text's state.

use std::io;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use super::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::host;

/// A cache line; the unit in which buffers are aligned and padded.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes of `len` values of `T`, rounded up to whole lines; `None` if they exceed a `usize`.
pub(super) fn lines_bytes<T>(len: usize) -> Option<usize> {
    len.checked_mul(size_of::<T>())?.checked_next_multiple_of(size_of::<Line>())
}

/// Zeroed memory that asks for large pages.
///
/// Every token reads and writes a recurrent state of megabytes. Each small page costs a fault at
/// the start and an address look-up on later uses. On systems without large pages nothing changes.
fn map(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes).map_err(|error| {
        io::Error::new(error.kind(), format!("no memory for {bytes} bytes of buffers: {error}"))
    })?;
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

#[cfg(unix)]
fn lock(memory: &MmapMut) -> Result<()> {
    memory.lock().map_err(|error| cannot_lock(memory.len(), &error))
}

#[cfg(not(unix))]
fn lock(memory: &MmapMut) -> Result<()> {
    Err(cannot_lock(memory.len(), &io::ErrorKind::Unsupported.into()))
}

/// The error of memory that the system does not lock.
pub(crate) fn cannot_lock(bytes: usize, error: &io::Error) -> Error {
    let limit = host::lock_limit_bytes().map_or(String::new(), |limit| {
        format!("; this process may lock {limit} bytes in all, which `ulimit -l` changes")
    });
    ErrorKind::Unsupported(format!("cannot lock {bytes} bytes in memory: {error}{limit}")).into()
}

/// The buffers of an engine. A [`MemoryPlan`](super::MemoryPlan) states their size.
pub struct Arena<'m> {
    memory: Memory<'m>,
}

enum Memory<'m> {
    Own(MmapMut),
    Callers(&'m mut [Line]),
}

impl<'m> Arena<'m> {
    /// Allocates `bytes` bytes.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(bytes: usize) -> Result<Self> {
        Ok(Self { memory: Memory::Own(map(bytes)?) })
    }

    /// Uses the first `bytes` bytes of `memory` and sets them to zero.
    ///
    /// # Errors
    /// If `memory` has fewer bytes or does not begin at a multiple of 64.
    pub fn within(memory: &'m mut [u8], bytes: usize) -> Result<Self> {
        let (found, at) = (memory.len(), memory.as_ptr().addr());
        let memory = memory.get_mut(..bytes).ok_or_else(|| {
            Error::invalid(format!("the buffers need {bytes} bytes of memory; they were given {found}"))
        })?;
        let lines = bytemuck::try_cast_slice_mut(memory).map_err(|_| {
            Error::invalid(format!("the memory for buffers begins at {at}, no multiple of 64"))
        })?;
        lines.fill(Line([0; 64]));
        Ok(Self { memory: Memory::Callers(lines) })
    }

    /// Locks memory of its own, so that the system does not swap it.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn lock(&self) -> Result<()> {
        match &self.memory {
            Memory::Own(memory) => lock(memory),
            Memory::Callers(_) => Ok(()),
        }
    }

    /// Starts cutting buffers from the beginning, in the order of the plan.
    pub(crate) fn carve(&mut self) -> Carve<'_> {
        match &mut self.memory {
            Memory::Own(bytes) => Carve { rest: bytemuck::cast_slice_mut(bytes) },
            Memory::Callers(lines) => Carve { rest: lines },
        }
    }
}

/// A vector of f32 in memory that asks for large pages.
pub(crate) struct Floats {
    memory: MmapMut,
    locked: bool,
}

impl Floats {
    /// `len` zeros.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<f32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: map(bytes)?, locked: false })
    }

    /// Locks the memory, and that of copies if the system allows it.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn lock(&mut self) -> Result<()> {
        lock(&self.memory)?;
        self.locked = true;
        Ok(())
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.memory)
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.memory)
    }
}

impl Clone for Floats {
    /// # Panics
    /// If there is no memory for the copy.
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len()).expect("memory for a copy of a state");
        copy.locked = self.locked && lock(&copy.memory).is_ok();
        copy.copy_from_slice(self);
        copy
    }
}

/// Cuts buffers out of an [`Arena`].
pub(crate) struct Carve<'a> {
    rest: &'a mut [Line],
}

impl<'a> Carve<'a> {
    fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        let lines = len.div_ceil(size_of::<Line>() / size_of::<T>());
        let (lines, rest) = std::mem::take(&mut self.rest).split_at_mut(lines);
        self.rest = rest;
        &mut bytemuck::cast_slice_mut(lines)[..len]
    }
}

impl<'a> Buffers<'a> for Carve<'a> {
    fn f32s(&mut self, _name: &'static str, len: usize) -> &'a mut [f32] {
        self.take(len)
    }

    fn u32s(&mut self, _name: &'static str, len: usize) -> &'a mut [u32] {
        self.take(len)
    }

    fn i32s(&mut self, _name: &'static str, len: usize) -> &'a mut [i32] {
        self.take(len)
    }

    fn i8s(&mut self, _name: &'static str, len: usize) -> &'a mut [i8] {
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Measure;

    fn take<'a>(buffers: &mut impl Buffers<'a>) -> [usize; 3] {
        [buffers.f32s("a", 1000).len(), buffers.i8s("b", 70).len(), buffers.u32s("a", 3).len()]
    }

    fn planned() -> usize {
        let mut measure = Measure::default();
        take(&mut measure);
        measure.into_regions().unwrap().iter().map(|region| region.bytes).sum()
    }

    #[test]
    fn an_arena_has_the_bytes_of_its_plan_and_they_are_zero() {
        assert_eq!(planned(), 4032 + 128 + 64);
        let mut memory = vec![[1u8; 64]; 70];
        let memory = memory.as_flattened_mut();
        let aligned = memory.as_ptr().align_offset(64);
        let callers = &mut memory[aligned..];
        for mut arena in [Arena::new(planned()).unwrap(), Arena::within(callers, planned()).unwrap()] {
            let mut carve = arena.carve();
            assert!(bytemuck::cast_slice::<_, u8>(carve.rest).iter().all(|&byte| byte == 0));
            assert_eq!(take(&mut carve), [1000, 70, 3]);
            assert!(carve.rest.is_empty());
        }
    }

    #[test]
    fn memory_that_is_too_small_or_begins_inside_a_line_is_refused() {
        let mut memory = [0u8; 64 * 3];
        let aligned = memory.as_ptr().align_offset(64);
        Arena::within(&mut memory[aligned..], 128).unwrap();
        let error = Arena::within(&mut memory[aligned..][..127], 128).err().unwrap();
        assert_eq!(error.to_string(), "the buffers need 128 bytes of memory; they were given 127");
        let error = Arena::within(&mut memory[(aligned + 4) % 64..], 64).err().unwrap();
        assert!(error.to_string().ends_with("no multiple of 64"), "{error}");
    }

    #[test]
    fn an_arena_that_no_memory_is_large_enough_for_is_an_error() {
        let error = Arena::new(usize::MAX / 64 * 64).err().unwrap().to_string();
        assert!(error.contains("bytes of buffers"), "{error}");
    }

    #[test]
    fn a_copy_of_floats_has_memory_of_its_own() {
        let mut floats = Floats::zeroed(3).unwrap();
        floats[1] = 1.0;
        let copy = floats.clone();
        floats[1] = 2.0;
        assert_eq!((&*copy, &*floats), (&[0.0, 1.0, 0.0][..], &[0.0, 2.0, 0.0][..]));
        assert!(Floats::zeroed(usize::MAX).is_err());
    }
}

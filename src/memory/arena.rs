//! The one block of memory that a session computes in.

use std::io;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use super::{Buffers, Plan};
use crate::error::Result;

/// A cache line; the unit in which buffers are aligned and padded.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes of `len` values of `T`, rounded up to whole lines; `None` if they are beyond a `usize`.
pub(super) fn lines_bytes<T>(len: usize) -> Option<usize> {
    len.checked_mul(size_of::<T>())?.checked_next_multiple_of(size_of::<Line>())
}

/// One zeroed mapping of the size that a [`Plan`] states.
///
/// It asks for large pages: a recurrent state of megabytes is read and written for every token, and each small page
/// costs a fault at the start and a look-up of its address from then on. Where the system has none, nothing changes.
pub struct Arena {
    bytes: MmapMut,
}

impl Arena {
    /// Allocates what `plan` asks for.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(plan: &Plan) -> Result<Self> {
        let len = plan.arena_bytes();
        let bytes = MmapMut::map_anon(len).map_err(|error| {
            io::Error::new(error.kind(), format!("no memory for {len} bytes of buffers: {error}"))
        })?;
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(Self { bytes })
    }

    /// Starts cutting buffers from the beginning, in the order of the plan.
    pub(crate) fn carve(&mut self) -> Carve<'_> {
        Carve { rest: bytemuck::cast_slice_mut(&mut self.bytes) }
    }
}

/// A part of an [`Arena`].
pub(crate) struct Rest<'a> {
    lines: &'a mut [Line],
}

impl Rest<'_> {
    /// Starts cutting buffers from the beginning of the part.
    pub(crate) fn carve(&mut self) -> Carve<'_> {
        Carve { rest: self.lines }
    }
}

/// Cuts buffers out of an [`Arena`].
pub(crate) struct Carve<'a> {
    rest: &'a mut [Line],
}

impl<'a> Carve<'a> {
    /// What was not cut yet, to be cut more than once.
    pub(crate) fn rest(self) -> Rest<'a> {
        Rest { lines: self.rest }
    }

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

    #[test]
    fn an_arena_has_the_bytes_of_its_plan_and_they_are_zero() {
        let mut measure = Measure::default();
        take(&mut measure);
        let plan = Plan { regions: measure.into_regions().unwrap(), ..Plan::default() };
        let mut arena = Arena::new(&plan).unwrap();
        assert_eq!((plan.arena_bytes(), arena.bytes.len()), (4032 + 128 + 64, 4032 + 128 + 64));
        assert!(arena.bytes.iter().all(|&byte| byte == 0));
        let mut carve = arena.carve();
        assert_eq!(take(&mut carve), [1000, 70, 3]);
        assert!(carve.rest.is_empty());
    }

    #[test]
    fn an_arena_that_no_memory_is_large_enough_for_is_an_error() {
        let plan = Plan {
            regions: vec![crate::memory::Region { name: "a", bytes: usize::MAX / 64 * 64 }],
            ..Plan::default()
        };
        let error = Arena::new(&plan).err().unwrap().to_string();
        assert!(error.contains("bytes of buffers"), "{error}");
    }
}

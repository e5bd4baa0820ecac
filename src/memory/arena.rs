//! The one block of memory that a session computes in.

use bytemuck::{Pod, Zeroable};

use super::{Buffers, Plan};

/// A cache line; the unit in which buffers are aligned and padded.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes of `len` values of `T`, rounded up to whole lines.
pub(super) fn lines_bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(64)
}

/// One zeroed, 64-byte-aligned allocation of the size that a [`Plan`] states.
pub struct Arena {
    lines: Box<[Line]>,
}

impl Arena {
    /// Allocates what `plan` asks for.
    pub fn new(plan: &Plan) -> Self {
        Self { lines: bytemuck::zeroed_slice_box(plan.arena_bytes() / 64) }
    }

    /// Starts cutting buffers from the beginning, in the order of the plan.
    pub(crate) fn carve(&mut self) -> Carve<'_> {
        Carve { rest: &mut self.lines }
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
        let (lines, rest) = std::mem::take(&mut self.rest).split_at_mut(lines_bytes::<T>(len) / 64);
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

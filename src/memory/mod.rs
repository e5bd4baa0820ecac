//! Fixed memory. The model's header determines the memory of an engine. The engine allocates it
//! once, and it never grows.
//!
//! Code that needs buffers asks a source for them by name. The same function runs with two sources.
//! One adds up sizes and makes the [`MemoryPlan`]. The other cuts slices out of the [`Arena`]. So
//! the plan is exact by construction.

mod arena;
mod plan;

pub use arena::Arena;
pub(crate) use arena::{Floats, cannot_lock};
pub(crate) use plan::Measure;
pub use plan::{MemoryPlan, Part, Region};

/// A source of named, 64-byte-aligned buffers that live for `'a`.
pub(crate) trait Buffers<'a> {
    /// `len` values of f32.
    fn f32s(&mut self, name: &'static str, len: usize) -> &'a mut [f32];
    /// `len` values of u32.
    fn u32s(&mut self, name: &'static str, len: usize) -> &'a mut [u32];
    /// `len` values of i32.
    fn i32s(&mut self, name: &'static str, len: usize) -> &'a mut [i32];
    /// `len` values of i8.
    fn i8s(&mut self, name: &'static str, len: usize) -> &'a mut [i8];
}

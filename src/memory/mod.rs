//! Fixed memory: what a session needs is computed from the model's header, allocated once, and never grows.
//!
//! Code that needs buffers asks a source for them by name. The same function runs twice: with a source that only
//! adds up sizes, to make the [`Plan`]; and with one that cuts the slices out of the [`Arena`]. So the plan is
//! exact by construction.

mod arena;
mod plan;

pub use arena::Arena;
pub(crate) use plan::Measure;
pub use plan::{Plan, Region};

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

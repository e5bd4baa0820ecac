//! Kernels.
#![deny(unsafe_code)]

mod fp16;
mod isa;
pub mod layout;
mod math;
pub mod quant;
mod scalar;
mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use isa::{Isa, ParseIsaError};
pub use layout::*;
pub use math::{exp, sigmoid, tanh};
pub use table::{Kernels, SPARSE_TILE, SoftmaxStats};

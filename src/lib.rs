#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[cfg(feature = "builtin-model")]
pub mod builtin;
#[cfg(feature = "programs")]
pub mod console;
pub mod cpu;
pub mod error;
pub mod format;
pub mod input;
pub mod knobs;
pub mod memory;
pub mod model;
pub mod printable;
pub mod sampler;
pub mod self_test;
pub mod session;
mod shortlist;
#[cfg(feature = "programs")]
pub mod signals;
pub mod state;
pub mod text;
pub mod threads;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use format::{Config, SamplingParams, Version};
pub use memory::Plan;
pub use model::{LoadOptions, Model, Verify};
pub use rwkv_edge_kernels as kernels;
pub use session::{Savings, Session, SessionOptions};
pub use state::State;
pub use text::TextStream;
pub use tokenizer::Tokenizer;

#![doc = include_str!("../docs/LIBRARY.md")]
#![deny(unsafe_code)]

mod conversation;
mod engine;
#[doc(hidden)]
pub mod env;
pub mod error;
pub mod format;
mod generation;
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod input;
mod layerwise;
pub mod memory;
pub mod model;
mod plan;
#[doc(hidden)]
pub mod printable;
#[doc(hidden)]
pub mod random;
pub mod sampler;
mod saved;
pub mod self_test;
mod session;
#[doc(hidden)]
#[cfg(feature = "programs")]
pub mod signals;
#[doc(hidden)]
#[cfg(feature = "programs")]
pub mod stdio;
pub mod text;
#[doc(hidden)]
pub mod threads;
pub mod tokenizer;

pub use conversation::{Conversation, ConversationOptions, Piece, ReadProgress, Turn};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, ErrorKind, Result};
pub use format::{Config, SamplingParams, StateNotes, Version};
pub use generation::{End, Generation, StopRules};
pub use layerwise::LayerText;
pub use memory::MemoryPlan;
pub use model::{
    LoadOptions, MatrixInputs, Model, Observer, Phase, Profile, Sequence, Shortcuts, State, Traffic, Verify,
    default_prompt_chunk,
};
pub use plan::PlanOptions;
pub use rwkv_edge_kernels as kernels;
pub use sampler::Sampler;
pub use session::{Session, SessionOptions, Snapshot};
pub use text::TextStream;
pub use tokenizer::Tokenizer;

/// Threads can share a model and a state. Engines and texts can move to another thread.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    const fn can_move<T: Send>() {}
    is_shared::<Model>();
    is_shared::<State>();
    can_move::<Engine<'static>>();
    can_move::<Session>();
    can_move::<Conversation>();
    can_move::<Snapshot>();
    can_move::<TextStream>();
};

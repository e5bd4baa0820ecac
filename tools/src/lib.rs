//! Converts RWKV checkpoints to one `.rwkv` file that the runtime maps and runs in place.
//!
//! - [`source`] reads checkpoints of any size without loading them.
//! - [`config`] finds the hyperparameters in the tensors' shapes.
//! - [`policy`] gives every tensor its precision and layout.
//! - [`convert`] streams one slice of one tensor after the other into the file, as a [`job`].
//! - [`calibration`] measures what matrices are multiplied with.
//! - [`feedback`] rounds weights so that later ones make up for the errors of earlier ones.
//! - [`vocab`] compiles tokenizers; [`chat`] holds templates and defaults.
//! - [`synth`] makes checkpoints with random weights of the released [`shapes`].
//!
//! Imports go one way: `convert` stands on `encode`, `origin`, `policy` and `vocab`, these on
//! `source`. `synth` gives `source` bytes to read; `source` does not know it.

pub mod calibration;
pub mod chat;
mod companions;
pub mod config;
pub mod convert;
mod deep_embed;
pub mod digest;
mod encode;
pub mod feedback;
pub mod job;
mod origin;
mod planned;
pub mod policy;
mod puzzles;
pub mod report;
mod residual;
pub mod shapes;
pub mod source;
pub mod synth;
pub mod tuned;
pub mod vocab;

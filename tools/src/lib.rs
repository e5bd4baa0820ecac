//! Converts RWKV checkpoints to one `.rwkv` file that the runtime maps and runs in place.
//!
//! [`source`] reads checkpoints of any size without loading them, [`dims`] finds the hyperparameters in the
//! tensors' shapes, [`policy`] gives every tensor its precision, and [`convert`] streams one slice of one
//! tensor after the other into the file. [`vocab`] compiles tokenizers, [`chat`] holds templates and defaults.
//! [`synth`] makes checkpoints with random weights of the released [`shapes`].

pub mod chat;
pub mod convert;
pub mod dims;
mod encode;
mod origin;
pub mod policy;
pub mod report;
mod residual;
pub mod shapes;
pub mod source;
pub mod synth;
pub mod vocab;

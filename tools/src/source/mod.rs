//! Readers of RWKV checkpoints: torch zip files (`.pth`), `.safetensors` and rwkv.cpp `.bin`.
//!
//! A [`Checkpoint`] presents the tensors under BlinkDL's names, whoever wrote the file. It
//! translates the names of Hugging Face transformers, flash-linear-attention, web-rwkv and
//! rwkv.cpp. Values stay as they are stored; [`SourceTensor::transposed`] says where the last two
//! dimensions are swapped.
//!
//! [`Checkpoint::open`] reads the container's index and nothing else. It refuses files that are
//! damaged, hostile or no checkpoint, with one line that says why. [`Checkpoint::read`] then
//! decodes any range of a tensor to `f32` with positioned reads. Memory stays bounded whatever the
//! size of the file, and several threads may read at once. [`detect()`] tells the RWKV version from
//! tensor names and shapes.
//!
//! A `.pth` file contains a pickle, a format that can run code. The reader here builds only
//! numbers, strings, containers and tensor descriptions. It knows the names of seven globals, and
//! refuses any other global by name.

mod aliases;
mod canonical;
mod checkpoint;
mod decode;
mod detect;
mod error;
mod file;
mod index;
mod inventory;
mod location;
mod names;
mod pickle;
mod pickle_globals;
mod pickle_values;
mod pth;
mod records;
mod rwkvcpp;
mod safetensors;
mod shards;
mod sniff;
mod tensor;
pub mod torch_writer;
mod zero_runs;

pub use aliases::Naming;
pub use checkpoint::Checkpoint;
pub use detect::detect;
pub use error::SourceError;
pub(crate) use file::ReadAt;
pub(crate) use inventory::{LN0, folded, folded_into, stored_names};
pub use tensor::{Container, SourceDType, SourceTensor};
pub use zero_runs::ZeroRun;

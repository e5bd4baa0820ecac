//! Readers of RWKV checkpoints: torch zip files (`.pth`), `.safetensors`, GGUF and rwkv.cpp
//! `.bin`.
//!
//! A [`Checkpoint`] presents the tensors under BlinkDL's names, whoever wrote the file. It
//! translates the names of Hugging Face transformers, flash-linear-attention, web-rwkv, llama.cpp
//! and rwkv.cpp. Values stay as they are stored, apart from those that llama.cpp rescales;
//! [`SourceTensor::transposed`] says where the last two dimensions are swapped.
//! [`ConfigJson`] has what only the `config.json` beside a checkpoint tells.
//!
//! [`Checkpoint::open`] reads the container's index and nothing else. It refuses files that are
//! damaged, hostile or no checkpoint, with one line that says why. [`Checkpoint::read`] then
//! decodes any range of a tensor to `f32` with positioned reads. Memory stays bounded whatever the
//! size of the file, and several threads may read at once. [`detect()`] tells the RWKV version from
//! tensor names and shapes.
//!
//! [`Merge`] adds a LoRA, PiSSA or MiSS adapter to the weights, a range of a matrix at a time.
//!
//! A `.pth` file contains a pickle, a format that can run code. The reader here builds only
//! numbers, strings, containers and tensor descriptions. It knows the names of the globals that
//! describe tensors. Any other global makes an opaque object, which is skipped; it is refused by
//! name where a weight should be.

mod adapter;
mod aliases;
mod canonical;
mod checkpoint;
mod config_json;
mod decode;
mod detect;
mod error;
mod file;
mod folder;
mod gguf;
mod index;
mod inflate;
mod inventory;
mod location;
mod merge;
mod names;
mod pickle;
mod pickle_globals;
mod pickle_objects;
mod pickle_opcodes;
mod pickle_values;
mod pth;
mod pth_weights;
mod records;
mod rwkvcpp;
mod safetensors;
mod shards;
mod sniff;
mod strided;
mod tensor;
pub mod torch_writer;
mod zero_runs;

pub use aliases::Naming;
pub use checkpoint::Checkpoint;
pub use config_json::ConfigJson;
pub use detect::detect;
pub use error::SourceError;
pub(crate) use file::{ReadAt, check_range};
pub use folder::ENDINGS;
pub use gguf::{BlockType, StoredToken, Vocabulary};
pub(crate) use inventory::{LN0, folded, folded_into, stored_names};
pub use merge::Merge;
pub use tensor::{Container, SourceDType, SourceTensor};
pub use zero_runs::ZeroRun;

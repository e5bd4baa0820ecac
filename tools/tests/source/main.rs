//! The checkpoint readers, on good, damaged and hostile files.

mod aliases;
mod common;
mod detect;
mod fixtures;
mod fuzz;
mod gguf;
mod gguf_hostile;
#[path = "../common/gguf.rs"]
mod gguf_writer;
mod pth;
mod pth_hostile;
mod rwkvcpp;
mod safetensors;
mod shards;
mod sniff;
mod throughput;
mod torch_files;

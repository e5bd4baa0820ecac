//! The checkpoint readers, on good, damaged and hostile files.

mod aliases;
mod common;
mod detect;
mod fixtures;
#[path = "../common/fla.rs"]
mod fla;
mod fuzz;
mod gguf;
mod gguf_hostile;
#[path = "../common/gguf.rs"]
mod gguf_writer;
mod pth;
mod pth_hostile;
#[allow(dead_code)] // the tests of the runtime use all of it
#[path = "../../../tests/common/random.rs"]
mod random;
mod rwkvcpp;
mod safetensors;
mod shards;
mod sniff;
mod throughput;
mod torch_files;

//! The converter: the files that it makes, its refusals, and the program as a user meets it.

mod calibration;
mod cli;
mod common;
mod config_json;
mod damage;
mod errors;
#[path = "../common/fla.rs"]
mod fla;
mod folder;
mod gguf;
#[path = "../common/gguf.rs"]
mod gguf_writer;
mod library;
mod limits;
mod merge;
mod schemes;
mod synth;
mod tuned;

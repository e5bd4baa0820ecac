//! The converter: the files that it makes, its refusals, and the program as a user meets it.

mod cli;
mod common;
mod damage;
mod errors;
mod gguf;
#[path = "../common/gguf.rs"]
mod gguf_writer;
mod library;
mod limits;
mod merge;
mod synth;
mod tuned;

//! The vocabulary compilers against other tokenizers and against damaged files.

mod bpe;
mod common;
mod files;
mod words;
mod world;

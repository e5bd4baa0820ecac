//! The vocabulary compilers against other tokenizers and against damaged files.

mod bpe;
mod files;
mod world;

//! One test binary for the program, so it links once.

#[path = "../../../tests/common/mod.rs"]
mod common;

mod builtin;
mod chat;
mod commands;
mod eval;
mod input;
mod manners;
mod memory;
mod program;
mod signals;
mod state;
mod streams;

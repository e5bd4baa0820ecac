//! The converter: the files that it makes, its refusals, and the program as a user meets it.

mod cli;
mod common;
mod damage;
mod errors;
mod library;
mod limits;
mod synth;
mod tuned;

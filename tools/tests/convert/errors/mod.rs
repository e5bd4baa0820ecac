//! Checkpoints that the converter refuses, in every version. Each message names the file and the
//! tensor in one line, and nothing is left behind.

mod content;
mod output;
mod settings;
mod shapes;
mod state;
mod values;

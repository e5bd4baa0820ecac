//! `rwkv-edge`: run, inspect and measure RWKV models.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}

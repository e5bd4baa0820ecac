//! `rwkv-edge`: run, inspect and measure RWKV models.
//!
//! This module has the subcommands and exit codes. Each subcommand has a module of its own.

mod args;
mod bake;
mod bench;
#[cfg(feature = "builtin-model")]
mod builtin;
mod chat;
mod eval;
mod info;
mod json;
mod logits;
mod memory;
#[cfg(test)]
#[path = "../../tests/common/pages.rs"]
mod pages;
mod plan;
mod progress;
mod run;
mod sampling;
mod saved;
mod tokenize;
mod utf16;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use rwkv_edge::{signals, stdio};

/// Run RWKV language models on small CPUs
#[derive(Parser)]
#[command(name = "rwkv-edge", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a text, streaming to standard output
    Run(run::RunArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Turn a prompt into a state file, from which `run --state` goes on at once
    Bake(bake::BakeArgs),
    /// Print a model's header, its memory plan and the kernels that would run
    Info(info::InfoArgs),
    /// Print the memory that a model will take, without loading it
    Plan(plan::PlanArgs),
    /// Print the logits after a list of tokens
    Logits(logits::LogitsArgs),
    /// Print the token ids of standard input, one per line
    Tokenize(tokenize::TokenizeArgs),
    /// Measure how well a model predicts a text, and how far it is from another file of the same
    /// model
    Eval(eval::EvalArgs),
    /// Measure decoding speed against the machine's own read bandwidth
    Bench(bench::BenchArgs),
}

/// Runs the program. The exit code is 0 for success, also if the reader of the output went away; 1
/// for an error; 2 for wrong usage. A run that a signal ends dies by it.
fn main() -> ExitCode {
    let cli = parse().unwrap_or_else(|error| match error.use_stderr() {
        true => stdio::wrong_usage(&error.render().to_string()),
        false => error.exit(),
    });
    match command(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => stdio::report("rwkv-edge", &*error),
    }
}

/// Reads the arguments. A negative number is a value for every option, and no unknown option.
fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&options().try_get_matches()?)
}

/// All commands with their options.
fn options() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    })
}

fn command(command: Command) -> Result<()> {
    signals::prepare()?;
    match command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bake(args) => bake::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

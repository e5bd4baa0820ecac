//! `rwkv-edge`: run, inspect and measure RWKV models.
//!
//! Here are the arguments and exit codes; each subcommand has a module.

mod bench;
#[cfg(feature = "builtin-model")]
mod builtin;
mod eval;
mod info;
mod logits;
mod run;
mod tokenize;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use rwkv_edge::format::MappingKind;
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::kernels::Isa;
use rwkv_edge::printable::Printable;
use rwkv_edge::{EngineOptions, LoadOptions, Model, Verify, signals, stdio};

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
    /// Print a model's header, its memory plan and the kernels that would run
    Info(info::InfoArgs),
    /// Print the logits after a list of tokens
    Logits(logits::LogitsArgs),
    /// Print the token ids of standard input, one per line
    Tokenize(tokenize::TokenizeArgs),
    /// Measure how well a model predicts a text, and how far it is from another file of the same model
    Eval(eval::EvalArgs),
    /// Measure decoding speed against the machine's own read bandwidth
    Bench(bench::BenchArgs),
}

/// Which model to load and how to compute.
#[derive(Args)]
struct ModelArgs {
    /// Model file (.rwkv); without it the built-in model is used
    model: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Args)]
struct ComputeArgs {
    /// Threads [default: the physical performance cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    kernels: KernelArgs,
}

/// Which kernels to run on what.
#[derive(Args)]
struct KernelArgs {
    /// Instruction set of the kernels, by the names that `info` lists [default: $RWKV_EDGE_ISA, or the best this CPU has]
    #[arg(long)]
    isa: Option<Isa>,
    /// Do not check the weights' checksums
    #[arg(long)]
    no_verify: bool,
}

impl ModelArgs {
    fn load(&self, verify: Verify) -> Result<Arc<Model>> {
        load(self.model.as_ref(), &self.compute.kernels, verify)
    }

    fn name(&self) -> String {
        model_name(self.model.as_ref())
    }
}

impl ComputeArgs {
    /// The default options with these threads.
    fn engine_options(&self) -> EngineOptions {
        EngineOptions { threads: self.threads(), ..EngineOptions::default() }
    }

    /// How many threads an engine gets. Unless they were asked for, all from here on keep to the fast cores.
    fn threads(&self) -> Option<usize> {
        if self.threads.is_none() {
            DefaultThreads::detect().keep_to_fast_cores();
        }
        self.threads.map(usize::from)
    }
}

/// A model's name for people, fit for a terminal.
fn model_name(path: Option<&PathBuf>) -> String {
    path.map_or("built-in".into(), |path| Printable(path.display()).to_string())
}

fn load(path: Option<&PathBuf>, args: &KernelArgs, verify: Verify) -> Result<Arc<Model>> {
    let verify = if args.no_verify { Verify::Never } else { verify };
    let options = LoadOptions { isa: args.isa, verify, low_memory: false };
    let model = match path {
        Some(path) => Model::open(path, &options)?,
        None => builtin_model(&options)?,
    };
    let file = model.file();
    if let (MappingKind::Memory, Some(path)) = (file.mapping().kind(), path) {
        let (path, bytes) = (path.display(), file.file_len());
        stdio::eprint_line(format_args!(
            "rwkv-edge: {path}: cannot be mapped here: all {bytes} bytes are in memory"
        ));
    }
    Ok(model)
}

/// Says on standard error if a text looks like UTF-16, which a model reads as nonsense.
fn hint_at_utf16(text: &[u8]) {
    if looks_like_utf16(text) {
        stdio::eprint_line(format_args!(
            "rwkv-edge: the text looks like UTF-16, but is read as UTF-8; iconv -f UTF-16 -t UTF-8 converts it"
        ));
    }
}

/// Whether a text begins with the byte order mark of UTF-16, or one byte of most pairs is zero and the other hardly ever.
fn looks_like_utf16(text: &[u8]) -> bool {
    const MOST_PAIRS: usize = 512;
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return true;
    }
    let pairs = text.as_chunks::<2>().0;
    let pairs = &pairs[..pairs.len().min(MOST_PAIRS)];
    let zeros = |i: usize| pairs.iter().filter(|pair| pair[i] == 0).count();
    let (first, second) = (zeros(0), zeros(1));
    8 * first.min(second) < first.max(second) && 2 * first.max(second) > pairs.len()
}

#[cfg(feature = "builtin-model")]
fn builtin_model(options: &LoadOptions) -> Result<Arc<Model>> {
    Ok(Model::from_static(builtin::fairy(), options)?)
}

#[cfg(not(feature = "builtin-model"))]
fn builtin_model(_options: &LoadOptions) -> Result<Arc<Model>> {
    anyhow::bail!("this build has no built-in model: name a .rwkv file")
}

/// Runs the program. 0 is success, also when the reader of the output went away; 1 an error; 2 wrong usage. A run
/// that a signal ends dies by it.
fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| match error.use_stderr() {
        true => stdio::wrong_usage(&error.render().to_string()),
        false => error.exit(),
    });
    match command(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => stdio::report("rwkv-edge", &*error),
    }
}

fn command(command: Command) -> Result<()> {
    signals::prepare()?;
    match command {
        Command::Run(args) => run::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::looks_like_utf16;

    #[test]
    fn utf_16_is_known_by_its_mark_or_by_the_zeros() {
        let text = "Once upon a time, caf\u{e9} \u{4e00}";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert!(looks_like_utf16(&little) && looks_like_utf16(&big));
        assert!(looks_like_utf16(b"\xff\xfe\x00\x4e") && looks_like_utf16(b"\xfe\xff\x4e\x00"));
        for other in [text.as_bytes(), b"", b"a", b"\0\0\0\0", b"some\0text", b"\xef\xbb\xbftext"] {
            assert!(!looks_like_utf16(other), "{other:?}");
        }
    }
}

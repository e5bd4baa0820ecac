//! Arguments that subcommands share: which model to load, and how to compute.

use std::num::{NonZero, ParseIntError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Once};
use std::thread;

use anyhow::Result;
use clap::Args;
use rwkv_edge::format::{Load, MappingKind};
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::kernels::Isa;
use rwkv_edge::printable::Printable;
use rwkv_edge::{EngineOptions, LoadOptions, MemoryPlan, Model, Verify, stdio};

use crate::memory::{Demand, MemoryArgs};

/// Rows of logits that the head computes together where all are needed. Each takes `n_vocab` floats
/// of memory.
pub(crate) const ALL_LOGITS_BATCH: usize = 8;

/// Which model to load and how to compute.
#[derive(Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) file: ModelPath,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

/// Which model to load.
#[derive(Args)]
pub(crate) struct ModelPath {
    /// Model file (.rwkv); without it the built-in model is used
    model: Option<PathBuf>,
    /// The model file, as llama.cpp names the option
    #[arg(
        short = 'm',
        long = "model",
        id = "model_option",
        value_name = "MODEL",
        conflicts_with = "model",
        hide = true
    )]
    model_option: Option<PathBuf>,
}

impl ModelPath {
    /// The model file, unless it is the built-in model.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.model.as_deref().or(self.model_option.as_deref())
    }
}

#[derive(Args)]
pub(crate) struct ComputeArgs {
    /// Threads [default: the physical performance cores, at most 4]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) kernels: KernelArgs,
}

/// Which kernels to run and for how many tokens, and whether to check the weights.
#[derive(Args)]
pub(crate) struct KernelArgs {
    /// Instruction set of the kernels, by the names that `info` lists [default: $RWKV_EDGE_ISA, or
    /// the best this CPU has]
    #[arg(long)]
    pub(crate) isa: Option<Isa>,
    /// Tokens of a text that go through the model together; 1 is token by token [default: what is
    /// fastest with these kernels]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    prompt_chunk: Option<u16>,
    /// Do not check the weights' checksums
    #[arg(long)]
    pub(crate) no_verify: bool,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

/// Most tokens of a text; `None` for no limit, which is 0 or, as llama.cpp has it, -1.
#[derive(Clone, Copy)]
pub(crate) struct TokenLimit(pub(crate) Option<u64>);

impl FromStr for TokenLimit {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let tokens = if text == "-1" { 0 } else { text.parse()? };
        Ok(Self((tokens > 0).then_some(tokens)))
    }
}

/// Refuses the length of a context, which people set for other models.
#[derive(Args)]
pub(crate) struct NoContext {
    #[arg(short = 'c', long = "ctx-size", value_name = "N", hide = true, value_parser = no_context)]
    _ctx_size: Option<String>,
}

fn no_context(_: &str) -> Result<String, &'static str> {
    Err("an RWKV model has no context length: texts of any length take the same memory; leave the option out")
}

impl ModelArgs {
    /// Loads the model, unless `demand` exceeds the limit of memory.
    pub(crate) fn load(&self, verify: Verify, demand: &Demand) -> Result<Arc<Model>> {
        self.compute.kernels.check_memory(self.path(), demand)?;
        load(self.path(), &self.compute.kernels, verify)
    }

    /// Most bytes of a text that `model` may read beside what `demand` takes.
    pub(crate) fn text_limit(&self, model: &Model, demand: &Demand) -> Result<u64> {
        self.compute.kernels.memory.text_limit(model, demand)
    }

    /// The model file, unless it is the built-in model.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    pub(crate) fn name(&self) -> String {
        model_name(self.path())
    }
}

impl ComputeArgs {
    /// The default options with these threads and chunks.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            threads: self.threads(),
            prompt_chunk: self.kernels.prompt_chunk(),
            ..EngineOptions::default()
        }
    }

    /// The number of threads of an engine. If the user did not choose it, threads from here on keep
    /// to the fast cores.
    pub(crate) fn threads(&self) -> Option<usize> {
        match self.threads {
            Some(threads) => warn_of_threads(threads.into()),
            None => DefaultThreads::detect().keep_to_fast_cores(),
        }
        self.threads.map(usize::from)
    }
}

/// Warns on standard error, once, if there are more threads than cores for them.
pub(crate) fn warn_of_threads(threads: usize) {
    static ONCE: Once = Once::new();
    let cores = thread::available_parallelism().map_or(threads, NonZero::get);
    if threads > cores {
        ONCE.call_once(|| {
            stdio::eprint_line(format_args!(
                "rwkv-edge: {threads} threads, but this process may use {cores} cores: more threads are slower"
            ));
        });
    }
}

impl KernelArgs {
    /// Refuses a model that exceeds the limit of memory.
    pub(crate) fn check_memory(&self, path: Option<&Path>, demand: &Demand) -> Result<()> {
        self.memory.check(path, self.isa, demand)
    }

    /// The memory that a model will take.
    pub(crate) fn plan(&self, path: Option<&Path>, demand: &Demand) -> Result<MemoryPlan> {
        self.memory.plan(path, self.isa, demand)
    }

    /// The number of tokens that go through the model together.
    pub(crate) fn prompt_chunk(&self) -> Option<usize> {
        self.prompt_chunk.map(usize::from)
    }
}

/// A model's name for people, safe for a terminal.
pub(crate) fn model_name(path: Option<&Path>) -> String {
    path.map_or("built-in".into(), |path| Printable(path.display()).to_string())
}

/// Loads a model. The caller has checked its memory.
pub(crate) fn load(path: Option<&Path>, args: &KernelArgs, verify: Verify) -> Result<Arc<Model>> {
    let verify = if args.no_verify { Verify::Never } else { verify };
    let MemoryArgs { mlock: lock, .. } = args.memory;
    let options =
        LoadOptions { isa: args.isa, verify, load: args.memory.load(), lock, ..LoadOptions::default() };
    let model = match path {
        Some(path) => Model::open(path, &options)?,
        None => Model::from_static(builtin_bytes()?, &options)?,
    };
    let file = model.file();
    let is_copy = file.mapping().kind() == MappingKind::Memory && options.load != Load::Copy;
    if let (true, Some(path)) = (is_copy, path) {
        let (path, bytes) = (path.display(), file.file_len());
        stdio::eprint_line(format_args!(
            "rwkv-edge: {path}: cannot be mapped here: all {bytes} bytes are in memory"
        ));
    }
    Ok(model)
}

/// The bytes of the built-in model.
#[cfg(feature = "builtin-model")]
pub(crate) fn builtin_bytes() -> Result<&'static [u8]> {
    Ok(crate::builtin::fairy())
}

#[cfg(not(feature = "builtin-model"))]
pub(crate) fn builtin_bytes() -> Result<&'static [u8]> {
    anyhow::bail!("this build has no built-in model: name a .rwkv file")
}

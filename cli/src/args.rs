//! Arguments that subcommands share: which model to load, and how to compute.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use rwkv_edge::format::MappingKind;
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::kernels::Isa;
use rwkv_edge::printable::Printable;
use rwkv_edge::{EngineOptions, LoadOptions, Model, Verify, stdio};

/// Rows of logits that the head computes together where all are needed. Each takes `n_vocab` floats
/// of memory.
pub(crate) const ALL_LOGITS_BATCH: usize = 8;

/// Which model to load and how to compute.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Model file (.rwkv); without it the built-in model is used
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Args)]
pub(crate) struct ComputeArgs {
    /// Threads [default: the physical performance cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
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
}

impl ModelArgs {
    pub(crate) fn load(&self, verify: Verify) -> Result<Arc<Model>> {
        load(self.model.as_ref(), &self.compute.kernels, verify)
    }

    pub(crate) fn name(&self) -> String {
        model_name(self.model.as_ref())
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
        if self.threads.is_none() {
            DefaultThreads::detect().keep_to_fast_cores();
        }
        self.threads.map(usize::from)
    }
}

impl KernelArgs {
    /// The number of tokens that go through the model together.
    pub(crate) fn prompt_chunk(&self) -> Option<usize> {
        self.prompt_chunk.map(usize::from)
    }
}

/// A model's name for people, safe for a terminal.
pub(crate) fn model_name(path: Option<&PathBuf>) -> String {
    path.map_or("built-in".into(), |path| Printable(path.display()).to_string())
}

pub(crate) fn load(path: Option<&PathBuf>, args: &KernelArgs, verify: Verify) -> Result<Arc<Model>> {
    let verify = if args.no_verify { Verify::Never } else { verify };
    let options = LoadOptions { isa: args.isa, verify, ..LoadOptions::default() };
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

#[cfg(feature = "builtin-model")]
fn builtin_model(options: &LoadOptions) -> Result<Arc<Model>> {
    Ok(Model::from_static(crate::builtin::fairy(), options)?)
}

#[cfg(not(feature = "builtin-model"))]
fn builtin_model(_options: &LoadOptions) -> Result<Arc<Model>> {
    anyhow::bail!("this build has no built-in model: name a .rwkv file")
}

//! The options of `rwkv-edge eval`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

use crate::args::ComputeArgs;

use super::windows::Cut;

#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    models: ModelPaths,
    #[command(flatten)]
    pub(super) compute: ComputeArgs,
    /// Text to predict; may be given several times
    #[arg(long = "text", value_name = "FILE", required = true)]
    pub(super) texts: Vec<PathBuf>,
    /// Another file of the same model (f32, say): print the KL divergence from it and the share of
    /// equal best tokens
    #[arg(long, value_name = "MODEL")]
    pub(super) against: Option<PathBuf>,
    /// Cut the texts into windows of this many tokens, each of which begins from the initial state
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Tokens at the start of each window, or of each text, that are read but not scored
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Stop after this many tokens of each text
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<usize>,
    /// Table of all scored tokens to write, with commas between the columns
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Which models to judge.
#[derive(Args)]
struct ModelPaths {
    /// Model files (.rwkv); without one the built-in model is used. Several are compared with the
    /// first
    models: Vec<PathBuf>,
    /// The model file, as llama.cpp names the option
    #[arg(
        short = 'm',
        long = "model",
        id = "model_option",
        value_name = "MODEL",
        conflicts_with = "models",
        hide = true
    )]
    model_option: Option<PathBuf>,
}

impl EvalArgs {
    /// The first model file, unless it is the built-in model, and the others.
    pub(super) fn models(&self) -> (Option<&Path>, &[PathBuf]) {
        let ModelPaths { models, model_option } = &self.models;
        match models.split_first() {
            Some((first, others)) => (Some(first), others),
            None => (model_option.as_deref(), &[]),
        }
    }

    /// How texts are cut.
    pub(super) fn cut(&self) -> Result<Cut> {
        let (window, skip) = (self.windows, self.skip);
        if let Some(window) = window {
            ensure!(skip < window, "--skip {skip} leaves nothing of a window of {window} tokens");
        }
        Ok(Cut { window, skip })
    }
}

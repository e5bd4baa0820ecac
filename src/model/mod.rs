//! A loaded model: weights mapped from a `.rwkv` file, shared by any number of sessions.
//!
//! One module per RWKV version holds its equations; [`common`] what they share. Arithmetic happens only in
//! the kernel table, so nothing here knows which instruction set runs.

mod channel_mix;
mod common;
mod layer;
pub mod names;
mod v4;

use std::collections::HashSet;
use std::path::Path;
use std::str::FromStr;

use rwkv_edge_kernels::{Isa, Kernels};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Chat, Config, MatrixRef, ModelFile, RecordsRef, TensorLayout, Version};
use crate::knobs;
use crate::memory::Buffers;
use crate::threads::Pool;
use crate::tokenizer::Tokenizer;
use common::{Input, Norm, Ops};
use layer::{Layer, SCRATCH};

pub use common::Traffic;

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Kernels to run; `None` takes `RWKV_EDGE_ISA` or else the best that the CPU has.
    pub isa: Option<Isa>,
    /// Check every tensor's checksum while loading. Reads the file once, which also warms the page cache;
    /// embedding rows are always checked when they are used.
    pub verify: bool,
    /// Give pages back to the system as soon as they have been used: slow, but the resident set stays at one
    /// tensor. For machines that only check a model.
    pub transient: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { isa: None, verify: true, transient: false }
    }
}

/// The layers, whose time mixing depends on the version.
#[derive(Debug)]
enum Layers {
    V4(Vec<Layer<v4::TimeMix>>),
}

/// Calls a function that is generic over the version's [`layer::TimeMix`] with the layers.
macro_rules! with_layers {
    ($layers:expr, $name:ident => $body:expr) => {
        match $layers {
            Layers::V4($name) => $body,
        }
    };
}

/// A model ready to run: immutable, and shareable between threads and sessions.
#[derive(Debug)]
pub struct Model {
    file: ModelFile,
    kernels: &'static Kernels,
    transient: bool,
    embedding: RecordsRef,
    layers: Layers,
    ln_out: Norm,
    head: MatrixRef,
}

impl Model {
    /// Maps and checks the model file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not a model or is damaged, or needs something this build does not have;
    /// or if the wanted instruction set is not available.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load(ModelFile::open(path)?, options).map_err(|error| error.with_path(path))
    }

    /// Loads a model from the bytes of a `.rwkv` file that are part of the program.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_static(bytes: &'static [u8], options: &LoadOptions) -> Result<Self> {
        Self::load(ModelFile::from_static(bytes)?, options)
    }

    fn load(file: ModelFile, options: &LoadOptions) -> Result<Self> {
        let kernels = choose_kernels(options.isa)?;
        let config = file.config();
        let Config { n_embd, n_vocab, .. } = *config;
        check_tensors(&file)?;
        let layers = Layers::load(&file)?;
        let tokenizer = Tokenizer::parse(file.tokenizer_bytes())?;
        if tokenizer.n_tokens() > n_vocab {
            return Err(ErrorKind::Malformed(format!(
                "the tokenizer has {} tokens, the model {n_vocab}",
                tokenizer.n_tokens()
            ))
            .into());
        }
        let model = Self {
            kernels,
            transient: options.transient,
            embedding: file.records_ref("emb.weight", TensorLayout::RowRecords, [n_vocab, n_embd])?,
            layers,
            ln_out: Norm::load(&file, "ln_out", n_embd)?,
            head: file.matrix_ref("head.weight", n_vocab, n_embd)?,
            file,
        };
        if options.verify {
            model.file.verify_all()?;
        }
        Ok(model)
    }

    /// Hyperparameters.
    pub fn config(&self) -> &Config {
        self.file.config()
    }

    /// The file behind the model.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// Chat template, stop rules and sampling defaults.
    pub fn chat(&self) -> &Chat {
        self.file.chat()
    }

    /// The kernels that run this model.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The tokenizer in the file.
    ///
    /// # Errors
    /// Never for a loaded model; the tables were checked then.
    pub fn tokenizer(&self) -> Result<Tokenizer<'_>> {
        Tokenizer::parse(self.file.tokenizer_bytes())
    }

    /// Floats of the recurrent state.
    pub fn state_len(&self) -> usize {
        self.config().n_layer * self.layers.state_len(self.config())
    }

    /// Puts `state` to what it is before the first token.
    ///
    /// # Panics
    /// If `state` does not have [`state_len`](Self::state_len) floats.
    pub(crate) fn init_state(&self, state: &mut [f32]) {
        assert_eq!(state.len(), self.state_len());
        let config = self.config();
        for state in state.chunks_exact_mut(self.layers.state_len(config)) {
            self.layers.init_state(state, config);
        }
    }

    /// Takes the buffers that live for one token, and forgets them: for the memory plan.
    pub(crate) fn measure_scratch<'a>(&self, buffers: &mut impl Buffers<'a>) {
        Scratch::take(buffers, self.config());
        with_layers!(&self.layers, layers => take_layer_scratch(layers, buffers, self.config()));
    }

    /// Feeds `token`: updates `state` and, if asked for, computes the logits of the next token, `[n_vocab]`.
    /// `buffers` are those that [`measure_scratch`](Self::measure_scratch) took.
    pub(crate) fn forward<'a>(
        &self,
        pool: &mut Pool,
        traffic: &mut Traffic,
        token: u32,
        state: &mut [f32],
        buffers: &mut impl Buffers<'a>,
        logits: Option<&mut [f32]>,
    ) -> Result<()> {
        let config = self.config();
        let mut ops = Ops {
            file: &self.file,
            kernels: self.kernels,
            pool,
            transient: self.transient,
            layer_norm_eps: config.layer_norm_eps,
            traffic,
        };
        let Scratch { x, mut head_input } = Scratch::take(buffers, config);
        self.embed(token, x)?;
        with_layers!(&self.layers, layers => run_layers(layers, &mut ops, config, x, state, buffers))?;
        if let Some(logits) = logits {
            ops.layer_norm(head_input.values(), x, self.ln_out)?;
            ops.quantize(&mut head_input);
            ops.matvec([logits], [(self.head, &head_input)])?;
        }
        Ok(())
    }

    /// `x = ln0(embedding of token)`; the norm was folded into the table by the converter.
    fn embed(&self, token: u32, x: &mut [f32]) -> Result<()> {
        let n_vocab = self.config().n_vocab;
        if token as usize >= n_vocab {
            return Err(Error::invalid(format!("token {token} is outside 0..{n_vocab}")));
        }
        self.file.verify_record(self.embedding, token as usize)?;
        self.kernels.dequantize_record(x, &self.file.records(self.embedding)?, token as usize);
        Ok(())
    }
}

impl Layers {
    fn load(file: &ModelFile) -> Result<Self> {
        fn layers<T: layer::TimeMix>(file: &ModelFile) -> Result<Vec<Layer<T>>> {
            let config = file.config();
            (0..config.n_layer).map(|index| Layer::load(file, config, index)).collect()
        }
        match file.config().version {
            Version::V4 => Ok(Layers::V4(layers(file)?)),
            other => Err(ErrorKind::Unsupported(format!("{other} models")).into()),
        }
    }

    fn state_len(&self, config: &Config) -> usize {
        fn len<T: layer::TimeMix>(_: &[Layer<T>], config: &Config) -> usize {
            Layer::<T>::state_len(config)
        }
        with_layers!(self, layers => len(layers, config))
    }

    fn init_state(&self, state: &mut [f32], config: &Config) {
        fn init<T: layer::TimeMix>(_: &[Layer<T>], state: &mut [f32], config: &Config) {
            Layer::<T>::init_state(state, config);
        }
        with_layers!(self, layers => init(layers, state, config));
    }
}

fn take_layer_scratch<'a, T: layer::TimeMix>(
    _: &[Layer<T>],
    buffers: &mut impl Buffers<'a>,
    config: &Config,
) -> layer::Scratch<'a, T> {
    layer::Scratch::take(buffers, config)
}

/// Runs all layers on the residual stream `x`.
fn run_layers<'a, T: layer::TimeMix>(
    layers: &[Layer<T>],
    ops: &mut Ops<'_>,
    config: &Config,
    x: &mut [f32],
    state: &mut [f32],
    buffers: &mut impl Buffers<'a>,
) -> Result<()> {
    let mut scratch = take_layer_scratch(layers, buffers, config);
    let states = state.chunks_exact_mut(Layer::<T>::state_len(config));
    layers
        .iter()
        .zip(states)
        .try_for_each(|(layer, state)| layer.forward(ops, config, x, state, &mut scratch))
}

/// Buffers outside the layers that live for one token.
struct Scratch<'a> {
    /// The residual stream, `[n_embd]`.
    x: &'a mut [f32],
    /// Input of the head, `[n_embd]`.
    head_input: Input<'a>,
}

impl<'a> Scratch<'a> {
    fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        Self {
            x: buffers.f32s(SCRATCH, config.n_embd),
            head_input: Input::take(buffers, "head input", config.n_embd),
        }
    }
}

/// Refuses versions without code, and files with tensors that no code reads: those are of an unknown variant.
fn check_tensors(file: &ModelFile) -> Result<()> {
    let expected = names::tensors(file.config())?;
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let checksums = |name: &str| name.strip_suffix(".crc32").is_some_and(|name| known.contains(name));
    let mut tensors = file.tensors().iter();
    match tensors.find(|tensor| !known.contains(tensor.name.as_str()) && !checksums(&tensor.name)) {
        Some(unknown) => {
            let version = file.config().version;
            Err(ErrorKind::Unsupported(format!("tensor {} in a {version} model", unknown.name)).into())
        }
        None => Ok(()),
    }
}

/// The kernels of `isa`, or of `RWKV_EDGE_ISA`, or the best there are.
///
/// # Errors
/// If the wanted instruction set is unknown or this CPU does not have it.
pub fn choose_kernels(isa: Option<Isa>) -> Result<&'static Kernels> {
    let isa = match (isa, knobs::isa()?) {
        (Some(isa), _) => isa,
        (None, Some(name)) => Isa::from_str(&name)
            .map_err(|_| Error::invalid(format!("{}: unknown instruction set {name:?}", knobs::ISA)))?,
        (None, None) => return Ok(Kernels::best()),
    };
    Kernels::for_isa(isa).ok_or_else(|| Error::invalid(format!("this CPU does not have {isa}")))
}

//! A loaded model: weights mapped from a `.rwkv` file, shared by any number of sessions.
//!
//! One module per RWKV version holds its time mixing; the others what the versions share. Arithmetic happens only in
//! the kernel table, so nothing here knows which instruction set runs.

mod channel_mix;
mod common;
mod head;
mod heads;
mod layer;
mod meter;
pub mod names;
mod sparse_value;
mod v4;
mod v5;
mod v6;
mod v7;

use std::collections::HashSet;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use rwkv_edge_kernels::{Isa, Kernels};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Chat, Config, ElementType, ModelFile, RecordsRef, TensorInfo, TensorLayout, VectorRef, Verifier, Version,
};
use crate::knobs;
use crate::memory::Buffers;
use crate::session::Savings;
use crate::threads::Pool;
use crate::tokenizer::Tokenizer;
use common::Ops;
use head::Head;
use layer::{Layer, SCRATCH};
use names::Extras;

pub(crate) use common::MAX_TOKENS;
pub(crate) use meter::Meter;
pub use meter::{Phase, Profile, Traffic};

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Kernels to run; `None` takes `RWKV_EDGE_ISA` or else the best that the CPU has.
    pub isa: Option<Isa>,
    /// When to check the tensors' checksums.
    pub verify: Verify,
    /// Give pages back to the system as soon as they have been used: slow, but the resident set stays at one
    /// tensor. For machines that only check a model.
    pub transient: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { isa: None, verify: Verify::AtOnce, transient: false }
    }
}

/// When the checksums of a model's tensors are checked. Rows of the embedding are always checked when they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// While the model is loaded, which reads the whole file.
    AtOnce,
    /// By the model's first session, some after each token, so that the first comes at once; a damaged file is an error
    /// after 64 tokens at the latest, or of [`Session::verify_rest`](crate::Session::verify_rest).
    WhileRunning,
    /// Never.
    Never,
}

/// The layers, whose time mixing depends on the version.
#[derive(Debug)]
enum Layers {
    V4(Vec<Layer<v4::TimeMix>>),
    V5(Vec<Layer<v5::TimeMix>>),
    V6(Vec<Layer<v6::TimeMix>>),
    V7(Vec<Layer<v7::TimeMix>>),
}

/// Evaluates an expression with `$T` standing for the [`layer::TimeMix`] of a version.
macro_rules! with_time_mix {
    ($version:expr, $T:ident => $body:expr) => {
        match $version {
            Version::V4 => {
                type $T = v4::TimeMix;
                $body
            }
            Version::V5_0 | Version::V5_1 | Version::V5_2 => {
                type $T = v5::TimeMix;
                $body
            }
            Version::V6 => {
                type $T = v6::TimeMix;
                $body
            }
            Version::V7 => {
                type $T = v7::TimeMix;
                $body
            }
        }
    };
}

/// Floats of recurrent state in one layer of a model with hyperparameters `config`.
fn layer_state_len(config: &Config) -> usize {
    with_time_mix!(config.version, T => Layer::<T>::state_len(config))
}

/// Floats of recurrent state of a model with hyperparameters `config`; `usize::MAX` if they are more than that.
pub fn state_len(config: &Config) -> usize {
    config.n_layer.saturating_mul(layer_state_len(config))
}

/// Takes the buffers for as many tokens as go through together, and forgets them: for the memory plan.
pub(crate) fn measure_scratch<'a>(config: &Config, threads: usize, buffers: &mut impl Buffers<'a>) {
    Scratch::take(buffers, config);
    with_time_mix!(config.version, T => {
        layer::Scratch::<T>::take(buffers, config, threads, MAX_TOKENS);
    });
}

/// A model ready to run: immutable, and shareable between threads and sessions.
#[derive(Debug)]
pub struct Model {
    file: ModelFile,
    kernels: &'static Kernels,
    transient: bool,
    /// Whether a session must check the file.
    unverified: AtomicBool,
    embedding: RecordsRef,
    layers: Layers,
    /// WKV state of each layer before the first token, for state-tuned models.
    initial_state: Vec<VectorRef>,
    head: Head,
    /// Bytes that a token reads beside matrices: vectors, and a row of the embedding.
    small_bytes: u64,
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

    /// Loads a model from a file that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn load(file: ModelFile, options: &LoadOptions) -> Result<Self> {
        let kernels = choose_kernels(options.isa)?;
        let config = file.config();
        let Config { n_embd, n_vocab, .. } = *config;
        let tuned_state = file.tensor(&names::initial_state(0)).is_ok();
        check_tensors(&file, tuned_state)?;
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
            unverified: AtomicBool::new(options.verify == Verify::WhileRunning),
            embedding: file.records_ref("emb.weight", TensorLayout::RowRecords, [n_vocab, n_embd])?,
            initial_state: if tuned_state { initial_state(&file)? } else { Vec::new() },
            layers,
            head: Head::load(&file)?,
            small_bytes: small_bytes(&file)?,
            file,
        };
        model.advise(options)?;
        if options.verify == Verify::AtOnce {
            model.file.verify_all()?;
        }
        Ok(model)
    }

    /// Tells the system how the file will be read: the embedding a row here and there, the rest from front to back.
    fn advise(&self, options: &LoadOptions) -> Result<()> {
        let embedding = self.file.range(self.file.tensor("emb.weight")?);
        if !options.transient {
            self.file.mapping().large_pages(0..embedding.start);
        }
        if options.verify != Verify::AtOnce && !options.transient {
            self.file.mapping().will_need(0..embedding.start);
        }
        self.file.mapping().small_pages(embedding);
        if self.head.is_nested() {
            self.file.mapping().random(self.file.range(self.file.tensor(names::HEAD_RESIDUAL)?));
        }
        Ok(())
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
        state_len(self.config())
    }

    /// Puts `state` to what it is before the first token.
    ///
    /// # Errors
    /// Never for a loaded model; the tensors were checked then.
    ///
    /// # Panics
    /// If `state` does not have [`state_len`](Self::state_len) floats.
    pub(crate) fn init_state(&self, state: &mut [f32]) -> Result<()> {
        assert_eq!(state.len(), self.state_len());
        let config = self.config();
        let mut tuned = self.initial_state.iter();
        for state in state.chunks_exact_mut(layer_state_len(config)) {
            with_time_mix!(config.version, T => Layer::<T>::init_state(state, config));
            if let Some(&tuned) = tuned.next() {
                state[2 * config.n_embd..].copy_from_slice(self.file.vector(tuned)?);
            }
        }
        Ok(())
    }

    /// A verifier if the file is still to be checked; once.
    pub(crate) fn take_verifier(&self) -> Result<Option<Verifier>> {
        self.unverified.swap(false, Ordering::Relaxed).then(|| Verifier::new(&self.file)).transpose()
    }

    /// Whether logits come as estimates first.
    pub(crate) fn has_nested_head(&self) -> bool {
        self.head.is_nested()
    }

    /// What a session computes with.
    pub(crate) fn ops<'a>(&'a self, pool: &'a mut Pool, meter: &'a mut Meter, without: Savings) -> Ops<'a> {
        Ops {
            all_columns: without.sparse_value,
            file: &self.file,
            kernels: self.kernels,
            pool,
            transient: self.transient,
            layer_norm_eps: self.config().layer_norm_eps,
            meter,
        }
    }

    /// Feeds up to [`MAX_TOKENS`] tokens: updates `state` and, if asked for, computes estimates of the logits of the next
    /// token, `[n_vocab]`, which for a plain head are the logits. `buffers` are those that [`measure_scratch`] took.
    ///
    /// How a text is cut into calls changes no bit.
    pub(crate) fn forward<'a>(
        &self,
        mut ops: Ops<'_>,
        tokens: &[u32],
        state: &mut [f32],
        buffers: &mut impl Buffers<'a>,
        logits: Option<&mut [f32]>,
    ) -> Result<()> {
        let config = self.config();
        ops.meter.start();
        ops.meter.traffic.weight_bytes += self.small_bytes;
        ops.meter.traffic.state_bytes += tokens.len() as u64 * size_of_val(state) as u64;
        let Scratch { x, mut head } = Scratch::take(buffers, config);
        let x = &mut x[..tokens.len() * config.n_embd];
        for (x, &token) in x.chunks_exact_mut(config.n_embd).zip(tokens) {
            self.embed(token, x)?;
        }
        match &self.layers {
            Layers::V4(layers) => run_layers(layers, &mut ops, config, x, state, buffers)?,
            Layers::V5(layers) => run_layers(layers, &mut ops, config, x, state, buffers)?,
            Layers::V6(layers) => run_layers(layers, &mut ops, config, x, state, buffers)?,
            Layers::V7(layers) => run_layers(layers, &mut ops, config, x, state, buffers)?,
        }
        if let Some(logits) = logits {
            let last = &x[x.len() - config.n_embd..];
            self.head.estimate(&mut ops, last, logits, &mut head)?;
            ops.meter.end(Phase::Head);
        }
        Ok(())
    }

    /// Makes the estimates that [`forward`](Self::forward) left the logits.
    pub(crate) fn refine_all<'a>(
        &self,
        mut ops: Ops<'_>,
        buffers: &mut impl Buffers<'a>,
        logits: &mut [f32],
    ) -> Result<()> {
        self.head.refine_all(&mut ops, logits, &Scratch::take(buffers, self.config()).head)
    }

    /// Sets `exact[i]` to the logit of token `indices[i]`, given the estimates.
    pub(crate) fn refine<'a>(
        &self,
        mut ops: Ops<'_>,
        buffers: &mut impl Buffers<'a>,
        indices: &[u32],
        logits: &[f32],
        exact: &mut [f32],
    ) -> Result<()> {
        let head = Scratch::take(buffers, self.config()).head;
        self.head.refine(&mut ops, indices, logits, exact, &head)
    }

    /// Upper bounds of how far the logits are from their estimates: an element of the first times the second.
    pub(crate) fn logit_bounds<'a>(
        &self,
        meter: &mut Meter,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<(&[f32], f32)> {
        self.head.bounds(&self.file, meter, &Scratch::take(buffers, self.config()).head)
    }

    /// `x = ln0(embedding of token)`; the norm was folded into the table by the converter.
    fn embed(&self, token: u32, x: &mut [f32]) -> Result<()> {
        let n_vocab = self.config().n_vocab;
        if token as usize >= n_vocab {
            return Err(Error::invalid(format!("token {token} is outside 0..{n_vocab}")));
        }
        self.file.verify_record(self.embedding, token as usize)?;
        let rows = self.file.records(self.embedding)?;
        self.kernels.dequantize_record(x, &rows, token as usize);
        // With the row the system may have mapped all of the page cache's piece that it lies in, up to 2 MiB.
        self.file.release(rows.data());
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
            Version::V5_0 | Version::V5_1 | Version::V5_2 => Ok(Layers::V5(layers(file)?)),
            Version::V6 => Ok(Layers::V6(layers(file)?)),
            Version::V7 => Ok(Layers::V7(layers(file)?)),
        }
    }
}

/// Runs all layers on the residual streams `x`, `[tokens, n_embd]`.
fn run_layers<'a, T: layer::TimeMix>(
    layers: &[Layer<T>],
    ops: &mut Ops<'_>,
    config: &Config,
    x: &mut [f32],
    state: &mut [f32],
    buffers: &mut impl Buffers<'a>,
) -> Result<()> {
    let mut scratch = layer::Scratch::take(buffers, config, ops.pool.threads(), x.len() / config.n_embd);
    let states = state.chunks_exact_mut(Layer::<T>::state_len(config));
    layers
        .iter()
        .zip(states)
        .try_for_each(|(layer, state)| layer.forward(ops, config, x, state, &mut scratch))
}

/// Buffers outside the layers.
struct Scratch<'a> {
    /// The residual streams, `[MAX_TOKENS, n_embd]`.
    x: &'a mut [f32],
    head: head::Scratch<'a>,
}

impl<'a> Scratch<'a> {
    fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        Self {
            x: buffers.f32s(SCRATCH, MAX_TOKENS * config.n_embd),
            head: head::Scratch::take(buffers, config),
        }
    }
}

/// Bytes of all vectors that every token reads, and of a row of the embedding.
fn small_bytes(file: &ModelFile) -> Result<u64> {
    let embedding = file.tensor("emb.weight")?;
    let is_read = |tensor: &&TensorInfo| {
        tensor.layout == TensorLayout::Vector
            && tensor.dtype == ElementType::F32
            && !tensor.name.ends_with(".time_state")
            && tensor.name != names::HEAD_BOUND
    };
    let vectors: u64 = file.tensors().iter().filter(is_read).map(|tensor| tensor.len).sum();
    Ok(vectors + embedding.len / embedding.shape[0] as u64)
}

/// The tuned WKV states of all layers.
fn initial_state(file: &ModelFile) -> Result<Vec<VectorRef>> {
    let config = file.config();
    let len = heads::state_len(config);
    (0..config.n_layer).map(|layer| file.vector_ref(&names::initial_state(layer), len)).collect()
}

/// Refuses files with tensors that no code reads: they are of an unknown variant.
fn check_tensors(file: &ModelFile, tuned_state: bool) -> Result<()> {
    let extras = Extras {
        tuned_state,
        nested_head: head::is_nested(file),
        value_bound: file.tensor(&names::value_bound(0)).is_ok(),
    };
    let expected = names::tensors(file.config(), extras)?;
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

/// The kernels of `isa`; without it those of `RWKV_EDGE_ISA`, or the best there are.
///
/// # Errors
/// If the wanted instruction set is unknown or this CPU does not have it.
pub fn choose_kernels(isa: Option<Isa>) -> Result<&'static Kernels> {
    let isa = match isa {
        Some(isa) => isa,
        None => match knobs::isa()? {
            Some(name) => Isa::from_str(&name)
                .map_err(|_| Error::invalid(format!("{}: unknown instruction set {name:?}", knobs::ISA)))?,
            None => return Ok(Kernels::best()),
        },
    };
    Kernels::for_isa(isa).ok_or_else(|| Error::invalid(format!("this CPU does not have {isa}")))
}

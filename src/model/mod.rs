//! A loaded model: weights mapped from a `.rwkv` file, shared by any number of engines.
//!
//! One module per RWKV version holds its time mixing. The other modules hold the parts that
//! versions share. Only the kernel table does arithmetic, so nothing here knows which instruction
//! set runs.

mod batch;
mod channel_mix;
mod layer;
mod layers;
mod lm_head;
mod meter;
pub mod names;
mod ops;
mod options;
mod shortlist;
mod sparse_value;
mod state;
mod v4;
mod v5;
mod v6;
mod v7;
mod vectors;
mod verification;
mod wkv_heads;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rwkv_edge_kernels::Kernels;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Chat, Config, ElementType, ModelFile, RecordsHandle, TensorInfo, TensorLayout, VectorHandle,
};
use crate::memory::Buffers;
use crate::threads::Pool;
use crate::tokenizer::Tokenizer;
use layers::Layers;
use lm_head::LmHead;
use names::OptionalTensors;
use ops::Ops;
use shortlist::LogitsAndIds;
use vectors::{SCRATCH, Vectors};
use verification::Verification;

pub(crate) use batch::Batch;
pub use batch::Sequence;
pub(crate) use meter::Meter;
pub use meter::{Phase, Profile, Traffic};
pub use options::{LoadOptions, Shortcuts, Verify, choose_kernels};
pub use state::State;
pub(crate) use state::unify_nan;

/// A model ready to run: immutable, and shareable between threads and engines.
#[derive(Debug)]
pub struct Model {
    file: ModelFile,
    kernels: &'static Kernels,
    evict_pages: bool,
    verification: Verification,
    embedding: RecordsHandle,
    layers: Layers,
    /// WKV state of each layer before the first token, for state-tuned models.
    initial_state: Vec<VectorHandle>,
    head: LmHead,
    /// Bytes that a token reads besides matrices: vectors, and a row of the embedding.
    small_bytes: u64,
}

/// What an engine lends to a model for a computation: threads, counters and options.
pub(crate) struct Means<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) meter: &'a mut Meter,
    pub(crate) shortcuts: Shortcuts,
    /// Most tokens of a batch.
    pub(crate) tokens: usize,
}

/// Buffers of a model outside the layers, cut out of an arena. The buffers of the layers follow
/// them.
struct Workspace<'a> {
    head: lm_head::Scratch<'a>,
    shortlist: shortlist::Scratch<'a>,
    /// Residual streams, `[tokens, n_embd]`.
    x: Vectors<'a>,
}

impl<'a> Workspace<'a> {
    fn take(buffers: &mut impl Buffers<'a>, config: &Config, tokens: usize) -> Self {
        Self {
            head: lm_head::Scratch::take(buffers, config),
            shortlist: shortlist::Scratch::take(buffers, config),
            x: Vectors::take(buffers, SCRATCH, [tokens, config.n_embd]),
        }
    }
}

/// Takes the buffers for batches of up to `tokens` tokens and drops them, for the memory plan.
pub(crate) fn measure<'a>(config: &Config, threads: usize, tokens: usize, buffers: &mut impl Buffers<'a>) {
    Workspace::take(buffers, config, tokens);
    layers::measure(config, threads, tokens, buffers);
}

impl Model {
    /// Maps and checks the model file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not a model, is damaged, or needs something that this build
    /// does not have. Or if the requested instruction set is not available.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Arc<Self>> {
        let path = path.as_ref();
        Self::load(ModelFile::open(path)?, options).map_err(|error| error.with_path(path))
    }

    /// Loads a model from the bytes of a `.rwkv` file that are part of the program.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_static(bytes: &'static [u8], options: &LoadOptions) -> Result<Arc<Self>> {
        Self::load(ModelFile::from_static(bytes)?, options)
    }

    /// Loads a model from a file that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn load(file: ModelFile, options: &LoadOptions) -> Result<Arc<Self>> {
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
        let head = LmHead::load(&file)?;
        advise(&file, options)?;
        Ok(Arc::new(Self {
            kernels,
            evict_pages: options.low_memory,
            verification: Verification::new(&file, options.verify)?,
            embedding: file.records_handle("emb.weight", TensorLayout::RowRecords, [n_vocab, n_embd])?,
            initial_state: if tuned_state { initial_state(&file)? } else { Vec::new() },
            layers,
            head,
            small_bytes: small_bytes(&file)?,
            file,
        }))
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

    /// Whether `token` ends a reply.
    pub fn is_stop_token(&self, token: u32) -> bool {
        self.chat().stop_tokens.contains(&token)
    }

    /// The tokenizer in the file.
    pub fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer::of_checked(self.file.tokenizer_bytes())
    }

    /// The tokens of a text that begins here: the model's start tokens, then the tokens of `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &[u8]) -> Result<Vec<u32>> {
        let mut tokens = self.chat().start_tokens.clone();
        self.tokenizer().encode(text, &mut tokens)?;
        Ok(tokens)
    }

    /// The state before the first token.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn initial_state(&self) -> Result<State> {
        let config = self.config();
        let mut state = State::zeroed(self.file.model_id(), layers::state_len(config), config.n_embd)?;
        self.reset(&mut state);
        Ok(state)
    }

    /// Sets a state of this model to the state before the first token.
    pub(crate) fn reset(&self, state: &mut State) {
        state.forget_tokens();
        let tuned = |layer| self.initial_state.get(layer).map(|&tuned| self.file.vector(tuned));
        layers::init_state(self.config(), state.recurrent_mut(), tuned);
    }

    /// Checks the rest of a file that is [checked while running](Verify::WhileRunning).
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] if the file is damaged.
    pub fn verify_rest(&self) -> Result<()> {
        self.verification.finish(&self.file)
    }

    /// Checks the share of `tokens` tokens, for a file that is checked while running.
    pub(crate) fn verify_some(&self, tokens: usize) -> Result<()> {
        self.verification.advance(&self.file, tokens)
    }

    fn ops<'a>(&'a self, Means { pool, meter, shortcuts, .. }: Means<'a>) -> Ops<'a> {
        meter.start();
        Ops {
            sparse_ffn: shortcuts.sparse_ffn,
            file: &self.file,
            kernels: self.kernels,
            pool,
            evict_pages: self.evict_pages,
            layer_norm_eps: self.config().layer_norm_eps,
            meter,
        }
    }

    /// Feeds a batch and updates the states of its texts. `buffers` are those that [`measure`]
    /// took.
    ///
    /// The division of texts into batches changes no bit.
    ///
    /// # Errors
    /// If a token is outside the vocabulary or its row of the embedding is damaged. No state has
    /// changed then.
    pub(crate) fn forward<'a>(
        &self,
        means: Means<'_>,
        mut batch: Batch<'_, '_>,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let (config, most_tokens) = (self.config(), means.tokens);
        let mut ops = self.ops(means);
        let Workspace { mut x, .. } = Workspace::take(buffers, config, most_tokens);
        for (t, token) in batch.ids().enumerate() {
            self.embed(token, x.row_mut(t))?;
        }
        let state_bytes = (batch.tokens() * layers::state_len(config) * size_of::<f32>()) as u64;
        ops.meter.traffic.weight_bytes += self.small_bytes;
        ops.meter.traffic.state_bytes += state_bytes;
        self.layers.run((&mut ops, config), &mut batch, &mut x, most_tokens, buffers);
        batch.finish(&x);
        Ok(())
    }

    /// Computes the logits of the token that follows `state`; returns them with a free buffer of as
    /// many ids. If `largest` is given, only the `largest` largest logits and those of `known` are
    /// guaranteed; the others may be -infinity.
    pub(crate) fn logits<'a>(
        &self,
        means: Means<'_>,
        state: &State,
        needed: (Option<usize>, impl Iterator<Item = u32>),
        buffers: &mut impl Buffers<'a>,
    ) -> LogitsAndIds<'a> {
        let (largest, known) = needed;
        let largest = largest.filter(|_| means.shortcuts.head_shortlist);
        let Workspace { head, shortlist, .. } = Workspace::take(buffers, self.config(), means.tokens);
        let mut ops = self.ops(means);
        shortlist::logits(&self.head, &mut ops, state.residual(), (largest, known), head, shortlist)
    }

    /// Refuses a token outside the vocabulary.
    pub(crate) fn check_token(&self, token: u32) -> Result<()> {
        let n_vocab = self.config().n_vocab;
        if (token as usize) < n_vocab {
            return Ok(());
        }
        Err(Error::invalid(format!("token {token} is outside 0..{n_vocab}")))
    }

    /// `x = ln0(embedding of token)`. The converter has folded the norm into the table.
    fn embed(&self, token: u32, x: &mut [f32]) -> Result<()> {
        self.file.verify_record(self.embedding, token as usize)?;
        let rows = self.file.records(self.embedding);
        self.kernels.dequantize_record(x, &rows, token as usize);
        // Together with the row, the system may have mapped the whole piece of the page cache
        // around it, up to 2 MiB.
        self.file.release(rows.data());
        Ok(())
    }
}

/// Tells the system how the file will be read: single rows of the embedding, the rest from front to
/// back.
fn advise(file: &ModelFile, options: &LoadOptions) -> Result<()> {
    let embedding = file.range(file.tensor("emb.weight")?);
    if !options.low_memory {
        file.mapping().large_pages(0..embedding.start);
    }
    if options.verify != Verify::AtOnce && !options.low_memory {
        file.mapping().will_need(0..embedding.start);
    }
    file.mapping().small_pages(embedding);
    if lm_head::is_nested(file) {
        file.mapping().random(file.range(file.tensor(names::HEAD_RESIDUAL)?));
    }
    Ok(())
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
fn initial_state(file: &ModelFile) -> Result<Vec<VectorHandle>> {
    let config = file.config();
    let len = config.heads().map_or(0, |heads| wkv_heads::state_len(config, heads));
    (0..config.n_layer).map(|layer| file.vector_handle(&names::initial_state(layer), len)).collect()
}

/// Refuses files with tensors that no code reads: they belong to an unknown variant.
fn check_tensors(file: &ModelFile, tuned_state: bool) -> Result<()> {
    let optional = OptionalTensors {
        tuned_state,
        nested_head: lm_head::is_nested(file),
        value_bound: file.tensor(&names::value_bound(0)).is_ok(),
    };
    let expected = names::tensors(file.config(), optional);
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let checksums = |name: &str| name.strip_suffix(".crc32").is_some_and(|name| known.contains(name));
    let mut tensors = file.tensors().iter();
    match tensors.find(|tensor| !known.contains(tensor.name.as_str()) && !checksums(&tensor.name)) {
        Some(unknown) => {
            let version = file.config().version();
            Err(ErrorKind::Unsupported(format!("tensor {} in a {version} model", unknown.name)).into())
        }
        None => Ok(()),
    }
}

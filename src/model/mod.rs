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
mod observer;
mod ops;
mod options;
mod shortlist;
mod sparse_value;
mod state;
mod v4;
mod v5;
mod v6;
mod v7;
mod v7a;
mod vectors;
mod verification;
mod wkv_heads;

use std::collections::HashSet;
use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rwkv_edge_kernels::Kernels;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Arch, Chat, Config, ElementType, MappingKind, ModelFile, RecordsHandle, TensorInfo, TensorLayout,
    VectorHandle,
};
use crate::memory::{Buffers, cannot_lock};
use crate::threads::Pool;
use crate::tokenizer::Tokenizer;
use layers::Layers;
use lm_head::LmHead;
pub(crate) use lm_head::MAX_HEAD_BATCH;
use names::OptionalTensors;
use ops::Ops;
use shortlist::LogitsAndIds;
use vectors::{SCRATCH, Vectors, record_floats};
use verification::Verification;

pub(crate) use batch::Batch;
pub use batch::Sequence;
pub(crate) use meter::Meter;
pub use meter::{Phase, Profile, Traffic};
pub use observer::{MatrixInputs, Observer};
pub use options::{LoadOptions, Shortcuts, Verify, choose_kernels, default_prompt_chunk};
pub use state::State;
pub(crate) use state::check_model;
use state::unify_nan;

/// A model ready to run: immutable, and shareable between threads and engines.
#[derive(Debug)]
pub struct Model {
    file: ModelFile,
    kernels: &'static Kernels,
    evict_pages: bool,
    locked: bool,
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
    pub(crate) room: Room,
    /// Sees the inputs of matrices.
    pub(crate) observer: Option<&'a mut dyn Observer>,
}

/// What the buffers have room for.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Most tokens of a batch.
    pub(crate) tokens: usize,
    /// Most tokens that go through the head together.
    pub(crate) head_batch: usize,
}

/// Receives the logits of a token: `(place of the token in its batch, logits)`.
pub(crate) type LogitsSink<'a> = dyn FnMut(usize, &mut [f32]) -> Result<()> + 'a;

/// Buffers of a model outside the layers, cut out of an arena. The buffers of the layers follow
/// them.
struct Workspace<'a> {
    head: lm_head::Scratch<'a>,
    shortlist: shortlist::Scratch<'a>,
    /// Residual streams, `[tokens, n_embd]`.
    x: Vectors<'a>,
    /// A row of the embedding.
    row: &'a mut [f32],
}

impl<'a> Workspace<'a> {
    fn take(buffers: &mut impl Buffers<'a>, config: &Config, room: Room) -> Self {
        Self {
            head: lm_head::Scratch::take(buffers, config, room.head_batch),
            shortlist: shortlist::Scratch::take(buffers, config),
            x: Vectors::take(buffers, SCRATCH, [room.tokens, config.n_embd]),
            row: buffers.f32s("embedding row", record_floats(config.n_embd)),
        }
    }
}

/// Takes the buffers and drops them, for the memory plan.
pub(crate) fn measure<'a>(config: &Config, threads: usize, room: Room, buffers: &mut impl Buffers<'a>) {
    Workspace::take(buffers, config, room);
    layers::measure(config, threads, room.tokens, buffers);
}

/// The output head with its buffers, which have the estimates of some tokens.
pub(crate) struct Head<'a> {
    model: &'a Model,
    ops: Ops<'a>,
    use_shortlist: bool,
    head: lm_head::Scratch<'a>,
    shortlist: shortlist::Scratch<'a>,
    /// Tokens whose logits are exact; those of the others are estimates.
    exact: Range<usize>,
}

impl<'a> Head<'a> {
    /// Estimates the logits of the tokens that follow `states(0)` and so on, `count` of them.
    pub(crate) fn estimate<'x>(&mut self, count: usize, states: &(dyn Fn(usize) -> &'x State + Sync)) {
        self.ops.meter.start();
        let residuals = |t: usize| states(t).residual();
        self.model.head.estimate(&mut self.ops, (count, &residuals), &mut self.head);
        self.exact = 0..0;
    }

    /// Makes the estimates of `tokens` exact. Each row of the second plane is read once.
    pub(crate) fn refine(&mut self, tokens: Range<usize>) {
        self.model.head.refine_all(&mut self.ops, tokens.clone(), &mut self.head);
        self.exact = tokens;
    }

    /// As [`refine`](Self::refine), for as few tokens as make the logits of all those exact that no
    /// shortlist can choose from. `largest(t)` is what [`logits`](Self::logits) will be given.
    pub(crate) fn refine_needed(&mut self, count: usize, largest: impl Fn(usize) -> Option<usize>) {
        let mut all = (0..count).filter(|&t| !self.use_shortlist || !shortlist::can_choose(largest(t)));
        let Some(first) = all.next() else { return };
        let last = all.next_back().unwrap_or(first);
        self.refine(first..last + 1);
    }

    /// The logits of the token that follows state `t`, and a free buffer of as many ids. If
    /// `largest` is given, only the `largest` largest logits and those of `known` are guaranteed;
    /// the others may be -infinity.
    pub(crate) fn logits(
        &mut self,
        t: usize,
        (largest, known): (Option<usize>, impl Iterator<Item = u32>),
    ) -> LogitsAndIds<'_> {
        if self.exact.contains(&t) {
            return (self.head.logits_mut(t), self.shortlist.ids());
        }
        let largest = largest.filter(|_| self.use_shortlist);
        let head = (&self.model.head, &mut self.ops);
        shortlist::logits(head, t, (largest, known), &mut self.head, &mut self.shortlist)
    }

    /// The exact logits of the token that follows state `t`, `[n_vocab]`, after
    /// [`refine`](Self::refine). Every NaN has the bits `0x7FC00000`.
    pub(crate) fn exact_logits(&mut self, t: usize) -> &mut [f32] {
        debug_assert!(self.exact.contains(&t), "the logits of token {t} are estimates");
        unified(self.head.logits_mut(t))
    }

    /// Ends a phase.
    pub(crate) fn end(&mut self, phase: Phase) {
        self.ops.meter.end(phase);
    }

    /// The logits of the token that follows the only state, `[n_vocab]`. Every NaN has the bits
    /// `0x7FC00000`.
    pub(crate) fn into_logits(mut self) -> &'a mut [f32] {
        self.refine(0..1);
        unified(self.head.into_logits())
    }
}

/// `logits`, each NaN with the bits `0x7FC00000`.
fn unified(logits: &mut [f32]) -> &mut [f32] {
    logits.iter_mut().for_each(|logit| *logit = unify_nan(*logit));
    logits
}

impl Model {
    /// Maps and checks the model file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not a model, is damaged, or needs something that this build
    /// does not have. Or if the requested instruction set is not available.
    pub fn open(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Arc<Self>> {
        let path = path.as_ref();
        Self::load(ModelFile::open_as(path, options.load)?, options).map_err(|error| error.with_path(path))
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
        if options.lock {
            lock(&file)?;
        }
        Ok(Arc::new(Self {
            kernels,
            evict_pages: options.low_memory,
            locked: options.lock,
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

    /// Whether weights, buffers and states are locked in memory.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
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
        let mut state = self.state_memory()?;
        self.reset(&mut state);
        Ok(state)
    }

    /// Memory for a state, which becomes resident with its first contents.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn state_memory(&self) -> Result<State> {
        let config = self.config();
        State::zeroed(self.file.model_id(), layers::state_len(config), config.n_embd, self.locked)
    }

    /// A state before the first token, tuned: it has these WKV states instead of the model's, one for
    /// each layer, `[n_att x head_size]` as `[head, key, value]`.
    ///
    /// # Errors
    /// If the version has no such states, there is not one of the right length for each layer, or
    /// there is no memory.
    pub fn tuned_state(&self, layers: &[Vec<f32>]) -> Result<State> {
        let config = self.config();
        let len = config.heads().map_or(0, |heads| wkv_heads::state_len(config, heads));
        if len == 0 || layers.len() != config.n_layer || layers.iter().any(|layer| layer.len() != len) {
            let (n, version) = (config.n_layer, config.version());
            return Err(Error::invalid(format!(
                "a tuned state of this {version} model has {n} times {len} values"
            )));
        }
        let mut state = self.initial_state()?;
        layers::init_state(config, state.recurrent_mut(), |layer| layers.get(layer).map(Vec::as_slice));
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

    fn ops<'a, 'm: 'a>(&'a self, means: Means<'m>) -> Ops<'a> {
        let Means { pool, meter, shortcuts, observer, .. } = means;
        meter.start();
        Ops {
            sparse_ffn: shortcuts.sparse_ffn,
            file: &self.file,
            kernels: self.kernels,
            pool,
            evict_pages: self.evict_pages,
            layer_norm_eps: self.config().layer_norm_eps,
            meter,
            observer: observer.map(|observer| observer as &mut dyn Observer),
        }
    }

    /// Feeds a batch and updates the states of its texts. `buffers` are those that [`measure`]
    /// took.
    ///
    /// The division of texts into batches changes no bit.
    ///
    /// # Errors
    /// If a token is outside the vocabulary or its row of a table is damaged. No state has changed
    /// then.
    pub(crate) fn forward<'a>(
        &self,
        means: Means<'_>,
        batch: Batch<'_, '_>,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let room = means.room;
        let mut ops = self.ops(means);
        let Workspace { mut x, row, .. } = Workspace::take(buffers, self.config(), room);
        self.run_layers(&mut ops, batch, (&mut x, row), room, buffers)
    }

    /// Values that layer 0 passes to every later layer beside the residual stream, for each token:
    /// `n_att` in RWKV-7, else none.
    pub fn first_values(&self) -> usize {
        match self.config().arch {
            Arch::V7(_) => self.config().n_att,
            Arch::V4 | Arch::V5(_) | Arch::V6(_) => 0,
        }
    }

    /// Computes the residual streams of `tokens` before layer 0. `buffers` are those that [`measure`]
    /// took.
    ///
    /// # Errors
    /// If a row of the embedding is damaged.
    pub(crate) fn embed_tokens<'a>(
        &self,
        means: Means<'_>,
        tokens: &[u32],
        streams: &mut [f32],
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let Workspace { row, .. } = Workspace::take(buffers, self.config(), means.room);
        let mut streams = streams.chunks_exact_mut(self.config().n_embd);
        tokens.iter().zip(&mut streams).try_for_each(|(&token, x)| self.embed(token, x, row))
    }

    /// Runs one layer on a batch: its residual streams `[tokens, n_embd]`, and what layer 0 passes to
    /// the others, `[tokens, first_values]`. `buffers` are those that [`measure`] took.
    ///
    /// # Errors
    /// If a token's row of a table is damaged.
    pub(crate) fn run_layer<'a>(
        &self,
        means: Means<'_>,
        layer: usize,
        mut batch: Batch<'_, '_>,
        (streams, first_values): (&mut [f32], &mut [f32]),
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let (config, room) = (self.config(), means.room);
        let mut ops = self.ops(means);
        let Workspace { mut x, .. } = Workspace::take(buffers, config, room);
        x.first_mut(batch.tokens()).copy_from_slice(streams);
        let on = (&mut x, first_values);
        self.layers.run_one(layer, (&mut ops, config), &mut batch, on, room.tokens, buffers)?;
        streams.copy_from_slice(x.first(batch.tokens()));
        batch.finish(&x);
        Ok(())
    }

    /// As [`forward`](Self::forward), and gives `each` the logits after every token, in order.
    /// Every NaN has the bits `0x7FC00000`.
    ///
    /// # Errors
    /// As `forward`, or an error of `each`: the batch was fed.
    pub(crate) fn forward_all<'a>(
        &self,
        means: Means<'_>,
        batch: Batch<'_, '_>,
        each: &mut LogitsSink<'_>,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let (room, tokens) = (means.room, batch.tokens());
        let mut ops = self.ops(means);
        let Workspace { mut x, mut head, row, .. } = Workspace::take(buffers, self.config(), room);
        self.run_layers(&mut ops, batch, (&mut x, row), room, buffers)?;
        for first in (0..tokens).step_by(room.head_batch) {
            let count = room.head_batch.min(tokens - first);
            let x = &x;
            self.head.estimate(&mut ops, (count, &|t| x.row(first + t)), &mut head);
            self.head.refine_all(&mut ops, 0..count, &mut head);
            ops.meter.end(Phase::Head);
            for t in 0..count {
                each(first + t, unified(head.logits_mut(t)))?;
            }
            ops.meter.start();
        }
        Ok(())
    }

    /// Runs the layers on a batch and updates the states of its texts. `x` becomes the residual
    /// streams after the last layer, `[tokens, n_embd]`. `row` has room for a row of the embedding.
    fn run_layers<'a>(
        &self,
        ops: &mut Ops<'_>,
        mut batch: Batch<'_, '_>,
        (x, row): (&mut Vectors<'_>, &mut [f32]),
        room: Room,
        buffers: &mut impl Buffers<'a>,
    ) -> Result<()> {
        let config = self.config();
        for (t, token) in batch.ids().enumerate() {
            self.embed(token, x.row_mut(t), row)?;
        }
        let state_bytes = (batch.texts() * layers::state_len(config) * size_of::<f32>()) as u64;
        ops.meter.traffic.weight_bytes += self.small_bytes;
        ops.meter.traffic.state_bytes += state_bytes;
        self.layers.run((ops, config), &mut batch, x, room.tokens, buffers)?;
        batch.finish(x);
        Ok(())
    }

    /// The output head. `buffers` are those that [`measure`] took.
    pub(crate) fn head<'a>(&'a self, means: Means<'a>, buffers: &mut impl Buffers<'a>) -> Head<'a> {
        let (room, use_shortlist) = (means.room, means.shortcuts.head_shortlist);
        let Workspace { head, shortlist, .. } = Workspace::take(buffers, self.config(), room);
        Head { model: self, ops: self.ops(means), use_shortlist, head, shortlist, exact: 0..0 }
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
    /// `row` has room for its row.
    fn embed(&self, token: u32, x: &mut [f32], row: &mut [f32]) -> Result<()> {
        let row = self.file.read_record(self.embedding, token as usize, bytemuck::cast_slice_mut(row))?;
        self.kernels.dequantize_record(x, &row, 0);
        Ok(())
    }
}

/// Tells the system how the file will be read: from front to back up to the embedding, which is the
/// first of the tables that are read row by row.
fn advise(file: &ModelFile, options: &LoadOptions) -> Result<()> {
    let embedding = file.range(file.tensor("emb.weight")?);
    if !options.low_memory {
        file.mapping().large_pages(0..embedding.start);
    }
    if options.verify != Verify::AtOnce && !options.low_memory {
        file.mapping().will_need(0..embedding.start);
    }
    if lm_head::is_nested(file) {
        file.mapping().random(file.range(file.tensor(names::HEAD_RESIDUAL)?));
    }
    Ok(())
}

/// Locks the file in memory. Of a mapped file the tables that are read row by row stay out, as they
/// are never mapped.
fn lock(file: &ModelFile) -> Result<()> {
    let (mapped, end) = (file.mapping().kind() == MappingKind::Mapped, file.mapping().len());
    let tables = file.tensors().iter().filter(|tensor| mapped && tensor.checked_by_record);
    let mut start = 0;
    for table in tables.map(|table| file.range(table)).chain(iter::once(end..end)) {
        let part = start..table.start;
        let bytes = part.len();
        file.mapping().lock(part).map_err(|error| cannot_lock(bytes, &error))?;
        start = table.end;
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

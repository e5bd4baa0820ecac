//! Models that read texts, and their memory.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use rwkv_edge::format::ModelHeader;
use rwkv_edge::memory::Region;
use rwkv_edge::{Engine, EngineOptions, Model, State, Traffic, Verify};

use crate::args::{KernelArgs, load};
use crate::memory::Demand;

use super::bootstrap::Windows;
use super::scores::{LogSoftmax, Norm, Scores};
use super::{EvalArgs, STRETCH};

/// All models, of which each reads the texts at the same time.
pub(super) struct Readers {
    /// The models that are judged.
    pub(super) judged: Vec<Reader>,
    pub(super) reference: Option<Reference>,
}

impl Readers {
    /// The memory of everything but the texts.
    pub(super) fn demand(args: &EvalArgs, engine: EngineOptions) -> Result<Demand> {
        let kernels = &args.compute.kernels;
        let (first, others) = args.models();
        let (judged, window) = (1 + others.len(), args.cut()?.window.unwrap_or(STRETCH));
        let mut demand = Demand::new(engine);
        let initial = kernels.plan(first, &demand)?.state_bytes;
        let other = others.iter().map(|path| Reader::memory(path, kernels, engine));
        let reference = args.against.iter().map(|path| Reference::memory(path, kernels, engine));
        let others = other.chain(reference).sum::<Result<usize>>()?;
        // A model has the scores of a text and those of all.
        let scores = 2 * judged * Scores::BYTES + Windows::resample_bytes(judged);
        demand.buffers = [("initial state", initial), ("the other models", others), ("scores", scores)]
            .map(|(name, bytes)| Region { name, bytes })
            .into();
        demand.per_text_byte = Windows::window_bytes(judged).div_ceil(window) as u64;
        Ok(demand)
    }

    /// Loads all models, unless they exceed the limit of memory. Returns the first one besides.
    pub(super) fn load(
        args: &EvalArgs,
        engine: &EngineOptions,
        demand: &Demand,
    ) -> Result<(Arc<Model>, Self)> {
        let kernels = &args.compute.kernels;
        let (first, others) = args.models();
        kernels.check_memory(first, demand)?;
        let first = load(first, kernels, Verify::AtOnce)?;
        let other = |path: &Path| {
            let model = load(Some(path), kernels, Verify::AtOnce)?;
            check_comparable(&first, &model)?;
            Reader::new(model, engine)
        };
        let reference = args.against.as_deref().map(other).transpose()?.map(Reference::new);
        let mut judged = vec![Reader::new(Arc::clone(&first), engine)?];
        for path in others {
            judged.push(other(path)?);
        }
        Ok((first, Self { judged, reference }))
    }

    /// Begins a window: reads these tokens from the initial state, without logits.
    pub(super) fn begin(&mut self, tokens: &[u32]) -> Result<()> {
        let Self { judged, reference } = self;
        let reference = reference.iter_mut().map(|reference| &mut reference.reader);
        judged.iter_mut().chain(reference).try_for_each(|reader| reader.begin(tokens))
    }

    /// What each has read so far, the reference last.
    pub(super) fn traffic(&self) -> Vec<Traffic> {
        let reference = self.reference.iter().map(|reference| &reference.reader);
        self.judged.iter().chain(reference).map(|reader| reader.engine.traffic()).collect()
    }
}

/// A model that reads texts.
pub(super) struct Reader {
    engine: Engine<'static>,
    initial: State,
    state: State,
}

impl Reader {
    /// The memory of another model.
    fn memory(path: &Path, kernels: &KernelArgs, engine: EngineOptions) -> Result<usize> {
        let plan = kernels.plan(Some(path), &Demand::new(engine))?;
        Ok((plan.resident_bytes() - plan.program_bytes) as usize + plan.state_bytes)
    }

    fn new(model: Arc<Model>, options: &EngineOptions) -> Result<Self> {
        let initial = model.initial_state()?;
        Ok(Self { engine: Engine::new(model, options)?, state: initial.clone(), initial })
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<()> {
        self.state.copy_from(&self.initial)?;
        Ok(self.engine.feed(&mut self.state, tokens)?)
    }

    /// Reads on, and calls `each` with the index of each token and the logits after it.
    pub(super) fn read(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]) -> rwkv_edge::Result<()>,
    ) -> Result<()> {
        Ok(self.engine.feed_all(&mut self.state, tokens, |i, logits| each(i, logits))?)
    }
}

/// Another file of the models. It reads a block of the text ahead.
pub(super) struct Reference {
    reader: Reader,
    /// The logits after each token of the block, `[TOKENS, n_vocab]`.
    logits: Vec<f32>,
    norms: [Norm; Self::TOKENS],
}

impl Reference {
    /// Tokens of a block.
    pub(super) const TOKENS: usize = 32;

    /// The memory of another file.
    fn memory(path: &Path, kernels: &KernelArgs, engine: EngineOptions) -> Result<usize> {
        let n_vocab = ModelHeader::open(path)?.config().n_vocab;
        Ok(Reader::memory(path, kernels, engine)? + Self::TOKENS * n_vocab * size_of::<f32>())
    }

    fn new(reader: Reader) -> Self {
        let n_vocab = reader.engine.model().config().n_vocab;
        Self { reader, logits: vec![0.0; Self::TOKENS * n_vocab], norms: Default::default() }
    }

    /// Reads a block of at most [`TOKENS`](Self::TOKENS).
    pub(super) fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let Self { reader, logits, norms } = self;
        reader.read(tokens, |i, row| {
            logits[i * row.len()..][..row.len()].copy_from_slice(row);
            norms[i] = Norm::of(row);
            Ok(())
        })
    }

    /// What follows token `i` of the block.
    pub(super) fn after(&self, i: usize) -> LogSoftmax<'_> {
        let n_vocab = self.logits.len() / Self::TOKENS;
        LogSoftmax::new(&self.logits[i * n_vocab..][..n_vocab], self.norms[i])
    }
}

fn check_comparable(model: &Model, other: &Model) -> Result<()> {
    ensure!(
        model.config() == other.config(),
        "the files hold different models: {:?} against {:?}",
        model.config(),
        other.config()
    );
    ensure!(
        model.file().tokenizer_bytes() == other.file().tokenizer_bytes(),
        "the files have different tokenizers"
    );
    Ok(())
}

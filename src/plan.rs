//! The memory of a model and its texts, from the header of the file alone.

use rwkv_edge_kernels::Isa;

use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::format::{MappingKind, ModelHeader};
use crate::memory::MemoryPlan;
use crate::model::{State, choose_kernels};
use crate::sampler::Sampler;

/// Heap of a tensor: its entry in the table, its name, the handle of a layer, and the sets of names
/// while the file is checked.
const TENSOR_HEAP_BYTES: usize = 512;

/// Heap of everything else: arguments, paths, buffers of streams, and stacks for signals.
const OTHER_HEAP_BYTES: usize = 336 << 10;

/// What will run, for a [`MemoryPlan`].
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// How the engine computes.
    pub engine: EngineOptions,
    /// Kernels. `None` takes those that [`LoadOptions::default`](crate::LoadOptions) takes.
    pub isa: Option<Isa>,
    /// Number of texts. Each has a state and a sampler.
    pub sessions: usize,
    /// Where the bytes of the file will be.
    pub file: MappingKind,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { engine: EngineOptions::default(), isa: None, sessions: 1, file: MappingKind::Mapped }
    }
}

impl MemoryPlan {
    /// The memory of an engine and its texts for a model that is not loaded. It may be larger than
    /// that of the machine.
    ///
    /// # Errors
    /// As [`Engine::plan`], or if the kernels are not available.
    pub fn new(header: &ModelHeader, options: &PlanOptions) -> Result<Self> {
        let config = header.config();
        let isa = choose_kernels(options.isa)?.isa();
        let embedding_bytes = header.embedding_bytes();
        let weights_bytes = header.data_bytes() - embedding_bytes;
        Ok(Self {
            sessions: options.sessions,
            state_bytes: State::bytes(config).saturating_mul(options.sessions),
            sampler_bytes: Sampler::bytes(config.n_vocab).saturating_mul(options.sessions),
            file: options.file,
            weights_bytes,
            embedding_bytes,
            tables_bytes: header.file_len() - weights_bytes - embedding_bytes,
            row_bytes: embedding_bytes / config.n_vocab.max(1) as u64,
            heap_bytes: OTHER_HEAP_BYTES + TENSOR_HEAP_BYTES * header.tensors().len(),
            ..Engine::plan_with(config, &options.engine, isa)?
        })
    }
}

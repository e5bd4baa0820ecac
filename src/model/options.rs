//! Options of loading and running a model.

use std::str::FromStr;

use rwkv_edge_kernels::{Isa, Kernels};

use crate::env;
use crate::error::{Error, Result};
use crate::format::Load;

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Kernels to run. `None` takes those of `RWKV_EDGE_ISA`, or else the best for the CPU.
    pub isa: Option<Isa>,
    /// When to check the tensors' checksums.
    pub verify: Verify,
    /// Whether [`Model::open`](crate::Model::open) maps the file or reads it into memory.
    pub load: Load,
    /// Lock the weights in memory, and the buffers and states that are made for the model. The
    /// system neither drops nor swaps them then. The embedding is not locked unless it is in
    /// memory: rows of it are read when they are needed.
    pub lock: bool,
    /// Give pages back to the system as soon as they have been used. This is slow, but keeps the
    /// resident set at one tensor. For machines that only check a model.
    pub low_memory: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { isa: None, verify: Verify::AtOnce, load: Load::default(), lock: false, low_memory: false }
    }
}

/// When the checksums of a model's tensors are checked. A row of the embedding, or of a table of
/// DeepEmbed, is always checked when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// While the model is loaded. This reads the whole file.
    AtOnce,
    /// While engines run the model, a share after each token, so the first token comes at once. All
    /// engines of a model share the work. Damage becomes an error of every engine after 64 tokens
    /// at the latest, and of [`Model::verify_rest`](crate::Model::verify_rest).
    WhileRunning,
    /// Never.
    Never,
}

/// Shortcuts that avoid reading all weights for a token, all on by default. None changes a bit of
/// the results. Switch one off to measure what it saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcuts {
    /// Read only the columns of `ffn.value` whose input is not zero.
    pub sparse_ffn: bool,
    /// Read only the rows of a nested head's second plane whose tokens can still be sampled.
    pub head_shortlist: bool,
}

impl Default for Shortcuts {
    fn default() -> Self {
        Self { sparse_ffn: true, head_shortlist: true }
    }
}

/// Tokens that an engine feeds together, unless its options say otherwise, with the kernels of
/// `isa`. A larger number is hardly faster and takes more memory.
pub const fn default_prompt_chunk(isa: Isa) -> usize {
    match isa {
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => 64,
        _ => 32,
    }
}

/// The kernels of `isa`. Without it, those of `RWKV_EDGE_ISA`, or else the best for the CPU.
///
/// # Errors
/// If the requested instruction set is unknown or this CPU does not have it.
pub fn choose_kernels(isa: Option<Isa>) -> Result<&'static Kernels> {
    let isa = match isa {
        Some(isa) => isa,
        None => match env::isa()? {
            Some(name) => Isa::from_str(&name)
                .map_err(|_| Error::invalid(format!("{}: unknown instruction set {name:?}", env::ISA)))?,
            None => return Ok(Kernels::best()),
        },
    };
    Kernels::for_isa(isa).ok_or_else(|| Error::invalid(format!("this CPU does not have {isa}")))
}

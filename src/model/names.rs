//! The tensors of each RWKV version: names, shapes and roles, in execution order.
//!
//! The converter writes this list and the loader expects it, so the two cannot disagree. Names are those of
//! BlinkDL's checkpoints; where a file stores a transformed value, [`ModelTensor::name`]'s meaning is given in
//! `docs/FORMAT.md`.

use crate::error::{ErrorKind, Result};
use crate::format::{Config, Version};

/// What a tensor is for, which decides its precision and layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Per-channel parameters: always f32.
    Vector,
    /// A projection, read whole for every token.
    Matrix,
    /// `ffn.value`, of which only the columns with a non-zero input are read.
    SparseMatrix,
    /// The output head.
    Head,
    /// The embedding, of which one row is read per token; `ln0` is folded in.
    Embedding,
}

/// A tensor that a model of some [`Config`] consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTensor {
    /// Name in the checkpoint and in the file.
    pub name: String,
    /// `[out, in]`; vectors are `[n, 1]`.
    pub shape: [usize; 2],
    /// What it is for.
    pub role: Role,
}

/// Tensors of one layer, and of the model, in the order in which a token uses them; the embedding comes last,
/// so that it lies in a range of its own.
///
/// # Errors
/// If the version is not supported.
pub fn tensors(config: &Config) -> Result<Vec<ModelTensor>> {
    let mut list = List { specs: Vec::new() };
    for layer in 0..config.n_layer {
        match config.version {
            Version::V4 => list.layer_v4(config, layer),
            other => return Err(ErrorKind::Unsupported(format!("{other} models")).into()),
        }
    }
    list.norm("ln_out", config.n_embd);
    list.add("head.weight".into(), [config.n_vocab, config.n_embd], Role::Head);
    list.add("emb.weight".into(), [config.n_vocab, config.n_embd], Role::Embedding);
    Ok(list.specs)
}

struct List {
    specs: Vec<ModelTensor>,
}

impl List {
    fn add(&mut self, name: String, shape: [usize; 2], role: Role) {
        self.specs.push(ModelTensor { name, shape, role });
    }

    fn vectors(&mut self, prefix: &str, names: &[&str], len: usize) {
        for name in names {
            self.add(format!("{prefix}{name}"), [len, 1], Role::Vector);
        }
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.vectors(name, &[".weight", ".bias"], len);
    }

    fn layer_v4(&mut self, config: &Config, layer: usize) {
        let Config { n_embd, n_att, n_ffn, .. } = *config;
        let block = format!("blocks.{layer}.");
        let att = format!("{block}att.");
        let ffn = format!("{block}ffn.");
        self.norm(&format!("{block}ln1"), n_embd);
        self.vectors(&att, &["time_mix_k", "time_mix_v", "time_mix_r"], n_embd);
        self.vectors(&att, &["time_decay", "time_first"], n_att);
        for name in ["key", "value", "receptance"] {
            self.add(format!("{att}{name}.weight"), [n_att, n_embd], Role::Matrix);
        }
        self.add(format!("{att}output.weight"), [n_embd, n_att], Role::Matrix);
        self.norm(&format!("{block}ln2"), n_embd);
        self.vectors(&ffn, &["time_mix_k", "time_mix_r"], n_embd);
        self.add(format!("{ffn}key.weight"), [n_ffn, n_embd], Role::Matrix);
        self.add(format!("{ffn}receptance.weight"), [n_embd, n_embd], Role::Matrix);
        self.add(format!("{ffn}value.weight"), [n_embd, n_ffn], Role::SparseMatrix);
    }
}

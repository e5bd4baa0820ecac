//! Hyperparameters from the shapes of a checkpoint's tensors, and the check that it has just what it should.

use anyhow::{Context, Result, bail, ensure};
use rwkv_edge::format::{Config, Version};
use rwkv_edge::model::names::{self, ModelTensor};

use crate::source::{Checkpoint, SourceTensor};

/// Epsilon of every layer norm of every released model.
const LAYER_NORM_EPS: f32 = 1e-5;

/// Tensors that are folded into others, and so are not in the model's own list.
const FOLDED: [&str; 2] = ["blocks.0.ln0.weight", "blocks.0.ln0.bias"];

/// Reads the hyperparameters off the shapes; nothing is derived from another dimension.
///
/// # Errors
/// If a tensor that states a dimension is missing or has the wrong rank, or the version is not supported.
pub fn config(checkpoint: &Checkpoint, version: Version) -> Result<Config> {
    let [n_vocab, n_embd] = matrix_shape(checkpoint, "emb.weight")?;
    let [n_att, _] = matrix_shape(checkpoint, "blocks.0.att.key.weight")?;
    let [n_ffn, _] = matrix_shape(checkpoint, "blocks.0.ffn.key.weight")?;
    let n_layer = checkpoint.tensors().iter().filter_map(|t| layer_index(&t.name)).max();
    ensure!(version == Version::V4, "{version} checkpoints are not supported yet");
    let config = Config {
        version,
        n_layer: n_layer.context("the checkpoint has no layers")? + 1,
        n_embd,
        n_att,
        n_ffn,
        n_vocab,
        layer_norm_eps: LAYER_NORM_EPS,
        heads: None,
        mix_rank: None,
        decay_rank: None,
        iclr_rank: None,
        value_rank: None,
        gate_rank: None,
    };
    config.validate()?;
    Ok(config)
}

fn layer_index(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a SourceTensor> {
    checkpoint.get(name).with_context(|| format!("tensor {name} is missing"))
}

fn matrix_shape(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let tensor = find(checkpoint, name)?;
    match tensor.shape[..] {
        [rows, cols] => Ok([rows, cols]),
        _ => bail!("tensor {name}: expected a matrix, found shape {:?}", tensor.shape),
    }
}

/// The model's tensors, after checking that the checkpoint has each in the right shape and has no others.
///
/// # Errors
/// Naming the tensor, what was expected and what was found.
pub fn tensors(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<ModelTensor>> {
    let specs = names::tensors(config)?;
    for spec in &specs {
        check_shape(find(checkpoint, &spec.name)?, spec.shape)?;
    }
    for name in FOLDED {
        check_shape(find(checkpoint, name)?, [config.n_embd, 1])?;
    }
    let known: std::collections::BTreeSet<&str> =
        specs.iter().map(|spec| spec.name.as_str()).chain(FOLDED).collect();
    if let Some(unknown) = checkpoint.tensors().iter().find(|t| !known.contains(t.name.as_str())) {
        bail!(
            "tensor {} does not belong to {}: this is a variant that is not supported",
            unknown.name,
            config.version
        );
    }
    Ok(specs)
}

fn check_shape(tensor: &SourceTensor, expected: [usize; 2]) -> Result<()> {
    let squeeze = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    let fits = if expected[1] == 1 {
        squeeze(&tensor.shape) == squeeze(&expected)
    } else {
        tensor.shape == expected
    };
    ensure!(fits, "tensor {}: expected shape {expected:?}, found {:?}", tensor.name, tensor.shape);
    Ok(())
}

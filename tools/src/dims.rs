//! Hyperparameters from the shapes of a checkpoint's tensors; nothing is derived from another dimension.

use anyhow::{Context, Result, bail, ensure};
use rwkv_edge::format::{Config, Heads, Version};

use crate::source::{Checkpoint, SourceTensor};

/// Epsilon of every layer norm of every released model.
const LAYER_NORM_EPS: f32 = 1e-5;

/// Epsilon of the group norm of RWKV-5 to 7 as BlinkDL trains and runs them: 1e-5 times 8 squared.
pub const GROUP_NORM_EPS: f32 = 64e-5;

/// Reads the hyperparameters of a checkpoint of `version`.
///
/// # Errors
/// If a tensor that states a dimension is missing or has the wrong rank.
pub fn config(checkpoint: &Checkpoint, version: Version, group_norm_eps: f32) -> Result<Config> {
    let [n_vocab, n_embd] = matrix_shape(checkpoint, "emb.weight")?;
    let [n_att, _] = matrix_shape(checkpoint, "blocks.0.att.key.weight")?;
    let [n_ffn, _] = matrix_shape(checkpoint, "blocks.0.ffn.key.weight")?;
    let n_layer = checkpoint.tensors().iter().filter_map(|t| layer_index(&t.name)).max();
    let mut config = Config {
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
    if version != Version::V4 {
        let n_head = heads(checkpoint, version)?;
        ensure!(n_att.is_multiple_of(n_head), "{n_att} channels do not divide into {n_head} heads");
        config.heads = Some(Heads { n_head, head_size: n_att / n_head, group_norm_eps });
    }
    match version {
        Version::V6 => {
            config.mix_rank = Some(rank(checkpoint, "blocks.0.att.time_maa_w1")? / 5);
            config.decay_rank = Some(rank(checkpoint, "blocks.0.att.time_decay_w1")?);
        }
        Version::V7 => {
            config.decay_rank = Some(rank(checkpoint, "blocks.0.att.w1")?);
            config.iclr_rank = Some(rank(checkpoint, "blocks.0.att.a1")?);
            config.gate_rank = Some(rank(checkpoint, "blocks.0.att.g1")?);
            if config.n_layer > 1 {
                config.value_rank = Some(rank(checkpoint, "blocks.1.att.v1")?);
            }
        }
        Version::V4 | Version::V5_0 | Version::V5_1 | Version::V5_2 => {}
    }
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

/// The number of heads: the first dimension of the tensor that has one entry for each.
fn heads(checkpoint: &Checkpoint, version: Version) -> Result<usize> {
    let name = match version {
        Version::V7 => "blocks.0.att.r_k",
        Version::V6 => "blocks.0.att.time_faaaa",
        _ => "blocks.0.att.time_decay",
    };
    let tensor = find(checkpoint, name)?;
    let heads = tensor.shape.iter().copied().find(|&n| n > 1);
    match (heads, &tensor.shape[..]) {
        // One head: every leading dimension is 1.
        (_, [1, _, ..]) | (None, _) => Ok(1),
        (Some(heads), _) => Ok(heads),
    }
}

/// Inner size of a low-rank matrix, from its first factor, which is `[n_embd, rank]`.
fn rank(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let [n_in, n_out] = matrix_shape(checkpoint, name)?;
    Ok(if find(checkpoint, name)?.transposed { n_in } else { n_out })
}

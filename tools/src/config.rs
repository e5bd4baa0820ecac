//! Hyperparameters from the shapes of a checkpoint's tensors; nothing is derived from another
//! dimension.

use anyhow::{Context, Result, bail, ensure};
use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7, Variant, Version};
use rwkv_edge::model::names::V6_MIXES;

use crate::shapes::{GROUP_NORM_EPS, LAYER_NORM_EPS};
use crate::source::{Checkpoint, SourceTensor};

/// States n_vocab and n_embd.
const EMBEDDING: &str = "emb.weight";

/// States n_att.
const ATT_KEY: &str = "blocks.0.att.key.weight";

/// States n_ffn.
const FFN_KEY: &str = "blocks.0.ffn.key.weight";

/// States the inner size of DeepEmbed.
const FFN_DEEP: &str = "blocks.0.ffn.s1";

/// State the number of heads.
const HEADS_V5: &str = "blocks.0.att.time_decay";
const HEADS_V6: &str = "blocks.0.att.time_faaaa";
const HEADS_V7: &str = "blocks.0.att.r_k";

/// Reads the hyperparameters of a checkpoint of `version`. Epsilons come from the `config.json`
/// beside it, if there is one, or are BlinkDL's. `group_norm_eps` takes precedence.
///
/// # Errors
/// If a tensor that states a dimension is missing or has the wrong rank. If `config.json` has
/// another head size, or an epsilon out of range.
pub fn read(
    checkpoint: &Checkpoint,
    version: Version,
    group_norm_eps: Option<f32>,
    variant: Variant,
) -> Result<Config> {
    let [n_vocab, n_embd] = matrix_shape(checkpoint, EMBEDDING)?;
    let att_key = matrix_shape(checkpoint, ATT_KEY)?;
    let [n_att, _] = att_key;
    let [n_ffn, _] = matrix_shape(checkpoint, FFN_KEY)?;
    let n_layer = checkpoint.tensors().iter().filter_map(|t| layer_index(&t.name)).max();
    let n_layer = n_layer.context("the checkpoint has no layers")? + 1;
    let heads = |name| {
        let n_head = heads(find(checkpoint, name)?, version, att_key)?;
        let head_size = n_att / n_head;
        let said = checkpoint.config_json().map(|config| config.group_norm_eps(head_size)).transpose()?;
        let group_norm_eps = group_norm_eps.or(said.flatten()).unwrap_or(GROUP_NORM_EPS);
        anyhow::Ok(Heads { n_head, head_size, group_norm_eps })
    };
    let rank = |name| rank(checkpoint, name);
    let v5 = |variant| anyhow::Ok(Arch::V5(Rwkv5 { variant, heads: heads(HEADS_V5)? }));
    let arch = match version {
        Version::V4 => Arch::V4,
        Version::V5_0 => v5(Rwkv5Variant::V5_0)?,
        Version::V5_1 => v5(Rwkv5Variant::V5_1)?,
        Version::V5_2 => v5(Rwkv5Variant::V5_2)?,
        Version::V6 => Arch::V6(Rwkv6 {
            heads: heads(HEADS_V6)?,
            mix_rank: mix_rank(checkpoint, "blocks.0.att.time_maa_w1")?,
            decay_rank: rank("blocks.0.att.time_decay_w1")?,
        }),
        Version::V7 | Version::V7a => Arch::V7(Rwkv7 {
            heads: heads(HEADS_V7)?,
            decay_rank: rank("blocks.0.att.w1")?,
            iclr_rank: rank("blocks.0.att.a1")?,
            gate_rank: rank("blocks.0.att.g1")?,
            // Layer 0 has no value residual.
            value_rank: (n_layer > 1).then(|| rank("blocks.1.att.v1")).transpose()?,
            deep_rank: (version == Version::V7a).then(|| deep_rank(checkpoint)).transpose()?,
        }),
    };
    let layer_norm_eps = checkpoint.layer_norm_eps().unwrap_or(LAYER_NORM_EPS);
    let config = Config { n_layer, n_embd, n_att, n_ffn, n_vocab, layer_norm_eps, arch, variant };
    config.validate()?;
    Ok(config)
}

fn layer_index(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a SourceTensor> {
    checkpoint.get(name).with_context(|| format!("tensor {name}: expected it in this file, found none"))
}

fn matrix_shape(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    let tensor = find(checkpoint, name)?;
    match tensor.shape[..] {
        [rows, cols] => Ok([rows, cols]),
        _ => bail!("tensor {name}: expected a matrix, found shape {:?}", tensor.shape),
    }
}

/// The tensor that states the number of heads.
fn heads_tensor(version: Version) -> Option<&'static str> {
    match version {
        Version::V4 => None,
        Version::V5_0 | Version::V5_1 | Version::V5_2 => Some(HEADS_V5),
        Version::V6 => Some(HEADS_V6),
        Version::V7 | Version::V7a => Some(HEADS_V7),
    }
}

/// The number of heads, from the shape of a tensor. The tensor has a value for each channel, as
/// `[heads, head size]`, or in RWKV-5.0 and 5.1 a value for each head. The number divides the rows
/// of `att_key`, the channels.
fn heads(tensor: &SourceTensor, version: Version, att_key: [usize; 2]) -> Result<usize> {
    let [n_att, _] = att_key;
    let SourceTensor { name, shape, .. } = tensor;
    let (mut by_channel, mut expected) = (&shape[..], "[heads, head size]");
    while let [first @ .., 1] = by_channel
        && first.len() >= 2
    {
        by_channel = first;
    }
    if let &[heads, size] = by_channel
        && heads > 0
        && size > 1
        && heads.checked_mul(size) == Some(n_att)
    {
        return Ok(heads);
    }
    if matches!(version, Version::V5_0 | Version::V5_1) {
        let heads = tensor.elements();
        let one_dimension = shape.is_empty() || shape.contains(&heads);
        if one_dimension && heads < n_att && n_att.is_multiple_of(heads) {
            return Ok(heads);
        }
        expected = "[heads] or [heads, head size]";
    }
    bail!(
        "tensor {name}: expected shape {expected} for {n_att} channels (given by {ATT_KEY} {att_key:?}), \
         found shape {shape:?}"
    )
}

/// The tensors whose shapes determine the shape of tensor `name`.
pub(crate) fn references(version: Version, name: &str) -> Vec<String> {
    let local = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')).map(|(_, local)| local);
    let mut references = vec![EMBEDDING.to_owned()];
    if let Some(att) = local.and_then(|local| local.strip_prefix("att.")) {
        references.push(ATT_KEY.to_owned());
        match att.strip_suffix(['1', '2']) {
            Some(factor) => {
                // Layer 0 of RWKV-7 has no value residual.
                let layer = if factor == "v" { 1 } else { 0 };
                references.push(format!("blocks.{layer}.att.{factor}1"));
            }
            None if !att.ends_with(".weight") => references.extend(heads_tensor(version).map(str::to_owned)),
            None => {}
        }
    } else if local.is_some_and(|local| local.starts_with("ffn.")) {
        references.push(FFN_KEY.to_owned());
        if version == Version::V7a {
            references.push(FFN_DEEP.to_owned());
        }
    }
    references.retain(|reference| reference != name);
    references
}

/// Inner size of a low-rank matrix, from its first factor, which is `[n_embd, rank]`.
fn rank(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let [n_in, n_out] = matrix_shape(checkpoint, name)?;
    let rank = if find(checkpoint, name)?.transposed { n_in } else { n_out };
    ensure!(rank > 0, "tensor {name}: expected an inner size above 0, found shape [{n_in}, {n_out}]");
    Ok(rank)
}

/// Inner size of DeepEmbed. The runtime takes whole cache lines.
fn deep_rank(checkpoint: &Checkpoint) -> Result<usize> {
    let rank = rank(checkpoint, FFN_DEEP)?;
    ensure!(
        rank.is_multiple_of(16),
        "tensor {FFN_DEEP}: expected an inner size that is a multiple of 16, found {rank} in shape {:?}",
        find(checkpoint, FFN_DEEP)?.shape
    );
    Ok(rank)
}

/// Inner size of one dynamic mix. One tensor holds the first factors of all mixes.
fn mix_rank(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let (all, mixes) = (rank(checkpoint, name)?, V6_MIXES.len());
    ensure!(
        all.is_multiple_of(mixes),
        "tensor {name}: expected an inner size that is a multiple of {mixes}, found {all} in shape {:?}",
        find(checkpoint, name)?.shape
    );
    Ok(all / mixes)
}

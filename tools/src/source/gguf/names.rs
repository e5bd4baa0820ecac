//! llama.cpp's names for the tensors of RWKV-6 and 7, and BlinkDL's.

use super::super::error::SourceError;
use super::super::file::Source;
use super::super::location::Location;
use super::super::names::split_numbered;
use super::super::tensor::SourceTensor;
use super::model::{Arch, Model};

/// A name without its ending, and BlinkDL's. One with a dot at its end keeps the ending `weight` or
/// `bias`; others lose `weight`.
type Table = [(&'static str, &'static str)];

const BESIDE: &Table = &[
    ("token_embd", "emb."),
    ("token_embd_norm", "blocks.0.ln0."),
    ("output_norm", "ln_out."),
    ("output", "head."),
];

const IN_LAYER: &Table = &[
    ("attn_norm", "ln1."),
    ("attn_norm_2", "ln2."),
    ("time_mix_ln", "att.ln_x."),
    ("time_mix_receptance", "att.receptance."),
    ("time_mix_key", "att.key."),
    ("time_mix_value", "att.value."),
    ("time_mix_output", "att.output."),
    ("channel_mix_key", "ffn.key."),
    ("channel_mix_value", "ffn.value."),
];

const IN_LAYER_OF_6: &Table = &[
    ("time_mix_gate", "att.gate."),
    ("time_mix_lerp_x", "att.time_maa_x"),
    ("time_mix_lerp_w", "att.time_maa_w"),
    ("time_mix_lerp_k", "att.time_maa_k"),
    ("time_mix_lerp_v", "att.time_maa_v"),
    ("time_mix_lerp_r", "att.time_maa_r"),
    ("time_mix_lerp_g", "att.time_maa_g"),
    ("time_mix_w1", "att.time_maa_w1"),
    ("time_mix_w2", "att.time_maa_w2"),
    ("time_mix_decay", "att.time_decay"),
    ("time_mix_decay_w1", "att.time_decay_w1"),
    ("time_mix_decay_w2", "att.time_decay_w2"),
    ("time_mix_first", "att.time_faaaa"),
    ("channel_mix_receptance", "ffn.receptance."),
    ("channel_mix_lerp_k", "ffn.time_maa_k"),
    ("channel_mix_lerp_r", "ffn.time_maa_r"),
];

const IN_LAYER_OF_7: &Table = &[
    ("time_mix_lerp_r", "att.x_r"),
    ("time_mix_lerp_w", "att.x_w"),
    ("time_mix_lerp_k", "att.x_k"),
    ("time_mix_lerp_v", "att.x_v"),
    ("time_mix_lerp_a", "att.x_a"),
    ("time_mix_lerp_g", "att.x_g"),
    ("time_mix_w0", "att.w0"),
    ("time_mix_w1", "att.w1"),
    ("time_mix_w2", "att.w2"),
    ("time_mix_a0", "att.a0"),
    ("time_mix_a1", "att.a1"),
    ("time_mix_a2", "att.a2"),
    ("time_mix_v0", "att.v0"),
    ("time_mix_v1", "att.v1"),
    ("time_mix_v2", "att.v2"),
    ("time_mix_g1", "att.g1"),
    ("time_mix_g2", "att.g2"),
    ("time_mix_k_k", "att.k_k"),
    ("time_mix_k_a", "att.k_a"),
    ("time_mix_r_k", "att.r_k"),
    ("channel_mix_lerp_k", "ffn.x_k"),
];

/// The mixes of a layer in one tensor.
const FUSED_MIXES: &str = "time_mix_lerp_fused.weight";

/// BlinkDL's names of these mixes, in their order.
fn fused_mixes(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::Rwkv6 => {
            &["att.time_maa_w", "att.time_maa_k", "att.time_maa_v", "att.time_maa_r", "att.time_maa_g"]
        }
        Arch::Rwkv7 => &["att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g"],
    }
}

/// Gives all tensors BlinkDL's names; splits the fused mixes and cuts the bonus by heads.
///
/// Layer 0 of RWKV-7 has copies of other tensors in place of the low-rank factors of the value
/// residual, which that layer does not use. They keep their names and are never read.
pub(super) fn translate(
    source: &Source,
    model: &Model,
    tensors: Vec<SourceTensor>,
) -> Result<Vec<SourceTensor>, SourceError> {
    let mut translated = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if let Some((layer, FUSED_MIXES)) = split_numbered(&tensor.name, "blk.") {
            translated.append(&mut split_mixes(source, model.arch, &tensor, layer)?);
            continue;
        }
        let Some(name) = blinkdl_name(model.arch, &tensor.name) else {
            return Err(source.unsupported(format!(
                "tensor {} has no place in an {} model of llama.cpp",
                tensor.name.escape_debug(),
                model.arch
            )));
        };
        let by_head = name.ends_with(".att.r_k") || name.ends_with(".att.time_faaaa");
        let shape = if by_head { heads(source, model, &tensor)? } else { tensor.shape };
        translated.push(SourceTensor { name, shape, ..tensor });
    }
    Ok(translated)
}

fn blinkdl_name(arch: Arch, name: &str) -> Option<String> {
    let (layer, local) = match split_numbered(name, "blk.") {
        Some((layer, local)) => (format!("blocks.{layer}."), local),
        None => (String::new(), name),
    };
    let (stem, ending) = local.rsplit_once('.')?;
    let tables = match (layer.is_empty(), arch) {
        (true, _) => [BESIDE, &[]],
        (false, Arch::Rwkv6) => [IN_LAYER, IN_LAYER_OF_6],
        (false, Arch::Rwkv7) => [IN_LAYER, IN_LAYER_OF_7],
    };
    let (_, to) = tables.into_iter().flatten().find(|(from, _)| *from == stem)?;
    match ending {
        "weight" if !to.ends_with('.') => Some(format!("{layer}{to}")),
        "weight" | "bias" if to.ends_with('.') => Some(format!("{layer}{to}{ending}")),
        _ => None,
    }
}

/// The mixes that one tensor holds, one row each.
fn split_mixes(
    source: &Source,
    arch: Arch,
    tensor: &SourceTensor,
    layer: usize,
) -> Result<Vec<SourceTensor>, SourceError> {
    let (names, dtype) = (fused_mixes(arch), tensor.dtype);
    let width = tensor.shape.last().copied().unwrap_or_default();
    let is_stack = tensor.shape.len() > 1 && tensor.shape[0] == names.len();
    if !is_stack || tensor.elements() != names.len() * width {
        let expected = format!("[{}, 1, 1, width]: the mixes of an {arch}", names.len());
        return Err(source.tensor(&tensor.name, expected, format!("{:?}", tensor.shape)));
    }
    let bytes = (width / dtype.block_len() * dtype.size()) as u64;
    let mix = |(row, name): (u64, &&str)| SourceTensor {
        name: format!("blocks.{layer}.{name}"),
        shape: vec![1, 1, width],
        dtype,
        transposed: false,
        location: Location {
            offset: tensor.location.offset + row * bytes,
            row_len: width,
            ..tensor.location
        },
    };
    Ok((0..).zip(names).map(mix).collect())
}

/// The shape of a tensor with a value for each channel, as `[heads, head size]`. RWKV-7 files have
/// it in one dimension.
fn heads(source: &Source, model: &Model, tensor: &SourceTensor) -> Result<Vec<usize>, SourceError> {
    let size = model.head_size;
    match tensor.shape[..] {
        [channels] if channels.is_multiple_of(size) => Ok(vec![channels / size, size]),
        [_, last] if last == size => Ok(tensor.shape.clone()),
        _ => Err(source.tensor(
            &tensor.name,
            format!("heads of {size} channels, as the metadata say"),
            format!("{:?}", tensor.shape),
        )),
    }
}

//! Translates other programs' names for the same tensors to BlinkDL's.

use std::fmt;

use super::names::{split_layer, split_numbered};
use super::tensor::SourceTensor;

/// The naming scheme of a file's tensors. A [`Checkpoint`](super::Checkpoint) shows BlinkDL's names
/// for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Naming {
    /// BlinkDL's own, which rwkv.cpp uses as well.
    BlinkDl,
    /// Hugging Face transformers: `RwkvForCausalLM`, and the ports of RWKV-5 and 6.
    ///
    /// Running such a model in transformers halves `output` and `feed_forward.value` every few
    /// layers (`rescale_every`). A model that was saved after that has other weights, which the
    /// file does not show.
    HuggingFace,
    /// RWKV-7 of flash-linear-attention. Its group norm has the epsilon `head_size * norm_eps`,
    /// which is BlinkDL's for a head size of 64.
    FlashLinearAttention,
    /// RWKV-7 of transformers whose layers have `linear_attn` and `mlp`. The norm of the embedding
    /// stands beside the layers, or is folded into the embedding.
    LinearAttention,
    /// Files for web-rwkv and ai00. Names are almost BlinkDL's; low-rank factors and tuned states
    /// are transposed.
    WebRwkv,
    /// GGUF files of llama.cpp. Low-rank factors are transposed. The reader of the container
    /// translates the names, which depend on the metadata.
    LlamaCpp,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlinkDl => "BlinkDL",
            Self::HuggingFace => "Hugging Face transformers",
            Self::FlashLinearAttention => "flash-linear-attention",
            Self::LinearAttention => "transformers (linear_attn)",
            Self::WebRwkv => "web-rwkv",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// Names of the mixes in transformers, and BlinkDL's.
const HUGGING_FACE_MIXES: [(&str, &str); 4] = [
    ("time_mix_key", "time_mix_k"),
    ("time_mix_value", "time_mix_v"),
    ("time_mix_receptance", "time_mix_r"),
    ("time_mix_gate", "time_mix_g"),
];

/// Beginnings of the names beside the layers in flash-linear-attention, and BlinkDL's.
const FLA_GLOBAL: [(&str, &str); 3] = [("embeddings.", "emb."), ("norm.", "ln_out."), ("lm_head.", "head.")];

/// The same inside a layer. The first one that fits counts.
const FLA_LOCAL: [(&str, &str); 9] = [
    ("pre_norm.", "ln0."),
    ("attn_norm.", "ln1."),
    ("ffn_norm.", "ln2."),
    ("attn.r_proj.", "att.receptance."),
    ("attn.k_proj.", "att.key."),
    ("attn.v_proj.", "att.value."),
    ("attn.o_proj.", "att.output."),
    ("attn.g_norm.", "att.ln_x."),
    ("attn.", "att."),
];

/// Beginnings of the names beside the layers in transformers' RWKV-7, and BlinkDL's.
const LINEAR_ATTENTION_GLOBAL: [(&str, &str); 4] = [
    ("embed_tokens.", "emb."),
    ("embedding_norm.", "blocks.0.ln0."),
    ("norm.", "ln_out."),
    ("lm_head.", "head."),
];

/// The same inside a layer. The first one that fits counts.
const LINEAR_ATTENTION_LOCAL: [(&str, &str); 11] = [
    ("input_layernorm.", "ln1."),
    ("post_attention_layernorm.", "ln2."),
    ("linear_attn.r_proj.", "att.receptance."),
    ("linear_attn.k_proj.", "att.key."),
    ("linear_attn.v_proj.", "att.value."),
    ("linear_attn.o_proj.", "att.output."),
    ("linear_attn.g_norm.", "att.ln_x."),
    ("linear_attn.", "att."),
    ("mlp.up_proj.", "ffn.key."),
    ("mlp.down_proj.", "ffn.value."),
    ("mlp.", "ffn."),
];

/// Finds the naming by names that only one program uses. Without such names it is BlinkDL's.
pub(super) fn naming(tensors: &[SourceTensor]) -> Naming {
    let any = |test: fn(&str) -> bool| tensors.iter().any(|tensor| test(&tensor.name));
    if any(is_hugging_face) {
        Naming::HuggingFace
    } else if any(is_fla) {
        Naming::FlashLinearAttention
    } else if any(is_linear_attention) {
        Naming::LinearAttention
    } else {
        Naming::BlinkDl
    }
}

fn is_hugging_face(name: &str) -> bool {
    let name = name.strip_prefix("rwkv.").unwrap_or(name);
    split_layer(name).is_some_and(|(_, local)| local.starts_with("attention."))
}

fn is_fla(name: &str) -> bool {
    split_numbered(name, "layers.").is_some_and(|(_, local)| local == "attn.r_k")
}

fn is_linear_attention(name: &str) -> bool {
    split_numbered(name, "layers.").is_some_and(|(_, local)| local == "linear_attn.r_k")
}

/// BlinkDL's name for a tensor; names that mean nothing in `naming` stay.
pub(super) fn blinkdl_name(naming: Naming, name: &str) -> String {
    let (name, translated) = match naming {
        Naming::HuggingFace => {
            let name = name.strip_prefix("rwkv.").unwrap_or(name);
            (name, hugging_face(name))
        }
        Naming::FlashLinearAttention => (name, fla(name)),
        Naming::LinearAttention => (name, by_tables(&LINEAR_ATTENTION_GLOBAL, &LINEAR_ATTENTION_LOCAL, name)),
        // Some ports of BlinkDL's names to transformers rename this tensor alone.
        Naming::BlinkDl if name == "embeddings.weight" => (name, Some("emb.weight".to_owned())),
        Naming::BlinkDl | Naming::WebRwkv | Naming::LlamaCpp => (name, None),
    };
    translated.unwrap_or_else(|| name.to_owned())
}

fn hugging_face(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("embeddings.") {
        return Some(format!("emb.{rest}"));
    }
    let (layer, local) = split_layer(name)?;
    let (part, rest) = local.split_once('.')?;
    match part {
        "pre_ln" => Some(format!("blocks.{layer}.ln0.{rest}")),
        "attention" => Some(format!("blocks.{layer}.att.{}", short_mix(rest))),
        "feed_forward" => Some(format!("blocks.{layer}.ffn.{}", short_mix(rest))),
        _ => None,
    }
}

fn short_mix(name: &str) -> &str {
    HUGGING_FACE_MIXES.iter().find(|(long, _)| *long == name).map_or(name, |(_, short)| short)
}

fn fla(name: &str) -> Option<String> {
    let low_rank = split_numbered(name, "layers.")
        .and_then(|(layer, local)| Some(format!("blocks.{layer}.{}", fla_low_rank(local)?)));
    low_rank.or_else(|| by_tables(&FLA_GLOBAL, &FLA_LOCAL, name))
}

/// The name with its beginning replaced as one of the tables says: `global` beside the layers,
/// `local` inside one. Other names inside a layer keep their beginning.
fn by_tables(global: &[(&str, &str)], local: &[(&str, &str)], name: &str) -> Option<String> {
    let translate = |table: &[(&str, &str)], name: &str| {
        table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
    };
    let Some((layer, inside)) = split_numbered(name, "layers.") else {
        return translate(global, name);
    };
    let inside = translate(local, inside).unwrap_or_else(|| inside.to_owned());
    Some(format!("blocks.{layer}.{inside}"))
}

/// The two linear layers of a low-rank map are its factors, transposed; the bias of the second is
/// the constant term.
fn fla_low_rank(local: &str) -> Option<String> {
    let (map, part) = local.strip_prefix("attn.")?.split_once("_lora.lora.")?;
    let digit = match part {
        "0.weight" => 1,
        "2.weight" => 2,
        "2.bias" => 0,
        _ => return None,
    };
    matches!(map, "w" | "a" | "v" | "g").then(|| format!("att.{map}{digit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_parts_keep_their_names() {
        let kept = |naming, name: &str, expected: &str| {
            assert_eq!(blinkdl_name(naming, name), expected, "{name}");
        };
        kept(Naming::HuggingFace, "rwkv.ln_out.weight", "ln_out.weight");
        kept(Naming::HuggingFace, "rwkv.blocks.x.attention.key.weight", "blocks.x.attention.key.weight");
        kept(Naming::HuggingFace, "rwkv.blocks.3.attention.time_mix_keys", "blocks.3.att.time_mix_keys");
        kept(Naming::HuggingFace, "blocks.3.ln1.weight", "blocks.3.ln1.weight");
        kept(Naming::FlashLinearAttention, "layers.3.attn.q_proj.weight", "blocks.3.att.q_proj.weight");
        kept(
            Naming::FlashLinearAttention,
            "layers.3.attn.w_lora.lora.1.weight",
            "blocks.3.att.w_lora.lora.1.weight",
        );
        kept(
            Naming::FlashLinearAttention,
            "layers.3.attn.q_lora.lora.0.weight",
            "blocks.3.att.q_lora.lora.0.weight",
        );
        kept(Naming::FlashLinearAttention, "layers.3.mlp.x", "blocks.3.mlp.x");
        kept(Naming::FlashLinearAttention, "layers.03.attn.r_k", "layers.03.attn.r_k");
        kept(Naming::BlinkDl, "layers.3.attn.r_k", "layers.3.attn.r_k");
        kept(Naming::LinearAttention, "layers.3.self_attn.q_proj.weight", "blocks.3.self_attn.q_proj.weight");
        kept(Naming::LinearAttention, "embedding_norms.weight", "embedding_norms.weight");
    }

    #[test]
    fn a_translated_name_is_its_own_translation() {
        for (naming, name) in [
            (Naming::HuggingFace, "rwkv.blocks.0.pre_ln.bias"),
            (Naming::HuggingFace, "rwkv.blocks.10.feed_forward.time_mix_receptance"),
            (Naming::FlashLinearAttention, "layers.10.attn.v_lora.lora.2.bias"),
            (Naming::FlashLinearAttention, "lm_head.weight"),
            (Naming::LinearAttention, "layers.10.linear_attn.r_proj.weight"),
            (Naming::LinearAttention, "embedding_norm.bias"),
            (Naming::BlinkDl, "embeddings.weight"),
        ] {
            let translated = blinkdl_name(naming, name);
            assert_ne!(translated, name);
            assert_eq!(blinkdl_name(naming, &translated), translated);
        }
    }
}

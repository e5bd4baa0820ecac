//! The RWKV version of a checkpoint, from names and shapes; neither the order of the tensors nor
//! the file's name count.

use rwkv_edge::format::Version;

use super::aliases::Naming;
use super::checkpoint::Checkpoint;
use super::error::SourceError;
use super::tensor::Container;
use super::{adapter, inventory, names, shards};

/// A refused variant: the beginnings of names that mark it, in a layer or beside the layers, and
/// the reason.
struct Variant {
    in_layer: &'static [&'static str],
    beside: &'static [&'static str],
    what: &'static str,
}

/// Checked in this order, before anything else.
const VARIANTS: &[Variant] = &[
    Variant {
        in_layer: &["ffn.enn", "rosa", "att.rosa"],
        beside: &["rosa"],
        what: "a preview of RWKV-8: that architecture is not final",
    },
    Variant { in_layer: &["qkv."], beside: &[], what: "RWKV-7b (DEA): its token cache grows with the text" },
    Variant {
        in_layer: &["att.time_maa_rkvw_w1", "att.gate_w1"],
        beside: &[],
        what: "an experimental RWKV-6 (x060a, x060b or x060c) that was never released",
    },
    Variant {
        in_layer: &["tiny_ln", "tiny_q", "tiny_k", "tiny_v"],
        beside: &[],
        what: "RWKV-4a (tiny attention): it attends over all previous tokens, so its state is not constant",
    },
    Variant {
        in_layer: &["ffnPre."],
        beside: &[],
        what: "a pre-FFN variant: its first layer is a different block",
    },
    Variant {
        in_layer: &["ffn.aa.", "ffn.bb."],
        beside: &[],
        what: "a MishGLU variant: its channel mixing is a different block",
    },
    Variant {
        in_layer: &["pos_emb_x", "pos_emb_y"],
        beside: &["pos_emb_x", "pos_emb_y"],
        what: "a variant with position embeddings: its context is bounded",
    },
    Variant {
        in_layer: &[],
        beside: &["head_q.", "head_k."],
        what: "a head-QK variant: it copies over all previous tokens",
    },
    Variant {
        in_layer: &["att.qq.", "att.kk.", "att.vv.", "att.oo.", "att.q_proj."],
        beside: &[],
        what: "a hybrid with attention: its cache grows with the text",
    },
    Variant {
        in_layer: &[],
        beside: &["_strategy", "_rescale_layer"],
        what: "a file converted by ChatRWKV (the rwkv Python package): its matrices are transposed and maybe uint8; \
               use the original checkpoint",
    },
];

/// Detects the RWKV version.
///
/// # Errors
///
/// When the tensors are not exactly those of one supported version. The message gives the name of a
/// variant and the reason, or names a missing or unknown tensor.
pub fn detect(checkpoint: &Checkpoint) -> Result<Version, SourceError> {
    whole_model(checkpoint).map_err(|error| {
        if checkpoint.container() != Container::Gguf && shards::is_shard_name(&checkpoint.file_name()) {
            checkpoint.source.unsupported(
                "this file holds only some of the tensors; name the .index.json that lies beside it, \
                 with all files of the checkpoint in the same folder",
            )
        } else {
            error
        }
    })
}

fn whole_model(checkpoint: &Checkpoint) -> Result<Version, SourceError> {
    let tensors = checkpoint.tensors();
    if !tensors.is_empty() && tensors.iter().all(|tensor| tensor.name.ends_with(".att.time_state")) {
        return Err(checkpoint.source.unsupported(
            "this is a tuned state and no model: `--state-only THIS OUT.rwstate --for MODEL.rwkv` makes a state file, \
             and `--state THIS` together with a checkpoint puts it into a model",
        ));
    }
    adapter::refuse(checkpoint)?;
    refuse_variants(checkpoint)?;
    checkpoint.check_readable()?;
    let version = version(checkpoint)?;
    inventory::check(checkpoint, version)?;
    Ok(version)
}

fn refuse_variants(checkpoint: &Checkpoint) -> Result<(), SourceError> {
    let tensors = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str());
    let unreadable = checkpoint.unreadable().iter().map(|entry| entry.name.as_str());
    let names = tensors.chain(unreadable).chain(checkpoint.other_entries().iter().map(String::as_str));
    for variant in VARIANTS {
        let marked = names.clone().find(|name| {
            let (marks, local) = match names::split_layer(name) {
                Some((_, local)) => (variant.in_layer, local),
                None => (variant.beside, *name),
            };
            marks.iter().any(|mark| local.starts_with(mark))
        });
        if let Some(name) = marked {
            return Err(checkpoint.source.unsupported(format!(
                "{} (found {})",
                variant.what,
                name.escape_debug()
            )));
        }
    }
    Ok(())
}

fn version(checkpoint: &Checkpoint) -> Result<Version, SourceError> {
    let has = |local: &str| checkpoint.get(&format!("blocks.0.{local}")).is_some();
    if checkpoint.get("emb.weight").is_none() || !has("ln1.weight") {
        return Err(not_rwkv(checkpoint));
    }
    if has("att.r_k") {
        let deep = ["ffn.s_emb.weight", "ffn.s_emb_x.weight", "ffn.s0", "ffn.s1", "ffn.s2"];
        Ok(if deep.into_iter().any(has) { Version::V7a } else { Version::V7 })
    } else if has("att.time_maa_x") {
        Ok(Version::V6)
    } else if has("att.ln_x.weight") {
        if has("att.gate.weight") { gated_v5(checkpoint) } else { Ok(Version::V5_0) }
    } else if has("att.time_first") {
        Ok(Version::V4)
    } else {
        Err(not_rwkv(checkpoint))
    }
}

/// Tells 5.1, one decay per head, from 5.2, one decay per channel.
fn gated_v5(checkpoint: &Checkpoint) -> Result<Version, SourceError> {
    const DECAY: &str = "blocks.0.att.time_decay";
    let elements = |name: &str| checkpoint.get(name).map(|tensor| tensor.elements());
    let channels = elements("blocks.0.att.ln_x.weight").unwrap_or(0);
    let found = match elements(DECAY) {
        Some(decays) if decays == channels => return Ok(Version::V5_2),
        Some(decays) if decays > 0 && channels % decays == 0 => return Ok(Version::V5_1),
        Some(decays) => decays.to_string(),
        None => "none".to_owned(),
    };
    Err(checkpoint.source.tensor(
        DECAY,
        format!("one value per head or for each of {channels} channels"),
        found,
    ))
}

/// No version fits: lists the first names, and says which other naming they follow if that is
/// known.
fn not_rwkv(checkpoint: &Checkpoint) -> SourceError {
    let tensors = checkpoint.tensors();
    let starts = |prefix: &str| tensors.iter().any(|tensor| tensor.name.starts_with(prefix));
    let naming = match checkpoint.naming() {
        Naming::BlinkDl if starts("layers.") || starts("embeddings.") => {
            "the names are not those of RWKV-7 in flash-linear-attention, but of another architecture; "
                .to_owned()
        }
        Naming::BlinkDl => String::new(),
        naming => format!("the names are translated from those of {naming}; "),
    };
    let names: Vec<_> = tensors.iter().take(4).map(|tensor| tensor.name.escape_debug().to_string()).collect();
    checkpoint.source.unsupported(format!(
        "no RWKV version from 4 to 7; {naming}its tensors begin with {}",
        names.join(", ")
    ))
}

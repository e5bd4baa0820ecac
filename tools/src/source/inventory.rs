//! Which tensors each RWKV version has. A missing or an extra one means a variant that would run, and run wrongly.

use rwkv_edge::format::Version;

use super::{Checkpoint, Naming, SourceError};

/// Tensors beside the layers, in every version.
const GLOBAL: [&str; 4] = ["emb.weight", "ln_out.weight", "ln_out.bias", "head.weight"];

/// Tensors of layer 0 alone, in every version.
const FIRST_LAYER: [&str; 2] = ["ln0.weight", "ln0.bias"];

/// Tensors of every layer, in every version.
const COMMON: [&str; 10] = [
    "ln1.weight",
    "ln1.bias",
    "ln2.weight",
    "ln2.bias",
    "att.receptance.weight",
    "att.key.weight",
    "att.value.weight",
    "att.output.weight",
    "ffn.key.weight",
    "ffn.value.weight",
];

/// Mixes and decay of RWKV-4 and 5.
const V4_V5: [&str; 7] = [
    "att.time_decay",
    "att.time_mix_k",
    "att.time_mix_v",
    "att.time_mix_r",
    "ffn.time_mix_k",
    "ffn.time_mix_r",
    "ffn.receptance.weight",
];

const GROUP_NORM: [&str; 2] = ["att.ln_x.weight", "att.ln_x.bias"];
const GATE: [&str; 2] = ["att.gate.weight", "att.time_mix_g"];

const V6: [&str; 16] = [
    "att.gate.weight",
    "att.time_maa_x",
    "att.time_maa_w",
    "att.time_maa_k",
    "att.time_maa_v",
    "att.time_maa_r",
    "att.time_maa_g",
    "att.time_maa_w1",
    "att.time_maa_w2",
    "att.time_decay",
    "att.time_decay_w1",
    "att.time_decay_w2",
    "att.time_faaaa",
    "ffn.time_maa_k",
    "ffn.time_maa_r",
    "ffn.receptance.weight",
];

const V7: [&str; 12] = [
    "att.w0", "att.w1", "att.w2", "att.a0", "att.a1", "att.a2", "att.g1", "att.g2", "att.k_k", "att.k_a",
    "att.r_k", "ffn.x_k",
];

const V7_MIXES: [&str; 6] = ["att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g"];

/// Unused in layer 0, where they may be missing.
const V7_VALUE_RESIDUAL: [&str; 3] = ["att.v0", "att.v1", "att.v2"];

/// The bonus of RWKV-5: exponentiated, or raw under the second name. A layer has one of them.
const V5_BONUS: [&str; 2] = ["att.time_first", "att.time_faaaa"];

/// Initial state of a state-tuned model.
const TUNED_STATE: [&str; 1] = ["att.time_state"];

/// The tensors of a layer.
struct LayerNames {
    required: Vec<&'static [&'static str]>,
    one_of: &'static [&'static str],
    not_in_first: &'static [&'static str],
    optional: &'static [&'static str],
}

impl LayerNames {
    fn of(version: Version) -> Self {
        let required: Vec<&[&str]> = match version {
            Version::V4 => vec![&COMMON, &V4_V5, &V5_BONUS[..1]],
            Version::V5_0 => vec![&COMMON, &V4_V5, &GROUP_NORM],
            Version::V5_1 | Version::V5_2 => vec![&COMMON, &V4_V5, &GROUP_NORM, &GATE],
            Version::V6 => vec![&COMMON, &GROUP_NORM, &V6],
            Version::V7 => vec![&COMMON, &GROUP_NORM, &V7, &V7_MIXES],
        };
        let is_v5 = matches!(version, Version::V5_0 | Version::V5_1 | Version::V5_2);
        Self {
            required,
            one_of: if is_v5 { &V5_BONUS } else { &[] },
            not_in_first: if version == Version::V7 { &V7_VALUE_RESIDUAL } else { &[] },
            optional: if version == Version::V4 { &[] } else { &TUNED_STATE },
        }
    }

    fn required(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.required.iter().flat_map(|names| names.iter().copied())
    }

    fn knows(&self, local: &str) -> bool {
        let others = [self.one_of, self.not_in_first, self.optional];
        self.required().chain(others.into_iter().flatten().copied()).any(|known| known == local)
    }
}

/// Splits `blocks.7.att.key.weight` into the layer's number and the name inside the layer.
pub(super) fn split_layer(name: &str) -> Option<(usize, &str)> {
    split_numbered(name, "blocks.")
}

/// The same for layers of another name; `prefix` ends with a dot.
pub(super) fn split_numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, local) = name.strip_prefix(prefix)?.split_once('.')?;
    let canonical =
        number == "0" || (!number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then_some((number.parse().ok()?, local))
}

/// Number of layers: one more than the largest number in a name.
pub(super) fn layers<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.filter_map(|name| split_layer(name)).map(|(layer, _)| layer.saturating_add(1)).max().unwrap_or(0)
}

/// Checks that the tensors are those of `version`, in every layer, and no others.
pub(super) fn check(checkpoint: &Checkpoint, version: Version) -> Result<(), SourceError> {
    let layer_names = LayerNames::of(version);
    check_known(checkpoint, version, &layer_names)?;
    let require = |name: &str| match checkpoint.get(name) {
        Some(_) => Ok(()),
        None => Err(missing(checkpoint, version, name)),
    };
    GLOBAL.iter().try_for_each(|name| require(name))?;
    FIRST_LAYER.iter().try_for_each(|local| require(&format!("blocks.0.{local}")))?;
    for layer in 0..layers(checkpoint.tensors.iter().map(|tensor| tensor.name.as_str())) {
        for local in layer_names.required() {
            require(&format!("blocks.{layer}.{local}"))?;
        }
        if layer > 0 {
            layer_names
                .not_in_first
                .iter()
                .try_for_each(|local| require(&format!("blocks.{layer}.{local}")))?;
        }
        check_one_of(checkpoint, version, &layer_names, layer)?;
    }
    Ok(())
}

fn check_known(checkpoint: &Checkpoint, version: Version, layers: &LayerNames) -> Result<(), SourceError> {
    let known = |name: &str| match split_layer(name) {
        Some((layer, local)) => layers.knows(local) || (layer == 0 && FIRST_LAYER.contains(&local)),
        None => GLOBAL.contains(&name),
    };
    match checkpoint.tensors.iter().find(|tensor| !known(&tensor.name)) {
        None => Ok(()),
        Some(tensor) => Err(checkpoint.source.unsupported(format!(
            "an unknown variant of {version} (such as 4b, or a file converted by another program): \
             tensor {} does not belong to {version}",
            tensor.name.escape_debug()
        ))),
    }
}

fn check_one_of(
    checkpoint: &Checkpoint,
    version: Version,
    names: &LayerNames,
    layer: usize,
) -> Result<(), SourceError> {
    let here =
        names.one_of.iter().filter(|local| checkpoint.get(&format!("blocks.{layer}.{local}")).is_some());
    match (names.one_of, here.count()) {
        ([], _) | (_, 1) => Ok(()),
        ([first, ..], 0) => Err(missing(checkpoint, version, &format!("blocks.{layer}.{first}"))),
        _ => Err(checkpoint.source.unsupported(format!(
            "an unknown variant of {version}: layer {layer} has more than one of {}",
            names.one_of.join(", ")
        ))),
    }
}

fn missing(checkpoint: &Checkpoint, version: Version, name: &str) -> SourceError {
    let naming = checkpoint.naming;
    let ln0 = FIRST_LAYER.iter().any(|local| name.strip_prefix("blocks.0.") == Some(local));
    if ln0 && naming == Naming::FlashLinearAttention {
        return checkpoint.source.unsupported(format!(
            "a {naming} model without pre_norm (norm_first = false): it does not normalise the embedding, \
             which every {version} model does ({name})"
        ));
    }
    let mut found = "none; the file is incomplete, a hybrid or another architecture".to_owned();
    if name == "head.weight" && matches!(naming, Naming::HuggingFace | Naming::FlashLinearAttention) {
        found.push_str("; a head that is tied to the embedding is not read");
    }
    if naming != Naming::BlinkDl {
        found.push_str(&format!(" (names are translated from those of {naming})"));
    }
    checkpoint.source.tensor(name, format!("it in every {version} model"), found)
}

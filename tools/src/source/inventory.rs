//! The tensors of a checkpoint of each version. The tensors of a `.rwkv` file are made from them.
//!
//! An unexpected tensor means an unknown variant, which would run but produce garbage. It is
//! refused.

use rwkv_edge::format::{Arch, Config, Rwkv7, Version};
use rwkv_edge::model::names::{self as model_names, ModelTensor, OptionalTensors, Role};

use super::aliases::Naming;
use super::checkpoint::Checkpoint;
use super::error::SourceError;
use super::names::{layers, split_layer};
use crate::shapes;

/// The norm that is folded into the embedding.
pub(crate) const LN0: [&str; 2] = ["blocks.0.ln0.weight", "blocks.0.ln0.bias"];

/// Name of the matrix whose product with the embedding is folded into table `name` of DeepEmbed.
pub(crate) fn folded_into(name: &str) -> Option<String> {
    Some(format!("{}ffn.s_emb_x.weight", name.strip_suffix("ffn.s_emb.weight")?))
}

/// The tensors that are folded into others, so that the file does not have them.
pub(crate) fn folded(config: &Config) -> Vec<ModelTensor> {
    let vector =
        |name: &str| ModelTensor { name: name.into(), shape: [config.n_embd, 1], role: Role::Vector };
    let mut tensors: Vec<_> = LN0.into_iter().map(vector).collect();
    if let Arch::V7(Rwkv7 { deep_rank: Some(rank), .. }) = config.arch {
        let tables = (0..config.n_layer).map(model_names::deep_embedding);
        tensors.extend(tables.filter_map(|table| folded_into(&table)).map(|name| ModelTensor {
            name,
            shape: [rank * rank, config.n_embd],
            role: Role::Matrix,
        }));
    }
    tensors
}

/// Possible names of the source of tensor `name` in a checkpoint of `version`. A checkpoint has the
/// source under one of them.
pub(crate) fn stored_names(version: Version, name: &str) -> Vec<String> {
    if name == model_names::HEAD_RESIDUAL {
        return vec![model_names::HEAD.to_owned()];
    }
    if let Some((slices, _)) = name.split_once(".att.time_maa_w2.") {
        return vec![format!("{slices}.att.time_maa_w2")];
    }
    let is_v5 = matches!(version, Version::V5_0 | Version::V5_1 | Version::V5_2);
    match name.strip_suffix("time_faaaa") {
        // The bonus. The first name holds its logarithm, the second the bonus itself.
        Some(layer) if is_v5 => vec![format!("{layer}time_first"), name.to_owned()],
        _ => vec![name.to_owned()],
    }
}

/// A tensor that a checkpoint has.
#[derive(PartialEq)]
struct Entry {
    /// Its possible names, in the layer or beside the layers.
    names: Vec<String>,
    required: bool,
}

/// The tensors of a version.
struct Inventory {
    beside: Vec<Entry>,
    first_layer: Vec<Entry>,
    other_layers: Vec<Entry>,
}

impl Inventory {
    fn of(version: Version) -> Self {
        // Names depend on the version alone, and all layers but the first have the same ones.
        let config = shapes::config(version, [2, 64, 256]);
        let optional = OptionalTensors { tuned_state: true, ..OptionalTensors::default() };
        let tensors = model_names::tensors(&config, optional).into_iter().chain(folded(&config));
        let stored = tensors.map(|tensor| (stored_names(version, &tensor.name), tensor.role));
        let mut inventory = Self { beside: vec![], first_layer: vec![], other_layers: vec![] };
        for (names, role) in stored {
            let list = match names.first().and_then(|name| split_layer(name)) {
                None => &mut inventory.beside,
                Some((0, _)) => &mut inventory.first_layer,
                Some(_) => &mut inventory.other_layers,
            };
            let local = |name: String| split_layer(&name).map(|(_, local)| local.to_owned()).unwrap_or(name);
            let entry =
                Entry { names: names.into_iter().map(local).collect(), required: role != Role::State };
            if !list.contains(&entry) {
                list.push(entry);
            }
        }
        inventory
    }

    fn layer(&self, layer: usize) -> &[Entry] {
        if layer == 0 { &self.first_layer } else { &self.other_layers }
    }

    fn knows(&self, name: &str) -> bool {
        let has =
            |list: &[Entry], name| list.iter().any(|entry| entry.names.iter().any(|known| known == name));
        match split_layer(name) {
            None => has(&self.beside, name),
            // RWKV-7 does not use the value residual of layer 0, which some checkpoints have.
            Some((0, local)) => has(&self.first_layer, local) || has(&self.other_layers, local),
            Some((_, local)) => has(&self.other_layers, local),
        }
    }
}

/// Checks that the tensors are those of `version`, in every layer, and no others.
pub(super) fn check(checkpoint: &Checkpoint, version: Version) -> Result<(), SourceError> {
    let inventory = Inventory::of(version);
    let tensors = checkpoint.tensors();
    if let Some(tensor) = tensors.iter().find(|tensor| !inventory.knows(&tensor.name)) {
        let known = if version == Version::V4 { "such as 4b, or " } else { "" };
        return Err(checkpoint.source.unsupported(format!(
            "an unknown variant of {version} ({known}a file converted by another program): \
             tensor {} does not belong to {version}",
            tensor.name.escape_debug()
        )));
    }
    inventory.beside.iter().try_for_each(|entry| check_entry(checkpoint, version, "", entry))?;
    for layer in 0..layers(tensors.iter().map(|tensor| tensor.name.as_str())) {
        let prefix = format!("blocks.{layer}.");
        let mut entries = inventory.layer(layer).iter();
        entries.try_for_each(|entry| check_entry(checkpoint, version, &prefix, entry))?;
    }
    Ok(())
}

/// Checks that a required tensor is there, under one of its names.
fn check_entry(
    checkpoint: &Checkpoint,
    version: Version,
    prefix: &str,
    entry: &Entry,
) -> Result<(), SourceError> {
    let named = |name: &String| format!("{prefix}{name}");
    let found = entry.names.iter().filter(|name| checkpoint.get(&named(name)).is_some()).count();
    match (found, entry.names.first()) {
        (0, Some(name)) if LN0.contains(&&*named(name)) && checkpoint.has_normed_embedding() => Ok(()),
        (0, Some(name)) if entry.required => Err(missing(checkpoint, version, &named(name))),
        (0 | 1, _) => Ok(()),
        _ => Err(checkpoint.source.unsupported(format!(
            "an unknown variant of {version}: layer {} has more than one of {}",
            split_layer(prefix).map_or(0, |(layer, _)| layer),
            entry.names.join(", ")
        ))),
    }
}

fn missing(checkpoint: &Checkpoint, version: Version, name: &str) -> SourceError {
    let naming = checkpoint.naming();
    if LN0.contains(&name) && naming == Naming::LinearAttention {
        return checkpoint.source.unsupported(format!(
            "a {naming} model without embedding_norm: the config.json beside it must say \
             \"embedding_layer_norm_fused\": true if the embedding is normalised already ({name})"
        ));
    }
    if LN0.contains(&name) && naming == Naming::FlashLinearAttention {
        return checkpoint.source.unsupported(format!(
            "a {naming} model without pre_norm (norm_first = false): it does not normalise the embedding, \
             which every {version} model does ({name})"
        ));
    }
    let mut found = "none; the file is incomplete, a hybrid or another architecture".to_owned();
    if name == model_names::HEAD && naming != Naming::BlinkDl && naming != Naming::WebRwkv {
        found.push_str("; a head that is tied to the embedding is not read");
    }
    if naming != Naming::BlinkDl {
        found.push_str(&format!(" (names are translated from those of {naming})"));
    }
    checkpoint.source.tensor(name, format!("it in every {version} model"), found)
}

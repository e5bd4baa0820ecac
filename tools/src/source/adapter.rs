//! Names of adapters: which kind they are of, and which weights they change.

use super::checkpoint::Checkpoint;
use super::error::SourceError;

/// A tensor of an adapter, by what it is to the matrix that it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The first factor of LoRA or PiSSA, `[rank, in]`.
    LoraA,
    /// The second one, `[out, rank]`.
    LoraB,
    /// Where PiSSA's first factor began.
    InitA,
    /// Where PiSSA's second factor began.
    InitB,
    /// `bone`, `disha` or `miss` of RWKV-PEFT.
    Shards,
    /// `bone_block` or `miss_block` of Hugging Face PEFT.
    PeftShards,
    /// An adapter of another kind, which is not merged.
    Other(&'static str),
}

impl Part {
    /// The kind of adapter that has such a tensor.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::LoraA | Self::LoraB => "LoRA or PiSSA",
            Self::InitA | Self::InitB => "PiSSA",
            Self::Shards | Self::PeftShards => "MiSS (Bone, DiSHA)",
            Self::Other(kind) => kind,
        }
    }
}

/// Parts of names that belong to adapters of other kinds, by their beginnings.
const OTHERS: [(&str, &str); 12] = [
    ("lora_M", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_E", "AdaLoRA"),
    ("lora_embedding_", "LoRA of an embedding"),
    ("lora_", "a variant of LoRA"),
    ("vera_", "VeRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("ia3_", "IA3"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("prompt_embeddings", "prompt tuning"),
];

/// The matrix that a tensor of an adapter changes, and the tensor's part. `None` for other tensors.
pub(super) fn part(name: &str) -> Option<(String, Part)> {
    let mut parts = name.split('.');
    let mut target = Vec::new();
    let part = loop {
        let next = parts.next()?;
        match next {
            "lora_A" => break Part::LoraA,
            "lora_B" => break Part::LoraB,
            "init_lora_A" => break Part::InitA,
            "init_lora_B" => break Part::InitB,
            "bone" | "disha" | "miss" => break Part::Shards,
            "bone_block" | "miss_block" => break Part::PeftShards,
            _ => match OTHERS.iter().find(|(beginning, _)| next.starts_with(beginning)) {
                Some(&(_, kind)) => break Part::Other(kind),
                None => target.push(next),
            },
        }
    };
    target.push("weight");
    // PEFT's linear layers, and the name of its only adapter.
    let rest: Vec<_> = parts.collect();
    let known = matches!(rest[..], [] | ["weight"] | ["default"] | ["default", "weight"]);
    Some((target.join("."), if known { part } else { Part::Other("several adapters in one file") }))
}

/// The refusal of a tensor `name` of an adapter of another kind.
pub(super) fn not_merged(checkpoint: &Checkpoint, kind: &str, name: &str) -> SourceError {
    checkpoint.source.unsupported(format!(
        "an adapter ({kind}, found {}), which is not merged here; merge it with the program that trained it",
        name.escape_debug()
    ))
}

/// Refuses a checkpoint with the tensors of an adapter: they would be dropped.
pub(super) fn refuse(checkpoint: &Checkpoint) -> Result<(), SourceError> {
    let parts = |name: &str| Some((name.to_owned(), part(name)?.1));
    let found = checkpoint.tensors().iter().find_map(|tensor| parts(&tensor.name));
    let Some((found, part)) = found else {
        return Ok(());
    };
    let (kind, name) = (part.kind(), found.escape_debug());
    let options = match part {
        Part::LoraA | Part::LoraB => {
            "--merge THIS --lora-alpha N, or for PiSSA --merge THIS --pissa-init INIT"
        }
        Part::InitA | Part::InitB => "--merge ADAPTER --pissa-init THIS",
        Part::Shards | Part::PeftShards => "--merge THIS",
        Part::Other(_) => return Err(not_merged(checkpoint, kind, &found)),
    };
    Err(checkpoint.source.unsupported(match checkpoint.get("emb.weight") {
        None => format!(
            "this is an adapter ({kind}, found {name}) and no model; convert the model that it was trained on with \
             `{options}`"
        ),
        Some(_) => format!(
            "this model still has an adapter beside its weights ({kind}, found {name}); `{options}` merges it"
        ),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_adapters_are_told_from_weights() {
        let key = "blocks.0.att.key";
        for (end, expected) in [
            ("lora_A", Some(Part::LoraA)),
            ("lora_B.weight", Some(Part::LoraB)),
            ("lora_A.default.weight", Some(Part::LoraA)),
            ("lora_A.one.weight", Some(Part::Other("several adapters in one file"))),
            ("init_lora_B", Some(Part::InitB)),
            ("bone", Some(Part::Shards)),
            ("miss_block", Some(Part::PeftShards)),
            ("lora_magnitude_vector.weight", Some(Part::Other("DoRA"))),
            ("hada_w1_a", Some(Part::Other("LoHa"))),
            ("weight", None),
            ("w_lora.lora.0.weight", None),
        ] {
            let found = part(&format!("{key}.{end}"));
            assert_eq!(found, expected.map(|part| (format!("{key}.weight"), part)), "{end}");
        }
    }
}

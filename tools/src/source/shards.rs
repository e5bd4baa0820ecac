//! Checkpoints in several files: a JSON index names the file of every tensor, and all lie in one
//! folder.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use rwkv_edge::input;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::SourceError;
use super::file::Source;
use super::index;
use super::location::VIEWS;
use super::names::{self, MAX_ENTRIES};
use super::sniff::{self, Kind};
use super::tensor::{Container, Index};

/// Longest index.
const MAX_INDEX: u64 = 32 << 20;

/// Most files of a checkpoint; each of them stays open.
pub(super) const MAX_SHARDS: usize = 256;

/// The index that `save_pretrained` writes beside the shards. `metadata` is not needed.
#[derive(Deserialize)]
struct ShardIndex {
    #[serde(deserialize_with = "weight_map_entries")]
    weight_map: BTreeMap<String, String>,
}

/// Reads entries until there is one too many, and skips the rest.
fn weight_map_entries<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct MapVisitor;

    impl<'de> Visitor<'de> for MapVisitor {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object that names the file of every tensor")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while entries.len() <= MAX_ENTRIES
                && let Some((tensor, file)) = map.next_entry()?
            {
                entries.insert(tensor, file);
            }
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(entries)
        }
    }

    deserializer.deserialize_map(MapVisitor)
}

/// The opened files of a checkpoint and the tensors of all of them.
pub(super) struct Shards {
    pub(super) files: Vec<Source>,
    pub(super) container: Container,
    pub(super) index: Index,
}

/// Opens the files that an index names.
pub(super) fn open(source: &Source) -> Result<Shards, SourceError> {
    let map = weight_map(source)?;
    let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
    if names.len() > MAX_SHARDS {
        return Err(source.malformed(format!("it names {} files, the limit is {MAX_SHARDS}", names.len())));
    }
    let mut files = Vec::new();
    let mut found = None;
    let mut index = Index::default();
    for name in &names {
        let file = Source::open(&beside(source, name)?)?;
        let container = shard_container(&file)?;
        if *found.get_or_insert(container) != container {
            return Err(file.malformed("the files of one checkpoint have different formats"));
        }
        let mut part = index::read(&file, container)?;
        for tensor in &mut part.tensors {
            let shard = &mut tensor.location.shard;
            *shard = if *shard >= VIEWS { *shard + index.views.len() } else { files.len() };
        }
        part.records.iter_mut().for_each(|record| record.shard = files.len());
        check_complete(&file, name, &map, &part)?;
        index.tensors.append(&mut part.tensors);
        index.unreadable.append(&mut part.unreadable);
        index.views.append(&mut part.views);
        index.other_entries.append(&mut part.other_entries);
        index.records.append(&mut part.records);
        names::check_count(source, index.tensors.len() + index.other_entries.len())?;
        files.push(file);
    }
    let Some(container) = found else {
        return Err(source.not_a_checkpoint("the index names no tensors"));
    };
    Ok(Shards { files, container, index })
}

fn weight_map(source: &Source) -> Result<BTreeMap<String, String>, SourceError> {
    let other = || source.not_a_checkpoint("this is a JSON text; name the file with the weights");
    if source.len() > MAX_INDEX {
        return Err(other());
    }
    let mut json = vec![0; source.len() as usize];
    source.read_at(&mut json, 0)?;
    let index: ShardIndex =
        serde_json::from_slice(input::without_byte_order_mark(&json)).map_err(|_| other())?;
    names::check_count(source, index.weight_map.len())?;
    Ok(index.weight_map)
}

/// The path of a shard. Its name comes from the index, so it must not lead out of the folder.
fn beside(source: &Source, name: &str) -> Result<PathBuf, SourceError> {
    let mut components = Path::new(name).components();
    let normal = matches!(components.next(), Some(Component::Normal(first)) if first == name);
    if !normal || components.next().is_some() || name.contains(['/', '\\', ':', '\0']) {
        return Err(
            source.malformed(format!("{} is no name of a file beside the index", name.escape_debug()))
        );
    }
    Ok(source.path().with_file_name(name))
}

fn shard_container(file: &Source) -> Result<Container, SourceError> {
    match sniff::kind(file)? {
        Kind::Container(container @ (Container::TorchZip | Container::Safetensors)) => Ok(container),
        Kind::Container(container) => Err(file.unsupported(format!(
            "a {container} file as one of several; torch and safetensors files are read"
        ))),
        Kind::Json => Err(file.not_a_checkpoint("this is a JSON text, and no file with weights")),
    }
}

/// Every tensor that the index places in the file must be there.
fn check_complete(
    file: &Source,
    name: &str,
    map: &BTreeMap<String, String>,
    part: &Index,
) -> Result<(), SourceError> {
    let here: HashSet<&str> = part.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut placed = map.iter().filter(|(_, file)| *file == name);
    match placed.find(|(tensor, _)| !here.contains(tensor.as_str())) {
        None => Ok(()),
        Some((tensor, _)) => Err(file.tensor(tensor, "it in this file, as the index says", "none")),
    }
}

/// Whether a file's name is that of a shard: `model-00001-of-00003.safetensors`.
pub(super) fn is_shard_name(name: &str) -> bool {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.trim_start_matches('0').to_owned())
    };
    let parts = || {
        let (first, rest) = name.rsplit_once("-of-")?;
        let part = number(first.rsplit_once('-')?.1)?;
        let count = number(rest.split_once('.').map_or(rest, |(count, _)| count))?;
        Some((part, count))
    };
    parts().is_some_and(|(part, count)| !(part == "1" && count == "1"))
}

#[cfg(test)]
mod tests {
    use super::is_shard_name;

    #[test]
    fn names_of_shards_are_recognised() {
        for name in [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "pytorch_model-00010-of-00010.bin",
            "a-b-1-of-3",
        ] {
            assert!(is_shard_name(name), "{name}");
        }
        for name in [
            "model-00001-of-00001.safetensors",
            "model.safetensors",
            "best-of-2.pth",
            "rwkv-x-of-3.pth",
            "rwkv-1-of-.pth",
            "-of-",
            "",
        ] {
            assert!(!is_shard_name(name), "{name}");
        }
    }
}

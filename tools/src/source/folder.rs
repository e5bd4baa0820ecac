//! The file to open in a folder of a checkpoint, as Hugging Face lays it out.

use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::shards;

/// Files with weights that are taken before all others, in this order.
const PREFERRED: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// Endings of files with weights, after a dot.
pub const ENDINGS: [&str; 7] = ["index.json", "safetensors", "st", "pth", "pt", "bin", "gguf"];

/// Beginnings of names that trainers give to other things.
const NO_WEIGHTS: [&str; 4] = ["training_args", "optimizer", "scheduler", "rng_state"];

/// Most names in a message.
const MAX_NAMES: usize = 4;

/// The file with the weights, or the index of several files.
///
/// # Errors
/// If the folder cannot be listed, or has no file of weights or more than one.
pub(super) fn weights(folder: &Path) -> Result<PathBuf, SourceError> {
    let io = |error| SourceError::Io { file: folder.to_owned(), error };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    if let Some(name) = PREFERRED.iter().find(|name| names.iter().any(|found| found == *name)) {
        return Ok(folder.join(name));
    }
    names.retain(|name| {
        let lower = name.to_ascii_lowercase();
        let has = |ending: &&str| lower.strip_suffix(*ending).is_some_and(|stem| stem.ends_with('.'));
        ENDINGS.iter().any(has) && !NO_WEIGHTS.iter().any(|start| name.starts_with(start))
    });
    names.sort();
    let whole: Vec<_> = names.iter().filter(|name| !shards::is_shard_name(name)).collect();
    match (&whole[..], &names[..]) {
        ([name], _) => Ok(folder.join(name)),
        ([], []) => Err(refuse(folder, "this is a folder without a checkpoint".to_owned())),
        ([], [part, ..]) => Err(refuse(
            folder,
            format!(
                "this folder has {}, one of several files, and no index of them (.index.json)",
                part.escape_debug()
            ),
        )),
        _ => {
            let shown: Vec<_> =
                whole.iter().take(MAX_NAMES).map(|name| name.escape_debug().to_string()).collect();
            let more = if whole.len() > MAX_NAMES { ", ..." } else { "" };
            let shown = shown.join(", ");
            Err(refuse(folder, format!("this folder has several checkpoints: name one of {shown}{more}")))
        }
    }
}

fn refuse(folder: &Path, what: String) -> SourceError {
    SourceError::NotACheckpoint { file: folder.to_owned(), what }
}

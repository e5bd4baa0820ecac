//! State files, as the commands read and write them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, anyhow};
use rwkv_edge::format::{FileKind, Published, Replace, Target};
use rwkv_edge::{ErrorKind, Model, SamplingParams, Snapshot, StateNotes, stdio};

/// Opens a saved text of `model`. A file without a sampler gets one with `sampling` and `seed`.
pub(crate) fn open(
    model: &Model,
    sampling: SamplingParams,
    seed: u64,
    path: &Path,
) -> Result<(Snapshot, StateNotes)> {
    Snapshot::open(model, sampling, seed, path).map_err(|error| match error.kind() {
        ErrorKind::NotAState(_) if is_checkpoint(path) => anyhow!(
            "{}: this is a checkpoint; if it is a tuned state, convert it: rwkv-quantize --state-only {} {} --for {}",
            path.display(),
            path.display(),
            path.with_extension("rwstate").display(),
            model.file().path().unwrap_or(Path::new("MODEL")).display(),
        ),
        _ => error.into(),
    })
}

fn is_checkpoint(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    let kind = FileKind::of(&start).filter(|_| read.is_ok());
    matches!(kind, Some(FileKind::Zip | FileKind::LegacyTorch | FileKind::Safetensors))
}

/// The place of a state file, which may be written.
pub(crate) fn target(path: &Path) -> Result<Target> {
    Ok(Target::new(path, Replace::States)?)
}

/// Says that a power failure may undo a file.
pub(crate) fn warn(published: &Published) {
    if let Some(warning) = published.warning() {
        stdio::eprint_line(format_args!("rwkv-edge: warning: {warning}"));
    }
}

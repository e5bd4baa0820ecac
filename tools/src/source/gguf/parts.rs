//! A GGUF checkpoint in several files, whose names count them.

use std::path::{Path, PathBuf};

use super::super::error::SourceError;
use super::super::file::Source;
use super::super::shards::MAX_SHARDS;
use super::metadata::Metadata;

/// The place of a file among the parts of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// From 1 on, as the files' names count.
    pub(super) number: usize,
    pub(super) count: usize,
    /// Tensors of all parts.
    pub(super) tensors: Option<usize>,
}

impl Part {
    /// The place that the metadata name; `None` for a checkpoint in one file.
    pub(super) fn of(source: &Source, metadata: &Metadata<'_>) -> Result<Option<Self>, SourceError> {
        let count = metadata.integer("split.count")?.unwrap_or(1);
        if count < 2 {
            return Ok(None);
        }
        if count > MAX_SHARDS {
            return Err(source.malformed(format!("it is one of {count} files, the limit is {MAX_SHARDS}")));
        }
        match metadata.integer("split.no")? {
            Some(index) if index < count => {
                let tensors = metadata.integer("split.tensors.count")?;
                Ok(Some(Self { number: index + 1, count, tensors }))
            }
            Some(index) => {
                Err(source.malformed(format!("its split.no is {index}, and there are {count} parts")))
            }
            None => {
                Err(source.malformed(format!("it is one of {count} parts, and its metadata lack split.no")))
            }
        }
    }

    /// Opens all parts, which lie beside `source`, one of them.
    pub(super) fn open_all(self, source: &Source) -> Result<Vec<Source>, SourceError> {
        let Self { number, count, .. } = self;
        let Some(stem) = stem(source.path(), number, count) else {
            return Err(source.malformed(format!(
                "it is part {number} of {count}, but its name does not end in {}; give all parts their \
                 published names",
                ending(number, count)
            )));
        };
        (1..=count).map(|number| open(source, &stem, number, count)).collect()
    }
}

fn ending(number: usize, count: usize) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

/// The common beginning of the names of all parts.
fn stem(path: &Path, number: usize, count: usize) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(&ending(number, count))?.to_owned())
}

fn open(source: &Source, stem: &str, number: usize, count: usize) -> Result<Source, SourceError> {
    let name = stem.to_owned() + &ending(number, count);
    let path: PathBuf = source.path().with_file_name(&name);
    match path.try_exists() {
        Ok(false) => Err(source.malformed(format!(
            "part {number} of {count} is missing; put {} into the same folder",
            name.escape_debug()
        ))),
        _ => Source::open(&path),
    }
}

//! GGUF files, version 3: metadata, a list of tensors, and their data.
//!
//! llama.cpp's converters write RWKV-6 and 7 with names of their own, low-rank factors transposed,
//! and in RWKV-6 with two matrices of each layer halved as often as the residual stream is.

mod blocks;
mod bytes;
mod metadata;
mod model;
mod names;
mod parts;
mod tensors;
mod vocabulary;

use std::num::NonZero;

pub use blocks::BlockType;
pub(super) use blocks::decode;
pub(super) use vocabulary::VocabularyPlace;
pub use vocabulary::{StoredToken, Vocabulary};

use super::error::SourceError;
use super::file::Source;
use super::names::{check_count, split_layer};
use super::tensor::{Index, SourceTensor};
use bytes::Bytes;
use metadata::Metadata;
use model::Model;
use parts::Part;

/// The version that is read.
const VERSION: u32 = 3;

/// Longest chat template that is looked at.
const MAX_TEMPLATE: usize = 1 << 20;

/// What a GGUF file says besides its tensors.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    pub(super) layer_norm_eps: Option<f32>,
    rescale_every: Option<NonZero<usize>>,
    pub(super) vocabulary: Option<VocabularyPlace>,
    pub(super) chat_template: Option<String>,
}

impl About {
    fn of(source: &Source, metadata: &Metadata<'_>, model: &Model) -> Result<Self, SourceError> {
        Ok(Self {
            layer_norm_eps: model.layer_norm_eps,
            rescale_every: model.rescale_every,
            vocabulary: VocabularyPlace::of(source, metadata)?,
            chat_template: metadata.text("tokenizer.chat_template", MAX_TEMPLATE)?,
        })
    }

    /// The factor that undoes the rescaling of a tensor. It is a power of two.
    pub(super) fn factor(&self, tensor: &str) -> f32 {
        let (Some(every), Some((layer, local))) = (self.rescale_every, split_layer(tensor)) else {
            return 1.0;
        };
        let halved = matches!(local, "att.output.weight" | "ffn.value.weight");
        if halved { f32::exp2((layer / every) as f32) } else { 1.0 }
    }
}

/// The index of a checkpoint and, if there are several, its files.
pub(super) struct Opened {
    pub(super) files: Vec<Source>,
    pub(super) index: Index,
}

/// Reads the index of a file, or of all parts of the checkpoint that it belongs to.
pub(super) fn open(source: &Source) -> Result<Opened, SourceError> {
    let front = Front::read(source)?;
    let Some(part) = Part::of(source, &front.metadata)? else {
        let index = index(source, &front.metadata, front.tensors)?;
        return Ok(Opened { files: Vec::new(), index });
    };
    let files = part.open_all(source)?;
    let index = join(source, part, &files)?;
    Ok(Opened { files, index })
}

/// The index of all parts. The first one has the metadata of the model.
fn join(source: &Source, part: Part, files: &[Source]) -> Result<Index, SourceError> {
    let mut tensors = Vec::new();
    let mut first = None;
    for (shard, file) in files.iter().enumerate() {
        let Front { metadata, tensors: mut more } = Front::read(file)?;
        let expected = Part { number: shard + 1, ..part };
        if Part::of(file, &metadata)? != Some(expected) {
            return Err(file.malformed(format!(
                "its metadata do not make it part {} of {}; download all parts again",
                expected.number, expected.count
            )));
        }
        more.iter_mut().for_each(|tensor| tensor.location.shard = shard);
        tensors.append(&mut more);
        check_count(source, tensors.len())?;
        first.get_or_insert((file, metadata));
    }
    if let Some(total) = part.tensors.filter(|&total| total != tensors.len()) {
        return Err(source.malformed(format!(
            "its {} parts have {} tensors of {total}",
            part.count,
            tensors.len()
        )));
    }
    match first {
        Some((file, metadata)) => index(file, &metadata, tensors),
        None => Err(source.malformed("it has no parts")),
    }
}

fn index(source: &Source, metadata: &Metadata<'_>, tensors: Vec<SourceTensor>) -> Result<Index, SourceError> {
    let model = Model::of(source, metadata)?;
    if tensors.is_empty() {
        return Err(source.not_a_checkpoint("this GGUF file holds no tensors, only a vocabulary or metadata"));
    }
    let tensors = names::translate(source, &model, tensors)?;
    model.check(source, &tensors)?;
    let about = About::of(source, metadata, &model)?;
    Ok(Index { tensors, about, ..Index::default() })
}

/// The part of a file before the data.
struct Front<'a> {
    metadata: Metadata<'a>,
    tensors: Vec<SourceTensor>,
}

impl<'a> Front<'a> {
    fn read(source: &'a Source) -> Result<Self, SourceError> {
        let mut bytes = Bytes::new(source, 0);
        if bytes.array()? != *b"GGUF" {
            return Err(source.not_a_checkpoint("this is no GGUF file"));
        }
        check_version(source, bytes.u32()?)?;
        let (n_tensors, n_keys) = (bytes.u64()?, bytes.u64()?);
        let metadata = Metadata::read(&mut bytes, source, n_keys)?;
        let alignment = metadata.integer("general.alignment")?;
        let tensors = tensors::read(&mut bytes, source, n_tensors, alignment)?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(source: &Source, version: u32) -> Result<(), SourceError> {
    if version == VERSION {
        return Ok(());
    }
    Err(source.unsupported(if (1..=VERSION).contains(&version.swap_bytes()) {
        "a GGUF file for big-endian machines; convert the one for little-endian machines, or the original .pth or \
         .safetensors"
            .to_owned()
    } else {
        format!("GGUF version {version}, and version {VERSION} is read; convert the original .pth or .safetensors")
    }))
}

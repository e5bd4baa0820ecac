//! Which model the metadata describe.

use std::fmt;
use std::num::NonZero;

use super::super::error::SourceError;
use super::super::file::Source;
use super::super::names;
use super::super::tensor::SourceTensor;
use super::metadata::Metadata;

/// Longest name of an architecture or a type.
const MAX_WORD: usize = 256;

/// An architecture that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    Rwkv6,
    Rwkv7,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rwkv6 => "rwkv6",
            Self::Rwkv7 => "rwkv7",
        })
    }
}

/// The metadata's facts about a model. The number of heads is not among them: llama.cpp's is 0.
pub(super) struct Model {
    pub(super) arch: Arch,
    pub(super) head_size: usize,
    n_layer: usize,
    n_embd: usize,
    pub(super) layer_norm_eps: Option<f32>,
    /// Number of layers after which the residual stream is halved, which the weights reflect.
    pub(super) rescale_every: Option<NonZero<usize>>,
}

impl Model {
    pub(super) fn of(source: &Source, metadata: &Metadata<'_>) -> Result<Self, SourceError> {
        check_type(source, metadata)?;
        let arch = arch(source, metadata)?;
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| match metadata.integer(&key(name))? {
            Some(size) if size > 0 => Ok(size),
            Some(_) => Err(source.malformed(format!("its {} is 0", key(name)))),
            None => Err(source.malformed(format!("its metadata lack {}", key(name)))),
        };
        if let Some(shifts) = metadata.integer(&key("token_shift_count"))?.filter(|&shifts| shifts != 2) {
            return Err(source.unsupported(format!(
                "an {arch} of {shifts} token shifts in a layer: a hybrid whose channel mixing is another block; \
                 run it with llama.cpp"
            )));
        }
        let rescale_every = match arch {
            Arch::Rwkv6 => metadata.integer(&key("rescale_every_n_layers"))?.and_then(NonZero::new),
            // llama.cpp does not rescale RWKV-7.
            Arch::Rwkv7 => None,
        };
        Ok(Self {
            arch,
            head_size: size("wkv.head_size")?,
            n_layer: size("block_count")?,
            n_embd: size("embedding_length")?,
            layer_norm_eps: metadata.float(&key("attention.layer_norm_epsilon"))?,
            rescale_every,
        })
    }

    /// A file that lacks whole layers shows here. `tensors` have BlinkDL's names.
    pub(super) fn check(&self, source: &Source, tensors: &[SourceTensor]) -> Result<(), SourceError> {
        let Self { n_layer, n_embd, .. } = *self;
        let layers = names::layers(tensors.iter().map(|tensor| tensor.name.as_str()));
        if layers != n_layer {
            return Err(
                source.malformed(format!("its metadata say {n_layer} layers, its tensors make {layers}"))
            );
        }
        match tensors.iter().find(|tensor| tensor.name == "emb.weight") {
            Some(emb) if emb.shape.last() != Some(&n_embd) => Err(source.tensor(
                &emb.name,
                format!("rows of {n_embd}, as the metadata say"),
                format!("{:?}", emb.shape),
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses a file that holds something else than a model.
fn check_type(source: &Source, metadata: &Metadata<'_>) -> Result<(), SourceError> {
    match metadata.text("general.type", MAX_WORD)?.as_deref() {
        None | Some("model") => Ok(()),
        Some("adapter") => Err(source.unsupported(
            "this is a LoRA adapter; merge it into its model of F16 with llama-export-lora, and convert that",
        )),
        Some(other) => Err(source.unsupported(format!(
            "this GGUF file is of the type {} and no model; name the file with the weights",
            other.escape_debug()
        ))),
    }
}

fn arch(source: &Source, metadata: &Metadata<'_>) -> Result<Arch, SourceError> {
    let name = metadata.text("general.architecture", MAX_WORD)?;
    match name.as_deref() {
        Some("rwkv6") => Ok(Arch::Rwkv6),
        Some("rwkv7") => Ok(Arch::Rwkv7),
        Some(hybrid @ ("arwkv7" | "rwkv6qwen2")) => Err(source.unsupported(format!(
            "architecture {hybrid}: a Qwen2 whose attention became RWKV; its channel mixing is that of Qwen2; \
             run it with llama.cpp"
        ))),
        Some(other) => Err(source.unsupported(format!(
            "architecture {}, which is not RWKV; GGUF files of rwkv6 and rwkv7 are read, run others with llama.cpp",
            other.escape_debug()
        ))),
        None => Err(source.malformed("its metadata lack general.architecture")),
    }
}

//! Checkpoints with random weights, for measurements without a download.
//!
//! Such a checkpoint is a virtual safetensors file. Any range of its bytes is computed from the
//! seed when it is read, so the file takes neither disk nor memory. [`checkpoint`] opens it;
//! [`write()`] puts it on disk.
//!
//! The model says nothing sensible, but its numbers behave like a trained one's: activations
//! neither vanish nor explode over the layers, decays cover slow and fast channels, a few tokens
//! have most of the probability, and the squared relu of channel mixing yields the share of zeros
//! that was asked for. The same recipe gives the same bytes on every machine.

mod fill;
mod model;
mod random;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rwkv_edge::format::{Config, Output, Published, Target};
use rwkv_edge::kernels::default_float_environment;
use serde_json::{Map, Value, json};

use crate::job::Job;
use crate::source::{Checkpoint, ReadAt, SourceDType, SourceError, check_range};
use fill::{Elements, Tables};
use model::Planned;

/// Share of zeros behind the squared relu with weights that have no bias.
pub const DENSE: f64 = 0.5;

/// Largest outlier. The weights that make it are still far from the largest number of F16.
const MAX_OUTLIER: f64 = 10_000.0;

/// Elements computed at once.
const BLOCK: usize = 2048;

/// Bytes written at once.
const WRITE_BYTES: usize = 4 << 20;

/// Recipe of a synthetic checkpoint.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name of the shape, for people.
    pub name: String,
    /// Shape of the model.
    pub config: Config,
    /// Share of exact zeros among the squared-relu activations of channel mixing, 0.01 to 0.99.
    pub ffn_sparsity: f64,
    /// Size of one channel of the input of `att.output` in layer 0, in multiples of the others, 1
    /// to 10,000.
    pub outlier: Option<f64>,
    /// Seed of all weights.
    pub seed: u64,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "synth {} seed {} ffn-sparsity {}", self.name, self.seed, self.ffn_sparsity)?;
        self.outlier.map_or(Ok(()), |outlier| write!(f, " outlier {outlier}"))
    }
}

/// The bytes of a safetensors file with BF16 tensors, computed when read.
#[derive(Debug)]
struct VirtualFile {
    header: Vec<u8>,
    /// In the order of the file.
    tensors: Vec<Tensor>,
    len: u64,
}

/// A tensor of a virtual file.
#[derive(Debug)]
struct Tensor {
    name: String,
    /// First byte in the file.
    start: u64,
    elements: Elements,
}

impl VirtualFile {
    /// # Errors
    /// Says what is wrong with the recipe.
    fn new(recipe: &Recipe) -> Result<Self, String> {
        recipe.config.validate().map_err(|error| error.to_string())?;
        if !(0.01..=0.99).contains(&recipe.ffn_sparsity) {
            return Err(format!("a share of zeros of {}; it must be 0.01 to 0.99", recipe.ffn_sparsity));
        }
        if let Some(outlier) = recipe.outlier.filter(|outlier| !(1.0..=MAX_OUTLIER).contains(outlier)) {
            return Err(format!("an outlier of {outlier}; it must be 1 to {MAX_OUTLIER}"));
        }
        let planned = model::tensors(&recipe.config, recipe.ffn_sparsity, recipe.outlier);
        let (header, ends) = header(recipe, &planned);
        let base = header.len() as u64;
        let starts = [0].into_iter().chain(ends.iter().copied());
        let mut tables = Tables::new();
        let mut tensor = |(Planned { name, fill, .. }, start): (Planned, u64)| {
            let elements = Elements::new(&mut tables, recipe.seed, &name, fill);
            Tensor { name, start: base + start, elements }
        };
        let tensors = planned.into_iter().zip(starts).map(&mut tensor).collect();
        Ok(Self { header, tensors, len: base + ends.last().copied().unwrap_or(0) })
    }

    /// Computes the bytes from `offset` on, which must be inside the file.
    fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) {
        while !buffer.is_empty() {
            let header = usize::try_from(offset).ok().and_then(|offset| self.header.get(offset..));
            let (bytes, rest) = match header {
                Some(header @ [_, ..]) => {
                    let (bytes, rest) = buffer.split_at_mut(header.len().min(buffer.len()));
                    bytes.copy_from_slice(&header[..bytes.len()]);
                    (bytes, rest)
                }
                _ => {
                    let index = self.tensor_at(offset);
                    let end = self.tensors.get(index + 1).map_or(self.len, |next| next.start);
                    let len = (end - offset).min(buffer.len() as u64);
                    let (bytes, rest) = buffer.split_at_mut(len as usize);
                    self.tensors[index].read(offset, bytes);
                    (bytes, rest)
                }
            };
            offset += bytes.len() as u64;
            buffer = rest;
        }
    }

    /// The tensor with the byte at `offset`, which is behind the header.
    fn tensor_at(&self, offset: u64) -> usize {
        self.tensors.partition_point(|tensor| tensor.start <= offset).saturating_sub(1)
    }
}

impl ReadAt for VirtualFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self, buffer, offset)?;
        self.read_at(buffer, offset);
        Ok(())
    }
}

/// Opens the checkpoint that a recipe describes. It takes no space: values are computed when read.
///
/// # Errors
/// If the recipe's shape, share of zeros or outlier is not possible.
pub fn checkpoint(recipe: &Recipe) -> Result<Checkpoint, SourceError> {
    let description = PathBuf::from(recipe.to_string());
    match VirtualFile::new(recipe) {
        Ok(file) => Checkpoint::computed(description, Box::new(file)),
        Err(what) => Err(SourceError::Unsupported { file: description, what }),
    }
}

impl Tensor {
    /// The bytes from `offset` on, all of them in this tensor.
    fn read(&self, offset: u64, mut out: &mut [u8]) {
        let mut block = [0; BLOCK];
        let mut at = offset - self.start;
        while !out.is_empty() {
            // The range may begin and end inside an element.
            let (first, skip) = (at / 2, at as usize % 2);
            let elements = (skip + out.len()).div_ceil(2).min(BLOCK);
            let block = &mut block[..elements];
            self.elements.fill(first, block);
            let count = out.len().min(2 * elements - skip);
            let (now, rest) = out.split_at_mut(count);
            if skip == 0 && count == 2 * elements {
                now.as_chunks_mut().0.iter_mut().zip(block).for_each(|(out, bits)| *out = bits.to_le_bytes());
            } else {
                let bytes = block.iter().flat_map(|bits| bits.to_le_bytes()).skip(skip);
                now.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
            }
            at += count as u64;
            out = rest;
        }
    }
}

/// Length and JSON header, padded with spaces so that the data is aligned; and the end of each
/// tensor's data.
fn header(recipe: &Recipe, tensors: &[Planned]) -> (Vec<u8>, Vec<u64>) {
    let dtype = SourceDType::BF16;
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt", "source": recipe.to_string() }));
    let mut ends = Vec::with_capacity(tensors.len());
    let mut at = 0;
    for Planned { name, shape, .. } in tensors {
        let end = at + shape.iter().map(|&n| n as u64).product::<u64>() * dtype.size() as u64;
        let entry = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [at, end] });
        entries.insert(name.clone(), entry);
        ends.push(end);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    ([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat(), ends)
}

/// Writes the checkpoint itself as safetensors with BF16 tensors. It appears under its name when it
/// is complete; on an error, or when `job` is interrupted, nothing is left behind.
///
/// # Errors
/// If the recipe is wrong, there is no room, writing fails or the run was interrupted.
pub fn write(recipe: &Recipe, output: Target, job: Job<'_>) -> Result<(u64, Published)> {
    let _environment = default_float_environment();
    let file = VirtualFile::new(recipe).map_err(anyhow::Error::msg).with_context(|| recipe.to_string())?;
    let path = output.path().display().to_string();
    let mut output = Output::create(output, file.len)?;
    let mut buffer = vec![0; WRITE_BYTES];
    let mut offset = 0;
    while offset < file.len {
        job.check()?;
        let tensor = &file.tensors[file.tensor_at(offset)];
        job.progress.update(offset, file.len, &tensor.name);
        let block = &mut buffer[..(file.len - offset).min(WRITE_BYTES as u64) as usize];
        file.read_at(block, offset);
        output.write_all(block).with_context(|| path.clone())?;
        offset += block.len() as u64;
    }
    job.progress.update(offset, file.len, "");
    Ok((file.len, output.publish()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Shape;

    #[test]
    fn every_range_of_bytes_is_that_of_the_whole() {
        let mut config = Shape::find("rwkv4-169m").unwrap().config();
        (config.n_layer, config.n_embd, config.n_att, config.n_ffn, config.n_vocab) = (1, 9, 9, 11, 500);
        let recipe = Recipe { name: "tiny".into(), config, ffn_sparsity: DENSE, outlier: Some(9.0), seed: 0 };
        let file = VirtualFile::new(&recipe).unwrap();
        let mut whole = vec![0; file.len() as usize];
        file.read_at(&mut whole, 0);
        for len in [1, 2, 3, 16, 101, 5000] {
            let mut part = vec![0; len];
            for start in (0..=whole.len() - len).step_by(1 + len / 3) {
                file.read_at(&mut part, start as u64);
                assert!(part == whole[start..][..len], "{len} bytes from {start}");
            }
        }
    }
}

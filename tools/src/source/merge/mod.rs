//! Adapters that are merged into the weights while these are read.
//!
//! | adapter | merged matrix | as in |
//! |---|---|---|
//! | LoRA | `W + alpha / rank * B A` | `merge_lora.py` of JL-er/RWKV-PEFT and Blealtan/RWKV-LM-LoRA |
//! | PiSSA | `bf16(W - B0 A0) + B A` | `merge_pissa.py` of JL-er/RWKV-PEFT |
//! | MiSS (Bone, DiSHA) | `W[o, i] + D[i mod rank, o]` | `merge_disha.py` there; `tuners/miss` of huggingface/peft |
//! | its mode `bat` | each block `W + W D + D` | the same two, which choose the block's `D` in other ways |
//!
//! Those programs round to the type of `W`. Here, sums are f64 and are rounded to f32 once, which is
//! closer to what was trained: there the adapter's product is added to that of the weights. Other
//! tensors of an adapter replace the model's, as in those programs.

mod changes;
mod factors;
mod peft;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::adapter;
use super::checkpoint::Checkpoint;
use super::error::SourceError;
use super::file::{ReadAt, check_range};
use super::location::Location;
use super::names;
use super::tensor::{Container, SourceDType, SourceTensor};
use changes::{Change, Kind, changes, replacements};
use factors::Factors;

/// An adapter to merge into a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merge {
    /// The adapter. The checkpoint's own path takes the adapter that lies beside its weights.
    pub adapter: PathBuf,
    /// Alpha of LoRA, which the files of RWKV's trainers do not have.
    pub alpha: Option<f64>,
    /// The factors at the beginning of PiSSA's training, `init_pissa.pth`.
    pub pissa_init: Option<PathBuf>,
}

/// A checkpoint and what is merged into it.
#[derive(Debug)]
pub(super) struct Merging {
    base: Checkpoint,
    adapter: Checkpoint,
    init: Option<Checkpoint>,
    changes: Vec<Change>,
    /// The values for the change that was read last.
    factors: Mutex<Option<(usize, Arc<Factors>)>>,
}

impl Merge {
    /// The checkpoint with the adapter merged into it. Reads no weights.
    ///
    /// # Errors
    ///
    /// When the adapter cannot be read, is of another kind, does not fit the checkpoint, or lacks a
    /// setting.
    pub fn into_checkpoint(&self, base: Checkpoint) -> Result<Checkpoint, SourceError> {
        if !matches!(base.container(), Container::TorchZip | Container::Safetensors) || base.is_synthetic() {
            return Err(base
                .source
                .unsupported("a file that no adapter was trained on; merge into the .pth file"));
        }
        let adapter = Checkpoint::open(&self.adapter)?;
        let init = self.pissa_init.as_deref().map(Checkpoint::open).transpose()?;
        for checkpoint in [Some(&base), Some(&adapter), init.as_ref()].into_iter().flatten() {
            checkpoint.check_readable()?;
        }
        let is_own = is_same_file(base.path(), &self.adapter);
        if !is_own && base.tensors().iter().any(|tensor| adapter::part(&tensor.name).is_some()) {
            adapter::refuse(&base)?;
        }
        let alpha = peft::alpha(self.alpha, &adapter)?;
        let changes = changes(&base, &adapter, init.as_ref(), alpha)?;
        let replaced = if is_own { Vec::new() } else { replacements(&base, &adapter)? };
        let merging = Arc::new(Merging { base, adapter, init, changes, factors: Mutex::default() });
        merging.checkpoint(replaced)
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

impl Merging {
    /// The files beside the checkpoint.
    pub(super) fn adapters(&self) -> impl Iterator<Item = &Checkpoint> {
        std::iter::once(&self.adapter).chain(&self.init)
    }

    /// The checkpoint with all changes.
    fn checkpoint(self: Arc<Self>, replaced: Vec<SourceTensor>) -> Result<Checkpoint, SourceError> {
        let base = &self.base;
        let mut views = Vec::new();
        let mut tensors: Vec<SourceTensor> =
            base.tensors().iter().filter(|tensor| adapter::part(&tensor.name).is_none()).cloned().collect();
        for tensor in replaced {
            let view = self.adapter.shard(tensor.location.shard).clone();
            let location = Location { shard: base.next_view() + views.len(), ..tensor.location };
            views.push(view);
            tensors.retain(|old| old.name != tensor.name);
            tensors.push(SourceTensor { location, ..tensor });
        }
        for (index, change) in self.changes.iter().enumerate() {
            let elements = change.matrix.elements();
            let location =
                Location { shard: base.next_view() + views.len(), ..Location::contiguous(0, elements) };
            views.push(base.source.view(Merged { merging: Arc::clone(&self), index }));
            for tensor in tensors.iter_mut().filter(|tensor| tensor.name == change.matrix.name) {
                (tensor.dtype, tensor.location) = (SourceDType::F32, location);
            }
        }
        names::sort(&base.source, &mut tensors)?;
        Ok(base.with_tensors(tensors, views, Arc::clone(&self)))
    }

    /// The values for a change. Those of one matrix are kept.
    fn factors(&self, index: usize) -> Result<Arc<Factors>, SourceError> {
        let mut kept = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factors)) = kept.as_ref().filter(|(of, _)| *of == index) {
            return Ok(Arc::clone(factors));
        }
        *kept = None;
        let factors = Arc::new(self.read_factors(&self.changes[index].kind)?);
        *kept = Some((index, Arc::clone(&factors)));
        Ok(factors)
    }

    fn read_factors(&self, kind: &Kind) -> Result<Factors, SourceError> {
        let whole = |checkpoint: &Checkpoint, tensor: &SourceTensor| {
            let mut values = vec![0.0; tensor.elements()];
            checkpoint.read(tensor, 0, &mut values)?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(values),
                Some(i) => {
                    let expected = format!("a finite number in element {i}");
                    Err(checkpoint.source.tensor(&tensor.name, expected, values[i].to_string()))
                }
            }
        };
        Ok(match kind {
            Kind::LowRank { a, b, scale, init } => {
                let ab = [whole(&self.adapter, a)?, whole(&self.adapter, b)?];
                let init = match (init.as_deref(), &self.init) {
                    (Some([a0, b0]), Some(file)) => Some(([whole(file, a0)?, whole(file, b0)?], a0.shape[0])),
                    _ => None,
                };
                Factors::LowRank { ab, rank: a.shape[0], scale: *scale, init }
            }
            Kind::Shards(d) => Factors::Shards { d: whole(&self.adapter, d)?, rank: d.shape[0] },
            Kind::Blocks { d, by_input } => {
                Factors::Blocks { d: whole(&self.adapter, d)?, rank: d.shape[1], by_input: *by_input }
            }
        })
    }

    /// Merged elements of a matrix from `start` on.
    fn read(&self, index: usize, start: usize, out: &mut [f32]) -> Result<(), SourceError> {
        let matrix = &self.changes[index].matrix;
        let [rows, columns] = [matrix.shape[0], matrix.shape[1]];
        let factors = self.factors(index)?;
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (row, from) = (at / columns, at % columns);
            let (values, others) = rest.split_at_mut(rest.len().min(columns - from));
            // The mode bat needs whole rows of blocks.
            let (first, last) = match *factors {
                Factors::Blocks { rank, .. } => {
                    (from / rank * rank, (from + values.len()).next_multiple_of(rank))
                }
                _ => (from, from + values.len()),
            };
            let mut weights = vec![0.0; last - first];
            self.base.read(matrix, row * columns + first, &mut weights)?;
            let merged = factors.merge(&weights, row, first, [rows, columns]);
            values.copy_from_slice(&merged[from - first..][..values.len()]);
            at += values.len();
            rest = others;
        }
        Ok(())
    }
}

/// A merged matrix, as the bytes of f32 elements.
#[derive(Debug)]
struct Merged {
    merging: Arc<Merging>,
    index: usize,
}

impl ReadAt for Merged {
    fn len(&self) -> u64 {
        4 * self.merging.changes[self.index].matrix.elements() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self, buffer, offset)?;
        if !offset.is_multiple_of(4) || !buffer.len().is_multiple_of(4) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut values = vec![0.0; buffer.len() / 4];
        self.merging.read(self.index, (offset / 4) as usize, &mut values).map_err(io::Error::other)?;
        for (bytes, value) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    }
}

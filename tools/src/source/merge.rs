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

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;
use serde::Deserialize;

use super::adapter::{self, Part};
use super::aliases::blinkdl_name;
use super::checkpoint::Checkpoint;
use super::error::SourceError;
use super::file::ReadAt;
use super::location::Location;
use super::names;
use super::tensor::{Container, SourceDType, SourceTensor};

/// Most values of an adapter's tensor: 128 MiB. Those of a matrix are in memory while it is read.
const MAX_FACTOR: usize = 1 << 25;

/// Name of the settings that PEFT writes beside an adapter, and their longest length.
const PEFT_CONFIG: &str = "adapter_config.json";
const MAX_PEFT_CONFIG: u64 = 1 << 20;

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

/// How a matrix changes; tensors are those of the adapter.
#[derive(Debug)]
enum Kind {
    LowRank {
        a: SourceTensor,
        b: SourceTensor,
        scale: f64,
        init: Option<Box<[SourceTensor; 2]>>,
    },
    Shards(SourceTensor),
    /// `by_input` tells which blocks share a tensor.
    Blocks {
        d: SourceTensor,
        by_input: bool,
    },
}

/// A matrix of the checkpoint that the adapter changes.
#[derive(Debug)]
struct Change {
    matrix: SourceTensor,
    kind: Kind,
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

/// Values of an adapter's tensors for one matrix.
#[derive(Debug)]
enum Factors {
    LowRank { ab: [Vec<f32>; 2], rank: usize, scale: f64, init: Option<([Vec<f32>; 2], usize)> },
    Shards { d: Vec<f32>, rank: usize },
    Blocks { d: Vec<f32>, rank: usize, by_input: bool },
}

/// Settings of an adapter that PEFT saved.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    alpha_pattern: Option<BTreeMap<String, serde_json::Value>>,
    init_lora_weights: Option<serde_json::Value>,
}

/// The alpha of LoRA, and whether it is divided by the square root of the rank.
#[derive(Clone, Copy)]
struct Alpha {
    alpha: f64,
    by_root: bool,
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
        let alpha = self.alpha(&adapter)?;
        let changes = changes(&base, &adapter, init.as_ref(), alpha)?;
        let replaced = if is_own { Vec::new() } else { replacements(&base, &adapter)? };
        let merging = Arc::new(Merging { base, adapter, init, changes, factors: Mutex::default() });
        merging.checkpoint(replaced)
    }

    /// The alpha of a LoRA adapter, from the option or PEFT's settings.
    fn alpha(&self, adapter: &Checkpoint) -> Result<Option<Alpha>, SourceError> {
        if self.alpha.is_some_and(|alpha| !alpha.is_finite()) {
            return Err(adapter.source.unsupported("--lora-alpha must be a finite number"));
        }
        let by_option = self.alpha.map(|alpha| Alpha { alpha, by_root: false });
        let is_peft =
            |tensor: &SourceTensor| adapter::part(&tensor.name).is_some() && tensor.name.ends_with(".weight");
        let path = adapter.path().with_file_name(PEFT_CONFIG);
        if !adapter.tensors().iter().any(is_peft) || !path.is_file() {
            return Ok(by_option);
        }
        let refuse = |what: String| SourceError::Unsupported { file: path.clone(), what };
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let text = if length <= MAX_PEFT_CONFIG { std::fs::read(&path).ok() } else { None };
        let config: Option<PeftConfig> = text.and_then(|text| serde_json::from_slice(&text).ok());
        let Some(config) = config else {
            return Err(refuse("these are no settings of a PEFT adapter".to_owned()));
        };
        let starts = config.init_lora_weights.as_ref().and_then(serde_json::Value::as_str);
        let unknown = [
            (
                !["LORA", "MISS", "BONE"].contains(&config.peft_type.as_str()),
                "a kind of adapter that is not merged",
            ),
            (config.use_dora, "DoRA"),
            (config.fan_in_fan_out, "weights that are transposed (fan_in_fan_out)"),
            (
                config.alpha_pattern.is_some_and(|pattern| !pattern.is_empty()),
                "an alpha of its own for some layers",
            ),
            (
                starts.is_some_and(|starts| !["gaussian", "true", "orthogonal", "eva"].contains(&starts)),
                "factors that were taken from the weights (init_lora_weights)",
            ),
        ];
        if let Some((_, what)) = unknown.into_iter().find(|(is_set, _)| *is_set) {
            return Err(refuse(format!("{what}; merge the adapter with PEFT")));
        }
        match (config.lora_alpha, self.alpha) {
            (Some(alpha), Some(option)) if alpha != option => {
                Err(refuse(format!("lora_alpha is {alpha} there, and --lora-alpha is {option}")))
            }
            (Some(alpha), _) => Ok(Some(Alpha { alpha, by_root: config.use_rslora })),
            (None, _) => Ok(by_option),
        }
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The tensors of an adapter that change one matrix.
#[derive(Default)]
struct Parts<'a> {
    a: Option<&'a SourceTensor>,
    b: Option<&'a SourceTensor>,
    shards: Option<(&'a SourceTensor, Part)>,
}

/// The matrices that an adapter changes, by the names of the matrices.
fn parts<'a>(base: &Checkpoint, adapter: &'a Checkpoint) -> Result<BTreeMap<String, Parts<'a>>, SourceError> {
    let mut found: BTreeMap<String, Parts<'a>> = BTreeMap::new();
    for tensor in adapter.tensors() {
        let Some((target, part)) = adapter::part(&tensor.name) else {
            continue;
        };
        let parts = found.entry(blinkdl_name(base.naming(), &target)).or_default();
        let old = match part {
            Part::LoraA | Part::InitA => parts.a.replace(tensor),
            Part::LoraB | Part::InitB => parts.b.replace(tensor),
            Part::Shards | Part::PeftShards => parts.shards.replace((tensor, part)).map(|(tensor, _)| tensor),
            Part::Other(kind) => {
                return Err(adapter.source.unsupported(format!(
                    "an adapter ({kind}, found {}), which is not merged here; merge it with the program that \
                     trained it",
                    tensor.name.escape_debug()
                )));
            }
        };
        if let Some(old) = old {
            let also = format!("{} too", old.name.escape_debug());
            return Err(adapter.source.tensor(&tensor.name, "one adapter of a matrix", also));
        }
    }
    Ok(found)
}

/// Finds the changes of an adapter, and checks every shape.
fn changes(
    base: &Checkpoint,
    adapter: &Checkpoint,
    init: Option<&Checkpoint>,
    alpha: Option<Alpha>,
) -> Result<Vec<Change>, SourceError> {
    let found = parts(base, adapter)?;
    let inits = init.map(|init| parts(base, init)).transpose()?.unwrap_or_default();
    if found.is_empty() {
        return Err(adapter
            .source
            .unsupported("no adapter: none of its tensors is one of LoRA, PiSSA or MiSS"));
    }
    let change = |(name, parts): (&String, &Parts<'_>)| {
        let matrix = base.get(name).filter(|matrix| matrix.shape.len() == 2 && !matrix.transposed);
        let Some(matrix) = matrix else {
            let expected = format!("a model with the matrix {}", name.escape_debug());
            return Err(adapter.source.tensor(
                parts.name(),
                expected,
                "none; this is another model's adapter",
            ));
        };
        let kind = match *parts {
            Parts { a: Some(a), b: Some(b), shards: None } => {
                low_rank(adapter, matrix, [a, b], alpha, init.zip(Some(inits.get(name))))?
            }
            Parts { a: None, b: None, shards: Some((d, part)) } => shards(adapter, matrix, d, part)?,
            _ => {
                let expected = "lora_A and lora_B, or one tensor of MiSS, of each matrix";
                return Err(adapter.source.tensor(parts.name(), expected, "another set of tensors"));
            }
        };
        Ok(Change { matrix: matrix.clone(), kind })
    };
    found.iter().map(change).collect()
}

impl Parts<'_> {
    /// The name of one of the tensors.
    fn name(&self) -> &str {
        let tensor = self.a.or(self.b).or(self.shards.map(|(tensor, _)| tensor));
        tensor.map_or("", |tensor| &tensor.name)
    }
}

/// Checks `A [rank, in]` and `B [out, rank]`; returns the rank.
fn rank(file: &Checkpoint, matrix: &SourceTensor, [a, b]: [&SourceTensor; 2]) -> Result<usize, SourceError> {
    let [out, input] = [matrix.shape[0], matrix.shape[1]];
    match (&a.shape[..], &b.shape[..]) {
        (&[rank, a_in], &[b_out, b_rank])
            if rank > 0 && rank == b_rank && (a_in, b_out) == (input, out) && fits([a, b]) =>
        {
            Ok(rank)
        }
        (a_shape, b_shape) => Err(file.source.tensor(
            &a.name,
            format!("shape [rank, {input}], and [{out}, rank] of the second factor"),
            format!("{a_shape:?} and {b_shape:?}"),
        )),
    }
}

fn fits(factors: [&SourceTensor; 2]) -> bool {
    factors.iter().all(|factor| factor.elements() <= MAX_FACTOR)
}

fn low_rank(
    adapter: &Checkpoint,
    matrix: &SourceTensor,
    [a, b]: [&SourceTensor; 2],
    alpha: Option<Alpha>,
    init: Option<(&Checkpoint, Option<&Parts<'_>>)>,
) -> Result<Kind, SourceError> {
    let rank_of = |file, factors| rank(file, matrix, factors);
    let rank = rank_of(adapter, [a, b])?;
    let [a, b] = [a, b].map(Clone::clone);
    match (init, alpha) {
        (Some((file, init)), None) => match init {
            Some(&Parts { a: Some(a0), b: Some(b0), .. }) => {
                rank_of(file, [a0, b0])?;
                let init = Some(Box::new([a0.clone(), b0.clone()]));
                Ok(Kind::LowRank { a, b, scale: 1.0, init })
            }
            _ => Err(file.source.tensor(&matrix.name, "init_lora_A and init_lora_B of this matrix", "none")),
        },
        (None, Some(Alpha { alpha, by_root })) => {
            let rank = rank as f64;
            let scale = alpha / if by_root { rank.sqrt() } else { rank };
            Ok(Kind::LowRank { a, b, scale, init: None })
        }
        (Some((file, _)), Some(_)) => Err(file
            .source
            .unsupported("PiSSA has no alpha: give --lora-alpha for LoRA, or --pissa-init for PiSSA")),
        (None, None) => Err(adapter.source.unsupported(
            "the adapter does not say how it is scaled: give --lora-alpha N as it was trained with (trainers take \
             32 if nothing is set), or for PiSSA --pissa-init init_pissa.pth",
        )),
    }
}

/// Checks the tensor of MiSS.
fn shards(
    adapter: &Checkpoint,
    matrix: &SourceTensor,
    d: &SourceTensor,
    part: Part,
) -> Result<Kind, SourceError> {
    let [out, input] = [matrix.shape[0], matrix.shape[1]];
    let is_peft = part == Part::PeftShards;
    let blocks = if is_peft { out } else { input };
    match d.shape[..] {
        // The first Bone had [out, rank], and another meaning.
        [rank, columns]
            if rank > 0
                && (1..=input).contains(&rank)
                && (columns == out || (is_peft && columns > 0 && out.is_multiple_of(columns)))
                && (rank != out || columns != out)
                && fits([d, d]) =>
        {
            Ok(Kind::Shards(d.clone()))
        }
        [n, rank, columns]
            if rank > 0
                && rank == columns
                && n.checked_mul(rank) == Some(blocks)
                && out.is_multiple_of(rank)
                && input.is_multiple_of(rank)
                && fits([d, d]) =>
        {
            Ok(Kind::Blocks { d: d.clone(), by_input: !is_peft })
        }
        _ => Err(adapter.source.tensor(
            &d.name,
            format!("shape [rank, {out}], or [{blocks} / rank, rank, rank] of the mode bat"),
            format!("shape {:?}; the first Bone, [out, rank], is not merged", d.shape),
        )),
    }
}

/// The tensors of an adapter that replace those of the model, such as norms that were trained too.
fn replacements(base: &Checkpoint, adapter: &Checkpoint) -> Result<Vec<SourceTensor>, SourceError> {
    let mut replaced = Vec::new();
    for tensor in adapter.tensors().iter().filter(|tensor| adapter::part(&tensor.name).is_none()) {
        let name = blinkdl_name(base.naming(), &tensor.name);
        if let Some(old) = base.get(&name) {
            let is_one = |n: &&usize| **n != 1;
            let same = old.shape.iter().filter(is_one).eq(tensor.shape.iter().filter(is_one));
            if !same || old.transposed != tensor.transposed {
                let found = format!("shape {:?}", tensor.shape);
                return Err(adapter.source.tensor(&tensor.name, format!("shape {:?}", old.shape), found));
            }
        }
        replaced.push(SourceTensor { name, ..tensor.clone() });
    }
    Ok(replaced)
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

/// Adds row `row` of `B A` to `sums`, in the columns from `first` on.
fn add_product(
    sums: &mut [f64],
    [a, b]: &[Vec<f32>; 2],
    rank: usize,
    row: usize,
    first: usize,
    columns: usize,
) {
    for k in 0..rank {
        let factor = f64::from(b[row * rank + k]);
        let a = &a[k * columns + first..][..sums.len()];
        sums.iter_mut().zip(a).for_each(|(sum, &a)| *sum += factor * f64::from(a));
    }
}

impl Factors {
    /// The merged values of row `row` of a matrix, where `weights` has the columns from `first` on.
    fn merge(&self, weights: &[f32], row: usize, first: usize, [out, columns]: [usize; 2]) -> Vec<f32> {
        let mut sums = vec![0.0; weights.len()];
        let mut weights = Cow::Borrowed(weights);
        let mut scale = 1.0;
        match self {
            Self::LowRank { ab, rank, scale: by, init } => {
                if let Some((init, rank)) = init {
                    add_product(&mut sums, init, *rank, row, first, columns);
                    for (weight, sum) in weights.to_mut().iter_mut().zip(&mut sums) {
                        let rest = (f64::from(*weight) - std::mem::take(sum)) as f32;
                        *weight = bf16::from_f32(rest).to_f32();
                    }
                }
                scale = *by;
                add_product(&mut sums, ab, *rank, row, first, columns);
            }
            Self::Shards { d, rank } => {
                // In PEFT's mode mini, the columns repeat.
                let width = d.len() / rank;
                debug_assert!(out.is_multiple_of(width));
                let column = |i: usize| d[(first + i) % rank * width + row % width];
                sums.iter_mut().enumerate().for_each(|(i, sum)| *sum = f64::from(column(i)));
            }
            Self::Blocks { d, rank, by_input } => {
                for (block, sums) in sums.chunks_exact_mut(*rank).enumerate() {
                    let number = if *by_input { first / rank + block } else { row / rank };
                    let d = &d[number * rank * rank..][..rank * rank];
                    let line = |t: usize| &d[t * rank..][..*rank];
                    let factors = weights[block * rank..][..*rank].iter().map(|&weight| f64::from(weight));
                    // The identity beside the weights adds D itself.
                    for (factor, t) in factors.zip(0..).chain([(1.0, row % rank)]) {
                        sums.iter_mut().zip(line(t)).for_each(|(sum, &d)| *sum += factor * f64::from(d));
                    }
                }
            }
        }
        let add = |(&weight, &sum): (&f32, &f64)| (f64::from(weight) + scale * sum) as f32;
        weights.iter().zip(&sums).map(add).collect()
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
        let end = offset.checked_add(buffer.len() as u64);
        let is_whole = offset.is_multiple_of(4) && buffer.len().is_multiple_of(4);
        if !is_whole || end.is_none_or(|end| end > self.len()) {
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

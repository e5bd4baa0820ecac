//! Which matrices an adapter changes, and how. Every shape is checked here.

use std::collections::BTreeMap;

use super::super::adapter::{self, Part};
use super::super::aliases::blinkdl_name;
use super::super::checkpoint::Checkpoint;
use super::super::error::SourceError;
use super::super::tensor::SourceTensor;
use super::peft::Alpha;

/// Most values of an adapter's tensor: 128 MiB. Those of a matrix are in memory while it is read.
const MAX_FACTOR: usize = 1 << 25;

/// How a matrix changes; tensors are those of the adapter.
#[derive(Debug)]
pub(super) enum Kind {
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
pub(super) struct Change {
    pub(super) matrix: SourceTensor,
    pub(super) kind: Kind,
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
                return Err(adapter::not_merged(adapter, kind, &tensor.name));
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
pub(super) fn changes(
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
pub(super) fn replacements(
    base: &Checkpoint,
    adapter: &Checkpoint,
) -> Result<Vec<SourceTensor>, SourceError> {
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

//! Where each tensor of a `.rwkv` file comes from in the checkpoint, and what is done to it on the way.

use std::iter;

use anyhow::{Context, Result, ensure};
use rwkv_edge::format::{Config, Heads, Version};
use rwkv_edge::model::names::{self, ModelTensor, Role, V6_MIXES};

use crate::source::{Checkpoint, Container, SourceTensor};

/// The source of one tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct Origin<'a> {
    /// The checkpoint that has it.
    pub(crate) checkpoint: &'a Checkpoint,
    /// The tensor of the checkpoint.
    pub(crate) tensor: &'a SourceTensor,
    /// First element, for tensors that are slices of another.
    pub(crate) start: usize,
    /// Whether the matrix is stored `[in, out]`.
    pub(crate) transposed: bool,
    pub(crate) transform: Transform,
}

/// Where tensors come from: a checkpoint, and a state-tuned one's state, which may be a file of its own.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) state: Option<&'a Checkpoint>,
}

impl Sources<'_> {
    /// Whether there is a tuned state.
    pub(crate) fn has_state(&self) -> bool {
        self.state.is_some() || self.checkpoint.get(&names::initial_state(0)).is_some()
    }
}

/// What is done to the values of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Nothing.
    None,
    /// `-exp(x)`: the log decay of RWKV-4.
    NegExp,
    /// `exp(-exp(x))`: the decay of RWKV-5; each value repeated this often.
    Decay(usize),
    /// `exp(x)`: the bonus of RWKV-5.0 and 5.1; each value repeated.
    Exp(usize),
    /// As it is; each value repeated.
    Repeat(usize),
    /// A square matrix of this size for each head, turned.
    TurnHeads(usize),
}

impl Transform {
    /// Values of the file for each value of the checkpoint.
    pub(crate) fn repeat(self) -> usize {
        match self {
            Transform::None | Transform::NegExp | Transform::TurnHeads(_) => 1,
            Transform::Decay(n) | Transform::Exp(n) | Transform::Repeat(n) => n,
        }
    }

    /// The values of the file. Functions are computed in f64 with a portable exp, so that every machine writes the
    /// same bytes.
    pub(crate) fn apply(self, values: &[f32]) -> Vec<f32> {
        let map = |f: fn(f64) -> f64| values.iter().map(|&x| f(f64::from(x)) as f32).collect::<Vec<_>>();
        let once = match self {
            Transform::None | Transform::Repeat(_) => values.to_vec(),
            Transform::NegExp => map(|x| -libm::exp(x)),
            Transform::Decay(_) => map(|x| libm::exp(-libm::exp(x))),
            Transform::Exp(_) => map(libm::exp),
            Transform::TurnHeads(n) => {
                let turned = |i: usize| i / (n * n) * n * n + i % n * n + i / n % n;
                (0..values.len()).map(|i| values[turned(i)]).collect()
            }
        };
        once.into_iter().flat_map(|x| iter::repeat_n(x, self.repeat())).collect()
    }
}

impl<'a> Origin<'a> {
    /// Finds the source of `wanted` and checks its shape.
    ///
    /// # Errors
    /// Naming the tensor, what was expected and what was found.
    pub(crate) fn find(sources: Sources<'a>, config: &Config, wanted: &ModelTensor) -> Result<Self> {
        let checkpoint = match (wanted.role, sources.state) {
            (Role::State, Some(state)) => state,
            _ => sources.checkpoint,
        };
        let (tensor, transform) = vector_source(checkpoint, config, &wanted.name)?;
        let mut origin = Self { checkpoint, tensor, start: 0, transposed: false, transform };
        if wanted.role == Role::State && !tensor.transposed {
            // Files have [head, value, key], the kernels want [head, key, value].
            origin.transform = Transform::TurnHeads(config.heads.map_or(1, |heads| heads.head_size));
        }
        if matches!(wanted.role, Role::Vector | Role::State) {
            let expected = wanted.shape[0] / transform.repeat();
            let found = tensor.elements();
            let name = &tensor.name;
            ensure!(
                found == expected,
                "tensor {name}: expected {expected} values, found shape {:?}",
                tensor.shape
            );
            return Ok(origin);
        }
        let mut expected = wanted.shape.to_vec();
        if wanted.role == Role::LowRank {
            // Checkpoints keep the factors as [in, out]; readers mark those that do not.
            origin.transposed = !tensor.transposed;
            if origin.transposed {
                expected.reverse();
            }
            if let Some(slice) = mix_index(&wanted.name) {
                origin.start = slice * wanted.shape[0] * wanted.shape[1];
                expected.insert(0, V6_MIXES.len());
            }
        } else {
            origin.transposed = tensor.transposed;
        }
        ensure!(
            tensor.shape == expected,
            "tensor {}: expected shape {expected:?}, found {:?}",
            tensor.name,
            tensor.shape
        );
        ensure!(
            !origin.transposed || wanted.role == Role::LowRank,
            "tensor {}: this matrix is transposed",
            tensor.name
        );
        Ok(origin)
    }
}

/// The slice of `time_maa_w2` that a tensor of the file is.
fn mix_index(name: &str) -> Option<usize> {
    let (_, mix) = name.split_once(".att.time_maa_w2.")?;
    V6_MIXES.iter().position(|&name| name == mix)
}

fn get<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a SourceTensor> {
    checkpoint.get(name).with_context(|| format!("tensor {name} is missing"))
}

/// The checkpoint's tensor for one of the file, and the transform of decays and bonuses.
fn vector_source<'a>(
    checkpoint: &'a Checkpoint,
    config: &Config,
    name: &str,
) -> Result<(&'a SourceTensor, Transform)> {
    let raw = checkpoint.container() != Container::RwkvCpp;
    let is_v5 = matches!(config.version, Version::V5_0 | Version::V5_1 | Version::V5_2);
    let head_size = config.heads.map_or(1, |Heads { head_size, .. }| head_size);
    if let Some((block, _)) = name.split_once(".att.time_maa_w2.") {
        return Ok((get(checkpoint, &format!("{block}.att.time_maa_w2"))?, Transform::None));
    }
    if name.ends_with(".att.time_decay") && (config.version == Version::V4 || is_v5) {
        let tensor = get(checkpoint, name)?;
        let repeat = config.n_att / tensor.elements().clamp(1, config.n_att);
        let transform = match (config.version, raw) {
            (Version::V4, true) => Transform::NegExp,
            (Version::V4, false) => Transform::None,
            (_, true) => Transform::Decay(repeat),
            (_, false) => Transform::Repeat(repeat),
        };
        return Ok((tensor, transform));
    }
    if is_v5 && let Some(block) = name.strip_suffix("time_faaaa") {
        if let Some(tensor) = checkpoint.get(name) {
            let repeat = config.n_att / tensor.elements().clamp(1, config.n_att);
            return Ok((tensor, Transform::Repeat(repeat)));
        }
        let transform = if raw { Transform::Exp(head_size) } else { Transform::Repeat(head_size) };
        return Ok((get(checkpoint, &format!("{block}time_first"))?, transform));
    }
    Ok((get(checkpoint, name)?, Transform::None))
}

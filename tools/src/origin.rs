//! Where each tensor of a `.rwkv` file comes from in the checkpoint, and what is done to it on the way.

use std::iter;
use std::path::Path;

use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant};
use rwkv_edge::model::names::{self, ModelTensor, Role, V6_MIXES};

use crate::dims;
use crate::source::{Checkpoint, Container, SourceError, SourceTensor};

/// Most values of a matrix that is turned in memory, 128 MiB of them. The largest of released models have 2 million.
const MAX_TURNED: usize = 1 << 25;

/// An opened checkpoint and the path it was opened by, for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) path: &'a Path,
    pub(crate) checkpoint: &'a Checkpoint,
}

impl<'a> Input<'a> {
    /// The error that `tensor` is not what its place asks for.
    pub(crate) fn error(
        self,
        tensor: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> SourceError {
        let (file, tensor) = (self.path.to_owned(), tensor.escape_debug().to_string());
        SourceError::Tensor { file, tensor, expected: expected.into(), found: found.into() }
    }

    pub(crate) fn get(self, name: &str) -> Result<&'a SourceTensor, SourceError> {
        self.checkpoint.get(name).ok_or_else(|| self.error(name, "it in this file", "none"))
    }
}

/// The source of one tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct Origin<'a> {
    /// The checkpoint that has it.
    pub(crate) input: Input<'a>,
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
    pub(crate) checkpoint: Input<'a>,
    pub(crate) state: Option<Input<'a>>,
}

impl Sources<'_> {
    /// Whether there is a tuned state.
    pub(crate) fn has_state(&self) -> bool {
        let tensors = self.checkpoint.checkpoint.tensors();
        self.state.is_some() || tensors.iter().any(|tensor| tensor.name.ends_with(".att.time_state"))
    }

    /// Refuses a file of a state that the model cannot have, or that has anything else in it.
    pub(crate) fn check_state(&self, config: &Config) -> Result<(), SourceError> {
        let Some(state) = self.state else { return Ok(()) };
        if config.heads().is_none() {
            let what = format!("a state for {}, whose states are not tuned", config.version());
            return Err(SourceError::Unsupported { file: state.path.to_owned(), what });
        }
        let n_layer = config.n_layer;
        let known = |name: &str| (0..n_layer).any(|layer| name == names::initial_state(layer));
        match state.checkpoint.tensors().iter().find(|tensor| !known(&tensor.name)) {
            None => Ok(()),
            Some(other) => {
                let expected = format!("nothing but att.time_state of {n_layer} layers in a file of a state");
                Err(state.error(&other.name, expected, "this tensor"))
            }
        }
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

    /// Values of the checkpoint that are transformed together, apart from all others.
    pub(crate) fn unit(self) -> usize {
        match self {
            Transform::TurnHeads(n) => n * n,
            _ => 1,
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
    pub(crate) fn find(
        sources: Sources<'a>,
        config: &Config,
        wanted: &ModelTensor,
    ) -> Result<Self, SourceError> {
        let input = match (wanted.role, sources.state) {
            (Role::State, Some(state)) => state,
            _ => sources.checkpoint,
        };
        let (tensor, transform) = vector_source(input, config, &wanted.name)?;
        let mut origin = Self { input, tensor, start: 0, transposed: false, transform };
        let (fits, expected) = match (wanted.role, config.heads()) {
            (Role::Vector, _) => origin.fits_vector(config, wanted.shape[0] / transform.repeat()),
            (Role::State, Some(heads)) => origin.fits_state(heads),
            // What they bound is checked.
            (Role::ScaleBound | Role::HeadBound, _) => (true, String::new()),
            _ => origin.fits_matrix(wanted),
        };
        let [rows, cols] = wanted.shape;
        if fits && origin.transposed && rows.saturating_mul(cols) > MAX_TURNED {
            let expected = format!("at most {MAX_TURNED} values in a low-rank matrix");
            return Err(input.error(&tensor.name, expected, format!("shape {:?}", tensor.shape)));
        }
        if fits {
            return Ok(origin);
        }
        let shape_of =
            |name: String| Some(format!("{name} {:?}", sources.checkpoint.checkpoint.get(&name)?.shape));
        let references = dims::references(config.version(), &tensor.name);
        let references: Vec<_> = references.into_iter().filter_map(shape_of).collect();
        let expected = match &references[..] {
            [] => expected,
            _ => format!("{expected} (given by {})", references.join(", ")),
        };
        Err(input.error(&tensor.name, expected, format!("shape {:?}", tensor.shape)))
    }

    /// Whether there are `len` values in one dimension or by head, and what is expected.
    fn fits_vector(&self, config: &Config, len: usize) -> (bool, String) {
        let mut fits = has_shape(self.tensor, &[len]);
        let mut expected = format!("{len} values");
        if let Some(&Heads { n_head, head_size, .. }) = config.heads()
            && len == config.n_att
            && self.tensor.name.contains(".att.")
        {
            fits |= has_shape(self.tensor, &[n_head, head_size]);
            expected += &format!(" or shape [{n_head}, {head_size}]");
        }
        (fits, expected)
    }

    fn fits_state(&mut self, heads: &Heads) -> (bool, String) {
        let (n_head, size) = (heads.n_head, heads.head_size);
        if !self.tensor.transposed {
            // Files have [head, value, key], the kernels want [head, key, value].
            self.transform = Transform::TurnHeads(size);
        }
        let shape = [n_head, size, size];
        (has_shape(self.tensor, &shape), format!("shape {shape:?}"))
    }

    fn fits_matrix(&mut self, wanted: &ModelTensor) -> (bool, String) {
        let mut shape = wanted.shape.to_vec();
        if wanted.role == Role::LowRank {
            // Checkpoints keep the factors as [in, out]; readers mark those that do not.
            self.transposed = !self.tensor.transposed;
            if self.transposed {
                shape.reverse();
            }
            if let Some(slice) = mix_index(&wanted.name) {
                self.start = slice * wanted.shape[0] * wanted.shape[1];
                shape.insert(0, V6_MIXES.len());
            }
        }
        (self.tensor.shape == shape, format!("shape {shape:?}"))
    }
}

/// Whether a tensor has a shape; dimensions of 1 do not count.
fn has_shape(tensor: &SourceTensor, shape: &[usize]) -> bool {
    let counts = |&&n: &&usize| n != 1;
    tensor.shape.iter().filter(counts).eq(shape.iter().filter(counts))
}

/// The slice of `time_maa_w2` that a tensor of the file is.
fn mix_index(name: &str) -> Option<usize> {
    let (_, mix) = name.split_once(".att.time_maa_w2.")?;
    V6_MIXES.iter().position(|&name| name == mix)
}

/// The checkpoint's tensor for one of the file, and the transform of decays and bonuses.
fn vector_source<'a>(
    input: Input<'a>,
    config: &Config,
    name: &str,
) -> Result<(&'a SourceTensor, Transform), SourceError> {
    if name == names::HEAD_RESIDUAL {
        return Ok((input.get(names::HEAD)?, Transform::None));
    }
    if let Some(bounded) = name.strip_suffix(".bound") {
        return Ok((input.get(&format!("{bounded}.weight"))?, Transform::None));
    }
    if let Some((block, _)) = name.split_once(".att.time_maa_w2.") {
        return Ok((input.get(&format!("{block}.att.time_maa_w2"))?, Transform::None));
    }
    let raw = input.checkpoint.container() != Container::RwkvCpp;
    match &config.arch {
        Arch::V4 if raw && name.ends_with(".att.time_decay") => Ok((input.get(name)?, Transform::NegExp)),
        Arch::V5(arch) => v5_source(input, config.n_att, arch, name, raw),
        _ => Ok((input.get(name)?, Transform::None)),
    }
}

/// The same for RWKV-5, whose decay and bonus have a value for each channel or for each head.
fn v5_source<'a>(
    input: Input<'a>,
    n_att: usize,
    arch: &Rwkv5,
    name: &str,
    raw: bool,
) -> Result<(&'a SourceTensor, Transform), SourceError> {
    let head_size = arch.heads.head_size;
    let repeat = |tensor: &SourceTensor| if tensor.elements() == n_att { 1 } else { head_size };
    if name.ends_with(".att.time_decay") {
        let tensor = input.get(name)?;
        let repeat = if arch.variant == Rwkv5Variant::V5_2 { 1 } else { repeat(tensor) };
        return Ok((tensor, if raw { Transform::Decay(repeat) } else { Transform::Repeat(repeat) }));
    }
    let Some(block) = name.strip_suffix("time_faaaa") else {
        return Ok((input.get(name)?, Transform::None));
    };
    if let Some(tensor) = input.checkpoint.get(name) {
        return Ok((tensor, Transform::Repeat(repeat(tensor))));
    }
    let transform = if raw { Transform::Exp(head_size) } else { Transform::Repeat(head_size) };
    Ok((input.get(&format!("{block}time_first"))?, transform))
}

//! Where each tensor of a `.rwkv` file comes from in the checkpoint, and the transform on the way.

use std::iter;
use std::path::Path;

use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant};
use rwkv_edge::model::names::{self, ModelTensor, Role, V6_MIXES};

use crate::config;
use crate::source::{Checkpoint, Container, SourceError, SourceTensor, stored_names};

/// Most values of a matrix that is transposed in memory: 128 MiB. The largest in released models
/// have 2 million.
const MAX_TURNED: usize = 1 << 25;

/// An opened checkpoint and the path it was opened by, for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) path: &'a Path,
    pub(crate) checkpoint: &'a Checkpoint,
}

impl<'a> Input<'a> {
    /// The error that `tensor` does not fit its place in the model.
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

/// Where the values of a tensor of the file come from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// From a tensor of the checkpoint.
    Stored(Stored),
    /// They bound the tensor of this name, and come from its encoding.
    BoundsOf(String),
}

/// A tensor of a checkpoint, or a slice of one, that becomes a tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Whether it is in the file of a tuned state.
    in_state: bool,
    /// The tensor of the checkpoint.
    pub(crate) tensor: SourceTensor,
    /// First element, for tensors that are slices of another.
    pub(crate) start: usize,
    /// Whether the matrix is stored `[in, out]`.
    pub(crate) transposed: bool,
    pub(crate) transform: Transform,
}

/// Sources of tensors: a checkpoint, and the state of a state-tuned one, which may be a file of its
/// own.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) checkpoint: Input<'a>,
    pub(crate) state: Option<Input<'a>>,
}

impl<'a> Sources<'a> {
    /// The checkpoint that has `stored`.
    pub(crate) fn of(self, stored: &Stored) -> Input<'a> {
        match self.state {
            Some(state) if stored.in_state => state,
            _ => self.checkpoint,
        }
    }

    /// Whether there is a tuned state.
    pub(crate) fn has_state(&self) -> bool {
        let tensors = self.checkpoint.checkpoint.tensors();
        self.state.is_some() || tensors.iter().any(|tensor| tensor.name.ends_with(".att.time_state"))
    }

    /// Refuses a state file if the model cannot have a tuned state, or if the file has any other
    /// tensor.
    pub(crate) fn check_state(&self, config: &Config) -> Result<(), SourceError> {
        let Some(state) = self.state else { return Ok(()) };
        state.checkpoint.check_readable()?;
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

/// Transform of a vector's values.
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
    /// A square matrix of this size for each head, transposed.
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

    /// Number of checkpoint values that are transformed together, apart from all others.
    pub(crate) fn unit(self) -> usize {
        match self {
            Transform::TurnHeads(n) => n * n,
            _ => 1,
        }
    }

    /// The values of the file. Functions are computed in f64 with a portable exp, so that every
    /// machine writes the same bytes.
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

impl Origin {
    /// Finds where `wanted` comes from and checks its shape.
    ///
    /// # Errors
    /// Naming the tensor, what was expected and what was found.
    pub(crate) fn find(
        sources: Sources<'_>,
        config: &Config,
        wanted: &ModelTensor,
    ) -> Result<Self, SourceError> {
        match names::bounded_by(&wanted.name) {
            Some(bounded) => Ok(Self::BoundsOf(bounded)),
            None => Stored::find(sources, config, wanted).map(Self::Stored),
        }
    }
}

impl Stored {
    /// Finds the tensor of the checkpoint and checks its shape.
    ///
    /// # Errors
    /// Naming the tensor, what was expected and what was found.
    pub(crate) fn find(
        sources: Sources<'_>,
        config: &Config,
        wanted: &ModelTensor,
    ) -> Result<Self, SourceError> {
        let in_state = wanted.role == Role::State && sources.state.is_some();
        let input = if in_state { sources.state.unwrap_or(sources.checkpoint) } else { sources.checkpoint };
        let tensor = stored(input, config, &wanted.name)?.clone();
        let transform = transform(input.checkpoint.container(), config, &tensor);
        let mut origin = Self { in_state, tensor, start: 0, transposed: false, transform };
        let (fits, expected) = match (wanted.role, config.heads()) {
            (Role::Vector, _) => origin.fits_vector(config, wanted.shape[0] / transform.repeat()),
            (Role::State, Some(heads)) => origin.fits_state(heads),
            _ => origin.fits_matrix(wanted),
        };
        let [rows, cols] = wanted.shape;
        if fits && origin.transposed && rows.saturating_mul(cols) > MAX_TURNED {
            let expected = format!("at most {MAX_TURNED} values in a low-rank matrix");
            return Err(origin.misshapen(input, expected));
        }
        if fits {
            return Ok(origin);
        }
        let shape_of =
            |name: String| Some(format!("{name} {:?}", sources.checkpoint.checkpoint.get(&name)?.shape));
        let references = config::references(config.version(), &origin.tensor.name);
        let references: Vec<_> = references.into_iter().filter_map(shape_of).collect();
        let expected = match &references[..] {
            [] => expected,
            _ => format!("{expected} (given by {})", references.join(", ")),
        };
        Err(origin.misshapen(input, expected))
    }

    fn misshapen(&self, input: Input<'_>, expected: String) -> SourceError {
        input.error(&self.tensor.name, expected, format!("shape {:?}", self.tensor.shape))
    }

    /// Whether the tensor has `len` values, in one dimension or by head; and the expected form in
    /// words.
    fn fits_vector(&self, config: &Config, len: usize) -> (bool, String) {
        let mut fits = has_shape(&self.tensor, &[len]);
        let mut expected = format!("{len} values");
        if let Some(&Heads { n_head, head_size, .. }) = config.heads()
            && len == config.n_att
            && self.tensor.name.contains(".att.")
        {
            fits |= has_shape(&self.tensor, &[n_head, head_size]);
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
        (has_shape(&self.tensor, &shape), format!("shape {shape:?}"))
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

/// The number of the slice of `time_maa_w2` that becomes this tensor of the file.
fn mix_index(name: &str) -> Option<usize> {
    let (_, mix) = name.split_once(".att.time_maa_w2.")?;
    V6_MIXES.iter().position(|&name| name == mix)
}

/// The checkpoint's tensor that becomes the file's tensor of this name.
fn stored<'a>(input: Input<'a>, config: &Config, name: &str) -> Result<&'a SourceTensor, SourceError> {
    let names = stored_names(config.version(), name);
    let found = names.iter().find_map(|name| input.checkpoint.get(name));
    found.map_or_else(|| input.get(names.first().map_or(name, String::as_str)), Ok)
}

/// Transform of a decay or a bonus. rwkv.cpp stores both already transformed.
fn transform(container: Container, config: &Config, tensor: &SourceTensor) -> Transform {
    let raw = container != Container::RwkvCpp;
    let is_decay = tensor.name.ends_with(".att.time_decay");
    match &config.arch {
        Arch::V4 if is_decay && raw => Transform::NegExp,
        Arch::V5(Rwkv5 { variant, heads }) => {
            // There is a value for each channel or for each head.
            let by_channel = tensor.elements() == config.n_att;
            let repeat = if by_channel { 1 } else { heads.head_size };
            if is_decay {
                let repeat = if *variant == Rwkv5Variant::V5_2 { 1 } else { repeat };
                if raw { Transform::Decay(repeat) } else { Transform::Repeat(repeat) }
            } else if tensor.name.ends_with(".att.time_faaaa") {
                Transform::Repeat(repeat)
            } else if tensor.name.ends_with(".att.time_first") {
                if raw { Transform::Exp(heads.head_size) } else { Transform::Repeat(heads.head_size) }
            } else {
                Transform::None
            }
        }
        _ => Transform::None,
    }
}

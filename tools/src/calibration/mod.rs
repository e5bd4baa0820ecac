//! What a model's matrices are multiplied with: activations, measured on a text while the model is
//! quantized.
//!
//! The error of a quantized weight counts as much as the input that it is multiplied with. So a
//! model of int8 of the same checkpoint reads a text, layer by layer. Each column of a matrix gets
//! the mean square of its inputs as importance (arXiv 2306.00978, section 3; llama.cpp's imatrix).
//! Error feedback takes all their second moments. The kernels give the same bits everywhere, so the
//! statistics and the file do not depend on the machine.

mod energy;
mod moments;
mod passes;
mod text;
mod windows;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use rwkv_edge::format::Provenance;
use rwkv_edge::{Model, Observer};
use sha2::{Digest, Sha256};

use crate::job::Stop;
use energy::Energies;
use moments::Counters;
pub(crate) use moments::{DAMPING, Moments, VALUE_BLOCK};
use passes::Passes;

/// The text that activations are measured on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CalibrationText {
    /// No text: every column counts the same.
    #[default]
    None,
    /// What suits the checkpoint ([`CalibrationText::for_vocab`]); nothing if its weights are random.
    Auto,
    /// The text that comes with the converter.
    BuiltIn,
    /// What the model itself writes.
    Own,
    /// A file of UTF-8.
    File(PathBuf),
}

impl CalibrationText {
    /// The built-in text for the vocabularies of general models, World and Pile. Models of other
    /// vocabularies know one kind of text, which they write themselves.
    pub fn for_vocab(n_vocab: usize) -> Self {
        match n_vocab {
            65_536 | 50_277 | 50_304 => Self::BuiltIn,
            _ => Self::Own,
        }
    }

    /// Its name in a file's provenance; `None` if there is no text.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Self::None | Self::Auto => None,
            Self::BuiltIn => Some("built-in".into()),
            Self::Own => Some("self".into()),
            Self::File(path) => Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        }
    }
}

/// How much work the rounding of weights may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Each weight is rounded alone. Columns have an importance.
    #[default]
    Normal,
    /// Weights that are rounded later make up for the errors of those before.
    High,
}

impl Effort {
    /// Tokens that suffice, and those that a model reads from one start.
    fn tokens(self) -> [usize; 2] {
        match self {
            Self::Normal => [2048, 256],
            Self::High => [24_576, 512],
        }
    }
}

/// Most bytes of what all tokens carry from a layer to the next. A larger model reads fewer tokens.
const MOST_STREAM_BYTES: usize = 160 << 20;

/// Most bytes of the moments of several matrices. A layer that has more is run several times.
const MOST_MOMENT_BYTES: usize = 96 << 20;

/// A matrix that is rounded by its inputs.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Name in the file.
    pub(crate) name: String,
    /// Inputs.
    pub(crate) columns: usize,
    /// Whether it is stored, and rounded, column by column.
    pub(crate) by_columns: bool,
}

impl Target {
    /// Bytes of its moments.
    fn moment_bytes(&self) -> usize {
        let width = if self.by_columns { self.columns.min(VALUE_BLOCK) } else { self.columns };
        2 * self.columns * width
    }
}

/// What is known of the inputs of a matrix.
pub(crate) enum Inputs {
    /// The importance of each column.
    Importance(Vec<f32>),
    /// Second moments.
    Moments(Moments),
}

/// Measures the inputs of matrices, in one layer after the other.
pub(crate) struct Calibration {
    passes: Passes,
    effort: Effort,
    threads: usize,
    /// The matrices in the order of the file.
    targets: Vec<Target>,
    /// How many of them have been measured.
    measured: usize,
    /// What was measured in the last pass.
    inputs: HashMap<String, Inputs>,
}

impl Calibration {
    /// Reads `text` with `model`, which is of the same checkpoint.
    pub(crate) fn new(
        model: Arc<Model>,
        (text, effort): (&CalibrationText, Effort),
        targets: Vec<Target>,
        threads: usize,
        stop: Stop<'_>,
    ) -> Result<Self> {
        let [tokens, window] = effort.tokens();
        let most = MOST_STREAM_BYTES / passes::bytes_per_token(&model);
        let windows = windows::of(&model, text, [tokens.min(most), window], (threads, stop))?;
        let passes = Passes::new(model, windows, threads)?;
        Ok(Self { passes, effort, threads, targets, measured: 0, inputs: HashMap::new() })
    }

    /// Completes the provenance of a file that depends on the measurement.
    pub(crate) fn describe(&self, provenance: &mut Provenance) {
        let tokens = || self.passes.windows().iter().flatten();
        let mut digest = Sha256::new();
        tokens().for_each(|token| digest.update(token.to_le_bytes()));
        if let Some(calibration) = &mut provenance.calibration {
            calibration.tokens = tokens().count() as u32;
            calibration.sha256 = digest.finalize().into();
        }
    }

    /// What is known of the inputs of tensor `name`: nothing unless it is one of the targets, which
    /// must be asked for in their order.
    pub(crate) fn inputs(&mut self, name: &str, stop: Stop<'_>) -> Result<Option<Inputs>> {
        let Some(index) = self.targets.iter().position(|target| target.name == name) else {
            return Ok(None);
        };
        while self.measured <= index {
            let together = self.together();
            self.measure(together.clone(), stop)?;
            self.measured = together.end;
        }
        Ok(self.inputs.remove(name))
    }

    /// The next matrices that are measured together: those of a layer, as far as their moments fit.
    fn together(&self) -> Range<usize> {
        let first = self.measured;
        let layer = layer_of(&self.targets[first].name);
        let of_layer = self.targets[first..].iter().take_while(|target| layer_of(&target.name) == layer);
        let mut bytes = 0;
        let fitting = of_layer.enumerate().take_while(|(i, target)| {
            bytes += target.moment_bytes();
            *i == 0 || self.effort == Effort::Normal || bytes <= MOST_MOMENT_BYTES
        });
        first..first + fitting.count()
    }

    fn measure(&mut self, together: Range<usize>, stop: Stop<'_>) -> Result<()> {
        let Self { passes, effort, threads, targets, inputs, .. } = self;
        let layer = layer_of(&targets[together.start].name);
        let is_last = targets.get(together.end).is_none_or(|next| layer_of(&next.name) != layer);
        let observe = |passes: &mut Passes, observer: &mut dyn Observer| match is_last {
            true => passes.finish_layer(observer, stop),
            false => passes.observe(observer, stop),
        };
        passes.reach(layer, stop)?;
        // Whatever nobody asked for makes room.
        inputs.clear();
        let targets = &targets[together];
        match effort {
            Effort::Normal => {
                let mut energies = Energies::default();
                observe(passes, &mut energies)?;
                let named = targets.iter().filter_map(|target| {
                    Some((target.name.clone(), Inputs::Importance(energies.importance(&target.name)?)))
                });
                inputs.extend(named);
            }
            Effort::High => {
                let mut counters = Counters::new(targets, *threads);
                passes.sample(&mut counters, stop)?;
                counters.begin();
                observe(passes, &mut counters)?;
                let named = counters.finish().into_iter();
                inputs.extend(named.map(|(name, moments)| (name, Inputs::Moments(moments))));
            }
        }
        Ok(())
    }
}

/// The layer in a name such as `blocks.3.att.key.weight`; targets have one.
fn layer_of(name: &str) -> usize {
    name.split('.').nth(1).and_then(|layer| layer.parse().ok()).unwrap_or(0)
}

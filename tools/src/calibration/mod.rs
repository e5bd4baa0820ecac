//! What a model's matrices are multiplied with: activations, measured on a text while the model is
//! quantized.
//!
//! The error of a quantized weight counts as much as the input that it is multiplied with. So a
//! model of int8 of the same checkpoint reads a text, layer by layer, and each column of a matrix
//! gets the mean square of its inputs as importance (arXiv 2306.00978, section 3; llama.cpp's
//! imatrix). The kernels give the same bits everywhere, so the statistics and the file do not depend
//! on the machine.

mod energy;
mod passes;
mod text;
mod windows;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use rwkv_edge::Model;
use rwkv_edge::format::Provenance;
use sha2::{Digest, Sha256};

use crate::job::Stop;
use energy::Energies;
use passes::Passes;

/// The text that activations are measured on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CalibrationText {
    /// No text: every column counts the same.
    #[default]
    None,
    /// The text that comes with the converter.
    BuiltIn,
    /// What the model itself writes.
    Own,
    /// A file of UTF-8.
    File(PathBuf),
}

impl CalibrationText {
    /// Its name in a file's provenance; `None` if there is no text.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::BuiltIn => Some("built-in".into()),
            Self::Own => Some("self".into()),
            Self::File(path) => Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        }
    }
}

/// Tokens that suffice for the importance of columns.
const TOKENS: usize = 2048;

/// Tokens that the model reads from one start.
const WINDOW: usize = 256;

/// The importance of columns in one layer after the other.
pub(crate) struct Calibration {
    passes: Passes,
    /// Layers that have been measured.
    layers: usize,
    /// What was measured in the last one.
    energies: Energies,
}

impl Calibration {
    /// Reads `text` with `model`, which is of the same checkpoint.
    pub(crate) fn new(
        model: Arc<Model>,
        text: &CalibrationText,
        threads: usize,
        stop: Stop<'_>,
    ) -> Result<Self> {
        let windows = windows::of(&model, text, [TOKENS, WINDOW], (threads, stop))?;
        Ok(Self { passes: Passes::new(model, windows, threads)?, layers: 0, energies: Energies::default() })
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

    /// Measures the layer of tensor `name` and those before it, unless that has been done.
    pub(crate) fn reach(&mut self, name: &str, stop: Stop<'_>) -> Result<()> {
        let Some(layer) = layer_of(name) else { return Ok(()) };
        while self.layers <= layer {
            self.energies = Energies::default();
            self.passes.run(self.layers, &mut self.energies, stop)?;
            self.layers += 1;
        }
        Ok(())
    }

    /// The importance of the columns of the matrix `name`, in the layer that was measured last.
    pub(crate) fn importance(&self, name: &str) -> Option<Vec<f32>> {
        self.energies.importance(name)
    }
}

/// The layer in a name such as `blocks.3.att.key.weight`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

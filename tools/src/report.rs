//! The report of a conversion, for people.

use std::fmt;
use std::path::PathBuf;

use rwkv_edge::format::{FileLayout, TensorInfo, TensorLayout};
use rwkv_edge::model::names;

use crate::source::{SourceDType, ZeroRun};

/// Number of tensors in the list of the worst.
const WORST: usize = 5;

/// A possible fault of a conversion that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The weights were quantized before, to so few bits that it shows.
    Coarse {
        /// The checkpoint.
        file: PathBuf,
        /// The types that show.
        types: Vec<SourceDType>,
    },
    /// No activations were measured, so that every column of a matrix counts the same.
    NoCalibration,
    /// A matrix has zeros as if a piece of the file were missing.
    ZeroRun {
        /// The checkpoint.
        file: PathBuf,
        /// Where.
        run: ZeroRun,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coarse { file, types } => {
                let types: Vec<_> = types.iter().map(SourceDType::to_string).collect();
                write!(
                    f,
                    "{}: its weights were quantized before ({}); a file of F16, BF16 or Q8_0 gives a better model",
                    file.display(),
                    types.join(", ")
                )
            }
            Self::NoCalibration => f.write_str(
                "no activations were measured: without --calib none, the same bytes give a better model",
            ),
            Self::ZeroRun { file, run: ZeroRun { tensor, start, len } } => write!(
                f,
                "{}: tensor {tensor}: {len} zeros in a row from element {start} on; a piece of the file may be missing: \
                 compare its checksum with the publisher's",
                file.display()
            ),
        }
    }
}

/// The outcome of a conversion.
#[derive(Debug)]
pub struct Report {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Weights in all tensors.
    pub weights: u64,
    /// Relative error over all quantized tensors.
    pub rel_error: f32,
    /// The tensors with the largest relative errors, worst first.
    pub worst: Vec<(String, f32)>,
    /// Warnings that the user should read before using the file.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// Collects the figures of a file whose tensors have the relative errors `errors`.
    pub(crate) fn new(layout: &FileLayout, errors: &[f32], rel_error: f32, warnings: Vec<Warning>) -> Self {
        let tensors = layout.tensors();
        let weights: Vec<&TensorInfo> = tensors.iter().filter(|t| t.dtype.weight().is_some()).collect();
        let mut worst: Vec<_> = tensors.iter().zip(errors).map(|(t, &e)| (t.name.clone(), e)).collect();
        worst.retain(|&(_, error)| error > 0.0);
        worst.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        worst.truncate(WORST);
        Self {
            file_bytes: layout.file_len(),
            tensor_bytes: weights.iter().map(|t| t.len).sum(),
            // The second plane of a nested head holds the same weights again. Bounds are no
            // weights.
            weights: weights
                .iter()
                .filter(|t| !names::is_derived(&t.name))
                .map(|t| t.shape[0] as u64 * t.shape[1] as u64)
                .sum(),
            rel_error,
            worst,
            warnings,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = 8.0 * self.tensor_bytes as f64 / self.weights as f64;
        writeln!(
            f,
            "{} weights, {bits:.3} bits per weight, file size {} bytes",
            self.weights, self.file_bytes
        )?;
        write!(f, "relative error {:.5} over all weights", self.rel_error)?;
        for (name, error) in &self.worst {
            write!(f, "\n  {error:.5}  {name}")?;
        }
        Ok(())
    }
}

/// The tensors of a file, one per line.
pub fn tensor_list(layout: &FileLayout) -> String {
    let line = |tensor: &TensorInfo| {
        let shape = match tensor.layout {
            TensorLayout::Vector => format!("[{}]", tensor.shape[0]),
            _ => format!("[{}, {}]", tensor.shape[0], tensor.shape[1]),
        };
        let (dtype, layout) = (tensor.dtype.to_string(), tensor.layout.to_string());
        format!("  {:<36} {shape:<16} {dtype:<5} {layout:<15} {:>12} bytes\n", tensor.name, tensor.len)
    };
    layout.tensors().iter().map(line).collect()
}

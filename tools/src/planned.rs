//! A file that will be written: its tensors, their origins, and its layout.

use std::collections::HashMap;

use anyhow::{Context, Result};
use rwkv_edge::format::{FileContents, FileLayout, ModelWriter, Target, TensorLayout, WriteSpec};
use rwkv_edge::kernels::quant::ErrorSums;
use rwkv_edge::kernels::{DType, Isa};
use rwkv_edge::model::names::{self, ModelTensor, Role};
use rwkv_edge::{LoadOptions, Model, Verify};

use crate::calibration::{self, Calibration, CalibrationText, Effort};
use crate::encode::{Encoded, Encoder};
use crate::job::{Progress, Stop};
use crate::origin::{Origin, Sources};
use crate::policy::{self, QuantSpec};

/// The tensors of a file with their origins, and the file's layout.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) tensors: Vec<(ModelTensor, Origin)>,
    pub(crate) layout: FileLayout,
}

/// Errors of the tensors that were written.
pub(crate) struct Errors {
    /// The relative error of each tensor.
    pub(crate) each: Vec<f32>,
    /// The sums over all.
    pub(crate) total: ErrorSums,
}

impl Planned {
    /// The file of `tensors` with the types of `quant`. The other `contents` are given.
    pub(crate) fn new(
        tensors: Vec<(ModelTensor, Origin)>,
        quant: QuantSpec,
        contents: FileContents,
    ) -> Result<Self> {
        let specs = tensors.iter().map(|(tensor, _)| policy::spec(tensor, quant)).collect();
        Ok(Self { layout: FileLayout::new(FileContents { tensors: specs, ..contents })?, tensors })
    }

    /// The matrices whose weights are rounded by their inputs.
    pub(crate) fn targets(&self) -> Vec<calibration::Target> {
        let specs = self.layout.contents().tensors.iter();
        let is_target = |(spec, (tensor, _)): &(&WriteSpec, &(ModelTensor, Origin))| {
            matches!(tensor.role, Role::Matrix | Role::FirstOutput | Role::SparseMatrix)
                && spec.dtype.weight().is_some_and(DType::is_quantized)
        };
        let target = |spec: &WriteSpec| calibration::Target {
            name: spec.name.clone(),
            columns: spec.shape[1],
            by_columns: spec.layout == TensorLayout::ColumnRecords,
        };
        specs.zip(&self.tensors).filter(is_target).map(|(spec, _)| target(spec)).collect()
    }

    /// Encodes every tensor. `calibration` measures what the tensors of a layer are multiplied with
    /// when the first of them is reached.
    pub(crate) fn write(
        &self,
        sources: Sources<'_>,
        writer: &mut ModelWriter,
        (mut encoder, mut calibration): (Encoder<'_>, Option<Calibration>),
        (progress, stop): (&mut dyn Progress, Stop<'_>),
    ) -> Result<Errors> {
        let specs = &self.layout.contents().tensors;
        let nested_head = specs.iter().any(|spec| spec.name == names::HEAD_RESIDUAL);
        let total: u64 = specs.iter().map(|spec| spec.shape[0] as u64 * spec.shape[1] as u64).sum();
        let mut errors = Errors { each: Vec::with_capacity(specs.len()), total: ErrorSums::default() };
        let mut bounds = HashMap::new();
        let mut done = 0;
        for (index, (spec, (tensor, origin))) in specs.iter().zip(&self.tensors).enumerate() {
            let mut inputs = None;
            if let Some(calibration) = &mut calibration {
                progress.update(done, total, &spec.name);
                inputs = calibration.inputs(&spec.name, stop)?;
            }
            let encoded = match origin {
                Origin::Stored(stored) => {
                    let from = (sources.of(stored), stored);
                    encoder.tensor(writer, index, (spec, inputs), from, &mut |elements| {
                        progress.update(done + elements as u64, total, &spec.name);
                    })?
                }
                Origin::BoundsOf(name) => {
                    let bounds: Option<Vec<f32>> = bounds.remove(name.as_str());
                    let bounds = bounds.with_context(|| format!("{}: {name} has no bounds", spec.name))?;
                    Encoder::bounds(writer, index, &bounds)?;
                    progress.update(done + bounds.len() as u64, total, &spec.name);
                    Encoded::default()
                }
            };
            done += spec.shape[0] as u64 * spec.shape[1] as u64;
            if !encoded.bounds.is_empty() {
                bounds.insert(spec.name.as_str(), encoded.bounds);
            }
            // The residual of a nested head has the error of both planes, so the first plane has
            // none.
            if nested_head && tensor.role == Role::Head {
                errors.each.push(0.0);
            } else {
                errors.each.push(encoded.sums.relative() as f32);
                errors.total += encoded.sums;
            }
        }
        progress.update(total, total, "");
        Ok(errors)
    }
}

/// A file of int8 that nobody else sees. It is gone when the value is.
pub(crate) struct Reference {
    planned: Planned,
    writer: ModelWriter,
}

impl Reference {
    /// Makes room for the file beside `target`.
    ///
    /// # Errors
    /// If there is no room.
    pub(crate) fn create(planned: Planned, target: Target) -> Result<Self> {
        let writer = ModelWriter::create(target, planned.layout.clone())?;
        Ok(Self { planned, writer })
    }

    /// Writes the file and begins to measure activations with its model.
    ///
    /// # Errors
    /// If writing fails, or the text is missing.
    pub(crate) fn calibrate(
        &mut self,
        sources: Sources<'_>,
        encoder: Encoder<'_>,
        (text, effort): (&CalibrationText, Effort),
        targets: Vec<calibration::Target>,
        (isa, threads): (Isa, usize),
        (progress, stop): (&mut dyn Progress, Stop<'_>),
    ) -> Result<Calibration> {
        progress.begin("int8 for the statistics");
        self.planned.write(sources, &mut self.writer, (encoder, None), (&mut *progress, stop))?;
        self.writer.finish_data()?;
        progress.begin("");
        let model = Model::load(self.writer.model_file()?, &sparing(isa))?;
        Calibration::new(model, (text, effort), targets, threads, stop)
    }
}

/// Options of a model that gives pages back on the way, so that memory stays bounded.
pub(crate) fn sparing(isa: Isa) -> LoadOptions {
    LoadOptions { isa: Some(isa), verify: Verify::Never, low_memory: true, ..LoadOptions::default() }
}

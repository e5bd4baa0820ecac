//! Tuned states as state files: a text that has read nothing begins with what was trained.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};
use rwkv_edge::format::{Published, Target};
use rwkv_edge::model::names::{self, ModelTensor, Role};
use rwkv_edge::{LoadOptions, Model, StateNotes, Verify};

use crate::encode::read_finite;
use crate::job;
use crate::origin::{Input, Sources, Stored};
use crate::report::Warning;
use crate::source::Checkpoint;

/// A checkpoint of nothing but `blocks.*.att.time_state`, and the model that it was tuned for.
pub struct TunedState {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The model file.
    pub model: PathBuf,
}

impl TunedState {
    /// Writes the state file. It appears under its name when it is complete.
    ///
    /// # Errors
    /// If a file cannot be read or the output would replace it. If the checkpoint does not have
    /// exactly the states that the model needs, or a value is not finite. If `interrupted`.
    pub fn write(&self, output: Target, interrupted: &AtomicBool) -> Result<(Vec<Warning>, Published)> {
        let options = LoadOptions { verify: Verify::Never, low_memory: true, ..LoadOptions::default() };
        let model = Model::open(&self.model, &options)?;
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        for path in [&self.model, &self.checkpoint] {
            ensure!(!output.is(path), "{}: this file is read and must not be replaced", path.display());
        }
        let input = Input { path: &self.checkpoint, checkpoint: &checkpoint };
        let layers = layers(input, &model)?;
        let runs = checkpoint.read_through(|_| job::check(&[interrupted]))?;
        let warning = |run| Warning::ZeroRun { file: self.checkpoint.clone(), run };
        let state = model.tuned_state(&layers)?;
        Ok((runs.into_iter().map(warning).collect(), state.save_as(&StateNotes::default(), output)?))
    }
}

/// The WKV states of all layers, as `[head, key, value]`.
fn layers(input: Input<'_>, model: &Model) -> Result<Vec<Vec<f32>>> {
    let config = model.config();
    let sources = Sources { checkpoint: input, state: Some(input) };
    sources.check_state(config)?;
    let len = config.n_att * config.heads().map_or(0, |heads| heads.head_size);
    let layer = |layer| {
        let name = names::initial_state(layer);
        let wanted = ModelTensor { name, shape: [len, 1], role: Role::State };
        let Stored { tensor, transform, .. } = Stored::find(sources, config, &wanted)?;
        let mut values = vec![0.0; len];
        read_finite(input, &tensor, 0, &mut values)?;
        Ok(transform.apply(&values))
    };
    (0..config.n_layer).map(layer).collect()
}

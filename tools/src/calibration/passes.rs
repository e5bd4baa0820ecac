//! Texts on their way through a model, one layer at a time.

use std::sync::Arc;

use anyhow::Result;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rwkv_edge::{Engine, EngineOptions, LayerText, MatrixInputs, Model, Observer, State};

use crate::job::{self, Stop};

/// The texts, and what they carry from a layer to the next.
pub(super) struct Passes {
    engine: Engine<'static>,
    state: State,
    windows: Vec<Vec<u32>>,
    /// Residual streams of all windows, `[tokens, n_embd]`. bf16 has the range of f32, which large
    /// models need.
    streams: Vec<bf16>,
    /// What layer 0 passes to the others, `[tokens, first_values]`.
    first_values: Vec<bf16>,
    /// Both for one window.
    floats: [Vec<f32>; 2],
    /// The layer that comes next.
    layer: usize,
}

/// Tokens that show how large activations are.
const SAMPLE: usize = 2048;

/// Bytes that a token carries from a layer to the next.
pub(super) fn bytes_per_token(model: &Model) -> usize {
    size_of::<bf16>() * (model.config().n_embd + model.first_values())
}

impl Passes {
    /// Begins with the embedding of every token.
    pub(super) fn new(model: Arc<Model>, windows: Vec<Vec<u32>>, threads: usize) -> Result<Self> {
        let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
        let (state, n_embd) = (model.initial_state()?, model.config().n_embd);
        let mut engine = Engine::new(model, &options)?;
        let tokens: usize = windows.iter().map(Vec::len).sum();
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
        let first_values = engine.model().first_values();
        let mut streams = vec![bf16::ZERO; tokens * n_embd];
        let mut floats = [vec![0.0; longest * n_embd], vec![0.0; longest * first_values]];
        let mut rest = &mut streams[..];
        for window in &windows {
            let (own, later) = rest.split_at_mut(window.len() * n_embd);
            let x = &mut floats[0][..own.len()];
            engine.embed(window, x)?;
            own.convert_from_f32_slice(x);
            rest = later;
        }
        Ok(Self {
            first_values: vec![bf16::ZERO; tokens * first_values],
            engine,
            state,
            windows,
            streams,
            floats,
            layer: 0,
        })
    }

    /// The texts.
    pub(super) fn windows(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// Runs all texts through the layers before `layer`.
    pub(super) fn reach(&mut self, layer: usize, stop: Stop<'_>) -> Result<()> {
        while self.layer < layer {
            self.finish_layer(&mut Nobody, stop)?;
        }
        Ok(())
    }

    /// Runs all texts through the layer.
    pub(super) fn observe(&mut self, observer: &mut dyn Observer, stop: Stop<'_>) -> Result<()> {
        self.run(usize::MAX, false, observer, stop)
    }

    /// Runs the first texts through the layer.
    pub(super) fn sample(&mut self, observer: &mut dyn Observer, stop: Stop<'_>) -> Result<()> {
        self.run(SAMPLE, false, observer, stop)
    }

    /// Runs all texts through the layer, which is done then.
    pub(super) fn finish_layer(&mut self, observer: &mut dyn Observer, stop: Stop<'_>) -> Result<()> {
        self.run(usize::MAX, true, observer, stop)?;
        self.layer += 1;
        Ok(())
    }

    /// Runs texts through the layer until they have `most` tokens. `keep` keeps what comes out of it.
    fn run(&mut self, most: usize, keep: bool, observer: &mut dyn Observer, stop: Stop<'_>) -> Result<()> {
        let (n_embd, per_token) = (self.engine.model().config().n_embd, self.engine.model().first_values());
        let mut first = 0;
        for tokens in &self.windows {
            job::check(&stop)?;
            if first >= most {
                break;
            }
            let own = first..first + tokens.len();
            let stored = &mut self.streams[own.start * n_embd..own.end * n_embd];
            let stored_values = &mut self.first_values[own.start * per_token..own.end * per_token];
            let [streams, first_values] = &mut self.floats;
            let streams = &mut streams[..stored.len()];
            let first_values = &mut first_values[..stored_values.len()];
            stored.convert_to_f32_slice(streams);
            stored_values.convert_to_f32_slice(first_values);
            let text = LayerText { state: &mut self.state, tokens, streams, first_values };
            self.engine.run_layer(self.layer, text, observer)?;
            if keep {
                stored.convert_from_f32_slice(streams);
                stored_values.convert_from_f32_slice(first_values);
            }
            first = own.end;
        }
        Ok(())
    }
}

/// Sees nothing.
struct Nobody;

impl Observer for Nobody {
    fn inputs(&mut self, _inputs: MatrixInputs<'_>) {}
}

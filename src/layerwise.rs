//! Running a model one layer at a time, to measure the inputs of its matrices.
//!
//! A whole text goes through a layer before the next one is touched. So the memory for what is
//! measured is that of one layer, and a layer's weights are needed once.

use rwkv_edge_kernels::default_float_environment;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::{Batch, Observer, Sequence, State};

/// A text on its way through the layers.
pub struct LayerText<'a> {
    /// A state of the model, for the layer to use. Its contents do not matter.
    pub state: &'a mut State,
    /// The tokens. The text begins with the first one.
    pub tokens: &'a [u32],
    /// Residual streams before the layer, `[tokens, n_embd]`; they become those after it.
    pub streams: &'a mut [f32],
    /// The values that [layer 0 passes](crate::Model::first_values) to the others, `[tokens, first_values]`.
    pub first_values: &'a mut [f32],
}

impl Engine<'_> {
    /// Computes the residual streams before layer 0, `[tokens, n_embd]`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, its row of the embedding is damaged, or `streams` has
    /// another size.
    pub fn embed(&mut self, tokens: &[u32], streams: &mut [f32]) -> Result<()> {
        self.check_size("streams", streams, tokens.len() * self.model().config().n_embd)?;
        tokens.iter().try_for_each(|&token| self.model().check_token(token))?;
        let (model, means, arena) = self.parts();
        model.embed_tokens(means, tokens, streams, &mut arena.carve())
    }

    /// Runs layer `layer` on a text and shows `observer` the inputs of its matrices. All layers in
    /// their order compute what [`feed`](Self::feed) does, with the same bits.
    ///
    /// # Errors
    /// If there is no such layer, the state belongs to another model, a size is wrong, or a row of a
    /// table is damaged.
    pub fn run_layer(
        &mut self,
        layer: usize,
        text: LayerText<'_>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let LayerText { state, tokens, mut streams, mut first_values } = text;
        let (n_embd, per_token) = (self.model().config().n_embd, self.model().first_values());
        self.check_size("streams", streams, tokens.len() * n_embd)?;
        self.check_size("first_values", first_values, tokens.len() * per_token)?;
        if layer >= self.model().config().n_layer {
            return Err(Error::invalid(format!("there is no layer {layer}")));
        }
        self.model().reset(state);
        let mut sequence = [Sequence::new(state, tokens)];
        self.check_sequences(&sequence)?;
        let _environment = default_float_environment();
        while let Some(batch) = Batch::next(&mut sequence, self.prompt_chunk()) {
            let count = batch.tokens();
            let streams = streams.split_off_mut(..count * n_embd).expect("as many as tokens");
            let first_values = first_values.split_off_mut(..count * per_token).expect("as many as tokens");
            let (model, mut means, arena) = self.parts();
            means.observer = Some(&mut *observer);
            model.run_layer(means, layer, batch, (streams, first_values), &mut arena.carve())?;
        }
        Ok(())
    }

    fn check_size(&self, name: &str, values: &[f32], expected: usize) -> Result<()> {
        if values.len() == expected {
            return Ok(());
        }
        Err(Error::invalid(format!("{name} has {} values instead of {expected}", values.len())))
    }
}

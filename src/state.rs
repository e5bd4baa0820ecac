//! The recurrent state: all that a model remembers of the text it has read.

use crate::error::{Error, Result};
use crate::model::Model;

/// A copy of a session's recurrent state. Its size depends on the model only, not on the text.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub(crate) model_id: u64,
    pub(crate) values: Box<[f32]>,
}

impl State {
    /// The state before the first token.
    ///
    /// # Errors
    /// Never for a loaded model.
    pub fn new(model: &Model) -> Result<Self> {
        let mut values = vec![0.0; model.state_len()].into_boxed_slice();
        model.init_state(&mut values)?;
        Ok(Self { model_id: model.file().model_id(), values })
    }

    /// The floats of the state, layer by layer in the order of the version's equations.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Refuses a state that belongs to another model file: numbers of one quantization mean nothing to another.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        if self.model_id == model.file().model_id() && self.values.len() == model.state_len() {
            Ok(())
        } else {
            Err(Error::invalid("the state belongs to another model file"))
        }
    }
}

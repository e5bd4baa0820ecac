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
    /// If there is no memory for it.
    pub fn new(model: &Model) -> Result<Self> {
        let (mut values, len) = (Vec::new(), model.state_len());
        values
            .try_reserve_exact(len)
            .map_err(|_| Error::invalid(format!("no memory for {len} floats of state")))?;
        values.resize(len, 0.0);
        model.init_state(&mut values)?;
        Ok(Self { model_id: model.file().model_id(), values: values.into() })
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

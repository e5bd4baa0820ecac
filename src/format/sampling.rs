//! How tokens are drawn, and the fields that say so in chat settings and saved states.

use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use crate::error::{Error, Result};

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Probability mass of the tokens to choose from, in 0..=1.
    pub top_p: f32,
    /// Number of tokens to choose from; 0 for all.
    pub top_k: u32,
    /// Subtracted from the logits of tokens that occurred.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each of its (decayed) occurrences.
    pub frequency_penalty: f32,
    /// Factor on all counts at each token, in 0..=1.
    pub penalty_decay: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::CHAT
    }
}

impl SamplingParams {
    /// Sampling of ChatRWKV's chat.
    pub(super) const CHAT: Self = Self {
        temperature: 1.0,
        top_p: 0.3,
        top_k: 0,
        presence_penalty: 0.5,
        frequency_penalty: 0.5,
        penalty_decay: 0.996,
    };

    /// Checks that every number is finite and in its range.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming the parameter.
    pub fn validate(&self) -> Result<()> {
        for (name, value, low, high) in [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            ("penalty_decay", self.penalty_decay, 0.0, 1.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(Error::invalid(format!("{name} is {value}; it must be in {low}..={high}")));
            }
        }
        Ok(())
    }

    /// Sets a parameter by its name. `_` and `-` are the same.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if there is no such parameter or the value
    /// is no number. A value out of range is an error of [`validate`](Self::validate).
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |what| Error::invalid(format!("{name}: {value:?} is not a {what}"));
        let float = || value.parse().map_err(|_| wrong("number"));
        match name.replace('-', "_").as_str() {
            "temperature" => self.temperature = float()?,
            "top_p" => self.top_p = float()?,
            "top_k" => self.top_k = value.parse().map_err(|_| wrong("count"))?,
            "presence_penalty" => self.presence_penalty = float()?,
            "frequency_penalty" => self.frequency_penalty = float()?,
            "penalty_decay" => self.penalty_decay = float()?,
            _ => {
                return Err(Error::invalid(format!(
                    "unknown parameter {name:?}: expected temperature, top-p, top-k, \
                     presence-penalty, frequency-penalty or penalty-decay"
                )));
            }
        }
        Ok(())
    }
}

/// The fields of the parameters. The sections that have them give them the same ids.
pub(super) struct SamplingFields([FieldSpec; 6]);

impl SamplingFields {
    /// A reader may skip them.
    pub(super) const OPTIONAL: Self = Self::new(false);
    /// A reader needs them.
    pub(super) const REQUIRED: Self = Self::new(true);

    const fn new(must_understand: bool) -> Self {
        const fn field(id: u16, name: &'static str, kind: FieldType, must_understand: bool) -> FieldSpec {
            FieldSpec { must_understand, ..FieldSpec::optional(id, name, kind) }
        }
        Self([
            field(8, "temperature", FieldType::F32, must_understand),
            field(9, "top_p", FieldType::F32, must_understand),
            field(10, "top_k", FieldType::U32, must_understand),
            field(11, "presence_penalty", FieldType::F32, must_understand),
            field(12, "frequency_penalty", FieldType::F32, must_understand),
            field(13, "penalty_decay", FieldType::F32, must_understand),
        ])
    }

    pub(super) const fn specs(&self) -> &[FieldSpec] {
        &self.0
    }

    pub(super) fn emit(&self, params: &SamplingParams, out: &mut FieldWriter) {
        let [temperature, top_p, top_k, presence, frequency, decay] = &self.0;
        out.f32(temperature, params.temperature);
        out.f32(top_p, params.top_p);
        out.u32(top_k, params.top_k);
        out.f32(presence, params.presence_penalty);
        out.f32(frequency, params.frequency_penalty);
        out.f32(decay, params.penalty_decay);
    }

    pub(super) fn parse(&self, fields: &Fields<'_>) -> Result<SamplingParams> {
        let [temperature, top_p, top_k, presence, frequency, decay] = &self.0;
        Ok(SamplingParams {
            temperature: fields.f32(temperature)?,
            top_p: fields.f32(top_p)?,
            top_k: fields.u32(top_k)?,
            presence_penalty: fields.f32(presence)?,
            frequency_penalty: fields.f32(frequency)?,
            penalty_decay: fields.f32(decay)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_by_name_and_bad_names_and_numbers_are_refused() {
        let mut params = SamplingParams::default();
        for (name, value) in [("temperature", "0.5"), ("top-k", "7"), ("top_p", "0.25")] {
            params.set(name, value).unwrap();
        }
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.5, 7, 0.25));
        for (name, value) in [("heat", "1"), ("temperature", "hot"), ("top_k", "-1"), ("top_k", "1.5")] {
            let error = params.set(name, value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}

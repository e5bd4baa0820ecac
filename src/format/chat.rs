//! Chat settings: the CHAT section.

use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use super::metadata::{check_line, check_tokens};
use crate::error::{Error, Result};

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 1 << 16;
const MAX_STOP_TEXTS: usize = 64;
/// Longest stop text, in bytes. Output that may be the beginning of a stop text is held back.
const MAX_STOP_TEXT: usize = 256;

/// How to talk to the model: template, start and stop rules, sampling defaults.
///
/// Each template contains its placeholder exactly once: `{system}`, `{user}` or `{assistant}`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Chat {
    /// Name of the template, such as `world` or `none`.
    pub name: String,
    /// System block before the first turn, such as `System: {system}\n\n`.
    pub system: Option<String>,
    /// A user's turn up to the point where the model goes on, such as `User: {user}\n\nAssistant:`.
    /// A model without it only continues text.
    pub user: Option<String>,
    /// A complete reply as it appears in the history, with the separator of turns:
    /// ` {assistant}\n\n`.
    pub assistant: Option<String>,
    /// Tokens fed before anything else.
    pub start_tokens: Vec<u32>,
    /// Tokens that end a reply.
    pub stop_tokens: Vec<u32>,
    /// Texts that end a reply, matched on the decoded bytes.
    pub stop_texts: Vec<String>,
    /// Sampling defaults.
    pub sampling: SamplingParams,
}

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
        Self {
            temperature: 1.0,
            top_p: 0.3,
            top_k: 0,
            presence_penalty: 0.5,
            frequency_penalty: 0.5,
            penalty_decay: 0.996,
        }
    }
}

impl SamplingParams {
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
}

const NAME: FieldSpec = FieldSpec::optional(1, "name", FieldType::Text);
const SYSTEM: FieldSpec = FieldSpec::optional(2, "system", FieldType::Text);
const USER: FieldSpec = FieldSpec::optional(3, "user", FieldType::Text);
const ASSISTANT: FieldSpec = FieldSpec::optional(4, "assistant", FieldType::Text);
const START_TOKENS: FieldSpec = FieldSpec::required_to_read(5, "start_tokens", FieldType::U32List);
const STOP_TOKENS: FieldSpec = FieldSpec::required_to_read(6, "stop_tokens", FieldType::U32List);
const STOP_TEXT: FieldSpec = FieldSpec::required_to_read(7, "stop_text", FieldType::Text).repeatable();
const TEMPERATURE: FieldSpec = FieldSpec::optional(8, "temperature", FieldType::F32);
const TOP_P: FieldSpec = FieldSpec::optional(9, "top_p", FieldType::F32);
const TOP_K: FieldSpec = FieldSpec::optional(10, "top_k", FieldType::U32);
const PRESENCE: FieldSpec = FieldSpec::optional(11, "presence_penalty", FieldType::F32);
const FREQUENCY: FieldSpec = FieldSpec::optional(12, "frequency_penalty", FieldType::F32);
const DECAY: FieldSpec = FieldSpec::optional(13, "penalty_decay", FieldType::F32);
const CHAT_SCHEMA: [FieldSpec; 13] = [
    NAME,
    SYSTEM,
    USER,
    ASSISTANT,
    START_TOKENS,
    STOP_TOKENS,
    STOP_TEXT,
    TEMPERATURE,
    TOP_P,
    TOP_K,
    PRESENCE,
    FREQUENCY,
    DECAY,
];

impl Chat {
    /// Checks texts, placeholders and sampling parameters, and that every token is below `n_vocab`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming the field.
    pub fn validate(&self, n_vocab: usize) -> Result<()> {
        check_line("name", &self.name)?;
        check_template("system", self.system.as_deref(), "{system}")?;
        check_template("user", self.user.as_deref(), "{user}")?;
        check_template("assistant", self.assistant.as_deref(), "{assistant}")?;
        check_tokens("start_tokens", &self.start_tokens, n_vocab)?;
        check_tokens("stop_tokens", &self.stop_tokens, n_vocab)?;
        if self.stop_texts.len() > MAX_STOP_TEXTS {
            return Err(Error::invalid(format!("more than {MAX_STOP_TEXTS} stop texts")));
        }
        if self.stop_texts.iter().any(|text| text.is_empty() || text.len() > MAX_STOP_TEXT) {
            return Err(Error::invalid(format!("a stop text is empty or longer than {MAX_STOP_TEXT} bytes")));
        }
        self.sampling.validate()
    }

    /// The CHAT section. The settings must be valid.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.text(&NAME, &self.name);
        for (spec, template) in [(SYSTEM, &self.system), (USER, &self.user), (ASSISTANT, &self.assistant)] {
            if let Some(template) = template {
                out.text(&spec, template);
            }
        }
        out.u32_list(&START_TOKENS, &self.start_tokens);
        out.u32_list(&STOP_TOKENS, &self.stop_tokens);
        self.stop_texts.iter().for_each(|text| out.text(&STOP_TEXT, text));
        out.f32(&TEMPERATURE, self.sampling.temperature);
        out.f32(&TOP_P, self.sampling.top_p);
        out.u32(&TOP_K, self.sampling.top_k);
        out.f32(&PRESENCE, self.sampling.presence_penalty);
        out.f32(&FREQUENCY, self.sampling.frequency_penalty);
        out.f32(&DECAY, self.sampling.penalty_decay);
        out.finish()
    }

    /// Reads and validates the CHAT section.
    pub(super) fn parse(section: &[u8], n_vocab: usize) -> Result<Self> {
        let fields = Fields::parse("CHAT", section, &CHAT_SCHEMA)?;
        let chat = Self {
            name: fields.text(&NAME)?,
            system: fields.find_text(&SYSTEM),
            user: fields.find_text(&USER),
            assistant: fields.find_text(&ASSISTANT),
            start_tokens: fields.u32_list(&START_TOKENS)?,
            stop_tokens: fields.u32_list(&STOP_TOKENS)?,
            stop_texts: fields.texts(&STOP_TEXT),
            sampling: SamplingParams {
                temperature: fields.f32(&TEMPERATURE)?,
                top_p: fields.f32(&TOP_P)?,
                top_k: fields.u32(&TOP_K)?,
                presence_penalty: fields.f32(&PRESENCE)?,
                frequency_penalty: fields.f32(&FREQUENCY)?,
                penalty_decay: fields.f32(&DECAY)?,
            },
        };
        chat.validate(n_vocab).map_err(|error| Error::malformed(format!("CHAT: {error}")))?;
        Ok(chat)
    }
}

fn check_template(name: &str, template: Option<&str>, placeholder: &str) -> Result<()> {
    let Some(template) = template else { return Ok(()) };
    if template.len() > MAX_TEMPLATE {
        return Err(Error::invalid(format!("template {name} is longer than {MAX_TEMPLATE} bytes")));
    }
    if template.matches(placeholder).count() != 1 {
        return Err(Error::invalid(format!("template {name} must contain {placeholder} exactly once")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat() -> Chat {
        Chat {
            name: "world".into(),
            system: None,
            user: Some("User: {user}\n\nAssistant:".into()),
            assistant: Some(" {assistant}\n\n".into()),
            start_tokens: vec![0],
            stop_tokens: vec![0, 7],
            stop_texts: vec!["\n\nUser:".into(), "\n\n".into()],
            sampling: SamplingParams { top_k: 40, ..Default::default() },
        }
    }

    #[test]
    fn settings_round_trip() {
        for chat in [chat(), Chat::default()] {
            assert_eq!(Chat::parse(&chat.emit(), 8).unwrap(), chat);
        }
    }

    #[test]
    fn values_that_would_break_a_chat_are_refused() {
        type Edit = (&'static str, fn(&mut Chat));
        let edits: [Edit; 9] = [
            ("name", |c| c.name = "a\x1bb".into()),
            ("system", |c| c.system = Some("no placeholder".into())),
            ("user", |c| c.user = Some("{user}{user}".into())),
            ("assistant", |c| c.assistant = Some("x".repeat(1 << 17) + "{assistant}")),
            ("start_tokens", |c| c.start_tokens = vec![8]),
            ("stop_tokens", |c| c.stop_tokens = vec![0, u32::MAX]),
            ("stop text", |c| c.stop_texts[0].clear()),
            ("stop text", |c| c.stop_texts[0] = "x".repeat(257)),
            ("stop texts", |c| c.stop_texts = vec!["x".into(); 65]),
        ];
        for (name, edit) in edits {
            let mut chat = chat();
            edit(&mut chat);
            let error = Chat::parse(&chat.emit(), 8).unwrap_err().to_string();
            assert!(error.contains("CHAT") && error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn sampling_parameters_out_of_range_or_not_finite_are_refused() {
        SamplingParams::default().validate().unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -101.0, 101.0] {
            let edits: [fn(&mut SamplingParams, f32); 5] = [
                |p, x| p.temperature = x,
                |p, x| p.top_p = x,
                |p, x| p.presence_penalty = x,
                |p, x| p.frequency_penalty = x,
                |p, x| p.penalty_decay = x,
            ];
            for (i, edit) in edits.iter().enumerate() {
                let mut params = SamplingParams::default();
                edit(&mut params, bad);
                assert!(params.validate().is_err(), "parameter {i} = {bad}");
            }
        }
    }
}

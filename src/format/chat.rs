//! Chat settings: the CHAT section. [`Template`](super::Template) has those of released models.

use std::fmt::{self, Display};
use std::slice;
use std::str::FromStr;

use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use super::metadata::{check_line, check_tokens};
use super::sampling::{SamplingFields, SamplingParams};
use crate::error::{Error, Result};

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 1 << 16;
/// Most stop texts, and most texts of any other list.
const MAX_TEXTS: usize = 64;
/// Longest stop text, or other short text, in bytes. Output that may be the beginning of a stop text
/// is held back.
const MAX_TEXT: usize = 256;

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
    /// Texts that are cut out of a user's text, because the template marks turns with them.
    pub turn_marks: Vec<String>,
    /// Replies that think before they answer. `None` if the model has none.
    pub think: Option<Think>,
    /// How to ask for the text between two others. `None` if the model cannot do it.
    pub fill: Option<Fill>,
}

/// Replies with a think block before the answer.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Think {
    /// Beginning of a reply that thinks: ` <think`. Without blanks around it, it is what a think
    /// block begins with.
    pub open: String,
    /// Beginning of a reply whose think block is empty: ` <think>\n</think`.
    pub fast: String,
    /// End of a think block: `</think>`.
    pub close: String,
    /// Texts that follow the user's and ask for a short, a medium and a long block. There are three
    /// or none.
    pub hints: Vec<String>,
    /// How replies begin by default.
    pub mode: ThinkMode,
}

/// How a reply begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum ThinkMode {
    /// As the model likes.
    #[default]
    Off = 0,
    /// With an empty think block.
    Fast = 1,
    /// With a think block.
    On = 2,
    /// With a think block that is asked to be short.
    Short = 3,
    /// With a think block that is asked to be of medium length.
    Medium = 4,
    /// With a think block that is asked to be long.
    Long = 5,
}

impl ThinkMode {
    /// All modes, by their number in the file.
    pub const ALL: [Self; 6] = [Self::Off, Self::Fast, Self::On, Self::Short, Self::Medium, Self::Long];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Fast => "fast",
            Self::On => "on",
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Long => "long",
        }
    }
}

impl fmt::Display for ThinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ThinkMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(&Self::ALL, name)
    }
}

/// The value that is shown as `name`.
pub(super) fn by_name<T: Copy + Display>(all: &[T], name: &str) -> Result<T> {
    all.iter().find(|value| value.to_string() == name).copied().ok_or_else(|| {
        let known: Vec<_> = all.iter().map(ToString::to_string).collect();
        Error::invalid(format!("{name:?} is not one of {}", known.join(", ")))
    })
}

/// How to ask for the text between two others.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Fill {
    /// The prompt, with `{prefix}` and `{suffix}` once each.
    pub prompt: String,
    /// Text that ends the answer.
    pub stop_text: String,
}

const NAME: FieldSpec = FieldSpec::optional(1, "name", FieldType::Text);
const SYSTEM: FieldSpec = FieldSpec::optional(2, "system", FieldType::Text);
const USER: FieldSpec = FieldSpec::optional(3, "user", FieldType::Text);
const ASSISTANT: FieldSpec = FieldSpec::optional(4, "assistant", FieldType::Text);
const START_TOKENS: FieldSpec = FieldSpec::required_to_read(5, "start_tokens", FieldType::U32List);
const STOP_TOKENS: FieldSpec = FieldSpec::required_to_read(6, "stop_tokens", FieldType::U32List);
const STOP_TEXT: FieldSpec = FieldSpec::required_to_read(7, "stop_text", FieldType::Text).repeatable();
const SAMPLING: SamplingFields = SamplingFields::OPTIONAL;
const TURN_MARK: FieldSpec = FieldSpec::optional(14, "turn_mark", FieldType::Text).repeatable();
const THINK_OPEN: FieldSpec = FieldSpec::optional(15, "think_open", FieldType::Text);
const THINK_FAST: FieldSpec = FieldSpec::optional(16, "think_fast", FieldType::Text);
const THINK_CLOSE: FieldSpec = FieldSpec::optional(17, "think_close", FieldType::Text);
const THINK_HINT: FieldSpec = FieldSpec::optional(18, "think_hint", FieldType::Text).repeatable();
const THINK_MODE: FieldSpec = FieldSpec::optional(19, "think_mode", FieldType::U32);
const FILL: FieldSpec = FieldSpec::optional(20, "fill", FieldType::Text);
const FILL_STOP: FieldSpec = FieldSpec::optional(21, "fill_stop", FieldType::Text);

fn schema() -> Vec<FieldSpec> {
    let before = [NAME, SYSTEM, USER, ASSISTANT, START_TOKENS, STOP_TOKENS, STOP_TEXT];
    let after = [TURN_MARK, THINK_OPEN, THINK_FAST, THINK_CLOSE, THINK_HINT, THINK_MODE, FILL, FILL_STOP];
    [&before[..], SAMPLING.specs(), &after].concat()
}

impl Chat {
    /// Checks texts, placeholders and sampling parameters, and that every token is below `n_vocab`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming the field.
    pub fn validate(&self, n_vocab: usize) -> Result<()> {
        check_line("name", &self.name)?;
        check_template("system", self.system.as_deref(), &["{system}"])?;
        check_template("user", self.user.as_deref(), &["{user}"])?;
        check_template("assistant", self.assistant.as_deref(), &["{assistant}"])?;
        check_tokens("start_tokens", &self.start_tokens, n_vocab)?;
        check_tokens("stop_tokens", &self.stop_tokens, n_vocab)?;
        check_short("stop text", &self.stop_texts)?;
        check_short("turn mark", &self.turn_marks)?;
        if let Some(think) = &self.think {
            think.validate()?;
        }
        if let Some(Fill { prompt, stop_text }) = &self.fill {
            check_template("fill", Some(prompt), &["{prefix}", "{suffix}"])?;
            check_short("fill stop", slice::from_ref(stop_text))?;
        }
        self.sampling.validate()
    }

    /// The minor version of the format that has all of these fields.
    pub(super) fn minor_version(&self) -> u16 {
        let is_new = self.think.is_some() || self.fill.is_some() || !self.turn_marks.is_empty();
        u16::from(is_new)
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
        SAMPLING.emit(&self.sampling, &mut out);
        self.turn_marks.iter().for_each(|text| out.text(&TURN_MARK, text));
        if let Some(think) = &self.think {
            out.text(&THINK_OPEN, &think.open);
            out.text(&THINK_FAST, &think.fast);
            out.text(&THINK_CLOSE, &think.close);
            think.hints.iter().for_each(|text| out.text(&THINK_HINT, text));
            out.u32(&THINK_MODE, think.mode as u32);
        }
        if let Some(fill) = &self.fill {
            out.text(&FILL, &fill.prompt);
            out.text(&FILL_STOP, &fill.stop_text);
        }
        out.finish()
    }

    /// Reads and validates the CHAT section.
    pub(super) fn parse(section: &[u8], n_vocab: usize) -> Result<Self> {
        let fields = Fields::parse("CHAT", section, &schema())?;
        let chat = Self {
            name: fields.text(&NAME)?,
            system: fields.find_text(&SYSTEM),
            user: fields.find_text(&USER),
            assistant: fields.find_text(&ASSISTANT),
            start_tokens: fields.u32_list(&START_TOKENS)?,
            stop_tokens: fields.u32_list(&STOP_TOKENS)?,
            stop_texts: fields.texts(&STOP_TEXT),
            sampling: SAMPLING.parse(&fields)?,
            turn_marks: fields.texts(&TURN_MARK),
            think: fields.find_text(&THINK_OPEN).map(|open| Think::parse(open, &fields)).transpose()?,
            fill: match fields.find_text(&FILL) {
                Some(prompt) => Some(Fill { prompt, stop_text: fields.text(&FILL_STOP)? }),
                None => None,
            },
        };
        chat.validate(n_vocab).map_err(|error| Error::malformed(format!("CHAT: {error}")))?;
        Ok(chat)
    }
}

impl Think {
    fn validate(&self) -> Result<()> {
        check_short("think", &[&self.open, &self.fast, &self.close])?;
        check_short("think hint", &self.hints)?;
        if !self.open.trim().bytes().all(|byte| byte.is_ascii_graphic()) || self.open.trim().is_empty() {
            return Err(Error::invalid(format!("a think block cannot begin with {:?}", self.open)));
        }
        if !matches!(self.hints.len(), 0 | 3) {
            return Err(Error::invalid(format!("{} think hints; there are 3 or none", self.hints.len())));
        }
        Ok(())
    }

    fn parse(open: String, fields: &Fields<'_>) -> Result<Self> {
        let number = fields.u32(&THINK_MODE)?;
        let mode = ThinkMode::ALL.get(number as usize).copied();
        Ok(Self {
            open,
            fast: fields.text(&THINK_FAST)?,
            close: fields.text(&THINK_CLOSE)?,
            hints: fields.texts(&THINK_HINT),
            mode: mode.ok_or_else(|| Error::malformed(format!("CHAT: think_mode is {number}")))?,
        })
    }
}

fn check_template(name: &str, template: Option<&str>, placeholders: &[&str]) -> Result<()> {
    let Some(template) = template else { return Ok(()) };
    if template.len() > MAX_TEMPLATE {
        return Err(Error::invalid(format!("template {name} is longer than {MAX_TEMPLATE} bytes")));
    }
    match placeholders.iter().find(|placeholder| template.matches(**placeholder).count() != 1) {
        Some(placeholder) => {
            Err(Error::invalid(format!("template {name} must contain {placeholder} exactly once")))
        }
        None => Ok(()),
    }
}

/// Checks a list of short texts.
fn check_short(name: &str, texts: &[impl AsRef<str>]) -> Result<()> {
    if texts.len() > MAX_TEXTS {
        return Err(Error::invalid(format!("more than {MAX_TEXTS} of {name}")));
    }
    if texts.iter().map(AsRef::as_ref).any(|text| text.is_empty() || text.len() > MAX_TEXT) {
        return Err(Error::invalid(format!("a {name} is empty or longer than {MAX_TEXT} bytes")));
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
            turn_marks: vec!["\u{273f}".into()],
            think: Some(Think {
                open: " <think".into(),
                fast: " <think></think".into(),
                close: "</think>".into(),
                hints: ["a", "b", "c"].map(String::from).to_vec(),
                mode: ThinkMode::Medium,
            }),
            fill: Some(Fill { prompt: "{suffix}|{prefix}".into(), stop_text: "|".into() }),
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
        let edits: [Edit; 16] = [
            ("name", |c| c.name = "a\x1bb".into()),
            ("system", |c| c.system = Some("no placeholder".into())),
            ("user", |c| c.user = Some("{user}{user}".into())),
            ("assistant", |c| c.assistant = Some("x".repeat(1 << 17) + "{assistant}")),
            ("start_tokens", |c| c.start_tokens = vec![8]),
            ("stop_tokens", |c| c.stop_tokens = vec![0, u32::MAX]),
            ("stop text", |c| c.stop_texts[0].clear()),
            ("stop text", |c| c.stop_texts[0] = "x".repeat(257)),
            ("stop text", |c| c.stop_texts = vec!["x".into(); 65]),
            ("turn mark", |c| c.turn_marks[0].clear()),
            ("think", |c| c.think.as_mut().unwrap().close.clear()),
            ("think block", |c| c.think.as_mut().unwrap().open = " \n".into()),
            ("think hint", |c| c.think.as_mut().unwrap().hints.truncate(2)),
            ("fill", |c| c.fill.as_mut().unwrap().prompt = "{prefix}".into()),
            ("fill", |c| c.fill.as_mut().unwrap().prompt += "{suffix}"),
            ("fill stop", |c| c.fill.as_mut().unwrap().stop_text.clear()),
        ];
        for (name, edit) in edits {
            let mut chat = chat();
            edit(&mut chat);
            let error = Chat::parse(&chat.emit(), 8).unwrap_err().to_string();
            assert!(error.contains("CHAT") && error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_without_the_additions_has_the_version_before_them() {
        let mut chat = Chat { turn_marks: vec![], ..chat() };
        assert_eq!(chat.minor_version(), 1);
        (chat.think, chat.fill) = (None, None);
        assert_eq!(chat.minor_version(), 0);
        assert_eq!(Chat { turn_marks: vec!["x".into()], ..chat }.minor_version(), 1);
    }

    #[test]
    fn an_unknown_think_mode_and_a_lonely_field_are_refused() {
        let mut bytes = chat().emit();
        let at = bytes.windows(4).rposition(|field| field == [19, 0, 1, 0]).unwrap();
        bytes[at + 8] = 6;
        assert!(Chat::parse(&bytes, 8).unwrap_err().to_string().contains("think_mode is 6"));
        let bytes = chat().emit();
        let cut = bytes.len() - 12;
        assert!(Chat::parse(&bytes[..cut], 8).unwrap_err().to_string().contains("fill_stop"));
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

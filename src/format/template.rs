//! The conversation formats that released models were trained on.

use std::fmt;
use std::str::FromStr;

use super::chat::by_name;
use super::{Chat, Fill, SamplingParams, Think, ThinkMode};
use crate::error::{Error, Result};

/// A conversation format that released models were trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// `User: ...`, `Assistant: ...`: World models of RWKV-4 to 7, and G1
    World,
    /// As World, and replies begin with a think block: G1
    Think,
    /// `User✿...✿`, `Bot✿...✿` with a think block: G1h and later
    Flower,
    /// `Bob: ...`, `Alice: ...`: RWKV-4 Raven
    Raven,
    /// No conversation: the model only continues text
    None,
}

/// Sampling of the `rwkv` package for G1. Penalties would count the repetitions of a proof.
const REASONING: SamplingParams = SamplingParams {
    top_p: 0.5,
    top_k: 100,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    penalty_decay: 0.997,
    ..SamplingParams::CHAT
};

/// Sampling of ChatRWKV's text pipeline.
const TEXT: SamplingParams =
    SamplingParams { top_p: 0.85, presence_penalty: 0.2, frequency_penalty: 0.2, ..SamplingParams::CHAT };

impl Template {
    /// All templates.
    pub const ALL: [Self; 5] = [Self::World, Self::Think, Self::Flower, Self::Raven, Self::None];

    /// The name in files and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Think => "think",
            Self::Flower => "flower",
            Self::Raven => "raven",
            Self::None => "none",
        }
    }

    /// The template that a model of `n_vocab` tokens most likely needs. World models have 65,536.
    pub fn for_vocab(n_vocab: usize) -> Self {
        if n_vocab == 65_536 { Self::World } else { Self::None }
    }

    /// The settings of this template, without start and stop tokens. Those are the tokenizer's.
    ///
    /// A reply of most templates ends at an empty line, because their models separate turns with
    /// one.
    pub fn chat(self) -> Chat {
        let chat = Chat { name: self.name().into(), sampling: SamplingParams::CHAT, ..Chat::default() };
        match self {
            Self::World => Chat {
                think: Some(think(" ", "\n", ThinkMode::Off)),
                fill: Some(fill()),
                ..roles(chat, "User", "Assistant")
            },
            Self::Think => Chat {
                name: self.name().into(),
                think: Some(think(" ", "\n", ThinkMode::On)),
                sampling: REASONING,
                ..Self::World.chat()
            },
            Self::Flower => Chat {
                system: Some("System✿{system}✿\n".into()),
                user: Some("User✿{user}✿\nBot✿".into()),
                assistant: Some("{assistant}✿\n".into()),
                stop_texts: ["✿", "\nUser:", "\n### User"].map(String::from).into(),
                turn_marks: vec!["✿".into()],
                think: Some(think("", "", ThinkMode::On)),
                fill: Some(fill()),
                sampling: REASONING,
                ..chat
            },
            Self::Raven => Chat { system: None, ..roles(chat, "Bob", "Alice") },
            Self::None => Chat { sampling: TEXT, ..chat },
        }
    }
}

/// `chat` with turns of `user: ...` and `assistant: ...`. No blank follows the last colon, because
/// the blank belongs to the first token of the reply.
fn roles(chat: Chat, user: &str, assistant: &str) -> Chat {
    Chat {
        system: Some("System: {system}\n\n".into()),
        user: Some(format!("{user}: {{user}}\n\n{assistant}:")),
        assistant: Some(" {assistant}\n\n".into()),
        stop_texts: vec!["\n\n".into(), format!("\n{user}:")],
        ..chat
    }
}

/// Think blocks after `blank`; `gap` is the text of an empty one. The last `>` is left to the
/// model, because its tokens contain the one that follows.
fn think(blank: &str, gap: &str, mode: ThinkMode) -> Think {
    Think {
        open: format!("{blank}<think"),
        fast: format!("{blank}<think>{gap}</think"),
        close: "</think>".into(),
        hints: [" (think a bit)", " (think)", " (think a lot)"].map(String::from).into(),
        mode,
    }
}

fn fill() -> Fill {
    Fill { prompt: "✿prefix✿✿suffix✿{suffix}✿middle✿{prefix}".into(), stop_text: "✿".into() }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(&Self::ALL, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid_and_has_the_name_by_which_it_is_found() {
        for template in Template::ALL {
            let chat = template.chat();
            chat.validate(1).unwrap();
            assert_eq!(chat.name.parse::<Template>().unwrap(), template);
        }
        assert!("nobody".parse::<Template>().unwrap_err().to_string().contains("flower"));
    }

    #[test]
    fn templates_are_those_of_the_official_list() {
        let [world, think, flower] = [Template::World, Template::Think, Template::Flower].map(Template::chat);
        assert_eq!(world.user.as_deref(), Some("User: {user}\n\nAssistant:"));
        assert_eq!(think.user, world.user);
        let [world, think, flowery] = [world.think, think.think, flower.think].map(Option::unwrap);
        assert_eq!((world.mode, think.mode), (ThinkMode::Off, ThinkMode::On));
        assert_eq!((&*think.open, &*think.fast), (" <think", " <think>\n</think"));
        assert_eq!((&*flowery.open, &*flowery.fast), ("<think", "<think></think"));
        assert_eq!(flower.user.as_deref(), Some("User✿{user}✿\nBot✿"));
    }
}

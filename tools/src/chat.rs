//! Chat templates, stop rules and sampling defaults that go into the file.

use anyhow::{Context, Result, bail};
use rwkv_edge::format::{Chat, SamplingParams};

/// A conversation format that released models were trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// `User: ...`, `Assistant: ...`: World models, RWKV-4 to RWKV-7
    World,
    /// `Bob: ...`, `Alice: ...`: RWKV-4 Raven
    Raven,
    /// No conversation: the model only continues text
    None,
}

impl Template {
    /// The template that a model of `n_vocab` tokens most likely needs. World models have 65,536.
    pub fn for_vocab(n_vocab: usize) -> Self {
        if n_vocab == 65_536 { Template::World } else { Template::None }
    }

    fn roles(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Template::World => Some(("world", "User", "Assistant")),
            Template::Raven => Some(("raven", "Bob", "Alice")),
            Template::None => None,
        }
    }
}

/// The CHAT section for `template`. Chat templates get the sampling defaults of ChatRWKV's chat,
/// other models those of its text pipeline.
///
/// A reply ends at an empty line, because models separate turns with one. In a chat without code,
/// every blank line in a reply starts the next turn.
pub fn chat(
    template: Template,
    start_tokens: Vec<u32>,
    stop_tokens: Vec<u32>,
    sampling: &[String],
) -> Result<Chat> {
    let mut chat = Chat { name: "none".into(), start_tokens, stop_tokens, ..Chat::default() };
    chat.sampling = SamplingParams {
        temperature: 1.0,
        top_p: 0.85,
        top_k: 0,
        presence_penalty: 0.2,
        frequency_penalty: 0.2,
        penalty_decay: 0.996,
    };
    if let Some((name, user, assistant)) = template.roles() {
        chat.name = name.into();
        chat.system = (template == Template::World).then(|| "System: {system}\n\n".into());
        chat.user = Some(format!("{user}: {{user}}\n\n{assistant}:"));
        chat.assistant = Some(" {assistant}\n\n".into());
        chat.stop_texts = vec!["\n\n".into()];
        chat.sampling.top_p = 0.3;
        chat.sampling.presence_penalty = 0.5;
        chat.sampling.frequency_penalty = 0.5;
    }
    for setting in sampling {
        set(&mut chat.sampling, setting)?;
    }
    chat.sampling.validate()?;
    Ok(chat)
}

/// Applies one `key=value`.
fn set(sampling: &mut SamplingParams, setting: &str) -> Result<()> {
    let (key, value) = setting.split_once('=').with_context(|| format!("{setting:?} is not KEY=VALUE"))?;
    let float = || value.parse().with_context(|| format!("{key}: {value:?} is not a number"));
    match key {
        "temperature" => sampling.temperature = float()?,
        "top-p" => sampling.top_p = float()?,
        "top-k" => {
            sampling.top_k = value.parse().with_context(|| format!("{key}: {value:?} is not a count"))?
        }
        "presence-penalty" => sampling.presence_penalty = float()?,
        "frequency-penalty" => sampling.frequency_penalty = float()?,
        "penalty-decay" => sampling.penalty_decay = float()?,
        _ => bail!(
            "unknown sampling default {key:?}: expected temperature, top-p, top-k, presence-penalty, \
             frequency-penalty or penalty-decay"
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_override_defaults_and_bad_ones_are_named() {
        let made =
            chat(Template::None, vec![0], vec![0], &["temperature=0.5".into(), "top-k=7".into()]).unwrap();
        assert_eq!((made.sampling.temperature, made.sampling.top_k, made.sampling.top_p), (0.5, 7, 0.85));
        for bad in ["temperature", "temperature=hot", "heat=1", "top-p=2"] {
            assert!(chat(Template::None, vec![], vec![], &[bad.into()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_world_template_has_no_space_after_the_last_colon() {
        let made = chat(Template::World, vec![], vec![0], &[]).unwrap();
        assert_eq!(made.user.as_deref(), Some("User: {user}\n\nAssistant:"));
    }
}

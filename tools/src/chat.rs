//! Chat templates, stop rules and sampling defaults that go into the file.

use anyhow::{Context, Result};
use rwkv_edge::format::{Chat, Template};

/// The CHAT section for `template`, with the sampling defaults of `sampling` (`key=value`).
pub fn chat(
    template: Template,
    start_tokens: Vec<u32>,
    stop_tokens: Vec<u32>,
    sampling: &[String],
) -> Result<Chat> {
    let mut chat = Chat { start_tokens, stop_tokens, ..template.chat() };
    for setting in sampling {
        let (name, value) =
            setting.split_once('=').with_context(|| format!("{setting:?} is not KEY=VALUE"))?;
        chat.sampling.set(name, value)?;
    }
    chat.sampling.validate()?;
    Ok(chat)
}

/// The template that a checkpoint's own one amounts to: a name that llama.cpp gave it, or a Jinja
/// text whose turns are those of a template.
pub(crate) fn recognise(stored: &str) -> Option<Template> {
    let has = |parts: &[&str]| parts.iter().all(|part| stored.contains(part));
    if stored == "rwkv-world" || has(&["User: ", "Assistant:"]) {
        Some(Template::World)
    } else if has(&["User✿", "Bot✿"]) {
        Some(Template::Flower)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_checkpoints_are_recognised_by_name_and_by_their_turns() {
        let jinja = "{{- 'User: ' + message['content'] + '\\n\\n' -}}{{- 'Assistant:' -}}";
        for (stored, template) in [
            ("rwkv-world", Some(Template::World)),
            (jinja, Some(Template::World)),
            ("{{ 'User✿' + text + '✿\\nBot✿' }}", Some(Template::Flower)),
            ("<|im_start|>user", None),
            ("", None),
        ] {
            assert_eq!(recognise(stored), template, "{stored}");
        }
    }

    #[test]
    fn settings_override_defaults_and_bad_ones_are_named() {
        let made =
            chat(Template::None, vec![0], vec![0], &["temperature=0.5".into(), "top-k=7".into()]).unwrap();
        assert_eq!((made.sampling.temperature, made.sampling.top_k, made.sampling.top_p), (0.5, 7, 0.85));
        for bad in ["temperature", "temperature=hot", "heat=1", "top-p=2"] {
            assert!(chat(Template::None, vec![], vec![], &[bad.into()]).is_err(), "{bad}");
        }
    }
}

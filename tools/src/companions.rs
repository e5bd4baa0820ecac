//! What the other files of a checkpoint's folder say: tokenizer, chat template, start tokens.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rwkv_edge::format::Template;
use rwkv_edge::input;
use serde_json::Value;

use crate::chat;
use crate::vocab;

/// Longest JSON file or template.
const MAX_FILE: u64 = 16 << 20;

/// Names of vocabularies, the best first. The first of any other `rwkv_vocab*` follows.
const TOKENIZERS: [&str; 3] = ["rwkv_vocab_v20230424.txt", "tokenizer.json", "20B_tokenizer.json"];

/// Token of the World vocabulary in templates, which begins a text.
const END_OF_TEXT: &str = "<|rwkv_tokenizer_end_of_text|>";

/// What a folder says. What it does not say is empty.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Companions {
    pub(crate) tokenizer: Option<PathBuf>,
    pub(crate) template: Option<Template>,
    pub(crate) start_tokens: Vec<u32>,
}

impl Companions {
    /// Reads the files of `folder`, apart from the tokenizer's.
    ///
    /// # Errors
    /// If a file is damaged.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let json = |name: &str| read_json(&folder.join(name));
        let tokenizer = json("tokenizer_config.json")?;
        let jinja = template_text(folder, tokenizer.as_ref())?;
        let bos = ["generation_config.json", "config.json"].into_iter().map(json);
        let bos = bos.collect::<Result<Vec<_>>>()?.into_iter().flatten();
        let bos = bos.filter_map(|json| json["bos_token_id"].as_u64()).next().unwrap_or(0);
        let adds_bos = tokenizer.is_some_and(|json| json["add_bos_token"] == true)
            || jinja.as_deref().is_some_and(begins_with_token);
        let bos = u32::try_from(bos).with_context(|| format!("{}: bos_token_id {bos}", folder.display()))?;
        Ok(Self {
            tokenizer: tokenizer_file(folder)?,
            template: jinja.as_deref().and_then(chat::recognise),
            start_tokens: if adds_bos { vec![bos] } else { Vec::new() },
        })
    }

    /// Reads the tokenizer for a model of `n_vocab` tokens. World models need none: a file of a kind
    /// that is not known then counts as not found.
    ///
    /// # Errors
    /// If the file is damaged or of another kind, and no tokenizer is built in.
    pub(crate) fn read_tokenizer(&mut self, n_vocab: usize) -> Result<Option<Vec<u8>>> {
        let Some(path) = &self.tokenizer else { return Ok(None) };
        match vocab::load(path) {
            Ok(section) => Ok(Some(section)),
            Err(_) if vocab::has_builtin(n_vocab) => {
                self.tokenizer = None;
                Ok(None)
            }
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }

    /// One line that says what was found in `folder`.
    pub(crate) fn line(&self, folder: &Path) -> String {
        let tokenizer = self.tokenizer.as_deref().and_then(Path::file_name);
        let tokenizer = tokenizer.map_or("built in".into(), |name| name.to_string_lossy());
        let template = self.template.map_or("by vocabulary", Template::name);
        let tokens = match &self.start_tokens[..] {
            [] => "none".to_owned(),
            tokens => tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
        };
        format!("{}: tokenizer {tokenizer}, template {template}, start tokens {tokens}", folder.display())
    }
}

/// The best vocabulary of a folder.
fn tokenizer_file(folder: &Path) -> Result<Option<PathBuf>> {
    let mut names: Vec<_> = TOKENIZERS.map(String::from).into();
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        others.push(entry?.file_name().to_string_lossy().into_owned());
    }
    others.retain(|name| {
        (name.starts_with("rwkv_vocab") || name.starts_with("tokenizer-midi"))
            && (name.ends_with(".txt") || name.ends_with(".json"))
    });
    others.sort();
    names.extend(others);
    Ok(names.into_iter().map(|name| folder.join(name)).find(|path| path.is_file()))
}

/// The chat template of `chat_template.jinja` or `tokenizer_config.json`.
fn template_text(folder: &Path, config: Option<&Value>) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return Ok(Some(String::from_utf8_lossy(&input::read_file(&path, MAX_FILE)?).into_owned()));
    }
    let text = config.map(|json| match &json["chat_template"] {
        Value::String(text) => text.clone(),
        // Several templates have names.
        Value::Array(list) => list.first().and_then(|entry| entry["template"].as_str()).unwrap_or("").into(),
        _ => String::new(),
    });
    Ok(text.filter(|text| !text.is_empty()))
}

/// Whether a template puts a token in front of the first turn.
fn begins_with_token(jinja: &str) -> bool {
    let before_turns = jinja.split("{%").next().unwrap_or_default();
    ["bos_token", END_OF_TEXT].iter().any(|token| before_turns.contains(token))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let json = input::read_file(path, MAX_FILE)?;
    let json = input::without_byte_order_mark(&json);
    let value = serde_json::from_slice(json).with_context(|| format!("{}: not JSON", path.display()))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[track_caller]
    fn companions(files: &[(&str, &str)]) -> Companions {
        Companions::of(folder(files).path()).unwrap()
    }

    #[test]
    fn an_empty_folder_says_nothing() {
        assert_eq!(companions(&[]), Companions::default());
    }

    #[test]
    fn templates_are_recognised_by_their_marks() {
        for (jinja, wanted) in [
            ("{% for m in messages %}User✿{{m}}✿\nBot✿<think", Some(Template::Flower)),
            ("User: {{ m }}\n\nAssistant:", Some(Template::World)),
            ("<|im_start|>", None),
        ] {
            assert_eq!(companions(&[("chat_template.jinja", jinja)]).template, wanted, "{jinja}");
            let config = serde_json::json!({ "chat_template": jinja }).to_string();
            assert_eq!(companions(&[("tokenizer_config.json", &config)]).template, wanted, "{jinja}");
        }
    }

    #[test]
    fn a_start_token_needs_a_wish_and_takes_the_id_of_the_generation_config() {
        let ids = ("generation_config.json", r#"{"bos_token_id": 7}"#);
        let other = ("config.json", r#"{"bos_token_id": 3}"#);
        assert!(companions(&[ids, other]).start_tokens.is_empty());
        let wish = ("tokenizer_config.json", r#"{"add_bos_token": true}"#);
        assert_eq!(companions(&[ids, other, wish]).start_tokens, [7]);
        assert_eq!(companions(&[other, wish]).start_tokens, [3]);
        let jinja = ("chat_template.jinja", "{{ bos_token }}{% for m in messages %}");
        assert_eq!(companions(&[jinja]).start_tokens, [0]);
        let inside = ("chat_template.jinja", "{% for m in messages %}{{ bos_token }}");
        assert!(companions(&[inside]).start_tokens.is_empty());
    }

    #[test]
    fn damaged_files_are_named() {
        for name in ["tokenizer_config.json", "generation_config.json"] {
            for text in ["{", "", "\u{0}", &"[".repeat(100_000)] {
                let message = Companions::of(folder(&[(name, text)]).path()).unwrap_err().to_string();
                assert!(message.contains(name), "{message}");
            }
        }
        let folder = folder(&[("tokenizer.json", "{}")]);
        let mut companions = Companions::of(folder.path()).unwrap();
        let message = companions.read_tokenizer(300).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
        assert_eq!(companions.read_tokenizer(65_536).unwrap(), None);
        assert_eq!(companions.tokenizer, None);
    }
}

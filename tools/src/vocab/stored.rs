//! Vocabularies that checkpoints carry.

use rwkv_edge::tokenizer::compile::{self, MAX_TOKENS};

use super::error::{Result, VocabError};
use super::literal;
use crate::source::{StoredToken, Vocabulary};

/// Kinds of tokens that stand for no text: unknown, control and unused ones.
const WITHOUT_TEXT: [i32; 3] = [2, 3, 5];

/// Kinds of tokens that stand for their text: normal and user-defined ones.
const WITH_TEXT: [i32; 2] = [1, 4];

/// The tokenizer section of a vocabulary of the World kind that a checkpoint carries.
///
/// # Errors
/// The tokenizer is of another kind; a token is no Python literal or of an unknown kind; token 0
/// stands for text; or the tokens contradict each other.
pub fn stored(vocabulary: &Vocabulary) -> Result<Vec<u8>> {
    let Vocabulary { tokenizer, tokens } = vocabulary;
    if tokenizer != "rwkv" {
        return Err(refusal(format!("its tokenizer is {tokenizer:?}, not \"rwkv\"")));
    }
    if tokens.len() > MAX_TOKENS {
        return Err(refusal(format!("it has {} tokens, the limit is {MAX_TOKENS}", tokens.len())));
    }
    let mut texts = Vec::new();
    for (id, token) in (0..).zip(tokens) {
        let wrong = |problem: String| refusal(format!("token {id} {:?}: {problem}", token.text));
        if has_text(id, token).map_err(wrong)? {
            texts.push((id, literal::parse_bytes(&token.text).map_err(wrong)?));
        }
    }
    match texts.first() {
        // Models whose tokens are the bytes have no end of a document.
        Some((0, _)) if tokens.len() > 256 => {
            Err(refusal("token 0 stands for text, so all ids are shifted by one".into()))
        }
        _ => Ok(compile::greedy(&texts)?),
    }
}

/// Whether a token stands for text. Files without kinds mark the others by their texts.
fn has_text(id: u32, token: &StoredToken) -> Result<bool, String> {
    match token.kind {
        Some(kind) if WITHOUT_TEXT.contains(&kind) => Ok(false),
        Some(kind) if WITH_TEXT.contains(&kind) => Ok(true),
        Some(kind) => Err(format!("its kind is {kind}")),
        None => Ok(id != 0 && token.text != format!("[PAD{id}]")),
    }
}

fn refusal(problem: String) -> VocabError {
    VocabError::Unrecognised(format!(
        "the vocabulary in the checkpoint cannot be used: {problem}; pass another one with --tokenizer FILE"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[(&str, Option<i32>)]) -> Vocabulary {
        let token = |&(text, kind): &(&str, Option<i32>)| StoredToken { text: text.into(), kind };
        Vocabulary { tokenizer: "rwkv".into(), tokens: tokens.iter().map(token).collect() }
    }

    /// Ids and bytes as `compile::greedy` gets them.
    fn assert_tokens(stored_tokens: &[(&str, Option<i32>)], tokens: &[(u32, &[u8])]) {
        let tokens: Vec<_> = tokens.iter().map(|&(id, bytes)| (id, bytes.to_vec())).collect();
        assert_eq!(stored(&vocabulary(stored_tokens)).unwrap(), compile::greedy(&tokens).unwrap());
    }

    #[test]
    fn literals_become_bytes_and_control_and_padding_become_nothing() {
        let stored = [
            ("<s>", Some(3)),
            (r"\x00", Some(1)),
            (r"\t\n\r\\", Some(1)),
            ("it's", Some(1)),
            ("say \"x\"", Some(1)),
            (r#"\'""#, Some(1)),
            (r"\xe4\xbd\xa0", Some(1)),
            ("[PAD7]", Some(1)),
            ("<unk>", Some(2)),
            ("own", Some(4)),
            ("[PAD10]", Some(5)),
        ];
        let tokens: [(u32, &[u8]); 8] = [
            (1, b"\0"),
            (2, b"\t\n\r\\"),
            (3, b"it's"),
            (4, b"say \"x\""),
            (5, b"'\""),
            (6, "你".as_bytes()),
            (7, b"[PAD7]"),
            (9, b"own"),
        ];
        assert_tokens(&stored, &tokens);
    }

    #[test]
    fn files_without_kinds_mark_padding_by_its_text() {
        let stored = [("<s>", None), ("a", None), ("[PAD2]", None), ("[PAD2]", None)];
        assert_tokens(&stored, &[(1, b"a"), (3, b"[PAD2]")]);
    }

    #[test]
    fn vocabularies_that_cannot_be_used_are_refused_with_the_option_for_another() {
        let shifted: Vec<String> = (0..300).map(|id| format!("t{id}")).collect();
        let shifted: Vec<_> = shifted.iter().map(|text| (text.as_str(), Some(1))).collect();
        let other = Vocabulary { tokenizer: "gpt2".into(), ..vocabulary(&[("a", Some(1))]) };
        for (vocabulary, part) in [
            (other, "\"gpt2\""),
            (vocabulary(&[("<s>", Some(3)), (r"\q", Some(1))]), r"unknown escape \q"),
            (vocabulary(&[("<s>", Some(3)), ("<0x41>", Some(6))]), "kind is 6"),
            (vocabulary(&[("<s>", Some(3)), ("é", Some(1))]), "in a bytes literal"),
            (vocabulary(&shifted), "shifted by one"),
        ] {
            let message = stored(&vocabulary).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("--tokenizer FILE"), "{message}");
        }
    }

    /// What Python writes between the quotes of a bytes literal.
    fn repr(bytes: &[u8]) -> String {
        let in_single_quotes = !bytes.contains(&b'\'') || bytes.contains(&b'"');
        let one = |&byte: &u8| match byte {
            b'\t' => "\\t".to_owned(),
            b'\n' => "\\n".to_owned(),
            b'\r' => "\\r".to_owned(),
            b'\\' => "\\\\".to_owned(),
            b'\'' if in_single_quotes => "\\'".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        bytes.iter().map(one).collect()
    }

    #[test]
    fn world_as_llama_cpp_stores_it_is_the_built_in_one() {
        let section = super::super::world_builtin();
        let world = rwkv_edge::Tokenizer::parse(&section).unwrap();
        let token = |id: u32| match id {
            0 => StoredToken { text: "<s>".into(), kind: Some(3) },
            1..65_530 => StoredToken { text: repr(world.token(id)), kind: Some(1) },
            _ => StoredToken { text: format!("[PAD{id}]"), kind: Some(5) },
        };
        let tokens = (0..65_536).map(token).collect();
        assert!(stored(&Vocabulary { tokenizer: "rwkv".into(), tokens }).unwrap() == section);
    }

    #[test]
    fn bytes_as_tokens_may_begin_with_token_0() {
        let texts: Vec<String> = (0..=255).map(|byte| format!("\\x{byte:02x}")).collect();
        let texts: Vec<_> = texts.iter().map(|text| (text.as_str(), Some(1))).collect();
        let bytes: Vec<_> = (0..=255u8).map(|byte| (byte.into(), vec![byte])).collect();
        assert_eq!(stored(&vocabulary(&texts)).unwrap(), compile::greedy(&bytes).unwrap());
    }
}

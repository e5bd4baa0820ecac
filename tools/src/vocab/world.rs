//! World vocabularies: text files of lines `id literal length`, and that of the World models in
//! compact form.

use std::collections::HashMap;

use rwkv_edge::tokenizer::compile::{self, MAX_TOKENS};

use super::error::{Result, VocabError};
use super::literal;

/// The World vocabulary as [`pack`] writes it. `data/README.md` tells where it comes from.
static WORLD: &[u8] = include_bytes!("../../data/world_vocab.bin");

/// The tokenizer section of the World vocabulary (rwkv_vocab_v20230424), which is part of this
/// program.
pub fn world_builtin() -> Vec<u8> {
    compile::greedy(&unpack(WORLD)).expect("data of this crate, checked by its tests")
}

/// Reads a vocabulary of lines `id literal length`: ids and bytes of the tokens, in the order of
/// the lines.
///
/// The literal is one of Python, text or bytes; the length counts its bytes. Id 0 is the end of a
/// document and not listed. Empty lines are skipped.
///
/// # Errors
/// [`VocabError::Line`] for a line of another form, a wrong length, or an id or token of an earlier
/// line.
pub fn world_file(text: &str) -> Result<Vec<(u32, Vec<u8>)>> {
    let mut tokens = Vec::new();
    let (mut line_of_id, mut line_of_token) = (HashMap::new(), HashMap::new());
    for (line, content) in (1..).zip(text.split('\n')) {
        let content = content.strip_suffix('\r').unwrap_or(content);
        if content.is_empty() {
            continue;
        }
        let error = |problem: String| VocabError::Line { line, problem };
        let (id, bytes) = parse_line(content).map_err(error)?;
        if tokens.len() == MAX_TOKENS {
            return Err(error(format!("there are more than {MAX_TOKENS} tokens")));
        }
        if let Some(earlier) = line_of_id.insert(id, line) {
            return Err(error(format!("id {id} is also in line {earlier}")));
        }
        if let Some(earlier) = line_of_token.insert(bytes.clone(), line) {
            return Err(error(format!("the token is also in line {earlier}")));
        }
        tokens.push((id, bytes));
    }
    Ok(tokens)
}

fn parse_line(line: &str) -> Result<(u32, Vec<u8>), String> {
    let parts = line.split_once(' ').and_then(|(id, rest)| Some((id, rest.rsplit_once(' ')?)));
    let (id, (literal, len)) = parts.ok_or("expected `id literal length`")?;
    let id: u32 = id.parse().map_err(|_| format!("{id:?} is not an id"))?;
    let len: usize = len.parse().map_err(|_| format!("{len:?} is not a length"))?;
    let bytes = literal::parse(literal.trim_matches(' '))?;
    if id == 0 {
        return Err("id 0 is reserved for the end of a document".into());
    }
    if bytes.is_empty() {
        return Err("the token is empty".into());
    }
    if bytes.len() != len {
        return Err(format!("the token has {} bytes, the line says {len}", bytes.len()));
    }
    Ok((id, bytes))
}

/// The compact form of a vocabulary with the ids 1, 2, 3 and so on: for each token its length in
/// one byte, and its bytes. `None` if ids leave gaps or a token is longer than 255 bytes.
pub fn pack(tokens: &[(u32, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    for (expected, (id, bytes)) in (1..).zip(tokens) {
        if *id != expected {
            return None;
        }
        packed.push(u8::try_from(bytes.len()).ok()?);
        packed.extend_from_slice(bytes);
    }
    Some(packed)
}

fn unpack(mut packed: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut tokens = Vec::new();
    while let Some((len, rest)) = packed.split_first() {
        let (bytes, rest) = rest.split_at(usize::from(*len));
        tokens.push((tokens.len() as u32 + 1, bytes.to_vec()));
        packed = rest;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// Code points above ASCII that the original file writes as escapes: those Python does not
    /// print.
    const ESCAPED: [char; 22] = [
        '\x7f', '\u{80}', '\u{81}', '\u{91}', '\u{92}', '\u{93}', '\u{94}', '\u{97}', '\u{a0}', '\u{ad}',
        '\u{2002}', '\u{2003}', '\u{2009}', '\u{200a}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}',
        '\u{202c}', '\u{202f}', '\u{3000}', '\u{feff}',
    ];

    /// Python's `repr` of text or bytes.
    fn repr(bytes: &[u8]) -> String {
        let text = str::from_utf8(bytes);
        let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
        let mut literal = String::from(if text.is_ok() { "" } else { "b" });
        literal.push(quote);
        let chars: Vec<char> =
            text.map_or_else(|_| bytes.iter().copied().map(char::from).collect(), |t| t.chars().collect());
        for c in chars {
            let hidden = c < ' ' || ESCAPED.contains(&c) || text.is_err() && !c.is_ascii();
            match c {
                '\n' => literal.push_str("\\n"),
                '\r' => literal.push_str("\\r"),
                '\t' => literal.push_str("\\t"),
                '\\' => literal.push_str("\\\\"),
                _ if c == quote => literal.extend(['\\', c]),
                _ if hidden && u32::from(c) < 256 => literal.push_str(&format!("\\x{:02x}", u32::from(c))),
                _ if hidden => literal.push_str(&format!("\\u{:04x}", u32::from(c))),
                _ => literal.push(c),
            }
        }
        literal.push(quote);
        literal
    }

    #[test]
    fn built_in_vocabulary_regenerates_the_original_file() {
        let tokens = unpack(WORLD);
        assert_eq!(tokens.len(), 65_529);
        let lines = tokens.iter().map(|(id, bytes)| format!("{id} {} {}\n", repr(bytes), bytes.len()));
        let original: String = lines.collect();
        assert_eq!(original.len(), 1_093_733);
        let digest: String = Sha256::digest(&original).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89");
        assert_eq!(world_file(&original).unwrap(), tokens);
        assert_eq!(pack(&tokens).unwrap(), WORLD);
    }

    #[test]
    fn wrong_lines_are_named() {
        let cases = [
            ("1 'a' 1\n2 'b'", 2, "expected `id literal length`"),
            ("x 'a' 1", 1, "\"x\" is not an id"),
            ("1 'a' one", 1, "\"one\" is not a length"),
            ("1 'a' 1\n\n2 'bc' 3", 3, "the token has 2 bytes, the line says 3"),
            ("1 '\u{e9}' 1", 1, "the token has 2 bytes, the line says 1"),
            ("1 'a' 1\n1 'b' 1", 2, "id 1 is also in line 1"),
            ("1 'a' 1\n2 '\\x61' 1", 2, "the token is also in line 1"),
            ("0 'a' 1", 1, "id 0 is reserved for the end of a document"),
            ("1 '' 0", 1, "the token is empty"),
            ("1 'a 1", 1, "expected a literal in quotes"),
        ];
        for (text, wrong, what) in cases {
            match world_file(text) {
                Err(VocabError::Line { line, problem }) => {
                    assert_eq!((line, problem.as_str()), (wrong, what))
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn crlf_and_blanks_around_the_literal_are_accepted() {
        let tokens = world_file("1  ' a'  2\r\n2 b'\\xff' 1\r\n").unwrap();
        assert_eq!(tokens, [(1, b" a".to_vec()), (2, vec![0xff])]);
    }

    #[test]
    fn gaps_and_long_tokens_are_not_packed() {
        assert_eq!(pack(&[(2, vec![1])]), None);
        assert_eq!(pack(&[(1, vec![1; 256])]), None);
    }
}

//! Builds tokenizer sections from vocabularies. The converter uses it.

use std::collections::{HashMap, HashSet};
use std::fmt;

use unicode_normalization::UnicodeNormalization;

use super::bpe::{FLAG_NFC, is_in_utf8};
pub use super::section::MAX_TOKENS;
use super::section::{KIND_BPE, KIND_BYTES, KIND_GREEDY, KIND_WORDS, MAGIC, MAX_NODES, MAX_TOKEN_LEN, NONE};
use super::words::FLAG_LOWERCASE;
use crate::error::{Error, Result};

/// A byte-level BPE vocabulary.
#[derive(Clone, Debug, Default)]
pub struct BpeSource {
    /// Ids and bytes of the vocabulary that merges refer to. Every byte of UTF-8 is a token by
    /// itself.
    pub tokens: Vec<(u32, Vec<u8>)>,
    /// The merges. Earlier ones are applied first.
    pub merges: Vec<Merge>,
    /// Tokens that are cut out of the text first. They may repeat `tokens`, with the same id and
    /// text.
    pub added: Vec<AddedToken>,
    /// Whether text is converted to normalisation form C.
    pub nfc: bool,
}

/// A vocabulary of whole words.
#[derive(Clone, Debug, Default)]
pub struct WordsSource {
    /// Ids and texts of the words, without white space.
    pub words: Vec<(u32, String)>,
    /// Tokens that are cut out of the text first. They may repeat `words`, with the same id and
    /// text.
    pub added: Vec<AddedToken>,
    /// Whether text becomes lower case.
    pub lowercase: bool,
    /// Id of all words that are in no token. Without it they are an error.
    pub unknown: Option<u32>,
}

/// Two adjacent tokens that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Id of the left token.
    pub left: u32,
    /// Id of the right token.
    pub right: u32,
    /// Id of the token that replaces both.
    pub merged: u32,
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokens {} and {} to {}", self.left, self.right, self.merged)
    }
}

/// A token that is cut out of the text first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether it is a control token, which decodes to nothing.
    pub special: bool,
    /// Whether it is searched in the normalised text, after the tokens of the original text.
    pub normalized: bool,
}

/// The section of models with 256 tokens whose ids are the bytes.
pub fn bytes() -> Vec<u8> {
    Writer::new(KIND_BYTES, 256, 1).section
}

/// The section of a greedy longest-match vocabulary, from ids and bytes of its tokens.
///
/// Ids may have gaps. A byte may have no token; [`Tokenizer::encode`](super::Tokenizer::encode)
/// then refuses text with that byte.
///
/// # Errors
/// There is no token; an id or a token occurs twice; an id is above 1,048,575; a token is empty or
/// longer than 1024 bytes.
pub fn greedy(tokens: &[(u32, Vec<u8>)]) -> Result<Vec<u8>> {
    let tokens: Vec<Entry<'_>> = tokens.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
    check_tokens(&tokens)?;
    let mut writer = Writer::with_table(KIND_GREEDY, &tokens);
    writer.trie(tokens)?;
    Ok(writer.section)
}

/// The section of a byte-level BPE vocabulary.
///
/// # Errors
/// As [`greedy`]; a byte of UTF-8 has no token; a merge refers to an unknown token or does not give
/// the concatenation of its sides; two merges have the same sides; or an added token has the id of
/// a token with another text.
pub fn bpe(source: &BpeSource) -> Result<Vec<u8>> {
    let tokens: Vec<Entry<'_>> = source.tokens.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
    check_tokens(&tokens)?;
    let added: Vec<Entry<'_>> =
        source.added.iter().map(|token| (token.id, token.content.as_bytes())).collect();
    check_tokens_allowing_none(&added)?;
    let bytes_of: HashMap<u32, &[u8]> = tokens.iter().copied().collect();
    check_added(&added, &bytes_of)?;
    check_merges(&source.merges, &bytes_of)?;

    let mut writer = Writer::with_table(KIND_BPE, &decoded(source, bytes_of));
    writer.u32(if source.nfc { FLAG_NFC } else { 0 });
    writer.u32s(byte_tokens(&tokens)?);
    let n_tokens = writer.n_tokens;
    writer.merges(&source.merges, n_tokens);
    let (normalized, exact): (Vec<_>, Vec<_>) = source.added.iter().partition(|token| token.normalized);
    writer.trie(exact.iter().map(|token| (token.id, token.content.as_bytes())).collect())?;
    let normalize = |text: &str| if source.nfc { text.nfc().collect() } else { text.to_owned() };
    writer.normalized(&normalized, normalize)?;
    Ok(writer.section)
}

/// The section of a vocabulary of words. Decoding puts a blank in front of each word, so that texts
/// of words can follow each other.
///
/// # Errors
/// As [`greedy`]; an added token has the id of a token with another text; or the unknown token is
/// none.
pub fn words(source: &WordsSource) -> Result<Vec<u8>> {
    let words: Vec<Entry<'_>> = source.words.iter().map(|(id, word)| (*id, word.as_bytes())).collect();
    check_tokens(&words)?;
    let added: Vec<Entry<'_>> =
        source.added.iter().map(|token| (token.id, token.content.as_bytes())).collect();
    check_tokens_allowing_none(&added)?;
    let text_of: HashMap<u32, &[u8]> = words.iter().copied().collect();
    check_added(&added, &text_of)?;
    if source.unknown.is_some_and(|id| !text_of.contains_key(&id)) {
        return Err(Error::invalid("the token of unknown words is not in the vocabulary"));
    }
    let mut decoded: HashMap<u32, Vec<u8>> = HashMap::new();
    for (id, word) in words.iter().chain(&added) {
        decoded.insert(*id, [b" ", *word].concat());
    }
    for token in source.added.iter().filter(|token| token.special) {
        decoded.insert(token.id, Vec::new());
    }
    let decoded: Vec<Entry<'_>> = decoded.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
    if let Some((id, _)) = decoded.iter().find(|(_, bytes)| bytes.len() > MAX_TOKEN_LEN) {
        return Err(Error::invalid(format!("token {id}: it is too long")));
    }
    let mut writer = Writer::with_table(KIND_WORDS, &decoded);
    writer.u32(if source.lowercase { FLAG_LOWERCASE } else { 0 });
    writer.u32(source.unknown.unwrap_or(NONE));
    let lower = |text: &str| match source.lowercase {
        true => text.chars().flat_map(char::to_lowercase).collect(),
        false => text.to_owned(),
    };
    let (normalized, exact): (Vec<_>, Vec<_>) = source.added.iter().partition(|token| token.normalized);
    writer.trie(exact.iter().map(|token| (token.id, token.content.as_bytes())).collect())?;
    writer.normalized(&normalized, lower)?;
    writer.trie(words)?;
    Ok(writer.section)
}

/// Id and bytes of a token.
type Entry<'t> = (u32, &'t [u8]);

fn check_tokens(tokens: &[Entry<'_>]) -> Result<()> {
    if tokens.is_empty() {
        return Err(Error::invalid("the vocabulary is empty"));
    }
    check_tokens_allowing_none(tokens)
}

fn check_tokens_allowing_none(tokens: &[Entry<'_>]) -> Result<()> {
    let (mut ids, mut texts) = (HashSet::new(), HashSet::new());
    for &(id, bytes) in tokens {
        let problem = if id as usize >= MAX_TOKENS {
            "its id is too large"
        } else if bytes.is_empty() {
            "it is empty"
        } else if bytes.len() > MAX_TOKEN_LEN {
            "it is too long"
        } else if !ids.insert(id) {
            "its id occurs twice"
        } else if !texts.insert(bytes) {
            "its bytes occur twice"
        } else {
            continue;
        };
        return Err(Error::invalid(format!("token {id} {:?}: {problem}", String::from_utf8_lossy(bytes))));
    }
    Ok(())
}

/// Refuses an added token with the id of another text, because that id would decode to the other
/// text.
fn check_added(added: &[Entry<'_>], bytes_of: &HashMap<u32, &[u8]>) -> Result<()> {
    for &(id, text) in added {
        if let Some(&other) = bytes_of.get(&id).filter(|&&other| other != text) {
            let [text, other] = [text, other].map(String::from_utf8_lossy);
            return Err(Error::invalid(format!(
                "added token {text:?} has id {id}, which is that of {other:?}"
            )));
        }
    }
    Ok(())
}

fn check_merges(merges: &[Merge], bytes_of: &HashMap<u32, &[u8]>) -> Result<()> {
    let mut sides = HashSet::new();
    for (rank, merge) in merges.iter().enumerate() {
        let bytes = |id| bytes_of.get(&id).copied();
        let (left, right, merged) = (bytes(merge.left), bytes(merge.right), bytes(merge.merged));
        let (Some(left), Some(right), Some(merged)) = (left, right, merged) else {
            return Err(Error::invalid(format!("merge {rank} ({merge}): a token is unknown")));
        };
        if merged.strip_prefix(left) != Some(right) {
            return Err(Error::invalid(format!("merge {rank} ({merge}): the result is not both sides")));
        }
        if !sides.insert((merge.left, merge.right)) {
            return Err(Error::invalid(format!("merge {rank} ({merge}): an earlier one has its sides")));
        }
    }
    Ok(())
}

/// The ids, each with the bytes that it decodes to.
fn decoded<'s>(source: &'s BpeSource, mut bytes_of: HashMap<u32, &'s [u8]>) -> Vec<Entry<'s>> {
    for token in &source.added {
        bytes_of.insert(token.id, if token.special { &[] } else { token.content.as_bytes() });
    }
    bytes_of.into_iter().collect()
}

fn byte_tokens(tokens: &[Entry<'_>]) -> Result<[u32; 256]> {
    let mut of_byte = [NONE; 256];
    for (id, bytes) in tokens {
        if let [byte] = bytes {
            of_byte[usize::from(*byte)] = *id;
        }
    }
    match (0..=255).find(|byte| is_in_utf8(*byte) && of_byte[usize::from(*byte)] == NONE) {
        Some(byte) => {
            Err(Error::invalid(format!("byte {byte:#04x} has no token: not a byte-level vocabulary")))
        }
        None => Ok(of_byte),
    }
}

struct Writer {
    section: Vec<u8>,
    n_tokens: usize,
}

impl Writer {
    fn new(kind: u32, n_tokens: usize, max_token_len: usize) -> Self {
        let mut writer = Self { section: MAGIC.to_vec(), n_tokens };
        writer.u32s([kind, n_tokens as u32, max_token_len as u32]);
        writer
    }

    /// A section that begins with header and decode table.
    fn with_table(kind: u32, tokens: &[Entry<'_>]) -> Self {
        let n_tokens = tokens.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0);
        let mut by_id: Vec<&[u8]> = vec![&[]; n_tokens];
        for (id, bytes) in tokens {
            by_id[*id as usize] = bytes;
        }
        let mut writer = Self::new(kind, n_tokens, by_id.iter().map(|bytes| bytes.len()).max().unwrap_or(0));
        let blob = by_id.concat();
        writer.u32(blob.len() as u32);
        writer.u32s(offsets(by_id.iter().map(|bytes| bytes.len())));
        writer.bytes(&blob);
        writer
    }

    fn u32(&mut self, value: u32) {
        self.section.extend_from_slice(&value.to_le_bytes());
    }

    fn u32s(&mut self, values: impl IntoIterator<Item = u32>) {
        values.into_iter().for_each(|value| self.u32(value));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.section.extend_from_slice(bytes);
        self.section.resize(self.section.len().next_multiple_of(4), 0);
    }

    fn merges(&mut self, merges: &[Merge], n_tokens: usize) {
        let mut ranked: Vec<(Merge, u32)> = merges.iter().copied().zip(0..).collect();
        ranked.sort_unstable_by_key(|(merge, _)| (merge.left, merge.right));
        let mut per_left = vec![0; n_tokens];
        for merge in merges {
            per_left[merge.left as usize] += 1;
        }
        self.u32(merges.len() as u32);
        self.u32s(offsets(per_left));
        self.u32s(ranked.iter().map(|(merge, _)| merge.right));
        self.u32s(ranked.iter().map(|(merge, _)| merge.merged));
        self.u32s(ranked.iter().map(|(_, rank)| *rank));
    }

    /// The trie of added tokens that are searched in normalised text.
    fn normalized(&mut self, added: &[&AddedToken], normalize: impl Fn(&str) -> String) -> Result<()> {
        let tokens: Vec<(u32, String)> = added.iter().map(|t| (t.id, normalize(&t.content))).collect();
        let tokens: Vec<Entry<'_>> = tokens.iter().map(|(id, text)| (*id, text.as_bytes())).collect();
        check_tokens_allowing_none(&tokens)?;
        self.trie(tokens)
    }

    fn trie(&mut self, mut tokens: Vec<Entry<'_>>) -> Result<()> {
        /// A node: the range of the sorted tokens that begin with the bytes on the path to it. The
        /// struct is small because there may be many.
        struct Node {
            label: u8,
            depth: u16,
            from: u32,
            to: u32,
        }
        tokens.sort_unstable_by_key(|(_, bytes)| *bytes);
        let mut nodes = vec![Node { label: 0, depth: 0, from: 0, to: tokens.len() as u32 }];
        let (mut first_child, mut ends_here) = (Vec::new(), Vec::new());
        while let Some(&Node { depth, mut from, to, .. }) = nodes.get(first_child.len()) {
            first_child.push(nodes.len() as u32);
            let at = usize::from(depth);
            let token = tokens[from as usize..to as usize].first().filter(|(_, bytes)| bytes.len() == at);
            ends_here.push(token.map_or(NONE, |(id, _)| *id));
            from += u32::from(token.is_some());
            for group in tokens[from as usize..to as usize].chunk_by(|a, b| a.1[at] == b.1[at]) {
                let to = from + group.len() as u32;
                nodes.push(Node { label: group[0].1[at], depth: depth + 1, from, to });
                from = to;
            }
            if nodes.len() > MAX_NODES {
                return Err(Error::invalid(format!(
                    "the tokens have more than {MAX_NODES} different beginnings"
                )));
            }
        }
        first_child.push(nodes.len() as u32);
        self.u32(nodes.len() as u32);
        self.u32s(first_child);
        self.u32s(ends_here);
        self.bytes(&nodes.iter().map(|node| node.label).collect::<Vec<u8>>());
        Ok(())
    }
}

/// The start of each of several adjacent items, and the end of the last.
fn offsets(lens: impl IntoIterator<Item = usize>) -> impl Iterator<Item = u32> {
    let mut end = 0;
    std::iter::once(0).chain(lens.into_iter().map(move |len| {
        end += len as u32;
        end
    }))
}

//! The splitting pattern of GPT-2, by hand:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! `\s` is the Unicode property White_Space, `\p{L}` and `\p{N}` are general categories.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// Length of the first match in `text`, which is not empty. Matches follow each other without gaps.
pub(super) fn word_len(text: &str) -> usize {
    if let Some(contraction) = CONTRACTIONS.iter().find(|c| text.starts_with(**c)) {
        return contraction.len();
    }
    let blank = usize::from(text.starts_with(' '));
    match text[blank..].chars().next().map(class) {
        Some(class) if class != Class::Space => blank + run_len(&text[blank..], class),
        _ => space_len(text),
    }
}

/// Length of the run of characters of one class at the beginning.
fn run_len(text: &str, wanted: Class) -> usize {
    text.char_indices().find(|(_, c)| class(*c) != wanted).map_or(text.len(), |(i, _)| i)
}

/// `\s+(?!\S)|\s+`: all of a run of white space at the end of the text. Elsewhere, all but the last
/// character of the run, unless it has only one.
fn space_len(text: &str) -> usize {
    let len = run_len(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

#[inline]
fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        '\t'..='\r' | ' ' => Class::Space,
        '\0'..='\x7f' => Class::Other,
        _ if c.is_whitespace() => Class::Space,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => Class::Letter,
            GeneralCategoryGroup::Number => Class::Number,
            _ => Class::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(mut text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        while !text.is_empty() {
            let (word, rest) = text.split_at(word_len(text));
            words.push(word);
            text = rest;
        }
        words
    }

    #[test]
    fn words_take_one_blank_in_front() {
        assert_eq!(words("one two  three"), ["one", " two", " ", " three"]);
        assert_eq!(words("a1 2b!? c"), ["a", "1", " 2", "b", "!?", " c"]);
    }

    #[test]
    fn contractions_are_lower_case_and_only_at_the_beginning_of_a_match() {
        assert_eq!(words("it's I'LL we'll"), ["it", "'s", " I", "'", "LL", " we", "'ll"]);
        assert_eq!(words("''s 's 'sx"), ["''", "s", " '", "s", " '", "sx"]);
        assert_eq!(words("'sx'rex"), ["'s", "x", "'re", "x"]);
    }

    #[test]
    fn last_white_space_before_a_word_is_a_match_of_its_own() {
        assert_eq!(words("a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("a\n\n"), ["a", "\n\n"]);
        assert_eq!(words("a\n \tb"), ["a", "\n ", "\t", "b"]);
        assert_eq!(words("a\r\n\r\nb"), ["a", "\r\n\r", "\n", "b"]);
        assert_eq!(words("\u{a0}\u{3000}x"), ["\u{a0}", "\u{3000}", "x"]);
    }

    #[test]
    fn unicode_decides_the_classes() {
        // Roman numeral, superscript, full-width digit; a combining mark is neither letter nor
        // number.
        assert_eq!(words("Ⅳx²３"), ["Ⅳ", "x", "²３"]);
        assert_eq!(words("x\u{301}y"), ["x", "\u{301}", "y"]);
        assert_eq!(words("\u{200b}\u{1c}"), ["\u{200b}\u{1c}"]);
    }
}

//! The text that comes with the converter, in `tools/calibration`. Its `SOURCES.md` lists every
//! passage.

/// Passages of many languages, scripts and kinds, which alternate: a prefix has all kinds.
pub(crate) const TEXT: &str = include_str!("../../calibration/calibration.txt");

/// The passages of [`TEXT`], without the lines with a form feed that separate them.
pub(crate) fn passages(text: &str) -> impl Iterator<Item = &str> {
    text.trim_end_matches('\n').split("\n\u{c}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashSet};
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    use std::path::{Path, PathBuf};
    use std::{fs, iter};

    use rwkv_edge::Tokenizer;

    use super::*;
    use crate::vocab;

    const SOURCES: &str = include_str!("../../calibration/SOURCES.md");

    /// Rows of the table in `SOURCES.md`: languages, kind, source and licence of passages 1, 2, ...
    fn sources() -> Vec<[&'static str; 4]> {
        let rows = SOURCES.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| passage"));
        rows.enumerate()
            .map(|(i, row)| {
                let cells: Vec<_> = row.trim_matches(['|', ' ']).split(" | ").collect();
                assert_eq!(cells[0], (i + 1).to_string(), "{row}");
                cells[1..].try_into().unwrap_or_else(|_| panic!("{row}"))
            })
            .collect()
    }

    /// The script of a letter.
    fn script(letter: char) -> Option<&'static str> {
        Some(match letter {
            'A'..='Z' | 'a'..='z' | '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => "Latin",
            '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}' => "Greek",
            '\u{400}'..='\u{4ff}' => "Cyrillic",
            '\u{530}'..='\u{58f}' => "Armenian",
            '\u{590}'..='\u{5ff}' => "Hebrew",
            '\u{600}'..='\u{6ff}' => "Arabic",
            '\u{900}'..='\u{97f}' => "Devanagari",
            '\u{980}'..='\u{9ff}' => "Bengali",
            '\u{b80}'..='\u{bff}' => "Tamil",
            '\u{c00}'..='\u{c7f}' => "Telugu",
            '\u{e00}'..='\u{e7f}' => "Thai",
            '\u{10a0}'..='\u{10ff}' => "Georgian",
            '\u{1200}'..='\u{137f}' => "Ethiopic",
            '\u{3040}'..='\u{30ff}' => "Kana",
            '\u{4e00}'..='\u{9fff}' => "Han",
            '\u{ac00}'..='\u{d7a3}' => "Hangul",
            _ => return None,
        })
    }

    /// The script that tells a language from others.
    fn script_of(language: &str) -> &'static str {
        match language {
            "Russian" | "Ukrainian" | "Bulgarian" => "Cyrillic",
            "Arabic" | "Persian" | "Urdu" => "Arabic",
            "Hindi" | "Sanskrit" => "Devanagari",
            "Amharic" => "Ethiopic",
            "Chinese" => "Han",
            "Japanese" => "Kana",
            "Korean" => "Hangul",
            "Greek" => "Greek",
            "Armenian" => "Armenian",
            "Hebrew" => "Hebrew",
            "Bengali" => "Bengali",
            "Tamil" => "Tamil",
            "Telugu" => "Telugu",
            "Thai" => "Thai",
            "Georgian" => "Georgian",
            _ => "Latin",
        }
    }

    fn letters(text: &str) -> BTreeMap<&'static str, usize> {
        text.chars().filter_map(script).fold(BTreeMap::new(), |mut counts, script| {
            *counts.entry(script).or_default() += 1;
            counts
        })
    }

    /// Passages with the tokens of the World vocabulary up to and including each.
    fn with_tokens() -> Vec<(&'static str, usize)> {
        let section = vocab::world_builtin();
        let tokenizer = Tokenizer::parse(&section).unwrap();
        let mut ids = Vec::new();
        passages(TEXT)
            .map(|passage| {
                tokenizer.encode(passage.as_bytes(), &mut ids).unwrap();
                (passage, ids.len())
            })
            .collect()
    }

    /// A mark for each run of 16 words. A letter of a script without spaces between words is a word.
    fn runs(text: &str) -> HashSet<u64> {
        let spaceless = |c: char| matches!(script(c), Some("Thai" | "Kana" | "Han"));
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_alphanumeric())
            .flat_map(|word| word.split_inclusive(spaceless))
            .filter(|word| !word.is_empty())
            .collect();
        words.windows(16).map(|run| BuildHasherDefault::<DefaultHasher>::default().hash_one(run)).collect()
    }

    /// Texts below a folder: what people read, and what models may be judged on.
    fn texts(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && name != "calibration" && !name.as_encoded_bytes().starts_with(b".") {
                    texts(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "txt" || extension == "md") {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_text_is_lines_of_utf8_and_lone_form_feeds() {
        for passage in passages(TEXT) {
            assert!(!passage.trim().is_empty());
            let control = passage.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
            assert_eq!(control, None, "{passage}");
        }
        assert_eq!(TEXT.matches('\u{c}').count() + 1, passages(TEXT).count());
        assert_eq!(passages("one\n\u{c}\ntwo\u{c}\n\n").collect::<Vec<_>>(), ["one", "two\u{c}"]);
    }

    #[test]
    fn every_passage_has_a_source_and_the_letters_of_its_languages() {
        let (sources, mut languages) = (sources(), BTreeSet::new());
        assert_eq!(passages(TEXT).count(), sources.len());
        for (passage, [listed, kind, source, licence]) in passages(TEXT).zip(sources) {
            assert!(
                matches!(licence, "public domain" | "Apache-2.0") && !source.is_empty(),
                "{listed}, {source}"
            );
            let counts = letters(passage);
            let total: usize = counts.values().sum();
            for language in listed.split(", ") {
                let share = *counts.get(script_of(language)).unwrap_or(&0) as f64 / total as f64;
                let least = if listed.contains(',') { 0.01 } else { 0.3 };
                assert!(share > least, "{language}: {share} of the letters of {passage}");
                if matches!(kind, "prose" | "chat") {
                    languages.insert(language);
                }
            }
        }
        assert!(languages.len() >= 20, "{languages:?}");
    }

    #[test]
    fn the_text_is_of_the_size_that_conversions_need() {
        let passages = with_tokens();
        let total = passages.last().unwrap().1;
        assert!(total >= 24_576, "{total} tokens");
        assert!((90_000..=110_000).contains(&TEXT.len()), "{} bytes", TEXT.len());
        let before = iter::once(0).chain(passages.iter().map(|(_, sum)| *sum));
        for ((passage, sum), before) in passages.iter().zip(before) {
            assert!((50..=512).contains(&(sum - before)), "{} tokens: {passage}", sum - before);
        }
    }

    #[test]
    fn a_prefix_has_every_kind_and_every_script() {
        let passages = with_tokens();
        let first = |tokens| passages.iter().take_while(move |(_, sum)| *sum <= tokens);
        let kinds: BTreeSet<_> = sources().iter().take(first(2048).count()).map(|row| row[1]).collect();
        assert_eq!(Vec::from_iter(kinds), ["chat", "code", "data", "markdown", "mathematics", "prose"]);
        let prefix: BTreeSet<_> = first(4096).flat_map(|(passage, _)| letters(passage).into_keys()).collect();
        let all: BTreeSet<_> = letters(TEXT).into_keys().collect();
        assert!(all.len() >= 16 && prefix == all, "{:?} are missing", all.difference(&prefix));
    }

    #[test]
    fn no_run_of_16_words_is_in_a_text_that_models_are_judged_on() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut others = Vec::new();
        texts(&root, &mut others);
        let valid = root.join("../shared/fairy/valid.txt");
        if valid.exists() {
            others.push(valid);
        } else {
            println!("skipped: no {}", valid.display());
        }
        let own = runs(TEXT);
        let quoted = passages(TEXT).next().unwrap().to_uppercase().replace([',', '.'], "\n");
        assert!(!own.is_disjoint(&runs(&quoted)));
        for other in others {
            let text = String::from_utf8_lossy(&fs::read(&other).unwrap()).into_owned();
            assert!(own.is_disjoint(&runs(&text)), "{} shares 16 words with the text", other.display());
        }
    }
}

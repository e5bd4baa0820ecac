//! Models of puzzles that have the tensors of RWKV-6 or 7 and may compute otherwise. Their
//! vocabularies tell them.

use rwkv_edge::Tokenizer;
use rwkv_edge::format::{Variant, Version};

/// Most tokens of such a vocabulary; the largest has 150.
const MAX_TOKENS: usize = 512;

/// A vocabulary of puzzles: parts of its tokens that no other one has all of, and what to do.
struct Puzzle {
    marks: &'static [&'static str],
    name: &'static str,
    models: &'static str,
    variant: Variant,
}

const PUZZLES: [Puzzle; 3] = [
    Puzzle {
        marks: &["<fill number>", "<check state>"],
        name: "Sudoku-RWKV",
        models: "its models",
        variant: Variant::Puzzle,
    },
    Puzzle {
        marks: &["○", "●", "board>"],
        name: "RWKV_Othello",
        models: "its models named *_extended",
        variant: Variant::OthelloExtended,
    },
    Puzzle {
        marks: &["board>", "UP", "DOWN", "LEFT", "RIGHT"],
        name: "RWKV-15Puzzle",
        models: "its models",
        variant: Variant::Puzzle,
    },
];

/// One line that names the option for a model of this vocabulary, if it may need one.
pub(crate) fn advice(tokenizer: &Tokenizer<'_>, version: Version) -> Option<String> {
    let n_tokens = tokenizer.n_tokens();
    if n_tokens > MAX_TOKENS {
        return None;
    }
    let tokens = || (0..n_tokens as u32).map(|id| tokenizer.token(id));
    let has =
        |mark: &&str| tokens().any(|token| token.windows(mark.len()).any(|part| part == mark.as_bytes()));
    let puzzle = PUZZLES.iter().find(|puzzle| puzzle.marks.iter().all(has))?;
    let Puzzle { name, models, variant, .. } = puzzle;
    variant.exists_for(version).then(|| {
        format!("the vocabulary is that of {name}: {models} compute right with --variant {variant} only")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rwkv_edge::tokenizer::compile;

    fn advice_on(tokens: &[&str], version: Version) -> Option<String> {
        let tokens: Vec<_> = (1..).zip(tokens.iter().map(|token| token.as_bytes().to_vec())).collect();
        let section = compile::greedy(&tokens).unwrap();
        advice(&Tokenizer::parse(&section).unwrap(), version)
    }

    #[test]
    fn vocabularies_of_puzzles_name_the_option_of_their_models() {
        let sudoku = ["0", "(0, 1) ", "<fill number>", "</fill number>", "<check state>", "</check state>"];
        let othello = ["○ ", "● ", "· ", "<board>\n", "</board>", "NEXT "];
        let fifteen = ["<board>\n", "</board>\n", "UP ", "DOWN ", "LEFT ", "RIGHT ", "15 "];
        for (tokens, version, option) in [
            (&sudoku[..], Version::V6, "--variant puzzle "),
            (&fifteen, Version::V6, "--variant puzzle "),
            (&othello, Version::V7, "--variant othello-extended "),
        ] {
            let line = advice_on(tokens, version).unwrap();
            assert!(line.contains(option), "{line}");
            assert_eq!(advice_on(&tokens[..2], version), None, "{tokens:?}");
        }
        assert_eq!(advice_on(&othello, Version::V6), None);
        assert_eq!(advice_on(&sudoku, Version::V4), None);
    }

    #[test]
    fn other_vocabularies_get_no_advice() {
        let world = crate::vocab::world_builtin();
        for section in [compile::bytes(), world] {
            assert_eq!(advice(&Tokenizer::parse(&section).unwrap(), Version::V7), None);
        }
    }
}

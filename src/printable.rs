//! Text of unknown origin, made safe for a terminal.

use std::fmt::{self, Display, Write};

/// Shows a value on one line that cannot command the terminal. Control characters, characters that
/// turn the direction of text, and line separators become escapes such as `\n` and `\u{1b}`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Shows a text as [`Printable`] does, but line feeds and tabs as they are.
#[derive(Clone, Copy, Debug)]
pub struct PrintableText<'a>(pub &'a str);

impl Display for PrintableText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.split_inclusive(['\n', '\t']).try_for_each(|part| {
            let text = part.trim_end_matches(['\n', '\t']);
            write!(Escaping(f), "{text}")?;
            f.write_str(&part[text.len()..])
        })
    }
}

/// Longest line of a message in bytes.
const MAX_LINE: usize = 4096;

/// A message as one printable line. A message may quote a token of megabytes: a line of more than
/// 4 KiB keeps its beginning and its end.
pub fn line(message: impl Display) -> String {
    let line = Printable(message).to_string();
    if line.len() <= MAX_LINE {
        return line;
    }
    let border = |from| (from..line.len()).find(|&at| line.is_char_boundary(at)).unwrap_or(line.len());
    let (start, end) = (border(MAX_LINE / 2), border(line.len() - MAX_LINE / 2));
    format!("{} ... {}", &line[..start], &line[end..])
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, hidden)) = rest.char_indices().find(|&(_, c)| is_hidden(c)) {
            write!(self.0, "{}{}", &rest[..at], hidden.escape_default())?;
            rest = &rest[at + hidden.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Whether a terminal acts on a character instead of showing it.
fn is_hidden(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINE, Printable, PrintableText, line};

    #[test]
    fn a_text_keeps_its_lines_and_loses_its_commands() {
        for (text, shown) in [("", ""), ("a\n\n\tb\n", "a\n\n\tb\n"), ("a\u{1b}[2J\r\n", "a\\u{1b}[2J\\r\n")]
        {
            assert_eq!(PrintableText(text).to_string(), shown);
        }
    }

    #[test]
    fn of_a_long_message_the_beginning_and_the_end_are_shown() {
        let message = format!("model.json: token {} is wrong", "\u{e9}\n".repeat(1 << 20));
        let shown = line(&message);
        assert!(
            shown.starts_with("model.json: token \u{e9}\\n") && shown.ends_with("\\n is wrong"),
            "{shown}"
        );
        assert!((MAX_LINE - 8..MAX_LINE + 8).contains(&shown.len()));
        assert_eq!(line("short\n"), "short\\n");
    }

    #[test]
    fn what_commands_a_terminal_is_escaped_and_text_is_not() {
        for (text, shown) in [
            ("", ""),
            ("blocks.0.att 你好 é 😀 \\n", "blocks.0.att 你好 é 😀 \\n"),
            ("x\u{1b}[2J\u{1b}[1;1H\nall is well", "x\\u{1b}[2J\\u{1b}[1;1H\\nall is well"),
            ("\r\t\u{7f}\u{80}\u{9b}2J\u{9f}", "\\r\\t\\u{7f}\\u{80}\\u{9b}2J\\u{9f}"),
            ("a\u{202e}b\u{2066}c\u{200f}\u{61c}", "a\\u{202e}b\\u{2066}c\\u{200f}\\u{61c}"),
            ("a\u{2028}b\u{2029}", "a\\u{2028}b\\u{2029}"),
        ] {
            assert_eq!(Printable(text).to_string(), shown);
            assert_eq!(
                Printable(format_args!("{text}{:?}", "\u{1b}")).to_string(),
                format!("{shown}\"\\u{{1b}}\"")
            );
        }
    }
}

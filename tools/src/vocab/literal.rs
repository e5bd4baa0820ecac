//! String and bytes literals of Python.

/// The bytes of a literal `'...'`, `"..."`, `b'...'` or `b"..."`; text becomes UTF-8.
///
/// Understands every escape but `\N{...}`. A backslash before any other character is an error, as
/// newer versions of Python have it.
pub(super) fn parse(literal: &str) -> Result<Vec<u8>, String> {
    let (is_bytes, quoted) = match literal.strip_prefix(['b', 'B']) {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let body = ['\'', '"'].iter().find_map(|quote| {
        let body = quoted.strip_prefix(*quote)?.strip_suffix(*quote)?;
        Some((*quote, body))
    });
    let Some((quote, body)) = body else { return Err("expected a literal in quotes".into()) };
    parse_body(body, is_bytes, Some(quote))
}

/// The bytes of a bytes literal that came without its prefix and quotes. Any quote may be inside.
pub(super) fn parse_bytes(body: &str) -> Result<Vec<u8>, String> {
    parse_body(body, true, None)
}

/// What stands between the quotes.
fn parse_body(body: &str, is_bytes: bool, quote: Option<char>) -> Result<Vec<u8>, String> {
    let mut parser = Parser { rest: body, is_bytes, bytes: Vec::new() };
    while let Some(c) = parser.next() {
        match c {
            '\\' => parser.escape()?,
            _ if Some(c) == quote => return Err("text after the closing quote".into()),
            _ if is_bytes && !c.is_ascii() => return Err(format!("{c:?} in a bytes literal")),
            _ => parser.push(c),
        }
    }
    Ok(parser.bytes)
}

struct Parser<'t> {
    rest: &'t str,
    is_bytes: bool,
    bytes: Vec<u8>,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }

    fn push(&mut self, c: char) {
        self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// The rest of an escape, after its backslash.
    fn escape(&mut self) -> Result<(), String> {
        let c = self.next().ok_or("backslash before the closing quote")?;
        let simple = match c {
            '\\' | '\'' | '"' => c,
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '0'..='7' => return self.octal(c),
            'x' => return self.hex(2),
            'u' if !self.is_bytes => return self.hex(4),
            'U' if !self.is_bytes => return self.hex(8),
            _ => return Err(format!("unknown escape \\{c}")),
        };
        self.push(simple);
        Ok(())
    }

    /// One to three octal digits.
    fn octal(&mut self, first: char) -> Result<(), String> {
        let mut value = first.to_digit(8).unwrap_or_default();
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else { break };
            value = value * 8 + digit;
            self.next();
        }
        self.code(value)
    }

    fn hex(&mut self, n_digits: usize) -> Result<(), String> {
        let mut value = 0;
        for _ in 0..n_digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            value = value << 4 | digit.ok_or_else(|| format!("expected {n_digits} hexadecimal digits"))?;
        }
        self.code(value)
    }

    /// A number is a byte in a bytes literal and a code point in text.
    fn code(&mut self, value: u32) -> Result<(), String> {
        if self.is_bytes {
            self.bytes.push(u8::try_from(value).map_err(|_| format!("{value:#x} is not a byte"))?);
        } else {
            self.push(char::from_u32(value).ok_or_else(|| format!("{value:#x} is not a character"))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn escapes_mean_what_they_mean_in_python() {
        assert_eq!(parse(r#"'\\\'\"\a\b\f\n\r\t\v'"#).unwrap(), b"\\'\"\x07\x08\x0c\n\r\t\x0b");
        assert_eq!(parse(r"'\0\12\1234\x41\xe9\u4f60\U0001f600'").unwrap(), "\0\nS4A\u{e9}你😀".as_bytes());
        assert_eq!(parse(r"b'\xff\x00\377a'").unwrap(), b"\xff\0\xffa");
        assert_eq!(parse(r#""it's""#).unwrap(), b"it's");
        assert_eq!(parse(r#"'say "x"'"#).unwrap(), br#"say "x""#);
        assert_eq!(parse("'é'").unwrap(), "é".as_bytes());
        assert_eq!(parse("''").unwrap(), b"");
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for bad in [
            "",
            "'",
            "abc",
            "'abc",
            "abc'",
            "'a\"",
            "'a'b'",
            r"'a\'",
            r"'\x4'",
            r"'\u12'",
            r"'\ud800'",
            r"'\U00110000'",
            r"'\q'",
            r"'\N{DASH}'",
            r"b'\u0041'",
            "b'é'",
            r"b'\777'",
            "u'a'",
        ] {
            assert!(parse(bad).is_err(), "{bad} was accepted");
        }
    }
}

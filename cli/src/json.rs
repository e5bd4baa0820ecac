//! JSON output.

use std::fmt::{Display, Write};

/// A JSON object that is made key by key.
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Self {
        Self(String::new())
    }

    /// Adds a value that is JSON already: a number, or the text of an array or object.
    pub(crate) fn raw(mut self, key: &str, value: impl Display) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        let _ = write!(self.0, "{comma}{}:{value}", json_string(key));
        self
    }

    pub(crate) fn text(self, key: &str, value: impl Display) -> Self {
        let value = json_string(&value.to_string());
        self.raw(key, value)
    }

    /// Adds a number; `null` if JSON has no such number.
    pub(crate) fn float(self, key: &str, value: f64) -> Self {
        self.raw(key, number(value))
    }

    /// As [`float`](Self::float), with this many decimals.
    pub(crate) fn fixed(self, key: &str, value: f64, decimals: usize) -> Self {
        match value.is_finite() {
            true => self.raw(key, format_args!("{value:.decimals$}")),
            false => self.raw(key, "null"),
        }
    }

    pub(crate) fn end(self) -> String {
        format!("{{{}}}", self.0)
    }
}

/// A JSON array.
pub(crate) fn array<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    format!("[{}]", values.join(","))
}

/// A number with the digits of its type, or `null` for what JSON has no number for.
pub(crate) fn number<T: Display + Copy + Into<f64>>(value: T) -> String {
    if value.into().is_finite() { value.to_string() } else { "null".into() }
}

/// A JSON string: quotes, backslashes and control characters escaped.
fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_json_whatever_the_texts_and_numbers_are() {
        let object = Object::new()
            .text("a \"name\"", "C:\\x\n")
            .raw("n", 3)
            .float("nan", f64::NAN)
            .fixed("fixed", 0.25, 3)
            .fixed("infinite", f64::INFINITY, 3)
            .raw("list", array([1, 2]))
            .end();
        assert!(object.contains(":0.250,"), "{object}");
        let value: serde_json::Value = serde_json::from_str(&object).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a \"name\"": "C:\\x\n", "n": 3, "nan": null, "fixed": 0.25, "infinite": null, "list": [1, 2]})
        );
    }
}

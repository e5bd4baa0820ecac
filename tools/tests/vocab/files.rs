//! Vocabulary files that cannot be read or used: one reason each, said once.

use std::error::Error;
use std::fs;
use std::iter;

use rwkv_quantize::vocab;

/// The error of a file, with its causes, as programs print it.
fn chain(error: &dyn Error) -> String {
    let causes = iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn errors_are_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.json");
    let message = chain(&vocab::load(&missing).unwrap_err());
    assert_eq!(message.matches("No such file").count(), 1, "{message}");
    assert_eq!(message.matches("missing.json").count(), 1, "{message}");

    let deep = folder.path().join("deep.json");
    fs::write(&deep, format!("{{\"model\":{}", "[".repeat(100_000))).unwrap();
    let message = chain(&vocab::load(&deep).unwrap_err());
    assert_eq!(message.matches("recursion limit exceeded").count(), 1, "{message}");
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let world = "1 'a' 1\n2 b'\\xff' 1\n";
    let with_mark = |text: &str| vocab::from_bytes(format!("\u{feff}{text}").as_bytes());
    assert!(with_mark(world).unwrap() == vocab::from_bytes(world.as_bytes()).unwrap());
    let small = include_str!("../data/small_bpe.json");
    assert!(with_mark(small).unwrap() == vocab::from_bytes(small.as_bytes()).unwrap());
}

#[test]
fn a_text_in_utf_16_is_refused_as_such() {
    for mark in [b"\xff\xfe", b"\xfe\xff"] {
        let text = [mark.as_slice(), b"1\0 \0"].concat();
        assert_eq!(vocab::from_bytes(&text).unwrap_err().to_string(), "the text is UTF-16; save it as UTF-8");
    }
}

#[test]
fn a_file_that_is_too_long_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.txt");
    fs::File::create(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    let message = vocab::load(&path).unwrap_err().to_string();
    assert!(
        message.ends_with("long.txt: there are more than 67108864 bytes, which is the limit here"),
        "{message}"
    );
}

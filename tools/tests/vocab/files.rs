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

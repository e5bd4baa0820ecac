//! What both programs share about their standard streams.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

use crate::{cpu, printable};

/// Prints one line to standard error, whatever it holds; what would command a terminal is escaped. It is not an error
/// if nobody listens any more.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", printable::line(line));
}

/// Ends a program that was called wrongly: prints the lines of `text`, each as [`say`] does, and exits with 2.
pub fn wrong_usage(text: &str) -> ! {
    text.trim_end().lines().for_each(|line| say(format_args!("{line}")));
    std::process::exit(2)
}

/// Whether an error, or one that caused it, is that the reader of the output went away.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// The largest resident set so far, for people.
pub fn peak_rss() -> String {
    cpu::peak_rss_bytes().map_or("unknown".into(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0))
}

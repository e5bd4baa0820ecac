//! What both programs share about their standard streams.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::iter;
use std::process::ExitCode;

use crate::{cpu, signals};

/// Prints a line to standard error. It is not an error if nobody listens any more.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Ends a program that met an error: says on one line what it is and what caused it, or nothing if the reader of the
/// output went away, which is success. If a signal was [caught](signals::catch), the process dies by it.
pub fn report(program: &str, error: &(dyn Error + 'static)) -> ExitCode {
    let causes: Vec<_> = iter::successors(Some(error), |&error| error.source()).collect();
    let is_broken_pipe = causes
        .iter()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if !is_broken_pipe {
        let texts: Vec<_> = causes.iter().map(ToString::to_string).collect();
        say(format_args!("{program}: {}", texts.join(": ")));
    }
    signals::die_if_caught();
    if is_broken_pipe { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The largest resident set so far, for people.
pub fn peak_rss() -> String {
    cpu::peak_rss_bytes().map_or("unknown".into(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0))
}

//! Standard streams, as both programs use them.
//!
//! The caller of the program owns the streams and may have made them non-blocking. Reads and writes
//! here wait until the stream is ready.

use std::error::Error;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::iter;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::error::ErrorKind;
use crate::{env, host, printable, signals};

/// Standard input.
pub struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        when_ready(io::stdin(), Ready::ToRead, || io::stdin().read(buf))
    }
}

/// Standard output, unbuffered.
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        when_ready(io::stdout(), Ready::ToWrite, || write_some(io::stdout(), buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error, unbuffered.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        when_ready(io::stderr(), Ready::ToWrite, || write_some(io::stderr(), buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output for many small pieces. The caller must flush it at the end.
pub fn stdout() -> BufWriter<Stdout> {
    BufWriter::new(Stdout)
}

/// The operation that a stream must be ready for.
#[derive(Clone, Copy)]
enum Ready {
    ToRead,
    ToWrite,
}

/// Repeats a call while a non-blocking stream is not ready for it.
#[cfg(unix)]
fn when_ready<T>(
    stream: impl std::os::fd::AsFd,
    ready: Ready,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    use rustix::event::{PollFd, PollFlags, poll};

    let flags = match ready {
        Ready::ToRead => PollFlags::IN,
        Ready::ToWrite => PollFlags::OUT,
    };
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        match poll(&mut [PollFd::new(&stream, flags)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(unix))]
fn when_ready<T>(_: impl Sized, _: Ready, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    call()
}

/// One write without the buffer of the standard library. That buffer loses count of its bytes when
/// the stream is not ready.
#[cfg(unix)]
fn write_some(stream: impl std::os::fd::AsFd, buf: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(stream, buf)?)
}

#[cfg(not(unix))]
fn write_some(mut stream: impl Write, buf: &[u8]) -> io::Result<usize> {
    stream.write(buf)
}

/// Prints one line to standard error. Characters that command a terminal are escaped. A closed
/// standard error is no error.
pub fn eprint_line(line: fmt::Arguments<'_>) {
    let _ = Stderr.write_all(format!("{}\n", printable::line(line)).as_bytes());
}

/// Ends a program after wrong usage: prints each line of `text` with [`eprint_line`] and exits with
/// 2.
pub fn wrong_usage(text: &str) -> ! {
    text.trim_end().lines().for_each(|line| eprint_line(format_args!("{line}")));
    std::process::exit(2)
}

/// Ends a program after an error: prints the error and its causes on one line.
///
/// A broken pipe means that the reader of the output went away. That is success and prints nothing.
/// If a signal was [caught](signals::catch), the process dies by it.
pub fn report(program: &str, error: &(dyn Error + 'static)) -> ExitCode {
    let is_broken_pipe = is_broken_pipe(error);
    if !is_broken_pipe {
        let texts: Vec<_> = causes(error).map(ToString::to_string).collect();
        eprint_line(format_args!("{program}: {}", texts.join(": ")));
    }
    signals::die_if_caught();
    if is_broken_pipe { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether an error means that the reader of the output went away.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(io_error).any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The I/O error that an error is. The library's error shows it as its own and not as its source.
fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    match error.downcast_ref::<crate::Error>().map(crate::Error::kind) {
        Some(ErrorKind::Io(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// Whether text on a stream may be coloured or dimmed: on a terminal, unless `NO_COLOR` is set or
/// `TERM` is `dumb`.
pub fn may_style(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !env::no_color() && !env::terminal_is_dumb()
}

/// The largest resident set so far, as text.
pub fn peak_rss() -> String {
    host::peak_rss_bytes().map_or("unknown".into(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0))
}

/// A progress line on a terminal, rewritten in place five times a second. It is cut to the
/// terminal's width, so it never wraps. Dropping it leaves the line on the terminal.
pub struct StatusLine {
    shown: Option<Instant>,
    /// Columns of the text on the terminal.
    columns: usize,
}

impl StatusLine {
    const INTERVAL: Duration = Duration::from_millis(200);
    /// Columns assumed for a terminal that does not report its width, such as a serial line.
    const UNKNOWN_WIDTH: usize = 40;

    /// A line on standard error; `None` if that is no terminal, or one that cannot rewrite a line.
    pub fn on_terminal() -> Option<Self> {
        (io::stderr().is_terminal() && !env::terminal_is_dumb()).then(|| Self { shown: None, columns: 0 })
    }

    /// Shows a text, if the last one is old enough.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if self.shown.is_some_and(|shown| shown.elapsed() < Self::INTERVAL) {
            return;
        }
        self.shown = Some(Instant::now());
        let (line, columns) = rewrite(&printable::line(text()), self.columns, Self::width());
        self.columns = columns;
        let _ = Stderr.write_all(line.as_bytes());
    }

    /// Erases the line. The cursor is then where the line began.
    pub fn erase(&mut self) {
        if self.columns > 0 {
            let _ = Stderr.write_all(erasure(self.columns, Self::width()).as_bytes());
            self.columns = 0;
        }
    }

    fn width() -> usize {
        #[cfg(unix)]
        let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
        #[cfg(not(unix))]
        let width = 0;
        if width == 0 { Self::UNKNOWN_WIDTH } else { width.into() }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.columns > 0 {
            eprint_line(format_args!(""));
        }
    }
}

/// The output that replaces a line of `old` columns by `text` on a terminal of `width` columns, and
/// the number of columns of the new line. The last column stays free, because some terminals wrap
/// as soon as it is written.
fn rewrite(text: &str, old: usize, width: usize) -> (String, usize) {
    let room = width.saturating_sub(1);
    let text: String = text.chars().take(room).collect();
    let columns = text.chars().count();
    let blanks = old.min(room).saturating_sub(columns);
    (format!("\r{text}{:blanks$}", ""), columns)
}

/// The output that erases a line of `old` columns.
fn erasure(old: usize, width: usize) -> String {
    rewrite("", old, width).0 + "\r"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_is_erased_whole() {
        assert_eq!(erasure(3, 80), "\r   \r");
        assert_eq!(erasure(30, 5), "\r    \r");
    }

    #[test]
    fn a_pipe_that_broke_inside_the_library_is_a_broken_pipe() {
        let error = crate::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(io_error(&error).unwrap().kind(), io::ErrorKind::BrokenPipe);
        assert!(io_error(&crate::Error::invalid("no I/O")).is_none());
    }

    #[test]
    fn a_line_of_progress_is_never_wider_than_the_terminal() {
        let text = "12345/67890 tokens, 1234 tokens/s, 3.4567 nats/token";
        for width in 0..100 {
            for old in [0, 20, 200] {
                let (line, columns) = rewrite(text, old, width);
                let line = line.strip_prefix('\r').unwrap();
                assert!(line.len() < width.max(1) && columns <= line.len(), "{width}: {line:?}");
                assert!(text.starts_with(line.trim_end()));
            }
        }
    }

    #[test]
    fn a_shorter_line_of_progress_blanks_the_rest_of_a_longer_one() {
        assert_eq!(rewrite("ab", 5, 80), ("\rab   ".into(), 2));
        assert_eq!(rewrite("ab", 5, 5), ("\rab  ".into(), 2));
        assert_eq!(rewrite("abc", 1, 80), ("\rabc".into(), 3));
    }
}

//! Progress through the tokens of a long text, on a terminal, and its speed.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rwkv_edge::stdio::StatusLine;
use rwkv_edge::{Result, Session};

/// Feeds tokens until a signal comes. Returns their number.
pub(crate) fn feed(session: &mut Session, tokens: &[u32], interrupted: &AtomicBool) -> Result<usize> {
    let mut progress = Progress::new(tokens.len());
    session.feed_with(tokens, &mut |fed| progress.step(fed, interrupted))
}

/// A line on standard error, if that is a terminal. It appears after a second, and goes away when
/// it is dropped.
pub(crate) struct Progress {
    total: usize,
    started: Instant,
    line: Option<StatusLine>,
}

impl Progress {
    /// Shorter waits need no explanation.
    const AFTER: Duration = Duration::from_secs(1);

    /// The progress through `total` tokens, which begins here.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, started: Instant::now(), line: StatusLine::on_terminal() }
    }

    /// Shows that `done` tokens are done, and breaks if a signal came.
    pub(crate) fn step(&mut self, done: usize, interrupted: &AtomicBool) -> ControlFlow<()> {
        self.show(done, String::new);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Shows that `done` tokens are done, and the text `note`.
    pub(crate) fn show(&mut self, done: usize, note: impl FnOnce() -> String) {
        let Some(line) = &mut self.line else { return };
        let elapsed = self.started.elapsed();
        if elapsed >= Self::AFTER {
            line.show(|| text(done, self.total, elapsed) + &note());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.iter_mut().for_each(StatusLine::erase);
    }
}

/// A number of tokens and the time they took.
#[derive(Default)]
pub(crate) struct Rate {
    pub(crate) tokens: u64,
    pub(crate) time: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        let rate = if self.tokens > 0 { self.tokens as f64 / seconds } else { 0.0 };
        write!(f, "{} tokens in {seconds:.3} s, {rate:.1} tokens/s", self.tokens)
    }
}

fn text(done: usize, total: usize, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64();
    let left = total.saturating_sub(done) as f64 / rate;
    format!("{done}/{total} tokens, {rate:.1} tokens/s, {left:.0} s left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_tokens_speed_and_the_time_left() {
        let line = text(300, 1000, Duration::from_secs(2));
        assert_eq!(line, "300/1000 tokens, 150.0 tokens/s, 5 s left");
        assert_eq!(text(9, 9, Duration::from_secs(3)), "9/9 tokens, 3.0 tokens/s, 0 s left");
    }
}

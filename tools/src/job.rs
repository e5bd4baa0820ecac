//! A job that takes long: it shows its progress, and ends when it is asked to.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

/// Receives the progress of a job.
pub trait Progress {
    /// `done` of `total` weights are converted, the last of them in `tensor`. A tensor whose scale
    /// turns out too small starts again, so `done` may fall.
    fn update(&mut self, done: u64, total: u64, tensor: &str);

    /// Another part of the job begins, or the main one if it has no name.
    fn begin(&mut self, _part: &str) {}
}

/// The caller's side of a long job: progress and interruption.
pub struct Job<'a> {
    /// Is told how far the job is.
    pub progress: &'a mut dyn Progress,
    /// Ends the job once it is true.
    pub interrupted: &'a AtomicBool,
}

impl<'a> Job<'a> {
    /// A job that tells `progress` how far it is, and ends once `interrupted` is true.
    pub fn new(progress: &'a mut dyn Progress, interrupted: &'a AtomicBool) -> Self {
        Self { progress, interrupted }
    }

    /// Fails if the job must end.
    pub(crate) fn check(&self) -> Result<()> {
        check(&[self.interrupted])
    }
}

/// Flags; each of them ends a part of a job.
pub(crate) type Stop<'a> = [&'a AtomicBool; 2];

/// Fails if a flag is raised.
pub(crate) fn check(flags: &[&AtomicBool]) -> Result<()> {
    ensure!(!flags.iter().any(|flag| flag.load(Ordering::Relaxed)), "interrupted");
    Ok(())
}

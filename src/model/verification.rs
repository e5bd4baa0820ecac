//! The check of a model's file while engines run the model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::Result;
use crate::format::{ModelFile, Verifier};

use super::options::Verify;

/// Number of tokens over which the check of a file is spread.
const TOKENS: usize = 63;

/// The progress of a file's check. All engines of a model share the work and see its result.
#[derive(Debug)]
pub(super) struct Verification {
    /// Whether anything is left to check, or damage was found.
    needed: AtomicBool,
    verifier: Mutex<Verifier>,
}

impl Verification {
    /// # Errors
    /// If the file is found damaged. `AtOnce` checks every tensor with a checksum of its own,
    /// `WhileRunning` only the padding between tensors.
    pub(super) fn new(file: &ModelFile, verify: Verify) -> Result<Self> {
        if verify == Verify::AtOnce {
            file.verify_all()?;
        }
        let needed = verify == Verify::WhileRunning;
        let verifier = if needed { Verifier::new(file)? } else { Verifier::default() };
        Ok(Self { needed: needed.into(), verifier: verifier.into() })
    }

    /// Checks the share of `tokens` tokens, unless another engine is checking at this moment.
    ///
    /// # Errors
    /// If the part that was checked so far is damaged.
    pub(super) fn advance(&self, file: &ModelFile, tokens: usize) -> Result<()> {
        if !self.needed.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Rows of tables are checked when they are read.
        let share = (file.data_bytes() - file.embedding_bytes()) as usize / TOKENS + 1;
        let verifier = match self.verifier.try_lock() {
            Ok(verifier) => verifier,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        self.check(file, verifier, tokens.saturating_mul(share))
    }

    /// Checks the rest of the file.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(super) fn finish(&self, file: &ModelFile) -> Result<()> {
        if !self.needed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.check(file, self.verifier.lock().unwrap_or_else(PoisonError::into_inner), usize::MAX)
    }

    fn check(&self, file: &ModelFile, mut verifier: MutexGuard<'_, Verifier>, bytes: usize) -> Result<()> {
        let done = verifier.advance(file, bytes)?;
        self.needed.store(!done, Ordering::Relaxed);
        Ok(())
    }
}

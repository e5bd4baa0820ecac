//! The first token of a model file that nobody has read yet.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rwkv_edge::{EngineOptions, Session, SessionOptions, Verify, host};

use crate::args::{KernelArgs, load};

/// Times from opening the file to the first token.
pub(super) struct FirstToken {
    /// Nothing of the file is in the page cache.
    pub(super) cold: Duration,
    /// Everything that the token needs is.
    pub(super) warm: Duration,
}

impl FirstToken {
    /// Drops the file from the page cache, and then begins two texts.
    pub(super) fn measure(path: &Path, kernels: &KernelArgs, engine: EngineOptions) -> Result<Self> {
        host::drop_cached(path).with_context(|| format!("{}: --cold", path.display()))?;
        let [cold, warm] = [begin(path, kernels, engine)?, begin(path, kernels, engine)?];
        Ok(Self { cold, warm })
    }
}

fn begin(path: &Path, kernels: &KernelArgs, engine: EngineOptions) -> Result<Duration> {
    let started = Instant::now();
    let model = load(Some(path), kernels, Verify::WhileRunning)?;
    let mut session = Session::new(model, &SessionOptions { engine, ..SessionOptions::default() })?;
    session.feed(&[0])?;
    session.next_token()?;
    Ok(started.elapsed())
}

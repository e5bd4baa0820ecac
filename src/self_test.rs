//! The self-test: every model file records the digest of some logits. Any machine must reproduce
//! it.
//!
//! Logits have the same bits on every instruction set and thread count. A mismatch therefore means
//! damaged memory, a damaged file or a miscompiled kernel.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;

/// SHA-256 of the little-endian logits after feeding `tokens` to a new text of `model`.
///
/// # Errors
/// If a token is not in the vocabulary, the engine cannot be made, or a logit is not finite:
/// machines do not agree on the bits of a NaN.
pub fn logits_digest(model: &Arc<Model>, tokens: &[u32], threads: Option<usize>) -> Result<[u8; 32]> {
    let mut digest = Sha256::new();
    if !tokens.is_empty() {
        let mut engine =
            Engine::new(Arc::clone(model), &EngineOptions { threads, ..EngineOptions::default() })?;
        let mut state = model.initial_state()?;
        engine.feed(&mut state, tokens)?;
        let logits = engine.logits(&state)?;
        if let Some(i) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::invalid(format!(
                "the logit of token {i} is {}, expected a finite number",
                logits[i]
            )));
        }
        logits.iter().for_each(|logit| digest.update(logit.to_le_bytes()));
    }
    Ok(digest.finalize().into())
}

/// Repeats the computation that the model file records.
///
/// # Errors
/// [`ErrorKind::Checksum`] if the logits differ from those that the file records.
pub fn run(model: &Arc<Model>, threads: Option<usize>) -> Result<()> {
    let record = model.file().self_test();
    if logits_digest(model, &record.tokens, threads)? == record.logits_sha256 {
        Ok(())
    } else {
        Err(ErrorKind::Checksum { what: "the self-test: the logits differ from the recorded ones".into() }
            .into())
    }
}

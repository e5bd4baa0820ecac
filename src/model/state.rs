//! The state of a text: everything that a model remembers of it.

use std::fmt;
use std::io;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Floats;

/// `value`, or one NaN for all: sign and payload of a NaN from arithmetic depend on the processor.
pub(crate) fn unify_nan(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { value }
}

/// Refuses a state of the model `found` in the model `expected`.
pub(crate) fn check_model(found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ErrorKind::OtherModel { found, expected }.into())
}

/// One text's recurrent state and last residual. The logits of the next token follow from the
/// residual.
///
/// The size depends on the model only, not on the text. A clone is a fork of the text.
/// [`Engine::feed`](crate::Engine::feed) changes a state. [`Engine::logits`](crate::Engine::logits)
/// and [`Engine::sample`](crate::Engine::sample) read it.
#[derive(Clone)]
pub struct State {
    model_id: u64,
    /// The recurrent state, layer by layer.
    recurrent: Floats,
    /// The residual stream after the last layer and the last token, `[n_embd]`.
    residual: Box<[f32]>,
    tokens_read: u64,
    tokens_hash: [u8; 32],
}

impl State {
    /// A state of zeros of the model `model_id`, locked in memory if `locked` says so.
    ///
    /// # Errors
    /// If there is no memory for it or it cannot be locked.
    pub(super) fn zeroed(model_id: u64, recurrent_len: usize, n_embd: usize, locked: bool) -> Result<Self> {
        let no_memory = |_| Error::invalid(format!("no memory for a state of {recurrent_len} floats"));
        let mut recurrent = Floats::zeroed(recurrent_len).map_err(no_memory)?;
        if locked {
            recurrent.lock()?;
        }
        let residual = vec![0.0; n_embd].into();
        Ok(Self { model_id, recurrent, residual, tokens_read: 0, tokens_hash: [0; 32] })
    }

    /// Number of tokens that the model has read.
    pub fn tokens_read(&self) -> u64 {
        self.tokens_read
    }

    /// A hash of the tokens in their order. It is zero before the first token, then
    /// `SHA-256(hash || token as 4 bytes, little-endian)` for each.
    pub fn tokens_hash(&self) -> [u8; 32] {
        self.tokens_hash
    }

    /// A copy of the recurrent state, layer by layer in the order of the version's equations. Every
    /// NaN has the bits `0x7FC00000`.
    pub fn to_values(&self) -> Box<[f32]> {
        self.recurrent.iter().map(|&value| unify_nan(value)).collect()
    }

    /// Becomes a copy of `other` without allocating.
    ///
    /// # Errors
    /// If `other` belongs to another model.
    pub fn copy_from(&mut self, other: &State) -> Result<()> {
        self.check(other.model_id)?;
        self.recurrent.copy_from_slice(&other.recurrent);
        self.residual.copy_from_slice(&other.residual);
        (self.tokens_read, self.tokens_hash) = (other.tokens_read, other.tokens_hash);
        Ok(())
    }

    /// Refuses a state of another model: the numbers of one quantization mean nothing to another.
    pub(crate) fn check(&self, model_id: u64) -> Result<()> {
        check_model(self.model_id, model_id)
    }

    /// The number of the model's file.
    pub(crate) fn model_id(&self) -> u64 {
        self.model_id
    }

    /// Gives `sink` the bytes of all values in pieces, little-endian: the recurrent state, then the
    /// residual. Every NaN has the bits `0x7FC00000`.
    pub(crate) fn values(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut piece = [0.0; 4096];
        for values in [&*self.recurrent, &*self.residual].into_iter().flat_map(|part| part.chunks(4096)) {
            let piece = &mut piece[..values.len()];
            piece.iter_mut().zip(values).for_each(|(to, &value)| *to = unify_nan(value));
            sink(bytemuck::cast_slice(piece))?;
        }
        Ok(())
    }

    /// The values in the order of [`values`](Self::values), for writing.
    pub(crate) fn values_mut(&mut self) -> [&mut [f32]; 2] {
        [&mut self.recurrent, &mut self.residual]
    }

    /// Becomes the state after `tokens_read` tokens with the hash `tokens_hash`. The values are the
    /// caller's.
    pub(crate) fn set_tokens(&mut self, tokens_read: u64, tokens_hash: [u8; 32]) {
        (self.tokens_read, self.tokens_hash) = (tokens_read, tokens_hash);
    }

    /// The recurrent state of all layers.
    pub(super) fn recurrent(&self) -> &[f32] {
        &self.recurrent
    }

    /// As [`recurrent`](Self::recurrent), for writing.
    pub(super) fn recurrent_mut(&mut self) -> &mut [f32] {
        &mut self.recurrent
    }

    pub(super) fn residual(&self) -> &[f32] {
        &self.residual
    }

    pub(super) fn residual_mut(&mut self) -> &mut [f32] {
        &mut self.residual
    }

    pub(super) fn forget_tokens(&mut self) {
        (self.tokens_read, self.tokens_hash) = (0, [0; 32]);
        self.residual.fill(0.0);
    }

    /// Counts a token as read.
    pub(super) fn count(&mut self, token: u32) {
        let hash = Sha256::new().chain_update(self.tokens_hash).chain_update(token.to_le_bytes());
        self.tokens_hash = hash.finalize().into();
        self.tokens_read += 1;
    }
}

impl PartialEq for State {
    /// Whether both states have read the same tokens in the same model and have the same numbers. A
    /// NaN is equal to a NaN.
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
        self.check(other.model_id).is_ok()
            && self.tokens_hash == other.tokens_hash
            && same(&self.recurrent, &other.recurrent)
            && same(&self.residual, &other.residual)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model_id, tokens_read, .. } = self;
        f.debug_struct("State")
            .field("model_id", model_id)
            .field("tokens_read", tokens_read)
            .finish_non_exhaustive()
    }
}

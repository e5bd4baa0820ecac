//! The number by which saved states know their model.

use sha2::{Digest, Sha256};

use super::tensor_table;
use super::{Section, TensorInfo};

/// The number of a model: the first 8 bytes of a SHA-256 over the hyperparameters and the checksums
/// of tokenizer and tensors. Places in the file do not count, because they depend on the length of
/// the chat settings.
pub(super) fn of(conf: &[u8], tokenizer: &Section, tensors: &[TensorInfo]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(conf);
    hash.update(tokenizer.len.to_le_bytes());
    hash.update(tokenizer.crc32.to_le_bytes());
    for tensor in tensors {
        hash.update(tensor_table::identity(tensor));
        hash.update(&tensor.name);
    }
    u64::from_le_bytes(hash.finalize().as_chunks().0[0])
}

//! Checking a file's tensors a part at a time.

use super::bytes::all_zero;
use super::{ModelFile, TensorLayout};
use crate::error::{ErrorKind, Result};

/// Bytes checked at a time. Pages of rarely used tensors are given back after each slice.
const SLICE_BYTES: usize = 1 << 20;

/// The progress of checking a file's tensors. Allocates only when a tensor is damaged.
#[derive(Debug, Default)]
pub struct Verifier {
    /// Index of the tensor that is being checked.
    tensor: usize,
    /// Bytes of this tensor that are already hashed.
    done: usize,
    hasher: crc32fast::Hasher,
    /// The damaged tensor, once found.
    damaged: Option<String>,
}

impl Verifier {
    /// Begins the check of `file`: checks that only zeros lie between tensors.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] naming the tensor after other bytes.
    pub fn new(file: &ModelFile) -> Result<Self> {
        let mut end = file.data_start();
        for tensor in file.tensors() {
            let range = file.range(tensor);
            if !file.mapping().get(end..range.start).is_some_and(all_zero) {
                let what = format!("the padding before tensor {}", tensor.name);
                return Err(file.annotate(ErrorKind::Checksum { what }.into()));
            }
            end = range.end;
        }
        Ok(Self::default())
    }

    /// Checks about `bytes` more of the tensors that have a checksum of their own; returns whether
    /// all are checked. A damaged tensor is an error once its last byte has been read, and in every
    /// later call.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] naming the damaged tensor.
    pub fn advance(&mut self, file: &ModelFile, bytes: usize) -> Result<bool> {
        if let Some(what) = self.damaged.clone() {
            return Err(file.annotate(ErrorKind::Checksum { what }.into()));
        }
        let mut left = bytes;
        while let Some(tensor) = file.tensors().get(self.tensor) {
            if left == 0 {
                return Ok(false);
            }
            let range = file.range(tensor);
            if !tensor.checked_by_record {
                let len = SLICE_BYTES.min(left).min(range.len() - self.done);
                let slice = &file.bytes(tensor)[self.done..][..len];
                self.hasher.update(slice);
                if tensor.layout == TensorLayout::RowRecords {
                    file.release(slice);
                }
                left -= len;
                self.done += len;
                if self.done < range.len() {
                    continue;
                }
                if std::mem::take(&mut self.hasher).finalize() != tensor.crc32 {
                    self.damaged = Some(format!("tensor {}", tensor.name));
                    return self.advance(file, 0);
                }
            }
            (self.tensor, self.done) = (self.tensor + 1, 0);
        }
        Ok(true)
    }
}

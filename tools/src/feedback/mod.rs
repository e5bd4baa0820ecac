//! Encoding with error feedback: the mathematics, without files and models.
//!
//! ```text
//! Ranges    the scale of each input of a matrix
//! Gram      counts the inputs of a matrix: H, the mean of x x^T
//! Factor    H + lambda = U D U^T, in the order in which columns are rounded
//! encode_*  weights to bytes; what a weight loses is made up for by those after it
//! ```
//!
//! `rwkv_edge::kernels::quant::feedback` has the formulas and their sources. A matrix of `n` inputs
//! takes about `2 n^2` bytes in a [`Gram`], and as many in a [`Factor`].
//!
//! The same inputs give the same bytes on every processor and for any number of threads: `H` is a
//! sum of integers, and every other number has one order of operations.

mod columns;
mod factor;
mod gram;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};
use std::thread;

pub use columns::encode_columns;
pub use factor::{Factor, Order};
pub use gram::{BlockGram, Gram, MAX_TOKENS, Ranges};
pub use rows::RowEncoder;

/// Calls `work` with each item, on the calling thread and up to `threads - 1` others, which take the
/// items in turn. If threads cannot start, fewer do the same work.
fn each<T: Send>(threads: usize, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    let take = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(item) = take() {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

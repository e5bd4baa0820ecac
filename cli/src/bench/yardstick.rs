//! What this machine's threads can do at most.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use rwkv_edge::Model;
use rwkv_edge::kernels::{Kernels, MAX_READ_STREAMS};
use rwkv_edge::threads::Pool;

use super::median;

/// The same threads reading the same file, or multiplying bytes, and doing nothing else.
pub(super) struct Yardstick<'a> {
    pool: Pool,
    kernels: &'static Kernels,
    bytes: &'a [u8],
    /// Read streams of each thread.
    streams: usize,
    /// A result for each block, so that the reads have a use.
    words: Vec<f32>,
    /// Rounds of multiplying that take about [`UNIT`](Self::UNIT).
    rounds: usize,
}

impl<'a> Yardstick<'a> {
    /// Bytes read as one set of streams before the next set begins.
    const BLOCK: usize = 1 << 20;

    /// Time that a thread multiplies before it takes the next unit. Cores of different speed so end
    /// together.
    const UNIT: Duration = Duration::from_micros(500);
    /// Units of each thread in a pass of multiplying.
    const UNITS: usize = 50;

    /// Finds the number of streams that reads fastest, by the medians of five passes of each.
    pub(super) fn new(model: &'a Model, threads: usize) -> Result<Self> {
        let bytes = weights(model);
        let words = vec![0.0; bytes.len().div_ceil(Self::BLOCK)];
        let pool = Pool::new(threads)?;
        let mut yardstick = Self { pool, kernels: model.kernels(), bytes, streams: 1, words, rounds: 1 };
        let mut passes = [const { Vec::new() }; MAX_READ_STREAMS];
        for _ in 0..5 {
            for (streams, passes) in (1..).zip(&mut passes) {
                yardstick.streams = streams;
                passes.push(yardstick.read());
            }
        }
        let speeds = passes.map(|passes| median(&passes));
        let best = (1..).zip(speeds).max_by(|a, b| a.1.total_cmp(&b.1));
        yardstick.streams = best.map_or(1, |(streams, _)| streams);
        while yardstick.unit() < Self::UNIT {
            yardstick.rounds *= 2;
        }
        Ok(yardstick)
    }

    /// The bytes that [`read`](Self::read) reads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Reads everything once; returns bytes per second.
    pub(super) fn read(&mut self) -> f64 {
        let Self { pool, kernels, bytes, streams, words, .. } = self;
        let started = Instant::now();
        pool.for_each_range([words], 1, &|_, first, words| {
            for (word, block) in words.iter_mut().zip(bytes.chunks(Self::BLOCK).skip(first)) {
                *word = f32::from_bits(kernels.read(block, *streams) as u32);
            }
        });
        std::hint::black_box(&self.words);
        self.bytes.len() as f64 / started.elapsed().as_secs_f64()
    }

    /// Multiplies bytes in registers for a while; returns multiply-accumulates per second.
    pub(super) fn multiply(&mut self) -> f64 {
        let Self { pool, kernels, rounds, .. } = self;
        let (units, done) = (AtomicUsize::new(Self::UNITS * pool.threads()), AtomicU64::new(0));
        let take = || units.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let started = Instant::now();
        pool.run(&|| {
            while take().is_ok() {
                done.fetch_add(kernels.multiply_accumulate(*rounds), Ordering::Relaxed);
            }
        });
        done.into_inner() as f64 / started.elapsed().as_secs_f64()
    }

    /// The time of one unit of multiplying.
    fn unit(&self) -> Duration {
        let started = Instant::now();
        std::hint::black_box(self.kernels.multiply_accumulate(self.rounds));
        started.elapsed()
    }
}

/// The part of the file that decoding reads: everything before the embedding at its end. For a
/// large file, the first part of it.
fn weights(model: &Model) -> &[u8] {
    const MOST: u64 = 1 << 30;
    let file = model.file();
    let len = file.tensor("emb.weight").map_or(0, |embedding| embedding.offset);
    file.mapping().get(..len.min(MOST) as usize).unwrap_or_default()
}

/// Whether the passes of plain reading or multiplying are no valid limit: the model reached clearly
/// more, or the middle half of the passes differ by more than a quarter.
pub(super) fn is_disturbed(share_of_limit: f64, passes: &[f64]) -> bool {
    const LARGEST_SHARE: f64 = 1.2;
    const LARGEST_MOVE: f64 = 0.25;
    let mut passes = passes.to_vec();
    passes.sort_unstable_by(f64::total_cmp);
    let (low, high) = (passes[passes.len() / 4], passes[passes.len() * 3 / 4]);
    share_of_limit > LARGEST_SHARE || high - low > LARGEST_MOVE * high
}

#[cfg(test)]
mod tests {
    use super::is_disturbed;

    #[test]
    fn a_share_above_a_hundred_and_twenty_percent_is_disturbed() {
        let steady = [10.0, 10.1, 9.9, 10.0];
        assert!(!is_disturbed(0.9, &steady) && !is_disturbed(1.2, &steady));
        assert!(is_disturbed(1.21, &steady) && is_disturbed(55.07, &steady));
    }

    #[test]
    fn a_bandwidth_that_moves_by_more_than_a_quarter_is_disturbed() {
        // One or two passes that something else held up do not move the medians.
        assert!(!is_disturbed(0.9, &[10.0, 1.0, 10.0, 9.0, 10.0, 10.0, 0.2, 10.0, 9.5]));
        // A machine that has become slower does move them.
        assert!(is_disturbed(0.9, &[10.0, 10.0, 10.0, 10.0, 7.0, 7.0, 7.0, 7.0]));
        assert!(is_disturbed(0.9, &[10.0, 7.0]) && !is_disturbed(0.9, &[10.0, 8.0]));
        assert!(!is_disturbed(0.9, &[10.0]));
    }
}

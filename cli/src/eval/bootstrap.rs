//! How far a mean over windows may be from that over all texts of the kind: the bootstrap.
//!
//! Tokens of a window depend on each other, so whole windows are drawn, with replacement, as many as
//! there are. The mean over the drawn ones is a mean that another text might have had. Models are
//! compared over the same drawn windows (paired), because a window that is hard for one is hard for
//! the others.

use std::ops::Range;

use rwkv_edge::random::Rng;

/// How often windows are drawn.
const RESAMPLES: usize = 1000;

/// The interval leaves out this share of the resamples on each side: 95 % remain.
const TAIL: f64 = 0.025;

/// Seed of the draws.
const SEED: u64 = 0;

/// The KL divergence of models over windows.
pub(super) struct Windows {
    models: usize,
    /// Scored tokens of each window.
    tokens: Vec<u32>,
    /// The sum over the tokens, `[windows, models]`.
    kl: Vec<f64>,
}

/// The middle 95 % of what resamples give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The intervals of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Intervals {
    /// Of the mean KL divergence.
    pub(super) mean: Interval,
    /// Of its ratio to that of the first model.
    pub(super) ratio: Interval,
}

impl Windows {
    /// Room for so many windows of `models` models.
    pub(super) fn with_capacity(models: usize, windows: usize) -> Self {
        Self { models, tokens: Vec::with_capacity(windows), kl: Vec::with_capacity(windows * models) }
    }

    /// Bytes of a window of `models` models.
    pub(super) fn window_bytes(models: usize) -> usize {
        size_of::<u32>() + models * size_of::<f64>()
    }

    /// Bytes that drawing takes.
    pub(super) fn resample_bytes(models: usize) -> usize {
        2 * RESAMPLES * models * size_of::<f64>()
    }

    /// Adds a window of `tokens` tokens, with the sum of the KL divergence of each model.
    pub(super) fn push(&mut self, tokens: usize, kl: &[f64]) {
        debug_assert_eq!(kl.len(), self.models);
        self.tokens.push(tokens as u32);
        self.kl.extend(kl);
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The intervals of each model over the windows of `range`; `None` if they are fewer than two.
    pub(super) fn intervals(&self, range: Range<usize>) -> Option<Vec<Intervals>> {
        if range.len() < 2 {
            return None;
        }
        let mut rng = Rng::new(SEED);
        let mut means = vec![Vec::with_capacity(RESAMPLES); self.models];
        let mut ratios = means.clone();
        let mut sums = vec![0.0; self.models];
        for _ in 0..RESAMPLES {
            let tokens = self.draw(&mut rng, &range, &mut sums);
            for (model, &sum) in sums.iter().enumerate() {
                means[model].push(sum / tokens);
                ratios[model].push(sum / sums[0]);
            }
        }
        let intervals = means.into_iter().zip(ratios);
        Some(
            intervals
                .map(|(means, ratios)| Intervals { mean: middle(means), ratio: middle(ratios) })
                .collect(),
        )
    }

    /// Draws windows of `range`. Returns the number of their tokens, and the sum of each model.
    fn draw(&self, rng: &mut Rng, range: &Range<usize>, sums: &mut [f64]) -> f64 {
        let mut tokens = 0;
        sums.fill(0.0);
        for _ in range.clone() {
            let window = range.start + rng.index(range.len());
            tokens += u64::from(self.tokens[window]);
            let kl = &self.kl[window * self.models..][..self.models];
            sums.iter_mut().zip(kl).for_each(|(sum, kl)| *sum += kl);
        }
        tokens as f64
    }
}

fn middle(mut values: Vec<f64>) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
    Interval { low: at(TAIL), high: at(1.0 - TAIL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of 10 tokens with these sums of two models.
    fn windows(kl: impl IntoIterator<Item = [f64; 2]>) -> Windows {
        let mut windows = Windows::with_capacity(2, 0);
        kl.into_iter().for_each(|kl| windows.push(10, &kl));
        windows
    }

    #[test]
    fn the_interval_of_a_mean_is_two_standard_errors_wide_on_each_side() {
        let windows = windows((0..400).map(|i| [f64::from(i % 2), 0.0]));
        let Interval { low, high } = windows.intervals(0..400).unwrap()[0].mean;
        // The standard deviation of a window is 0.5, that of the mean of 400 a twentieth of it.
        let (expected, tolerance) = (1.96 * 0.025 / 10.0, 0.0008);
        assert!((0.05 - low - expected).abs() < tolerance, "{low}");
        assert!((high - 0.05 - expected).abs() < tolerance, "{high}");
    }

    #[test]
    fn models_are_compared_over_the_same_windows() {
        let kl = |i: i32| f64::from(i * i % 17 + 1);
        let intervals = windows((0..50).map(|i| [kl(i), 0.5 * kl(i)])).intervals(0..50).unwrap();
        assert!(intervals[0].mean.low < 0.9 * intervals[0].mean.high);
        assert_eq!(intervals[1].ratio, Interval { low: 0.5, high: 0.5 });
        let equal = windows((0..50).map(|i| [kl(i); 2])).intervals(0..50).unwrap();
        assert_eq!(equal[0], equal[1]);
        assert_eq!(equal[1].ratio, Interval { low: 1.0, high: 1.0 });
    }

    #[test]
    fn only_windows_of_the_range_are_drawn() {
        let windows = windows((0..30).map(|i| [if (10..20).contains(&i) { 1.0 } else { 9.0 }, 2.0]));
        let Intervals { mean, .. } = windows.intervals(10..20).unwrap()[0];
        assert_eq!(mean, Interval { low: 0.1, high: 0.1 });
        assert_eq!(windows.intervals(10..11), None);
    }

    #[test]
    fn a_window_counts_by_its_tokens() {
        let mut windows = Windows::with_capacity(1, 2);
        windows.push(1, &[1.0]);
        windows.push(99, &[0.0]);
        // Drawn twice, the first gives a mean of 1; both together give 1 of 100.
        let Interval { low, high } = windows.intervals(0..2).unwrap()[0].mean;
        assert_eq!((low, high), (0.0, 1.0));
    }
}

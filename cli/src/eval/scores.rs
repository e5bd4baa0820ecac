//! What a model's predictions of some tokens were worth.

/// Log-probabilities over the vocabulary, normalised in f64.
#[derive(Clone, Copy)]
pub(super) struct LogSoftmax<'a> {
    logits: &'a [f32],
    norm: Norm,
}

/// What normalises logits.
#[derive(Clone, Copy, Default)]
pub(super) struct Norm {
    log_sum: f64,
    best: usize,
}

impl Norm {
    pub(super) fn of(logits: &[f32]) -> Self {
        let mut best = 0;
        for (i, &logit) in logits.iter().enumerate() {
            if logit > logits[best] {
                best = i;
            }
        }
        let max = f64::from(logits[best]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Self { log_sum: max + sum.ln(), best }
    }
}

impl<'a> LogSoftmax<'a> {
    pub(super) fn new(logits: &'a [f32], norm: Norm) -> Self {
        Self { logits, norm }
    }

    fn at(&self, i: usize) -> f64 {
        f64::from(self.logits[i]) - self.norm.log_sum
    }

    /// `KL(self || other)` in nats.
    fn kl(&self, other: &Self) -> f64 {
        (0..self.logits.len())
            .map(|i| {
                let log_p = self.at(i);
                log_p.exp() * (log_p - other.at(i))
            })
            .sum()
    }
}

/// A prediction of a token.
pub(super) struct Prediction {
    /// Position of the token in its window.
    pub(super) position: usize,
    pub(super) token: u32,
    /// Bytes of the token.
    pub(super) bytes: usize,
    /// The negative log-probability of the token.
    pub(super) nats: f64,
    pub(super) reference: Option<Comparison>,
}

/// A prediction beside that of the reference.
pub(super) struct Comparison {
    /// The negative log-probability of the token in the reference.
    pub(super) nats: f64,
    /// `KL(reference || model)` in nats.
    pub(super) kl: f64,
    /// Whether both models find the same token likeliest.
    pub(super) same_best: bool,
}

impl Prediction {
    pub(super) fn new(
        (position, token, bytes): (usize, u32, usize),
        model: LogSoftmax<'_>,
        reference: Option<LogSoftmax<'_>>,
    ) -> Self {
        let nats = |logits: &LogSoftmax<'_>| -logits.at(token as usize);
        let reference = reference.map(|reference| Comparison {
            nats: nats(&reference),
            kl: reference.kl(&model),
            same_best: reference.norm.best == model.norm.best,
        });
        Self { position, token, bytes, nats: nats(&model), reference }
    }

    /// The KL divergence from the reference; 0 without one.
    pub(super) fn kl(&self) -> f64 {
        self.reference.as_ref().map_or(0.0, |comparison| comparison.kl)
    }
}

/// A mean with its standard error.
#[derive(Clone, Copy, Default)]
pub(super) struct Mean {
    n: usize,
    sum: f64,
    sum_squares: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.merge(&Self { n: 1, sum: value, sum_squares: value * value });
    }

    fn merge(&mut self, other: &Self) {
        self.n += other.n;
        self.sum += other.sum;
        self.sum_squares += other.sum_squares;
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    pub(super) fn standard_error(&self) -> f64 {
        let n = self.n as f64;
        ((self.sum_squares / n - self.mean().powi(2)).max(0.0) / n).sqrt()
    }
}

/// Sums over tokens.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) tokens: usize,
    pub(super) bytes: usize,
    pub(super) nats: Mean,
    /// Of the reference.
    pub(super) reference_nats: Mean,
    pub(super) kl: Mean,
    agreements: usize,
}

impl Totals {
    fn add(&mut self, prediction: &Prediction) {
        self.tokens += 1;
        self.bytes += prediction.bytes;
        self.nats.add(prediction.nats);
        if let Some(Comparison { nats, kl, same_best }) = prediction.reference {
            self.reference_nats.add(nats);
            self.kl.add(kl);
            self.agreements += usize::from(same_best);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.nats.merge(&other.nats);
        self.reference_nats.merge(&other.reference_nats);
        self.kl.merge(&other.kl);
        self.agreements += other.agreements;
    }

    pub(super) fn bits_per_byte(&self) -> f64 {
        self.nats.sum / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Share of the tokens of which both models find the same one likeliest.
    pub(super) fn agreement(&self) -> f64 {
        self.agreements as f64 / self.tokens as f64
    }
}

/// How many values have which size, to 0.4 %: an f32 without its 16 lowest bits.
#[derive(Clone)]
pub(super) struct Sizes {
    counts: Box<[u32]>,
}

impl Sizes {
    /// The bits of 2^-40. Smaller values, and the tiny negative ones that rounding makes, count as 0.
    const LEAST: u32 = (127 - 40) << 7;
    /// Up to 2^24.
    const COUNTS: usize = 64 << 7;

    const BYTES: usize = Self::COUNTS * size_of::<u32>();

    fn new() -> Self {
        Self { counts: vec![0; Self::COUNTS].into() }
    }

    fn add(&mut self, value: f64) {
        let bits = ((value as f32).max(0.0).to_bits() >> 16).saturating_sub(Self::LEAST) as usize;
        self.counts[bits.min(Self::COUNTS - 1)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
    }

    /// The smallest size that this share of the values does not exceed.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let values: u64 = self.counts.iter().copied().map(u64::from).sum();
        let (needed, mut found) = ((share * values as f64).ceil() as u64, 0);
        let reached = |&count: &u32| {
            found += u64::from(count);
            found >= needed
        };
        match self.counts.iter().position(reached) {
            Some(bits @ 1..) => f32::from_bits((Self::LEAST + bits as u32) << 16 | 1 << 15).into(),
            _ => 0.0,
        }
    }
}

/// First positions of the ranges that are scored apart.
pub(super) const POSITIONS: [usize; 4] = [0, 64, 256, 512];

/// The scores of a model over some tokens.
#[derive(Clone)]
pub(super) struct Scores {
    pub(super) totals: Totals,
    /// By the position in the window.
    pub(super) positions: [Totals; POSITIONS.len()],
    pub(super) kl: Sizes,
}

impl Scores {
    pub(super) const BYTES: usize = Sizes::BYTES + size_of::<Self>();

    pub(super) fn new() -> Self {
        Self { totals: Totals::default(), positions: Default::default(), kl: Sizes::new() }
    }

    pub(super) fn add(&mut self, prediction: &Prediction) {
        let range = POSITIONS.partition_point(|&first| first <= prediction.position) - 1;
        self.totals.add(prediction);
        self.positions[range].add(prediction);
        if let Some(comparison) = &prediction.reference {
            self.kl.add(comparison.kl);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.totals.merge(&other.totals);
        self.positions.iter_mut().zip(&other.positions).for_each(|(range, other)| range.merge(other));
        self.kl.merge(&other.kl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predict(position: usize, model: &[f32], reference: &[f32]) -> Prediction {
        let [model, reference] = [model, reference].map(|logits| LogSoftmax::new(logits, Norm::of(logits)));
        Prediction::new((position, 1, 3), model, Some(reference))
    }

    #[test]
    fn kl_is_that_of_the_formula_and_exactly_0_for_equal_logits() {
        // Probabilities 1/4 and 3/4 against 1/2 and 1/2.
        let (even, uneven) = ([2.0, 2.0], [0.0, 3f32.ln()]);
        let Comparison { kl, nats, same_best } = predict(0, &even, &uneven).reference.unwrap();
        assert!((kl - (0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln())).abs() < 1e-7, "{kl}");
        assert!((nats + 0.75f64.ln()).abs() < 1e-7 && !same_best);
        for logits in [even, uneven, [-300.0, 0.1]] {
            let equal = predict(0, &logits, &logits).reference.unwrap();
            assert!(equal.kl == 0.0 && equal.same_best);
        }
    }

    #[test]
    fn a_quantile_is_within_a_bin_of_the_sorted_values() {
        let mut sizes = Sizes::new();
        let values: Vec<_> = (1..=10_000).map(|i| 1e-6 * f64::from(i) * f64::from(i)).collect();
        values.iter().rev().for_each(|&value| sizes.add(value));
        for (share, rank) in [(0.5, 4999), (0.99, 9899), (1.0, 9999)] {
            let (found, exact) = (sizes.quantile(share), values[rank]);
            assert!((found / exact - 1.0).abs() < 0.004, "{share}: {found} for {exact}");
        }
    }

    #[test]
    fn sizes_out_of_range_count_as_the_nearest() {
        let mut sizes = Sizes::new();
        [0.0, -1e-17, 1e-30].into_iter().for_each(|value| sizes.add(value));
        assert_eq!(sizes.quantile(1.0), 0.0);
        [1e300, f64::INFINITY].into_iter().for_each(|value| sizes.add(value));
        assert!(sizes.quantile(1.0) > 1.6e7 && sizes.quantile(0.6) == 0.0);
    }

    #[test]
    fn every_position_belongs_to_one_range_and_texts_add_up() {
        let (even, uneven) = ([2.0, 2.0], [0.0, 3f32.ln()]);
        let (mut first, mut second, mut both) = (Scores::new(), Scores::new(), Scores::new());
        for position in 0..1000 {
            let prediction = predict(position, &even, &uneven);
            both.add(&prediction);
            if position < 300 { &mut first } else { &mut second }.add(&prediction);
        }
        first.merge(&second);
        for scores in [&first, &both] {
            assert_eq!(scores.positions.map(|range| range.tokens), [64, 192, 256, 488]);
            assert_eq!((scores.totals.tokens, scores.totals.bytes), (1000, 3000));
        }
        assert_eq!(first.kl.quantile(0.99), both.kl.quantile(0.99));
        assert!((first.totals.kl.mean() - both.totals.kl.mean()).abs() < 1e-12);
    }
}

//! Which logits must be known exactly to sample as if all were.
//!
//! A nested head gives estimates of the logits, and bounds of how far off each is. Where the largest decide by their
//! order alone, a token whose upper bound is below what enough others are known to reach is none of them, and needs
//! no exact logit. (With a share of the probability, `top_p`, every logit counts: the bounds are for the worst case,
//! some 45 times the usual error at `n_embd` 2048, and say too little about a sum over the vocabulary.)

use rwkv_edge_kernels::Kernels;

/// Tokens that are looked at together.
const CHUNK: usize = 64;

/// Estimates of logits, `[n_vocab]`, with their error bounds.
#[derive(Clone, Copy)]
pub(crate) struct Estimates<'a> {
    pub(crate) logits: &'a [f32],
    /// `bounds[i] * norm` bounds the error of `logits[i]`.
    pub(crate) bounds: &'a [f32],
    pub(crate) norm: f32,
    pub(crate) kernels: &'static Kernels,
}

impl Estimates<'_> {
    /// Whether the estimates can be compared with each other.
    pub(crate) fn are_finite(&self) -> bool {
        self.kernels.largest_magnitude(self.logits).is_finite() && self.norm.is_finite()
    }

    /// Writes the tokens with the largest estimates, among those whose `exact` logit is unknown (-infinity), to `ids`
    /// as far as there is room, in no order; returns how many.
    pub(crate) fn largest(&self, exact: &[f32], ids: &mut [u32]) -> usize {
        let mut n = 0;
        // The position of the least on a full list, and its estimate.
        let mut least = (0, f32::NEG_INFINITY);
        for (chunk, logits) in self.logits.chunks(CHUNK).enumerate() {
            if n == ids.len() && self.kernels.max(logits) <= least.1 {
                continue;
            }
            for (i, &logit) in (chunk * CHUNK..).zip(logits) {
                if n == ids.len() && logit <= least.1 || exact[i] > f32::NEG_INFINITY {
                    continue;
                }
                let place = if n < ids.len() { n } else { least.0 };
                let Some(entry) = ids.get_mut(place) else { return 0 };
                *entry = i as u32;
                n = n.max(place + 1);
                if n == ids.len() {
                    let logits = ids.iter().map(|&id| self.logits[id as usize]).enumerate();
                    least = logits.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(least);
                }
            }
        }
        n
    }

    /// Writes the tokens that may reach `threshold` and are not known yet to `ids`, rising; `None` if they are more
    /// than `limit`. What a logit cannot exceed is its estimate plus its bound, also when rounded: rounding keeps the
    /// order of sums. A bound that is not a number excludes nothing.
    pub(crate) fn reaching(
        &self,
        threshold: f32,
        exact: &[f32],
        ids: &mut [u32],
        limit: usize,
    ) -> Option<usize> {
        let n = self.kernels.reaching(ids, self.logits, self.bounds, self.norm, threshold);
        let mut unknown = 0;
        for i in 0..n {
            ids[unknown] = ids[i];
            unknown += usize::from(exact[ids[i] as usize] == f32::NEG_INFINITY);
        }
        (unknown <= limit).then_some(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: f32 = f32::NEG_INFINITY;

    fn estimates<'a>(logits: &'a [f32], bounds: &'a [f32]) -> Estimates<'a> {
        Estimates { logits, bounds, norm: 2.0, kernels: Kernels::best() }
    }

    #[test]
    fn the_largest_are_found_among_the_unknown() {
        let logits = [1.0, 9.0, -3.0, 7.0, 8.0, 7.0];
        let bounds = [0.0; 6];
        let exact = [UNKNOWN, 9.5, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN];
        for (room, expected) in [(1, vec![4]), (2, vec![3, 4]), (4, vec![0, 3, 4, 5])] {
            let mut ids = vec![99; room];
            assert_eq!(estimates(&logits, &bounds).largest(&exact, &mut ids), room);
            ids.sort_unstable();
            assert_eq!(ids, expected);
        }
        let mut ids = [99; 6];
        assert_eq!(estimates(&logits, &bounds).largest(&exact, &mut ids), 5);
        assert_eq!(estimates(&logits, &bounds).largest(&exact, &mut []), 0);
    }

    #[test]
    fn a_token_reaches_a_threshold_if_its_bound_does() {
        let logits = [1.0, 4.0, 2.0, 5.0, 0.0];
        let bounds = [2.0, 0.5, 1.0, 0.0, f32::NAN];
        let exact = [UNKNOWN, UNKNOWN, UNKNOWN, 5.0, UNKNOWN];
        let mut ids = [99; 5];
        let n = estimates(&logits, &bounds).reaching(5.0, &exact, &mut ids, 5).unwrap();
        assert_eq!(ids[..n], [0, 1, 4]);
        assert_eq!(estimates(&logits, &bounds).reaching(5.0, &exact, &mut ids, 3), Some(3));
        assert_eq!(estimates(&logits, &bounds).reaching(5.0, &exact, &mut ids, 2), None);
    }

    #[test]
    fn what_is_not_finite_cannot_be_compared() {
        assert!(estimates(&[1.0, 2.0], &[0.0; 2]).are_finite());
        assert!(!estimates(&[1.0, f32::NAN], &[0.0; 2]).are_finite());
        assert!(!estimates(&[f32::INFINITY, 1.0], &[0.0; 2]).are_finite());
        assert!(!Estimates { norm: f32::NAN, ..estimates(&[1.0], &[0.0]) }.are_finite());
    }
}

//! The shortlist: the tokens whose logits must be exact, so that sampling is as if all were exact.
//!
//! A nested head gives an estimate of each logit, and a bound of its error. Greedy and top-k
//! sampling depend only on the largest logits. The algorithm first computes the exact logits of as
//! many likely tokens as sampling needs. A token whose estimate plus bound is below all of these
//! cannot be among the largest, so its logit is not computed.
//!
//! Top-p depends on a sum over the vocabulary. The bounds hold for the worst case, some 45 times
//! the usual error at `n_embd` 2048. They say too little about such a sum.

use rwkv_edge_kernels::Kernels;

use crate::format::Config;
use crate::memory::Buffers;

use super::lm_head::{self, Estimated, LmHead};
use super::ops::Ops;

/// Largest number of deciding logits for which a shortlist is tried.
const MOST_LARGEST: usize = 256;

/// A shortlist must be shorter than the vocabulary by this factor, because reading scattered rows
/// is slower than reading all rows.
const LEAST_SAVING: usize = 3;

/// Buffers for choosing among logits, `[n_vocab]` each.
pub(crate) struct Scratch<'a> {
    /// Logits; -infinity for tokens that are not on the shortlist.
    logits: &'a mut [f32],
    ids: &'a mut [u32],
    /// Exact logits of the first `ids`.
    exact: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, config: &Config) -> Self {
        let (name, n) = ("sampling", config.n_vocab);
        Self { logits: buffers.f32s(name, n), ids: buffers.u32s(name, n), exact: buffers.f32s(name, n) }
    }

    /// A free buffer of ids.
    pub(super) fn ids(&mut self) -> &mut [u32] {
        self.ids
    }
}

/// Whether a shortlist may do for sampling that needs the `largest` largest logits, or all.
pub(super) fn can_choose(largest: Option<usize>) -> bool {
    largest.is_some_and(|n| n <= MOST_LARGEST)
}

/// Logits, and a free buffer of as many ids.
pub(crate) type LogitsAndIds<'a> = (&'a mut [f32], &'a mut [u32]);

/// Computes the logits of row `t` of the head's buffers, which has its estimates. If `largest` is
/// given, only the `largest` largest logits and those of `known` are guaranteed; the others may be
/// -infinity.
///
/// `known` must have every token whose logit the caller will change, so the order of the other
/// logits stays.
pub(crate) fn logits<'s>(
    (head, ops): (&LmHead, &mut Ops<'_>),
    t: usize,
    (largest, known): (Option<usize>, impl Iterator<Item = u32>),
    all: &'s mut lm_head::Scratch<'_>,
    scratch: &'s mut Scratch<'_>,
) -> LogitsAndIds<'s> {
    if let Some(n) = largest.filter(|_| can_choose(largest) && head.is_nested())
        && shortlist(head, ops, (n, known), all.estimated(t), scratch)
    {
        return (scratch.logits, scratch.ids);
    }
    head.refine_all(ops, t..t + 1, all);
    (all.logits_mut(t), scratch.ids)
}

/// Computes the exact logits of all tokens that can be among the `largest`. Returns `false` if the
/// shortlist does not pay.
fn shortlist(
    head: &LmHead,
    ops: &mut Ops<'_>,
    (largest, known): (usize, impl Iterator<Item = u32>),
    all: Estimated<'_>,
    scratch: &mut Scratch<'_>,
) -> bool {
    let (bounds, norm) = head.bounds(ops, all);
    let estimates = Estimates { logits: all.logits, bounds, norm, kernels: ops.kernels };
    if !estimates.are_finite() {
        return false;
    }
    let Scratch { logits, ids, exact } = scratch;
    logits.fill(f32::NEG_INFINITY);
    let mut refine = |logits: &mut [f32], ids: &[u32]| {
        let exact = &mut exact[..ids.len()];
        head.refine(ops, ids, exact, all);
        ids.iter().zip(&*exact).for_each(|(&id, &exact)| logits[id as usize] = exact);
    };
    let n = ids.iter_mut().zip(known).map(|(entry, id)| *entry = id).count();
    refine(logits, &ids[..n]);
    let n = estimates.largest(logits, &mut ids[..largest.min(logits.len())]);
    refine(logits, &ids[..n]);
    let reached = match n == largest {
        true => ids[..n].iter().map(|&id| logits[id as usize]).fold(f32::INFINITY, f32::min),
        false => f32::NEG_INFINITY,
    };
    let most = logits.len() / LEAST_SAVING;
    let Some(n) = estimates.reaching(reached, logits, ids, most) else { return false };
    refine(logits, &ids[..n]);
    true
}

/// Tokens that are compared together.
const CHUNK: usize = 64;

/// Estimates of logits, `[n_vocab]`, with their error bounds.
#[derive(Clone, Copy)]
struct Estimates<'a> {
    logits: &'a [f32],
    /// `bounds[i] * norm` bounds the error of `logits[i]`.
    bounds: &'a [f32],
    norm: f32,
    kernels: &'static Kernels,
}

impl Estimates<'_> {
    /// Whether the estimates can be compared with each other.
    fn are_finite(&self) -> bool {
        self.kernels.largest_magnitude(self.logits).is_finite() && self.norm.is_finite()
    }

    /// Writes the tokens with the largest estimates to `ids`, as many as have room, in no order;
    /// returns their number. Considers only tokens whose `exact` logit is unknown (-infinity).
    fn largest(&self, exact: &[f32], ids: &mut [u32]) -> usize {
        let mut n = 0;
        // The position of the smallest estimate in a full list, and that estimate.
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

    /// Writes the tokens that may reach `threshold` and whose exact logit is unknown to `ids`,
    /// rising. Returns `None` if they are more than `limit`.
    ///
    /// A logit never exceeds its estimate plus its bound. This holds after rounding too, because
    /// rounding keeps the order of sums. A bound that is NaN excludes nothing.
    fn reaching(&self, threshold: f32, exact: &[f32], ids: &mut [u32], limit: usize) -> Option<usize> {
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

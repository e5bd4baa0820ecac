//! Choosing the next token from the logits.
//!
//! The order of the steps is the one of the reference implementation that RWKV models are tuned with:
//! penalties, softmax over the whole vocabulary without temperature, top-p, top-k, and the temperature last.
//! It is not the order of most other runtimes: a temperature of 2 with a top-p of 0.5 is reasonable here.
//!
//! 1. `logit[id] -= presence_penalty + count[id] * frequency_penalty` for every id seen in this reply.
//! 2. Temperature 0: the largest logit, of equal ones the lowest id. The random number generator is not
//!    advanced.
//! 3. `p = softmax(logit)`.
//! 4. Top-p: ids by falling logit, equal ones by rising id. `cutoff` is the `p` at which the running sum
//!    reaches `top_p`; ids with `p >= cutoff` stay, also those that tie with it. At 1 all stay.
//! 5. Top-k: the first `top_k` stay; 0 keeps all.
//! 6. `w = p^(1/T)`, and one id is drawn with probability `w / sum(w)`.
//!
//! A token accepted is counted: all counts are multiplied by `penalty_decay`, those below 2^-100 become 0, then its own grows by 1. The
//! reference leaves out the 1 for tokens made of digits and blanks only; that exception is not made here.
//!
//! The same logits, parameters and seed give the same tokens on every machine.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::format::SamplingParams;
use crate::kernels::{Kernels, default_float_environment, exp, settled};

/// Memory of a sampler, each buffer `[n_vocab]`. The contents need not be initialised.
#[derive(Debug)]
pub struct SamplerBuffers<'a> {
    /// Logits after the penalties, then weights.
    pub probs: &'a mut [f32],
    /// Bits of the probabilities, then the ids that may be drawn.
    pub candidates: &'a mut [u32],
    /// Decayed count of every id seen; other entries are meaningless.
    pub counts: &'a mut [f32],
    /// The ids seen in this reply, in the order of their first appearance.
    pub seen: &'a mut [u32],
}

/// Draws tokens. The counts of the current reply live in [`SamplerBuffers`].
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: Rng,
    n_seen: usize,
}

impl Sampler {
    /// A sampler that has seen nothing.
    ///
    /// # Errors
    /// A parameter is not a number or out of range.
    pub fn new(params: SamplingParams, seed: u64) -> Result<Self> {
        params.validate()?;
        Ok(Self { params, rng: Rng { state: seed }, n_seen: 0 })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws the next token. Logits of -infinity ban an id.
    ///
    /// # Errors
    /// The logits hold a NaN or +infinity, or nothing above -infinity; or a buffer has another length than
    /// `logits`.
    pub fn sample(&mut self, kernels: &Kernels, logits: &[f32], buf: &mut SamplerBuffers<'_>) -> Result<u32> {
        buf.check(logits.len())?;
        let _environment = default_float_environment();
        buf.probs.copy_from_slice(logits);
        self.sample_in_place(kernels, buf)
    }

    /// As [`sample`](Self::sample), from the logits in `buf.probs`. All but the
    /// [`largest_needed`](Self::largest_needed) after the penalties may be -infinity instead.
    pub(crate) fn sample_in_place(&mut self, kernels: &Kernels, buf: &mut SamplerBuffers<'_>) -> Result<u32> {
        self.penalise(buf);
        let top = argmax(kernels, buf.probs)?;
        if self.params.temperature == 0.0 {
            return Ok(top);
        }
        let max = buf.probs[top as usize];
        let chosen = if self.params.top_p >= 1.0 && self.params.top_k == 0 {
            self.draw_from_all(kernels, max, buf)
        } else {
            let n = self.select(kernels, max, buf);
            self.draw(n, max, buf)
        };
        Ok(chosen.unwrap_or(top))
    }

    /// How many of the largest logits decide what is drawn, or `None` if all do.
    pub(crate) fn largest_needed(&self) -> Option<usize> {
        match self.params {
            SamplingParams { temperature: 0.0, .. } => Some(1),
            SamplingParams { top_p, top_k: 1.., .. } if top_p >= 1.0 => Some(self.params.top_k as usize),
            _ => None,
        }
    }

    /// The ids that penalties may concern.
    pub(crate) fn seen<'a>(&self, buf: &'a SamplerBuffers<'_>) -> &'a [u32] {
        &buf.seen[..self.n_seen.min(buf.seen.len())]
    }

    /// Counts a token of the reply. Tokens of the prompt and the token that ends the reply are not to be
    /// counted. An id outside the vocabulary is ignored.
    pub fn accept(&mut self, id: u32, buf: &mut SamplerBuffers<'_>) {
        let mut known = false;
        for &seen in buf.seen.iter().take(self.n_seen) {
            if let Some(count) = buf.counts.get_mut(seen as usize) {
                *count = settled(*count * self.params.penalty_decay);
            }
            known |= seen == id;
        }
        let Some(count) = buf.counts.get_mut(id as usize) else { return };
        if known {
            *count += 1.0;
        } else if let Some(entry) = buf.seen.get_mut(self.n_seen) {
            *entry = id;
            *count = 1.0;
            self.n_seen += 1;
        }
    }

    /// Forgets the counts: a new reply begins. The random numbers go on where they were.
    pub fn reset(&mut self, buf: &mut SamplerBuffers<'_>) {
        buf.counts.fill(0.0);
        self.n_seen = 0;
    }

    /// Step 1, on the logits in `buf.probs`.
    fn penalise(&self, buf: &mut SamplerBuffers<'_>) {
        for &id in buf.seen.iter().take(self.n_seen) {
            if let (Some(logit), Some(count)) = (buf.probs.get_mut(id as usize), buf.counts.get(id as usize))
            {
                *logit -= self.params.presence_penalty + count * self.params.frequency_penalty;
            }
        }
    }

    /// Steps 3 to 5: puts the ids that stay, in order, at the front of `buf.candidates`; returns how many.
    fn select(&self, kernels: &Kernels, max: f32, buf: &mut SamplerBuffers<'_>) -> usize {
        let SamplingParams { top_p, top_k, .. } = self.params;
        let (n, sum) = if top_p < 1.0 { likely(kernels, top_p, buf) } else { (allowed(buf), 0.0) };
        let mut ordered = Ordered { candidates: &mut buf.candidates[..n], logits: buf.probs, n_ordered: 0 };
        // Both steps keep the first of the ordered ids, so the one that keeps fewer decides.
        let limit = if top_k == 0 { n } else { n.min(top_k as usize) };
        if top_p < 1.0 {
            return ordered.nucleus_len(limit, max, sum, top_p);
        }
        ordered.extend(limit);
        limit
    }

    /// Step 6 on the first `n` candidates. Leaves the weights in `buf.probs`.
    fn draw(&mut self, n: usize, max: f32, buf: &mut SamplerBuffers<'_>) -> Option<u32> {
        let candidates = &buf.candidates[..n];
        for &id in candidates {
            let logit = &mut buf.probs[id as usize];
            *logit = exp((*logit - max) / self.params.temperature);
        }
        let weights = candidates.iter().map(|id| (*id, buf.probs[*id as usize]));
        choose(self.rng.uniform(), weights)
    }

    /// Step 6 where all ids stay. Leaves the bits of the weights in `buf.candidates`.
    fn draw_from_all(&mut self, kernels: &Kernels, max: f32, buf: &mut SamplerBuffers<'_>) -> Option<u32> {
        for logit in buf.probs.iter_mut() {
            *logit = (*logit - max) / self.params.temperature;
        }
        kernels.softmax(bytemuck::cast_slice_mut(buf.candidates), buf.probs);
        let weights = (0..).zip(buf.candidates.iter().map(|bits| f32::from_bits(*bits)));
        let allowed = weights.zip(buf.probs.iter()).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        choose(self.rng.uniform(), allowed.map(|(weight, _)| weight))
    }
}

impl SamplerBuffers<'_> {
    fn check(&self, n_vocab: usize) -> Result<()> {
        let lens = [self.probs.len(), self.candidates.len(), self.counts.len(), self.seen.len()];
        if lens.iter().any(|&len| len != n_vocab) || u32::try_from(n_vocab).is_err() {
            return Err(Error::invalid(format!("sampler buffers of {lens:?} entries for {n_vocab} logits")));
        }
        Ok(())
    }
}

/// The id of the largest logit, of equal ones the lowest.
fn argmax(kernels: &Kernels, logits: &[f32]) -> Result<u32> {
    const CHUNK: usize = 64;
    let max = kernels.max(logits);
    // All of a chunk are compared, which vector code does faster than it stops early.
    let has_max = |chunk: &[f32]| chunk.iter().fold(false, |any, &logit| any | (logit == max));
    let chunk = logits.chunks(CHUNK).position(has_max).filter(|_| max.is_finite());
    let top =
        chunk.and_then(|i| logits[i * CHUNK..].iter().position(|&logit| logit == max).map(|j| i * CHUNK + j));
    top.map(|id| id as u32).ok_or_else(|| Error::invalid("logits are not finite"))
}

/// Writes the ids that are not banned to the front of `buf.candidates`, rising; returns how many they are.
fn allowed(buf: &mut SamplerBuffers<'_>) -> usize {
    let ids = (0..).zip(buf.probs.iter()).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    buf.candidates.iter_mut().zip(ids).map(|(entry, (id, _))| *entry = id).count()
}

/// Writes the ids that may be in the nucleus to the front of `buf.candidates`, rising; returns how many they
/// are, and the sum of the softmax.
///
/// An id with `p < (1 - top_p) / V` is never in it. Let c be the id at which the running sum reaches `top_p`.
/// Before c the sum is below `top_p`, so c and the ids after it share more than `1 - top_p`; they are at most
/// V, and none is above `p[c]`; hence `p[c] > (1 - top_p) / V`. The margin covers the rounding of the
/// softmax: its sum is off by at most V/16 + 4 roundings, 0.4 % at a million ids.
fn likely(kernels: &Kernels, top_p: f32, buf: &mut SamplerBuffers<'_>) -> (usize, f32) {
    const MARGIN: f32 = 0.99;
    let least = MARGIN * (1.0 - top_p) / buf.probs.len() as f32;
    let stats = kernels.softmax(bytemuck::cast_slice_mut(buf.candidates), buf.probs);
    let mut n = 0;
    for id in 0..buf.candidates.len() {
        // n <= id: the probabilities that are still to be read stay intact.
        let stays = f32::from_bits(buf.candidates[id]) >= least;
        buf.candidates[n] = id as u32;
        n += usize::from(stays);
    }
    (n, stats.sum)
}

/// Candidates of which the first `n_ordered` are the first in order: by falling logit, equal ones by rising
/// id.
struct Ordered<'a> {
    candidates: &'a mut [u32],
    logits: &'a [f32],
    n_ordered: usize,
}

impl Ordered<'_> {
    /// Puts `n` more candidates in order, or all there are.
    fn extend(&mut self, n: usize) {
        let logit = |id: u32| self.logits[id as usize];
        let order = |a: &u32, b: &u32| {
            let falling = logit(*b).partial_cmp(&logit(*a)).unwrap_or(Ordering::Equal);
            falling.then(a.cmp(b))
        };
        let rest = &mut self.candidates[self.n_ordered..];
        let n = n.min(rest.len());
        if 0 < n && n < rest.len() {
            rest.select_nth_unstable_by(n - 1, order);
        }
        rest[..n].sort_unstable_by(order);
        self.n_ordered += n;
    }

    /// How many of the first `limit` candidates are in the nucleus. Orders little more than these: a nucleus
    /// is small as a rule, and the candidates are many.
    fn nucleus_len(&mut self, limit: usize, max: f32, sum: f32, top_p: f32) -> usize {
        let mut running = 0.0f64;
        let mut cutoff = None;
        for i in 0..limit {
            if i == self.n_ordered {
                self.extend(64.max(3 * i));
            }
            let p = exp(self.logits[self.candidates[i] as usize] - max) / sum;
            if cutoff.is_some_and(|cutoff| p < cutoff) {
                return i;
            }
            running += f64::from(p);
            if cutoff.is_none() && running >= f64::from(top_p) {
                cutoff = Some(p);
            }
        }
        limit
    }
}

/// The id at which the running sum of the weights passes the fraction `uniform` of their sum.
fn choose(uniform: f64, weights: impl Iterator<Item = (u32, f32)> + Clone) -> Option<u32> {
    let total: f64 = weights.clone().map(|(_, weight)| f64::from(weight)).sum();
    let target = uniform * total;
    let (mut sum, mut last) = (0.0f64, None);
    for (id, weight) in weights {
        sum += f64::from(weight);
        last = Some(id);
        if sum > target {
            break;
        }
    }
    last
}

/// The generator SplitMix64: the state grows by a constant, its mixed value is the output.
#[derive(Clone, Debug)]
struct Rng {
    state: u64,
}

impl Rng {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The upper 53 bits of an output as a fraction in [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

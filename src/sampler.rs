//! Choosing the next token from the logits.
//!
//! The steps have the order of the reference implementation, with which RWKV models are tuned:
//! penalties, softmax over the whole vocabulary without temperature, top-p, top-k, and the
//! temperature last. Most other runtimes use another order. A temperature of 2 with a top-p of 0.5
//! is reasonable here.
//!
//! 1. `logit[id] -= presence_penalty + count[id] * frequency_penalty` for every id seen in this
//!    reply.
//! 2. Temperature 0: take the largest logit, of equal ones the lowest id. The random number
//!    generator does not advance.
//! 3. `p = softmax(logit)`.
//! 4. Top-p: order the ids by falling logit, equal ones by rising id. `cutoff` is the `p` at which
//!    the running sum reaches `top_p`. Ids with `p >= cutoff` stay, ties with `cutoff` included. At
//!    1 all stay.
//! 5. Top-k: the first `top_k` stay; 0 keeps all.
//! 6. `w = p^(1/T)`. Draw one id with probability `w / sum(w)`.
//!
//! An accepted token is counted in three steps. All counts are multiplied by `penalty_decay`.
//! Counts below 2^-100 become 0. The count of the token grows by 1. The reference does not add the
//! 1 for tokens of digits and blanks only; this sampler has no such exception.
//!
//! The same logits, parameters and seed give the same tokens on every machine.

use std::cmp::Ordering;
use std::mem;

use rwkv_edge_kernels::{Kernels, default_float_environment, exp, settled};

use crate::error::{Error, Result};
use crate::format::SamplingParams;
use crate::format::state_file::SavedSampler;
use crate::random::Rng;

/// Draws tokens, and counts those of a reply for the penalties.
///
/// A clone draws what the original would draw.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: Rng,
    /// The tokens of this reply with their decayed counts, in the order of their first appearance.
    /// The vector has room for the whole vocabulary.
    counts: Vec<(u32, f32)>,
    n_vocab: usize,
}

impl Sampler {
    /// A sampler of a vocabulary of `n_vocab` tokens that has seen nothing.
    ///
    /// # Errors
    /// A parameter is not a number or out of range, or there is no memory for the counts.
    pub fn new(params: SamplingParams, n_vocab: usize, seed: u64) -> Result<Self> {
        params.validate()?;
        let mut counts = Vec::new();
        counts
            .try_reserve_exact(n_vocab)
            .map_err(|_| Error::invalid(format!("no memory for the counts of {n_vocab} tokens")))?;
        Ok(Self { params, rng: Rng::new(seed), counts, n_vocab })
    }

    /// Bytes of the counts of `n_vocab` tokens.
    pub fn bytes(n_vocab: usize) -> usize {
        n_vocab.saturating_mul(size_of::<(u32, f32)>())
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws with other parameters from here on. Counts and random numbers stay.
    ///
    /// # Errors
    /// A parameter is not a number or out of range.
    pub fn set_params(&mut self, params: SamplingParams) -> Result<()> {
        params.validate()?;
        self.params = params;
        Ok(())
    }

    /// Restarts the random numbers with `seed`.
    pub fn set_seed(&mut self, seed: u64) {
        self.rng = Rng::new(seed);
    }

    /// The seed of a new sampler whose random numbers are those that come next here.
    pub fn seed(&self) -> u64 {
        self.rng.state
    }

    /// A sampler that goes on with these counts.
    ///
    /// # Errors
    /// As [`new`](Self::new), or if the counts are no counts of `n_vocab` tokens.
    pub(crate) fn resume(saved: &SavedSampler, n_vocab: usize) -> Result<Self> {
        let mut sampler = Self::new(saved.params, n_vocab, saved.random)?;
        let mut seen = vec![false; n_vocab];
        for &(token, count) in &saved.counts {
            let is_new = seen.get_mut(token as usize).is_some_and(|seen| !mem::replace(seen, true));
            if !is_new || !count.is_finite() || count < 0.0 {
                return Err(Error::invalid(format!("token {token} has the count {count}, or occurs twice")));
            }
            sampler.counts.push((token, count));
        }
        Ok(sampler)
    }

    /// What [`resume`](Self::resume) needs.
    pub(crate) fn saved(&self) -> SavedSampler {
        SavedSampler { params: self.params, random: self.rng.state, counts: self.counts.clone() }
    }

    /// Begins a new reply: the counts are forgotten. The random numbers go on.
    pub fn begin_reply(&mut self) {
        self.counts.clear();
    }

    /// Becomes a copy of `other` without allocating.
    ///
    /// # Errors
    /// If the vocabularies differ in size.
    pub fn copy_from(&mut self, other: &Sampler) -> Result<()> {
        if self.n_vocab != other.n_vocab {
            let (n, other) = (self.n_vocab, other.n_vocab);
            return Err(Error::invalid(format!("a sampler of {other} tokens in the place of one of {n}")));
        }
        (self.params, self.rng) = (other.params, other.rng.clone());
        self.counts.clear();
        self.counts.extend_from_slice(&other.counts);
        Ok(())
    }

    /// Draws the next token. A logit of -infinity bans its id. `logits` and `ids`, `[n_vocab]`
    /// each, are overwritten.
    ///
    /// All but the [`largest_needed`](Self::largest_needed) logits after the penalties may be
    /// -infinity instead.
    ///
    /// # Errors
    /// The logits hold a NaN or +infinity, or no logit is above -infinity. Or the length of a
    /// buffer is not that of the vocabulary.
    pub fn draw(&mut self, kernels: &Kernels, logits: &mut [f32], ids: &mut [u32]) -> Result<u32> {
        let buf = &mut Buffers { logits, ids };
        buf.check(self.n_vocab)?;
        let _environment = default_float_environment();
        self.penalise(buf);
        let top = argmax(kernels, buf.logits)?;
        if self.params.temperature == 0.0 {
            return Ok(top);
        }
        let max = buf.logits[top as usize];
        let chosen = if self.params.top_p >= 1.0 && self.params.top_k == 0 {
            self.draw_from_all(kernels, max, buf)
        } else {
            let n = self.select(kernels, max, buf);
            self.draw_from(n, max, buf)
        };
        Ok(chosen.unwrap_or(top))
    }

    /// How many of the largest logits decide what is drawn, or `None` if all do.
    pub fn largest_needed(&self) -> Option<usize> {
        match self.params {
            SamplingParams { temperature: 0.0, .. } => Some(1),
            SamplingParams { top_p, top_k: 1.., .. } if top_p >= 1.0 => Some(self.params.top_k as usize),
            _ => None,
        }
    }

    /// The tokens of this reply with their decayed counts, in the order of their first appearance.
    pub fn counts(&self) -> &[(u32, f32)] {
        &self.counts
    }

    /// Counts a token of the reply. Do not count tokens of the prompt or the token that ends the
    /// reply. An id outside the vocabulary is ignored.
    pub fn accept(&mut self, id: u32) {
        let mut known = false;
        for (seen, count) in &mut self.counts {
            *count = settled(*count * self.params.penalty_decay);
            if *seen == id {
                *count += 1.0;
                known = true;
            }
        }
        if !known && (id as usize) < self.n_vocab {
            self.counts.push((id, 1.0));
        }
    }

    /// Step 1.
    fn penalise(&self, buf: &mut Buffers<'_>) {
        for &(id, count) in &self.counts {
            buf.logits[id as usize] -= self.params.presence_penalty + count * self.params.frequency_penalty;
        }
    }

    /// Steps 3 to 5: moves the ids that stay, in order, to the front of `buf.ids`; returns their
    /// number.
    fn select(&self, kernels: &Kernels, max: f32, buf: &mut Buffers<'_>) -> usize {
        let SamplingParams { top_p, top_k, .. } = self.params;
        let (n, sum) = if top_p < 1.0 { likely(kernels, top_p, buf) } else { (allowed(buf), 0.0) };
        let mut ordered = Ordered { candidates: &mut buf.ids[..n], logits: buf.logits, n_ordered: 0 };
        // Both steps keep the first of the ordered ids, so the one that keeps fewer decides.
        let limit = if top_k == 0 { n } else { n.min(top_k as usize) };
        if top_p < 1.0 {
            return ordered.nucleus_len(limit, max, sum, top_p);
        }
        ordered.extend(limit);
        limit
    }

    /// Step 6 on the first `n` candidates. Leaves the weights in `buf.logits`.
    fn draw_from(&mut self, n: usize, max: f32, buf: &mut Buffers<'_>) -> Option<u32> {
        let candidates = &buf.ids[..n];
        for &id in candidates {
            let logit = &mut buf.logits[id as usize];
            *logit = exp((*logit - max) / self.params.temperature);
        }
        let weights = candidates.iter().map(|id| (*id, buf.logits[*id as usize]));
        choose(self.rng.uniform(), weights)
    }

    /// Step 6 where all ids stay. Leaves the bits of the weights in `buf.ids`.
    fn draw_from_all(&mut self, kernels: &Kernels, max: f32, buf: &mut Buffers<'_>) -> Option<u32> {
        for logit in buf.logits.iter_mut() {
            *logit = (*logit - max) / self.params.temperature;
        }
        kernels.softmax(bytemuck::cast_slice_mut(buf.ids), buf.logits);
        let weights = (0..).zip(buf.ids.iter().map(|bits| f32::from_bits(*bits)));
        let allowed = weights.zip(buf.logits.iter()).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        choose(self.rng.uniform(), allowed.map(|(weight, _)| weight))
    }
}

impl Clone for Sampler {
    /// The copy has room for every token of the vocabulary, as the original does.
    fn clone(&self) -> Self {
        let mut counts = Vec::with_capacity(self.n_vocab);
        counts.extend_from_slice(&self.counts);
        Self { params: self.params, rng: self.rng.clone(), counts, n_vocab: self.n_vocab }
    }
}

/// Buffers for drawing a token, `[n_vocab]` each.
struct Buffers<'a> {
    /// Logits after the penalties, then weights.
    logits: &'a mut [f32],
    /// Bits of the probabilities, then the ids that may be drawn.
    ids: &'a mut [u32],
}

impl Buffers<'_> {
    fn check(&self, n_vocab: usize) -> Result<()> {
        let lens = [self.logits.len(), self.ids.len()];
        if lens.iter().any(|&len| len != n_vocab) || u32::try_from(n_vocab).is_err() {
            return Err(Error::invalid(format!("buffers of {lens:?} entries for {n_vocab} logits")));
        }
        Ok(())
    }
}

/// The id of the largest logit, of equal ones the lowest.
fn argmax(kernels: &Kernels, logits: &[f32]) -> Result<u32> {
    const CHUNK: usize = 64;
    let max = kernels.max(logits);
    // Vector code compares a whole chunk faster than it could stop early.
    let has_max = |chunk: &[f32]| chunk.iter().fold(false, |any, &logit| any | (logit == max));
    let chunk = logits.chunks(CHUNK).position(has_max).filter(|_| max.is_finite());
    let top =
        chunk.and_then(|i| logits[i * CHUNK..].iter().position(|&logit| logit == max).map(|j| i * CHUNK + j));
    top.map(|id| id as u32).ok_or_else(|| Error::invalid("logits are not finite"))
}

/// Writes the ids that are not banned to the front of `buf.ids`, rising; returns their number.
fn allowed(buf: &mut Buffers<'_>) -> usize {
    let ids = (0..).zip(buf.logits.iter()).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    buf.ids.iter_mut().zip(ids).map(|(entry, (id, _))| *entry = id).count()
}

/// Writes the ids that may be in the nucleus to the front of `buf.ids`, rising. Returns their
/// number and the sum of the softmax.
///
/// An id with `p < (1 - top_p) / V` is never in the nucleus. Proof: let c be the id at which the
/// running sum reaches `top_p`. Before c the sum is below `top_p`, so c and the ids after it share
/// more than `1 - top_p`. They are at most V, and none is above `p[c]`. Hence
/// `p[c] > (1 - top_p) / V`.
///
/// The margin covers the rounding of the softmax. Its sum is off by at most V/16 + 4 roundings,
/// 0.4 % at a million ids.
fn likely(kernels: &Kernels, top_p: f32, buf: &mut Buffers<'_>) -> (usize, f32) {
    const MARGIN: f32 = 0.99;
    let least = MARGIN * (1.0 - top_p) / buf.logits.len() as f32;
    let stats = kernels.softmax(bytemuck::cast_slice_mut(buf.ids), buf.logits);
    let mut n = 0;
    for id in 0..buf.ids.len() {
        // `n <= id`, so writing `ids[n]` keeps the probabilities that are still to be read.
        let stays = f32::from_bits(buf.ids[id]) >= least;
        buf.ids[n] = id as u32;
        n += usize::from(stays);
    }
    (n, stats.sum)
}

/// Candidates. The first `n_ordered` are in their final order: by falling logit, equal ones by
/// rising id.
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

    /// The number of the first `limit` candidates that are in the nucleus. A nucleus is usually
    /// small and the candidates are many, so this orders few more than the nucleus.
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

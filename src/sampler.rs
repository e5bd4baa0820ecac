//! Choosing the next token from the logits.
//!
//! The order of the steps is the one of the reference implementation that RWKV models are tuned with: penalties, softmax
//! over the whole vocabulary without temperature, top-p, top-k, and the temperature last. It is not the order of most
//! other runtimes: a temperature of 2 with a top-p of 0.5 is reasonable here.
//!
//! 1. `logit[id] -= presence_penalty + count[id] * frequency_penalty` for every id seen in this reply.
//! 2. Temperature 0: the largest logit, of equal ones the lowest id. The random number generator is not advanced.
//! 3. `p = softmax(logit)`.
//! 4. Top-p: ids by falling logit, equal ones by rising id. `cutoff` is the `p` at which the running sum reaches
//!    `top_p`; ids with `p >= cutoff` stay, also those that tie with it. At 1 all stay.
//! 5. Top-k: the first `top_k` stay; 0 keeps all.
//! 6. `w = p^(1/T)`, and one id is drawn with probability `w / sum(w)`.
//!
//! A token accepted is counted: all counts are multiplied by `penalty_decay`, then its own grows by 1. The reference
//! leaves out the 1 for tokens made of digits and blanks only; that exception is not made here.
//!
//! The same logits, parameters and seed give the same tokens on every machine.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::format::SamplingParams;
use crate::kernels::{Kernels, exp};

/// Memory of a sampler, each buffer `[n_vocab]`. The contents need not be initialised.
#[derive(Debug)]
pub struct SamplerBuffers<'a> {
    /// Logits after the penalties.
    pub probs: &'a mut [f32],
    /// First the bits of the probabilities, then the ids that may be drawn.
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
    /// The logits hold a NaN or +infinity, or nothing above -infinity; or a buffer has another length than `logits`.
    pub fn sample(&mut self, kernels: &Kernels, logits: &[f32], buf: &mut SamplerBuffers<'_>) -> Result<u32> {
        buf.check(logits.len())?;
        self.penalise(logits, buf);
        let top = argmax(buf.probs)?;
        if self.params.temperature == 0.0 {
            return Ok(top);
        }
        let max = buf.probs[top as usize];
        let n = self.select(kernels, max, buf);
        Ok(self.draw(n, max, buf).unwrap_or(top))
    }

    /// Counts a token of the reply. Tokens of the prompt and the token that ends the reply are not to be counted.
    /// An id outside the vocabulary is ignored.
    pub fn accept(&mut self, id: u32, buf: &mut SamplerBuffers<'_>) {
        let mut known = false;
        for &seen in buf.seen.iter().take(self.n_seen) {
            if let Some(count) = buf.counts.get_mut(seen as usize) {
                *count *= self.params.penalty_decay;
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

    /// Step 1: the penalised logits in `buf.probs`.
    fn penalise(&self, logits: &[f32], buf: &mut SamplerBuffers<'_>) {
        buf.probs.copy_from_slice(logits);
        for &id in buf.seen.iter().take(self.n_seen) {
            if let (Some(logit), Some(count)) = (buf.probs.get_mut(id as usize), buf.counts.get(id as usize))
            {
                *logit -= self.params.presence_penalty + count * self.params.frequency_penalty;
            }
        }
    }

    /// Steps 3 to 5: writes the ids that stay to the front of `buf.candidates` and returns how many they are.
    ///
    /// Top-p and top-k both keep a prefix of the ordered ids, so the shorter one decides and top-k can go first.
    fn select(&self, kernels: &Kernels, max: f32, buf: &mut SamplerBuffers<'_>) -> usize {
        let SamplingParams { top_p, top_k, .. } = self.params;
        let (n, sum) = if top_p < 1.0 { likely(kernels, top_p, buf) } else { (allowed(buf), 0.0) };
        let logits = &*buf.probs;
        let order = |a: &u32, b: &u32| by_falling_logit(logits, *a, *b);
        let mut candidates = &mut buf.candidates[..n];
        let k = top_k as usize;
        if 0 < k && k < n {
            candidates.select_nth_unstable_by(k - 1, order);
            candidates = &mut candidates[..k];
        } else if top_p >= 1.0 {
            return n;
        }
        candidates.sort_unstable_by(order);
        if top_p < 1.0 { nucleus_len(candidates, logits, max, sum, top_p) } else { candidates.len() }
    }

    /// Step 6 on the first `n` candidates. Leaves the weights in `buf.probs`.
    fn draw(&mut self, n: usize, max: f32, buf: &mut SamplerBuffers<'_>) -> Option<u32> {
        let candidates = &buf.candidates[..n];
        let mut total = 0.0f64;
        for &id in candidates {
            let logit = &mut buf.probs[id as usize];
            *logit = exp((*logit - max) / self.params.temperature);
            total += f64::from(*logit);
        }
        let target = self.rng.uniform() * total;
        let mut sum = 0.0f64;
        for &id in candidates {
            sum += f64::from(buf.probs[id as usize]);
            if sum > target {
                return Some(id);
            }
        }
        candidates.last().copied()
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
fn argmax(logits: &[f32]) -> Result<u32> {
    let (mut top, mut max, mut nan) = (0, f32::NEG_INFINITY, false);
    for (id, &logit) in logits.iter().enumerate() {
        nan |= logit.is_nan();
        if logit > max {
            (top, max) = (id as u32, logit);
        }
    }
    if nan || !max.is_finite() {
        return Err(Error::invalid("logits are not finite"));
    }
    Ok(top)
}

fn by_falling_logit(logits: &[f32], a: u32, b: u32) -> Ordering {
    let falling = logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(Ordering::Equal);
    falling.then(a.cmp(&b))
}

/// Writes the ids that are not banned to the front of `buf.candidates`, rising; returns how many they are.
fn allowed(buf: &mut SamplerBuffers<'_>) -> usize {
    let ids = (0..).zip(buf.probs.iter()).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    buf.candidates.iter_mut().zip(ids).map(|(entry, (id, _))| *entry = id).count()
}

/// Writes the ids that may be in the nucleus to the front of `buf.candidates`, rising; returns how many they are, and
/// the sum of the softmax.
///
/// An id with `p < (1 - top_p) / V` is never in it. Let c be the id at which the running sum reaches `top_p`. Before c
/// the sum is below `top_p`, so c and the ids after it share more than `1 - top_p`; they are at most V, and none is
/// above `p[c]`; hence `p[c] > (1 - top_p) / V`. The margin covers the rounding of the softmax: its sum is off by at
/// most V/16 + 4 roundings, 0.4 % at a million ids.
fn likely(kernels: &Kernels, top_p: f32, buf: &mut SamplerBuffers<'_>) -> (usize, f32) {
    const MARGIN: f32 = 0.99;
    let least = MARGIN * (1.0 - top_p) / buf.probs.len() as f32;
    let stats = kernels.softmax(bytemuck::cast_slice_mut(buf.candidates), buf.probs);
    let mut n = 0;
    for id in 0..buf.candidates.len() {
        // n <= id: the probabilities that are still to be read stay intact.
        if f32::from_bits(buf.candidates[id]) >= least && buf.probs[id] > f32::NEG_INFINITY {
            buf.candidates[n] = id as u32;
            n += 1;
        }
    }
    (n, stats.sum)
}

/// How many of the ordered candidates are in the nucleus.
fn nucleus_len(candidates: &[u32], logits: &[f32], max: f32, sum: f32, top_p: f32) -> usize {
    let p = |id: u32| exp(logits[id as usize] - max) / sum;
    let mut running = 0.0f64;
    for (i, &id) in candidates.iter().enumerate() {
        let cutoff = p(id);
        running += f64::from(cutoff);
        if running >= f64::from(top_p) {
            return i + 1 + candidates[i + 1..].iter().take_while(|id| p(**id) >= cutoff).count();
        }
    }
    candidates.len()
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

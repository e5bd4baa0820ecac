//! The heads of RWKV-5, 6 and 7: their division among threads, their recurrence, and their group
//! norm.

use std::ops::Range;

use rwkv_edge_kernels::{Kernels, ROW_INTERLEAVE};

use crate::error::Result;
use crate::format::{Config, Heads, ModelFile};
use crate::threads::Pool;

use super::ops::{Norm, Ops};

/// Groups of heads per thread, if there are enough heads.
const TURNS: usize = 4;

/// Work on a group of heads: `(its channels, their state, their output, N vectors of scratch)`.
pub(crate) type GroupWork<'a, const N: usize> =
    dyn Fn(Range<usize>, &mut [f32], &mut [f32], [&mut [f32]; N]) + Sync + 'a;

/// Heads of one layer's time mixing, with the group norm that follows the recurrence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WkvHeads {
    head_size: usize,
    eps: f32,
    /// `[n_att]`, each head normalised on its own.
    ln_x: Norm,
}

/// Floats of the state of all heads: `[n_head, head_size keys, head_size values]`.
pub(crate) fn state_len(config: &Config, heads: &Heads) -> usize {
    config.n_att.saturating_mul(heads.head_size)
}

/// A layer norm of each head's channels.
#[derive(Clone, Copy)]
pub(crate) struct GroupNorm<'a> {
    kernels: &'static Kernels,
    head_size: usize,
    eps: f32,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl GroupNorm<'_> {
    /// Prefetches the weights of the heads of `channels`.
    pub(crate) fn prefetch(&self, channels: Range<usize>) {
        self.kernels.prefetch(&self.weight[channels.clone()]);
        self.kernels.prefetch(&self.bias[channels]);
    }

    /// `out = group_norm(x)` of the heads of `channels`.
    pub(crate) fn normalize(&self, out: &mut [f32], x: &[f32], channels: Range<usize>) {
        let n = self.head_size;
        let (weight, bias) = (&self.weight[channels.clone()], &self.bias[channels]);
        let params = weight.chunks_exact(n).zip(bias.chunks_exact(n));
        for ((out, x), (weight, bias)) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(params) {
            self.kernels.layer_norm(out, x, weight, bias, self.eps);
        }
    }
}

impl WkvHeads {
    pub(crate) fn load(file: &ModelFile, config: &Config, heads: &Heads, index: usize) -> Result<Self> {
        let Heads { head_size, group_norm_eps, .. } = *heads;
        let ln_x = Norm::load(file, &format!("blocks.{index}.att.ln_x"), config.n_att)?;
        Ok(Self { head_size, eps: group_norm_eps, ln_x })
    }

    pub(crate) fn head_size(&self) -> usize {
        self.head_size
    }

    /// Channels of a group: a whole number of heads, a multiple of [`ROW_INTERLEAVE`] rows, about
    /// [`TURNS`] groups for each thread. Rows of several heads are read faster than rows of one.
    fn group_len(&self, n_att: usize, threads: usize) -> usize {
        let heads =
            (1..=ROW_INTERLEAVE).find(|heads| (heads * self.head_size).is_multiple_of(ROW_INTERLEAVE));
        let least = heads.unwrap_or(1) * self.head_size;
        least * (n_att / least / (TURNS * threads)).max(1)
    }

    /// Shares groups of heads among the threads. `state` and `out` belong to all heads. `scratch`
    /// has `N` vectors of `n_att` floats.
    pub(crate) fn for_each_group<const N: usize>(
        &self,
        pool: &mut Pool,
        state: &mut [f32],
        out: &mut [f32],
        scratch: &mut [f32],
        work: &GroupWork<'_, N>,
    ) {
        let (n, len) = (self.head_size, self.group_len(out.len(), pool.threads()));
        let pieces = [(state, len * n), (out, len), (scratch, N * len)];
        pool.for_each_piece(pieces, &|i, [state, out, mut scratch]| {
            let channels = i * len..i * len + out.len();
            let vectors = [(); N].map(|()| scratch.split_off_mut(..out.len()).unwrap_or_default());
            work(channels, state, out, vectors);
        });
    }

    /// Calls `head(its state, its output, its channels in the group)` for each head of a group.
    /// Prefetches the state of the next head before each call. A step reads a state once, and a
    /// state is too short for the hardware to prefetch.
    pub(crate) fn recur(
        &self,
        kernels: &Kernels,
        mut state: &mut [f32],
        out: &mut [f32],
        mut head: impl FnMut(&mut [f32], &mut [f32], Range<usize>),
    ) {
        let n = self.head_size;
        for (i, out) in out.chunks_exact_mut(n).enumerate() {
            let Some(own) = state.split_off_mut(..n * n) else { break };
            kernels.prefetch(&state[..state.len().min(n * n)]);
            head(own, out, i * n..(i + 1) * n);
        }
    }

    /// The group norm of all heads.
    pub(crate) fn group_norm<'a>(&self, ops: &Ops<'a>) -> GroupNorm<'a> {
        let (weight, bias) = ops.norm(self.ln_x);
        GroupNorm { kernels: ops.kernels, head_size: self.head_size, eps: self.eps, weight, bias }
    }
}

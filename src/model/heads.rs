//! What the matrix-valued states of RWKV-5, 6 and 7 share: heads, group norm, and the recurrence over them.

use std::ops::Range;

use rwkv_edge_kernels::{Kernels, ROW_INTERLEAVE};

use crate::error::{Error, Result};
use crate::format::{Config, Heads, ModelFile};
use crate::threads::Pool;

use super::common::{Norm, Ops};

/// How often each thread takes heads of a layer, if they are enough.
const TURNS: usize = 4;

/// Work on the channels of a unit of heads, their state, their output, and `N` vectors for itself.
pub(crate) type UnitWork<'a, const N: usize> =
    dyn Fn(Range<usize>, &mut [f32], &mut [f32], [&mut [f32]; N]) + Sync + 'a;

/// Heads of one layer's time mixing, with the group norm that follows the recurrence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorm {
    head_size: usize,
    eps: f32,
    /// `[n_att]`, each head normalised on its own.
    ln_x: Norm,
}

/// Floats of the state of all heads: `[n_head, head_size keys, head_size values]`.
pub(crate) fn state_len(config: &Config) -> usize {
    config.n_att.saturating_mul(config.heads.map_or(0, |heads| heads.head_size))
}

/// Weights of the group norms of all heads.
#[derive(Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    kernels: &'static Kernels,
    head_size: usize,
    eps: f32,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl HeadNorms<'_> {
    /// Asks for the weights of the heads of `channels`.
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

impl HeadNorm {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Some(Heads { head_size, group_norm_eps, .. }) = config.heads else {
            return Err(Error::malformed(format!("{} without heads", config.version)));
        };
        let ln_x = Norm::load(file, &format!("blocks.{index}.att.ln_x"), config.n_att)?;
        Ok(Self { head_size, eps: group_norm_eps, ln_x })
    }

    pub(crate) fn head_size(&self) -> usize {
        self.head_size
    }

    /// Channels of the heads that a thread takes at a time, of `n_att`: of the fewest that begin where a block of matrix
    /// rows does, or as many times these as leave each thread [`TURNS`] turns. Rows of several heads are read faster
    /// than those of one.
    fn unit(&self, n_att: usize, threads: usize) -> usize {
        let heads =
            (1..=ROW_INTERLEAVE).find(|heads| (heads * self.head_size).is_multiple_of(ROW_INTERLEAVE));
        let least = heads.unwrap_or(1) * self.head_size;
        least * (n_att / least / (TURNS * threads)).max(1)
    }

    /// Shares units of heads among the threads: `work(channels, state, out, scratch)` gets the channels of a unit, its
    /// state, its part of `out`, and as large a part of each of the `N` vectors that `scratch` is made of.
    pub(crate) fn for_each_unit<const N: usize>(
        &self,
        pool: &mut Pool,
        state: &mut [f32],
        out: &mut [f32],
        scratch: &mut [f32],
        work: &UnitWork<'_, N>,
    ) {
        let (n, unit) = (self.head_size, self.unit(out.len(), pool.threads()));
        let pieces = [(state, unit * n), (out, unit), (scratch, N * unit)];
        pool.for_each_piece(pieces, &|i, [state, out, mut scratch]| {
            let channels = i * unit..i * unit + out.len();
            let vectors = [(); N].map(|()| scratch.split_off_mut(..out.len()).unwrap_or_default());
            work(channels, state, out, vectors);
        });
    }

    /// Calls `head(its state, its output, its channels)` for each head of a unit, and asks for the next one's state
    /// before: for a step it is read but once, and too little of it at a time to be fetched ahead by itself.
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

    /// What the group norms of all heads need.
    pub(crate) fn norms<'a>(&self, ops: &Ops<'a>) -> Result<HeadNorms<'a>> {
        let (weight, bias) = ops.norm(self.ln_x)?;
        Ok(HeadNorms { kernels: ops.kernels, head_size: self.head_size, eps: self.eps, weight, bias })
    }
}

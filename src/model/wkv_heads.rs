//! The heads of RWKV-5, 6 and 7: their division among threads, their recurrence, and their group
//! norm.

use std::ops::Range;

use arrayvec::ArrayVec;
use rwkv_edge_kernels::{Kernels, ROW_INTERLEAVE};

use crate::error::Result;
use crate::format::{Config, Heads, ModelFile};
use crate::threads::{Block, Cut, Pool, RowsMut};

use super::batch::{TILE_TOKENS, Tile};
use super::ops::{Norm, Ops};

/// Groups of heads per thread, if there are enough heads.
const TURNS: usize = 4;

/// Work on a group of heads, with `N` matrices of scratch, `[tokens, channels]` each.
pub(crate) type GroupWork<'a, const N: usize> = dyn Fn(Group<'_>, [&mut [f32]; N]) + Sync + 'a;

/// A group of heads, for the tokens of a tile.
pub(crate) struct Group<'a> {
    pub(crate) channels: Range<usize>,
    /// The tokens of each text, counted from the first of the tile, and the group's state.
    texts: ArrayVec<(Range<usize>, &'a mut [f32]), TILE_TOKENS>,
    /// The output of each token.
    pub(crate) out: Block<'a, f32>,
}

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

impl Group<'_> {
    /// Prefetches the state of the first head, of `n` channels.
    pub(crate) fn prefetch(&self, kernels: &Kernels, n: usize) {
        self.texts.iter().take(1).for_each(|(_, state)| kernels.prefetch(&state[..n * n]));
    }
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

    /// Floats of scratch that [`for_each_group`](Self::for_each_group) needs for batches of up to
    /// `tokens` tokens: `matrices` matrices for each group.
    pub(crate) fn scratch_len(matrices: usize, tokens: usize, n_att: usize) -> usize {
        (matrices * tokens.min(TILE_TOKENS)).saturating_mul(n_att)
    }

    /// Shares groups of heads among the threads, for the tokens of `tile`. `out` has a row of
    /// `n_att` floats for each token of the batch. `scratch` has
    /// [`scratch_len`](Self::scratch_len) floats.
    pub(crate) fn for_each_group<const N: usize>(
        &self,
        pool: &mut Pool,
        tile: Tile<'_>,
        (mut out, n_att): (RowsMut<'_>, usize),
        scratch: &mut [f32],
        work: &GroupWork<'_, N>,
    ) {
        let (n, len) = (self.head_size, self.group_len(n_att, pool.threads()));
        let Tile { rows, texts } = tile;
        let count = rows.len();
        let (tokens, states): (ArrayVec<_, TILE_TOKENS>, ArrayVec<_, TILE_TOKENS>) =
            texts.into_iter().map(|text| (text.tokens, Cut::new(text.state, len * n))).unzip();
        let scratch = Cut::new(&mut scratch[..N * count * n_att], N * count * len);
        let pieces = (states, out.part(rows).columns(len), scratch);
        pool.for_each_piece(pieces, &|i, (states, out, mut scratch)| {
            let channels = i * len..n_att.min((i + 1) * len);
            let each = count * channels.len();
            let matrices = [(); N].map(|()| scratch.split_off_mut(..each).unwrap_or_default());
            let texts = tokens.iter().cloned().zip(states).collect();
            work(Group { channels, texts, out }, matrices);
        });
    }

    /// Calls `head(token, its state, its output, its channels in the group)` for each head of a
    /// group and each token. `out` is `[tokens, channels]`. The tokens of a text come in their
    /// order, one head after the other, so that the head's state stays in the nearest cache.
    ///
    /// Prefetches the state of the head that comes next. A step reads a state once, and a state is
    /// too short for the hardware to prefetch.
    pub(crate) fn recur(
        &self,
        kernels: &Kernels,
        group: &mut Group<'_>,
        out: &mut [f32],
        mut head: impl FnMut(usize, &mut [f32], &mut [f32], Range<usize>),
    ) {
        let (n, len) = (self.head_size, group.channels.len());
        let mut texts = group.texts.iter_mut().peekable();
        while let Some((tokens, state)) = texts.next() {
            let mut states = state.chunks_exact_mut(n * n).enumerate().peekable();
            while let Some((i, state)) = states.next() {
                match (states.peek(), texts.peek()) {
                    (Some((_, next)), _) => kernels.prefetch(next),
                    (None, Some((_, next))) => kernels.prefetch(&next[..n * n]),
                    (None, None) => (),
                }
                let channels = i * n..(i + 1) * n;
                for t in tokens.clone() {
                    head(t, state, &mut out[t * len..][channels.clone()], channels.clone());
                }
            }
        }
    }

    /// The group norm of all heads.
    pub(crate) fn group_norm<'a>(&self, ops: &Ops<'a>) -> GroupNorm<'a> {
        let (weight, bias) = ops.norm(self.ln_x);
        GroupNorm { kernels: ops.kernels, head_size: self.head_size, eps: self.eps, weight, bias }
    }
}

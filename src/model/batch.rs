//! Batches: tokens of one or more texts that go through the layers together. Each matrix is read
//! once per batch.

use std::ops::Range;

use arrayvec::ArrayVec;
use rwkv_edge_kernels::layout::{Normed, Shift, Shifted};

use crate::format::VectorHandle;

use super::ops::{Norm, Ops};
use super::state::State;
use super::vectors::{Activations, Vectors};

/// A text and the tokens to continue it with.
pub struct Sequence<'a> {
    pub(super) state: &'a mut State,
    /// Tokens that the model has not read yet.
    left: &'a [u32],
    /// Rows of the batch that have tokens of this text.
    rows: Range<usize>,
}

impl<'a> Sequence<'a> {
    /// Continues the text of `state` with `tokens`.
    pub fn new(state: &'a mut State, tokens: &'a [u32]) -> Self {
        Self { state, left: tokens, rows: 0..0 }
    }

    /// Tokens that the model has not read yet.
    pub(crate) fn left(&self) -> &'a [u32] {
        self.left
    }

    /// The state that the tokens change.
    pub(crate) fn state(&self) -> &State {
        self.state
    }
}

/// Consecutive tokens from each of several texts. Every token has a row in the buffers. The rows of
/// one text are adjacent.
pub(crate) struct Batch<'b, 's> {
    sequences: &'b mut [Sequence<'s>],
    tokens: usize,
}

impl<'b, 's> Batch<'b, 's> {
    /// The next tokens of `sequences`, at most `room`; `None` if none are left.
    pub(crate) fn next(sequences: &'b mut [Sequence<'s>], room: usize) -> Option<Self> {
        let mut tokens = 0;
        for sequence in &mut *sequences {
            let end = room.min(tokens + sequence.left.len());
            sequence.rows = tokens..end;
            tokens = end;
        }
        (tokens > 0).then_some(Self { sequences, tokens })
    }

    /// Number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The token of each row.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.sequences.iter().flat_map(|sequence| sequence.left[..sequence.rows.len()].iter().copied())
    }

    /// Copies the last residual of each text into its state, and counts its tokens as read.
    pub(crate) fn finish(self, x: &Vectors<'_>) {
        for Sequence { state, left, rows } in self.sequences {
            let Some(last) = rows.clone().last() else { continue };
            state.residual_mut().copy_from_slice(x.row(last));
            let (read, rest) = left.split_at(rows.len());
            read.iter().for_each(|&token| state.count(token));
            *left = rest;
        }
    }
}

/// The half of a layer that a batch goes through.
#[derive(Clone, Copy)]
pub(crate) enum Mixing {
    Time,
    Channel,
}

/// A batch on its way through one half of one layer.
pub(crate) struct Step<'a, 's> {
    sequences: &'a mut [Sequence<'s>],
    tokens: usize,
    /// The layer's part of a text's recurrent state: the shifted inputs of both halves, `[n_embd]`
    /// each, then the state of time mixing.
    layer: Range<usize>,
    mixing: Mixing,
    norm: Norm,
    /// Residual streams, `[tokens, n_embd]`.
    x: &'a [f32],
    /// Normalised streams, `[tokens, n_embd]`.
    h: &'a mut [f32],
    n_embd: usize,
}

impl<'a, 's> Step<'a, 's> {
    /// `layer` is the range of the layer in the recurrent state.
    pub(crate) fn new(
        batch: &'a mut Batch<'_, 's>,
        layer: Range<usize>,
        (mixing, norm): (Mixing, Norm),
        x: &'a mut Vectors<'_>,
        h: &'a mut Vectors<'_>,
    ) -> Self {
        let (tokens, n_embd) = (batch.tokens, x.len());
        let (x, h) = (x.first_mut(tokens), h.first_mut(tokens));
        Self { sequences: batch.sequences, tokens, layer, mixing, norm, x, h, n_embd }
    }

    /// Number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Normalises the streams of all tokens, and mixes each with the stream of the token before it
    /// in its text. `outs` are inputs of matrices, each with its mix weights, `[n_embd]`.
    pub(crate) fn shift<const N: usize>(
        &mut self,
        ops: &Ops<'_>,
        shift: Shift,
        mut outs: [(&mut Activations<'_>, VectorHandle); N],
    ) {
        let (x, n_embd, previous) = (self.x, self.n_embd, self.previous_input());
        let (weight, bias) = ops.norm(self.norm);
        let mixes = outs.each_ref().map(|(_, mix)| ops.vector(*mix));
        for Sequence { state, rows, .. } in &mut *self.sequences {
            for t in rows.clone() {
                let (before, h) = self.h.split_at_mut(t * n_embd);
                let h_prev = match t == rows.start {
                    true => &state.recurrent_mut()[previous.clone()],
                    false => &before[(t - 1) * n_embd..],
                };
                let mut outs = outs.each_mut().map(|(out, _)| out.row_mut(t));
                let mut shifted: ArrayVec<_, N> =
                    outs.iter_mut().zip(mixes).map(|(out, mix)| Shifted { mix, out }).collect();
                let x = Normed { x: &x[t * n_embd..][..n_embd], weight, bias, eps: ops.layer_norm_eps };
                ops.kernels.norm_shift(&mut h[..n_embd], x, h_prev, shift, &mut shifted);
            }
        }
    }

    /// Calls `work(row, h, h_prev)` for each token, after [`shift`](Self::shift). `h` is the
    /// token's normalised stream, `h_prev` that of the token before it in its text.
    pub(crate) fn for_each_pair(&mut self, mut work: impl FnMut(usize, &[f32], &[f32])) {
        let (n_embd, previous) = (self.n_embd, self.previous_input());
        let row = |t: usize| &self.h[t * n_embd..][..n_embd];
        for Sequence { state, rows, .. } in &mut *self.sequences {
            for t in rows.clone() {
                let h_prev = match t == rows.start {
                    true => &state.recurrent_mut()[previous.clone()],
                    false => row(t - 1),
                };
                work(t, row(t), h_prev);
            }
        }
    }

    /// Calls `work(row, state of the text's time mixing)` for each token. The tokens of a text come
    /// in their order.
    pub(crate) fn for_each_token(&mut self, mut work: impl FnMut(usize, &mut [f32])) {
        let wkv = self.layer.start + 2 * self.n_embd..self.layer.end;
        for Sequence { state, rows, .. } in &mut *self.sequences {
            rows.clone().for_each(|t| work(t, &mut state.recurrent_mut()[wkv.clone()]));
        }
    }

    /// Keeps the last normalised stream of each text for its next token.
    pub(crate) fn finish(self) {
        let previous = self.previous_input();
        for Sequence { state, rows, .. } in self.sequences {
            if let Some(last) = rows.clone().last() {
                let h = &self.h[last * self.n_embd..][..self.n_embd];
                state.recurrent_mut()[previous.clone()].copy_from_slice(h);
            }
        }
    }

    /// The range of the recurrent state that holds the normalised stream of the token before.
    fn previous_input(&self) -> Range<usize> {
        let start = match self.mixing {
            Mixing::Time => self.layer.start,
            Mixing::Channel => self.layer.start + self.n_embd,
        };
        start..start + self.n_embd
    }
}

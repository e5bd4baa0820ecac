//! Batches: tokens of one or more texts that go through the layers together. Each matrix is read
//! once per batch.

use std::ops::Range;

use arrayvec::ArrayVec;
use rwkv_edge_kernels::layout::{Normed, Shift, Shifted};

use crate::format::VectorHandle;
use crate::threads::{Cut, Pieces, Pool};

use super::ops::{Norm, Ops};
use super::state::State;
use super::vectors::{Activations, Vectors};

/// Most tokens of a [`Tile`]. More of them take more scratch, which should stay in the cache next
/// to a core.
pub(crate) const TILE_TOKENS: usize = 16;

/// A text and the tokens to continue it with.
pub struct Sequence<'a> {
    pub(super) state: &'a mut State,
    /// Tokens that the model has not read yet: the first part, then the second.
    left: [&'a [u32]; 2],
    /// Rows of the batch that have tokens of this text.
    rows: Range<usize>,
}

impl<'a> Sequence<'a> {
    /// Continues the text of `state` with `tokens`.
    pub fn new(state: &'a mut State, tokens: &'a [u32]) -> Self {
        Self::of_two_parts(state, [&[], tokens])
    }

    /// Continues the text of `state` with the tokens of both parts.
    pub(crate) fn of_two_parts(state: &'a mut State, parts: [&'a [u32]; 2]) -> Self {
        Self { state, left: parts, rows: 0..0 }
    }

    /// Tokens that the model has not read yet.
    pub(crate) fn left(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.left.into_iter().flatten().copied()
    }

    /// Counts tokens as read.
    fn read(&mut self, count: usize) {
        self.left().take(count).for_each(|token| self.state.count(token));
        let [first, second] = &mut self.left;
        let in_first = count.min(first.len());
        (*first, *second) = (&first[in_first..], &second[count - in_first..]);
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
            let [first, second] = sequence.left;
            let end = room.min(tokens + first.len() + second.len());
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
        self.sequences.iter().flat_map(|sequence| sequence.left().take(sequence.rows.len()))
    }

    /// Number of texts that have tokens in the batch.
    pub(crate) fn texts(&self) -> usize {
        self.sequences.iter().filter(|sequence| !sequence.rows.is_empty()).count()
    }

    /// Copies the last residual of each text into its state, and counts its tokens as read.
    pub(crate) fn finish(self, x: &Vectors<'_>) {
        for sequence in self.sequences {
            let Some(last) = sequence.rows.clone().last() else { continue };
            sequence.state.residual_mut().copy_from_slice(x.row(last));
            sequence.read(sequence.rows.len());
        }
    }
}

/// The text that row `t` belongs to.
fn text_of<'a, 's>(sequences: &'a [Sequence<'s>], t: usize) -> &'a Sequence<'s> {
    &sequences[sequences.partition_point(|sequence| sequence.rows.end <= t)]
}

/// Some consecutive tokens of a batch on their way through the recurrence.
pub(crate) struct Tile<'a> {
    /// Rows of the batch that have the tokens, at most [`TILE_TOKENS`].
    pub(crate) rows: Range<usize>,
    /// The texts that the tokens belong to, in their order.
    pub(crate) texts: ArrayVec<TileText<'a>, TILE_TOKENS>,
}

/// A text that has tokens in a [`Tile`].
pub(crate) struct TileText<'a> {
    /// The tokens, counted from the first of the tile.
    pub(crate) tokens: Range<usize>,
    /// The state of the layer's time mixing.
    pub(crate) state: &'a mut [f32],
}

/// The half of a layer that a batch goes through.
#[derive(Clone, Copy)]
pub(crate) enum Mixing {
    Time,
    Channel,
}

/// Work on a token: `(its normalised stream, that of the token before it, its piece)`.
pub(crate) type PairWork<'a, P> = dyn Fn(&[f32], &[f32], <P as Pieces>::Piece) + Sync + 'a;

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
    /// in its text. `outs` are inputs of matrices, each with its mix weights, `[n_embd]`. The
    /// threads share the tokens.
    pub(crate) fn shift<const N: usize>(
        &mut self,
        ops: &mut Ops<'_>,
        shift: Shift,
        outs: [(&mut Activations<'_>, VectorHandle); N],
    ) {
        let (x, n_embd, eps, kernels) = (self.x, self.n_embd, ops.layer_norm_eps, ops.kernels);
        let (weight, bias) = ops.norm(self.norm);
        let mixes = outs.each_ref().map(|(_, mix)| ops.vector(*mix));
        let outs = outs.map(|(out, _)| out.pieces(self.tokens));
        let x = |t: usize| &x[t * n_embd..][..n_embd];
        if self.sequences.iter().all(|sequence| sequence.rows.len() <= 1) {
            // No token waits for the stream of another: one pass does everything.
            let (previous, sequences) = (self.previous_input(), &*self.sequences);
            ops.pool.for_each_piece((Cut::new(self.h, n_embd), outs), &|t, (h, mut outs)| {
                let h_prev = &text_of(sequences, t).state.recurrent()[previous.clone()];
                let outs = outs.iter_mut().zip(mixes);
                let mut shifted: ArrayVec<_, N> = outs.map(|(out, mix)| Shifted { mix, out }).collect();
                kernels.norm_shift(h, Normed { x: x(t), weight, bias, eps }, h_prev, shift, &mut shifted);
            });
            return;
        }
        ops.pool.for_each_piece(Cut::new(self.h, n_embd), &|t, h| {
            kernels.layer_norm(h, x(t), weight, bias, eps);
        });
        self.for_each_pair(ops.pool, outs, &|h, h_prev, outs| {
            let (a, b) = match shift {
                Shift::Current => (h_prev, h),
                Shift::Previous => (h, h_prev),
            };
            for (mut out, mix) in outs.into_iter().zip(mixes) {
                kernels.lerp(&mut out.values[..n_embd], a, b, mix);
                kernels.quantize(&mut out);
            }
        });
    }

    /// Calls `work(h, h_prev, piece)` with the piece of each token, after [`shift`](Self::shift).
    /// `h` is the token's normalised stream, `h_prev` that of the token before it in its text. The
    /// threads share the tokens.
    pub(crate) fn for_each_pair<P: Pieces>(&self, pool: &mut Pool, pieces: P, work: &PairWork<'_, P>) {
        let (n_embd, previous) = (self.n_embd, self.previous_input());
        let (sequences, h) = (&*self.sequences, &*self.h);
        let row = |t: usize| &h[t * n_embd..][..n_embd];
        pool.for_each_piece(pieces, &|t, piece| {
            let Sequence { state, rows, .. } = text_of(sequences, t);
            let h_prev = match t == rows.start {
                true => &state.recurrent()[previous.clone()],
                false => row(t - 1),
            };
            work(row(t), h_prev, piece);
        });
    }

    /// Calls `work` with the tokens of the batch, [`TILE_TOKENS`] at a time, in their order.
    pub(crate) fn for_each_tile(&mut self, mut work: impl FnMut(Tile<'_>)) {
        let wkv = self.layer.start + 2 * self.n_embd..self.layer.end;
        for first in (0..self.tokens).step_by(TILE_TOKENS) {
            let rows = first..self.tokens.min(first + TILE_TOKENS);
            let begin = self.sequences.partition_point(|sequence| sequence.rows.end <= first);
            let texts = self.sequences[begin..].iter_mut().take_while(|text| text.rows.start < rows.end);
            let texts =
                texts.filter(|text| !text.rows.is_empty()).map(|Sequence { state, rows: own, .. }| {
                    let tokens = own.start.max(rows.start) - first..own.end.min(rows.end) - first;
                    TileText { tokens, state: &mut state.recurrent_mut()[wkv.clone()] }
                });
            work(Tile { texts: texts.collect(), rows });
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

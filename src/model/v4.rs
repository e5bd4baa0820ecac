//! Time mixing of RWKV-4 (arXiv 2305.13048, section 3; appendix D for the numerically stable WKV).

use arrayvec::ArrayVec;
use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixHandle, ModelFile, VectorHandle};
use crate::memory::Buffers;
use crate::threads::Cut;

use super::batch::{Step, TILE_TOKENS, Tile, TileText};
use super::layer;
use super::ops::{Epilogue, Ops, Product};
use super::vectors::{Activations, SCRATCH, Vectors};

/// Ranges of channels per thread, if there are enough channels.
const TURNS: usize = 4;

/// Fewest channels that a thread takes at a time: whole cache lines, and whole registers.
const GRAIN: usize = 64;

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    time_mix_k: VectorHandle,
    time_mix_v: VectorHandle,
    time_mix_r: VectorHandle,
    /// Log decay per channel, negative, `[n_att]`.
    time_decay: VectorHandle,
    /// Bonus of the current token, `[n_att]`.
    time_first: VectorHandle,
    /// `[n_att, n_embd]`
    key: MatrixHandle,
    /// `[n_att, n_embd]`
    value: MatrixHandle,
    /// `[n_att, n_embd]`
    receptance: MatrixHandle,
    /// `[n_embd, n_att]`
    output: MatrixHandle,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs of key, value and receptance, `[tokens, n_embd]`.
    xk: Activations<'a>,
    xv: Activations<'a>,
    xr: Activations<'a>,
    /// `[tokens, n_att]` each.
    k: Vectors<'a>,
    v: Vectors<'a>,
    r: Vectors<'a>,
    /// The recurrence's output of one token, `[n_att]`.
    wkv: &'a mut [f32],
    /// Input of the output projection, `[tokens, n_att]`.
    gated: Activations<'a>,
}

/// The WKV sums of one layer, `[n_att]` each.
struct Wkv<'a> {
    /// Numerator, scaled by `exp(-pp)`.
    aa: &'a mut [f32],
    /// Denominator, scaled by `exp(-pp)`.
    bb: &'a mut [f32],
    /// Running maximum of the exponents.
    pp: &'a mut [f32],
}

impl<'a> Wkv<'a> {
    fn split(state: &'a mut [f32]) -> Self {
        let n_att = state.len() / 3;
        let (aa, state) = state.split_at_mut(n_att);
        let (bb, pp) = state.split_at_mut(n_att);
        Self { aa, bb, pp }
    }
}

impl layer::TimeMix for TimeMix {
    type Arch = ();
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config, _arch: &()) -> usize {
        3 * config.n_att
    }

    fn init_state(state: &mut [f32]) {
        Wkv::split(state).pp.fill(-1e30);
    }

    fn load(file: &ModelFile, config: &Config, _arch: &(), index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let vector = |name: &str, len| file.vector_handle(&format!("blocks.{index}.att.{name}"), len);
        let matrix = |name: &str, rows, cols| {
            file.matrix_handle(&format!("blocks.{index}.att.{name}.weight"), rows, cols)
        };
        Ok(Self {
            time_mix_k: vector("time_mix_k", n_embd)?,
            time_mix_v: vector("time_mix_v", n_embd)?,
            time_mix_r: vector("time_mix_r", n_embd)?,
            time_decay: vector("time_decay", n_att)?,
            time_first: vector("time_first", n_att)?,
            key: matrix("key", n_att, n_embd)?,
            value: matrix("value", n_att, n_embd)?,
            receptance: matrix("receptance", n_att, n_embd)?,
            output: matrix("output", n_embd, n_att)?,
        })
    }

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config, _arch: &(), tokens: usize) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        Scratch {
            xk: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xv: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xr: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            k: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            v: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            wkv: buffers.f32s(SCRATCH, n_att),
            gated: Activations::take(buffers, SCRATCH, [tokens, n_att]),
        }
    }

    fn shift(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { xk, xv, xr, .. } = scratch;
        let outs = [(xk, self.time_mix_k), (xv, self.time_mix_v), (xr, self.time_mix_r)];
        step.shift(ops, Shift::Current, outs);
    }

    fn project(&self, ops: &mut Ops<'_>, tokens: usize, scratch: &mut Scratch<'_>) {
        let Scratch { xk, xv, xr, k, v, r, .. } = scratch;
        let products = [
            Product::new(self.key, xk, k.rows_mut()),
            Product::new(self.value, xv, v.rows_mut()),
            Product::new(self.receptance, xr, r.rows_mut()).then(Epilogue::Sigmoid),
        ];
        ops.matmul(tokens, products);
    }

    fn recur(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { k, v, r, wkv, gated, .. } = scratch;
        let (time_first, time_decay) = (ops.vector(self.time_first), ops.vector(self.time_decay));
        let (kernels, tokens) = (ops.kernels, step.tokens());
        // A single token is too little work to share.
        let shares = if tokens == 1 { 1 } else { TURNS * ops.pool.threads() };
        let len = wkv.len().div_ceil(shares).next_multiple_of(GRAIN);
        step.for_each_tile(|Tile { rows, texts }| {
            let sums_of = texts.into_iter().map(|TileText { tokens, state }| {
                let Wkv { aa, bb, pp } = Wkv::split(state);
                (tokens, [aa, bb, pp].map(|sums| Cut::new(sums, len)))
            });
            let (tokens, sums): (ArrayVec<_, TILE_TOKENS>, ArrayVec<_, TILE_TOKENS>) = sums_of.unzip();
            let (first, mut out) = (rows.start, gated.rows_mut());
            let pieces = (sums, out.part(rows).columns(len), Cut::new(wkv, len));
            ops.pool.for_each_piece(pieces, &|i, (sums, mut out, wkv)| {
                let i = i * len..i * len + wkv.len();
                let (time_first, time_decay) = (&time_first[i.clone()], &time_decay[i.clone()]);
                for (tokens, [aa, bb, pp]) in tokens.iter().cloned().zip(sums) {
                    for t in tokens {
                        let [k, v, r] = [&*k, v, r].map(|x| &x.row(first + t)[i.clone()]);
                        kernels.wkv4(wkv, k, v, time_first, time_decay, aa, bb, pp);
                        kernels.mul(out.row(t), r, wkv);
                    }
                }
            });
        });
        ops.quantize(tokens, [gated]);
    }

    /// `out = Wo @ (sigmoid(r) * wkv(k, v))`
    fn output<'s>(&self, scratch: &'s Scratch<'_>) -> (MatrixHandle, &'s Activations<'s>) {
        (self.output, &scratch.gated)
    }
}

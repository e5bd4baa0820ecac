//! Time mixing of RWKV-6 (arXiv 2404.05892, section 4).
//!
//! As RWKV-5, but token shift and decay depend on the token, through low-rank matrices.

use rwkv_edge_kernels::exp;
use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixHandle, ModelFile, Rwkv6, Variant, VectorHandle};
use crate::memory::Buffers;

use super::batch::Step;
use super::layer;
use super::names::V6_MIXES;
use super::ops::{Epilogue, Ops, Product};
use super::vectors::{Activations, SCRATCH, Vectors};
use super::wkv_heads::{self, WkvHeads};

/// Weights of one layer's time mixing. Arrays are in the order of [`V6_MIXES`]: w, k, v, r, g.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: WkvHeads,
    /// Mix of the input of the dynamic mixes, `[n_embd]`.
    time_maa_x: VectorHandle,
    /// Constant part of each mix, `[n_embd]`.
    time_maa: [VectorHandle; 5],
    /// `[5 mix_rank, n_embd]`
    time_maa_w1: MatrixHandle,
    /// `[n_embd, mix_rank]` each
    time_maa_w2: [MatrixHandle; 5],
    /// Constant part of the decay before its exponentials, `[n_att]`.
    time_decay: VectorHandle,
    /// `[decay_rank, n_embd]`
    time_decay_w1: MatrixHandle,
    /// `[n_att, decay_rank]`
    time_decay_w2: MatrixHandle,
    /// Bonus of the current token, `[n_att]`.
    time_faaaa: VectorHandle,
    /// Key, value, receptance and gate, `[n_att, n_embd]`.
    projections: [MatrixHandle; 4],
    /// `[n_embd, n_att]`
    output: MatrixHandle,
    /// Keys are scaled by `exp(min(w, 0))`, with the decay `w` before its exponentials:
    /// [`Variant::Puzzle`].
    scales_keys: bool,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Input of `time_maa_w1`, `[tokens, n_embd]`.
    xx: Activations<'a>,
    /// `[tokens, 5 mix_rank]`
    low: Vectors<'a>,
    /// Slices of `low`, inputs of `time_maa_w2`, `[tokens, mix_rank]`.
    lows: [Activations<'a>; 5],
    /// Mix of each input, `[tokens, n_embd]`.
    mixes: [Vectors<'a>; 5],
    /// Shifted inputs of decay, key, value, receptance and gate, `[tokens, n_embd]`.
    xs: [Activations<'a>; 5],
    /// Input of `time_decay_w2`, `[tokens, decay_rank]`.
    decay_low: Activations<'a>,
    /// `[tokens, n_att]` each.
    k: Vectors<'a>,
    v: Vectors<'a>,
    r: Vectors<'a>,
    g: Vectors<'a>,
    /// Three matrices for each group of heads.
    groups: &'a mut [f32],
    /// Input of the output projection, `[tokens, n_att]`.
    gated: Activations<'a>,
}

impl layer::TimeMix for TimeMix {
    type Arch = Rwkv6;
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config, arch: &Rwkv6) -> usize {
        wkv_heads::state_len(config, &arch.heads)
    }

    fn load(file: &ModelFile, config: &Config, arch: &Rwkv6, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let Rwkv6 { mix_rank, decay_rank, .. } = *arch;
        let name = |tail: &str| format!("blocks.{index}.att.{tail}");
        let vector = |tail: &str, len| file.vector_handle(&name(tail), len);
        let matrix = |tail: &str, rows, cols| file.matrix_handle(&name(tail), rows, cols);
        let projection = |tail: &str| matrix(&format!("{tail}.weight"), n_att, n_embd);
        let [w, k, v, r, g] = V6_MIXES;
        let maa = |mix: &str| vector(&format!("time_maa_{mix}"), n_embd);
        let maa_w2 = |mix: &str| matrix(&format!("time_maa_w2.{mix}"), n_embd, mix_rank);
        Ok(Self {
            heads: WkvHeads::load(file, config, &arch.heads, index)?,
            time_maa_x: vector("time_maa_x", n_embd)?,
            time_maa: [maa(w)?, maa(k)?, maa(v)?, maa(r)?, maa(g)?],
            time_maa_w1: matrix("time_maa_w1", 5 * mix_rank, n_embd)?,
            time_maa_w2: [maa_w2(w)?, maa_w2(k)?, maa_w2(v)?, maa_w2(r)?, maa_w2(g)?],
            time_decay: vector("time_decay", n_att)?,
            time_decay_w1: matrix("time_decay_w1", decay_rank, n_embd)?,
            time_decay_w2: matrix("time_decay_w2", n_att, decay_rank)?,
            time_faaaa: vector("time_faaaa", n_att)?,
            projections: [
                projection("key")?,
                projection("value")?,
                projection("receptance")?,
                projection("gate")?,
            ],
            output: matrix("output.weight", n_embd, n_att)?,
            scales_keys: config.variant == Variant::Puzzle,
        })
    }

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config, arch: &Rwkv6, tokens: usize) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        let Rwkv6 { mix_rank, decay_rank, .. } = *arch;
        Scratch {
            xx: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            low: Vectors::take(buffers, SCRATCH, [tokens, 5 * mix_rank]),
            lows: [(); 5].map(|()| Activations::take(buffers, SCRATCH, [tokens, mix_rank])),
            mixes: [(); 5].map(|()| Vectors::take(buffers, SCRATCH, [tokens, n_embd])),
            xs: [(); 5].map(|()| Activations::take(buffers, SCRATCH, [tokens, n_embd])),
            decay_low: Activations::take(buffers, SCRATCH, [tokens, decay_rank]),
            k: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            v: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            g: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            groups: buffers.f32s(SCRATCH, WkvHeads::scratch_len(3, tokens, n_att)),
            gated: Activations::take(buffers, SCRATCH, [tokens, n_att]),
        }
    }

    /// `x_c = h + (h_prev - h) * (maa_c + w2_c @ tanh(w1 @ xx)_c)` for the five inputs c.
    fn shift(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { xx, low, lows, mixes, xs, .. } = scratch;
        let tokens = step.tokens();
        step.shift(ops, Shift::Previous, [(&mut *xx, self.time_maa_x)]);
        let low_rank = Product::new(self.time_maa_w1, xx, low.rows_mut()).then(Epilogue::Tanh);
        ops.matmul(tokens, [low_rank]);
        let (kernels, rank) = (ops.kernels, low.len() / 5);
        ops.pool.for_each_piece(lows.each_mut().map(|input| input.pieces(tokens)), &|t, mut inputs| {
            for (input, low) in inputs.iter_mut().zip(low.row(t).chunks_exact(rank)) {
                input.values[..rank].copy_from_slice(low);
                kernels.quantize(input);
            }
        });
        let mut parts = self.time_maa_w2.iter().zip(&*lows);
        ops.matmul(
            tokens,
            mixes.each_mut().map(|mix| {
                let (weight, low) = parts.next().expect("five of each");
                Product::new(*weight, low, mix.rows_mut())
            }),
        );
        let maas = self.time_maa.map(|maa| ops.vector(maa));
        let xs = xs.each_mut().map(|x| x.pieces(tokens));
        let mixes = mixes.each_mut().map(|mix| mix.pieces(tokens));
        step.for_each_pair(ops.pool, (xs, mixes), &|h, h_prev, (xs, mixes)| {
            for ((mut x, mix), maa) in xs.into_iter().zip(mixes).zip(maas) {
                kernels.add(mix, maa);
                kernels.lerp(&mut x.values[..h.len()], h, h_prev, mix);
                kernels.quantize(&mut x);
            }
        });
    }

    /// Key, value, receptance, gate, and the first factor of the decay.
    fn project(&self, ops: &mut Ops<'_>, tokens: usize, scratch: &mut Scratch<'_>) {
        let Scratch { xs: [xw, xk, xv, xr, xg], decay_low, k, v, r, g, .. } = scratch;
        let [key, value, receptance, gate] = self.projections;
        let products = [
            Product::new(key, xk, k.rows_mut()),
            Product::new(value, xv, v.rows_mut()),
            Product::new(receptance, xr, r.rows_mut()),
            Product::new(gate, xg, g.rows_mut()),
            Product::new(self.time_decay_w1, xw, decay_low.rows_mut()).then(Epilogue::Tanh),
        ];
        ops.matmul(tokens, products);
        ops.quantize(tokens, [decay_low]);
    }

    /// The recurrence, with its decay, norm and gate.
    fn recur(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { decay_low, k, v, r, g, groups, gated, .. } = scratch;
        let decay_w2 = ops.read(self.time_decay_w2);
        let (u, decay) = (ops.vector(self.time_faaaa), ops.vector(self.time_decay));
        let (kernels, norm, n_att) = (ops.kernels, self.heads.group_norm(ops), k.len());
        let scales_keys = self.scales_keys;
        step.for_each_tile(|tile| {
            let rows = tile.rows.clone();
            let first = rows.start;
            let out = (gated.rows_mut(), n_att);
            self.heads.for_each_group(ops.pool, tile, out, groups, &|mut group, [w, wkv, normed]| {
                let (i, len) = (group.channels.clone(), group.channels.len());
                // w = exp(-exp(time_decay + w2 @ tanh(w1 @ xw)))
                decay_low.multiply(kernels, (&decay_w2, i.start), rows.clone(), w);
                w.chunks_exact_mut(len).for_each(|w| kernels.add(w, &decay[i.clone()]));
                if scales_keys {
                    // `wkv` and `normed` are free before the recurrence.
                    wkv.iter_mut()
                        .zip(&*w)
                        .for_each(|(scale, &w)| *scale = exp(if w < 0.0 { w } else { 0.0 }));
                    let keys = normed.chunks_exact_mut(len).zip(wkv.chunks_exact(len));
                    for ((keys, scales), row) in keys.zip(rows.clone()) {
                        kernels.mul(keys, &k.row(row)[i.clone()], scales);
                    }
                }
                kernels.decay6(w);
                self.heads.recur(kernels, &mut group, wkv, |t, state, y, head| {
                    let [r, k, v] = [&*r, k, v].map(|x| &x.row(first + t)[i.clone()][head.clone()]);
                    let k = if scales_keys { &normed[t * len..][head.clone()] } else { k };
                    let (u, w) = (&u[i.clone()][head.clone()], &w[t * len..][head]);
                    kernels.wkv6(y, state, r, k, v, u, w);
                });
                for (t, (wkv, normed)) in wkv.chunks_exact(len).zip(normed.chunks_exact_mut(len)).enumerate()
                {
                    norm.normalize(normed, wkv, i.clone());
                    kernels.silu_mul(group.out.row(t), &g.row(first + t)[i.clone()], normed);
                }
            });
        });
        ops.release(decay_w2.data());
        ops.quantize(step.tokens(), [gated]);
    }

    /// `out = Wo @ (group_norm(wkv(r, k, v, w)) * silu(g))`
    fn output<'s>(&self, scratch: &'s Scratch<'_>) -> (MatrixHandle, &'s Activations<'s>) {
        (self.output, &scratch.gated)
    }
}

//! Time mixing of RWKV-7 (arXiv 2503.14456, section 4): a generalised delta rule.
//!
//! The state decays, and a normalised key removes a part of it at an in-context learning rate.
//! Values are mixed with those of layer 0.

use std::ops::Range;

use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{Matrix, Shift};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixHandle, ModelFile, Rwkv7, Variant, VectorHandle};
use crate::memory::Buffers;

use super::batch::Step;
use super::layer;
use super::ops::{Epilogue, Ops, Product};
use super::vectors::{Activations, SCRATCH, Vectors};
use super::wkv_heads::{self, WkvHeads};

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: WkvHeads,
    x_r: VectorHandle,
    x_k: VectorHandle,
    x_v: VectorHandle,
    decay: LowRank,
    iclr: LowRank,
    /// Mix with the value of layer 0. Layer 0 itself has none.
    value_mix: Option<LowRank>,
    gate: LowRank,
    /// Scales the key that removes, `[n_att]`.
    k_k: VectorHandle,
    /// How strongly the learning rate scales the key that adds, `[n_att]`.
    k_a: VectorHandle,
    /// Bonus of the current token, `[n_att]`.
    r_k: VectorHandle,
    /// `[n_att, n_embd]`
    receptance: MatrixHandle,
    /// `[n_att, n_embd]`
    key: MatrixHandle,
    /// `[n_att, n_embd]`
    value: MatrixHandle,
    /// `[n_embd, n_att]`
    output: MatrixHandle,
    /// Learning rates go up to 2, and what is removed decays: [`Variant::OthelloExtended`].
    extended: bool,
}

/// `bias + second @ f(first @ x)` with the token-shifted input `x`.
#[derive(Clone, Copy, Debug)]
struct LowRank {
    /// Mix of the input, `[n_embd]`.
    mix: VectorHandle,
    /// `[rank, n_embd]`
    first: MatrixHandle,
    /// `[n_att, rank]`
    second: MatrixHandle,
    /// `[n_att]`; the gate has none.
    bias: Option<VectorHandle>,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs, `[tokens, n_embd]`. `xv` is also the input of the value mix.
    xr: Activations<'a>,
    xw: Activations<'a>,
    xk: Activations<'a>,
    xv: Activations<'a>,
    xa: Activations<'a>,
    xg: Activations<'a>,
    /// Inner vectors of the low-rank matrices, `[tokens, rank]`.
    w_low: Activations<'a>,
    a_low: Activations<'a>,
    v_low: Activations<'a>,
    g_low: Activations<'a>,
    /// `[tokens, n_att]` each.
    r: Vectors<'a>,
    k: Vectors<'a>,
    v: Vectors<'a>,
    /// Values of layer 0.
    v_first: Vectors<'a>,
    /// Eight matrices for each group of heads.
    groups: &'a mut [f32],
    /// Input of the output projection, `[tokens, n_att]`.
    gated: Activations<'a>,
}

impl layer::TimeMix for TimeMix {
    type Arch = Rwkv7;
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config, arch: &Rwkv7) -> usize {
        wkv_heads::state_len(config, &arch.heads)
    }

    fn load(file: &ModelFile, config: &Config, arch: &Rwkv7, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let name = |tail: &str| format!("blocks.{index}.att.{tail}");
        let vector = |tail: &str, len| file.vector_handle(&name(tail), len);
        let matrix = |tail: &str| file.matrix_handle(&name(tail), n_att, n_embd);
        let low_rank = |letter: &str, mix: &str, rank: usize, bias: bool| {
            Ok::<_, Error>(LowRank {
                mix: vector(&format!("x_{mix}"), n_embd)?,
                first: file.matrix_handle(&name(&format!("{letter}1")), rank, n_embd)?,
                second: file.matrix_handle(&name(&format!("{letter}2")), n_att, rank)?,
                bias: if bias { Some(vector(&format!("{letter}0"), n_att)?) } else { None },
            })
        };
        Ok(Self {
            heads: WkvHeads::load(file, config, &arch.heads, index)?,
            x_r: vector("x_r", n_embd)?,
            x_k: vector("x_k", n_embd)?,
            x_v: vector("x_v", n_embd)?,
            decay: low_rank("w", "w", arch.decay_rank, true)?,
            iclr: low_rank("a", "a", arch.iclr_rank, true)?,
            value_mix: match arch.value_rank {
                Some(rank) if index > 0 => Some(low_rank("v", "v", rank, true)?),
                _ => None,
            },
            gate: low_rank("g", "g", arch.gate_rank, false)?,
            k_k: vector("k_k", n_att)?,
            k_a: vector("k_a", n_att)?,
            r_k: vector("r_k", n_att)?,
            receptance: matrix("receptance.weight")?,
            key: matrix("key.weight")?,
            value: matrix("value.weight")?,
            output: file.matrix_handle(&name("output.weight"), n_embd, n_att)?,
            extended: config.variant == Variant::OthelloExtended,
        })
    }

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config, arch: &Rwkv7, tokens: usize) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        Scratch {
            xr: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xw: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xk: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xv: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xa: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xg: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            w_low: Activations::take(buffers, SCRATCH, [tokens, arch.decay_rank]),
            a_low: Activations::take(buffers, SCRATCH, [tokens, arch.iclr_rank]),
            // A model of one layer has no value rank; one float keeps the buffers' shapes simple.
            v_low: Activations::take(buffers, SCRATCH, [tokens, arch.value_rank.unwrap_or(1)]),
            g_low: Activations::take(buffers, SCRATCH, [tokens, arch.gate_rank]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            k: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            v: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            v_first: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            groups: buffers.f32s(SCRATCH, WkvHeads::scratch_len(8, tokens, n_att)),
            gated: Activations::take(buffers, SCRATCH, [tokens, n_att]),
        }
    }

    fn first_values<'s>(scratch: &'s mut Scratch<'_>, tokens: usize) -> &'s mut [f32] {
        scratch.v_first.first_mut(tokens)
    }

    fn shift(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { xr, xw, xk, xv, xa, xg, .. } = scratch;
        let outs = [
            (xr, self.x_r),
            (xk, self.x_k),
            (xv, self.x_v),
            (xw, self.decay.mix),
            (xa, self.iclr.mix),
            (xg, self.gate.mix),
        ];
        step.shift(ops, Shift::Previous, outs);
    }

    /// Receptance, key, value, and the first factors of the low-rank matrices.
    fn project(&self, ops: &mut Ops<'_>, tokens: usize, scratch: &mut Scratch<'_>) {
        let Scratch { xr, xw, xk, xv, xa, xg, w_low, a_low, v_low, g_low, r, k, v, .. } = scratch;
        let [a, b, c, d, e, f] = [
            Product::new(self.receptance, xr, r.rows_mut()),
            Product::new(self.key, xk, k.rows_mut()),
            Product::new(self.value, xv, v.rows_mut()),
            Product::new(self.decay.first, xw, w_low.rows_mut()).then(Epilogue::Tanh),
            Product::new(self.iclr.first, xa, a_low.rows_mut()),
            Product::new(self.gate.first, xg, g_low.rows_mut()).then(Epilogue::Sigmoid),
        ];
        match &self.value_mix {
            Some(mix) => {
                ops.matmul(tokens, [a, b, c, d, e, f, Product::new(mix.first, xv, v_low.rows_mut())]);
            }
            None => ops.matmul(tokens, [a, b, c, d, e, f]),
        }
        ops.quantize(tokens, [w_low, a_low, v_low, g_low]);
    }

    /// The work of each head on its own: the second factors of the low-rank matrices, the
    /// recurrence, norm and gate.
    fn recur(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { w_low, a_low, v_low, g_low, r, k, v, v_first, groups, gated, .. } = scratch;
        let tokens = step.tokens();
        if self.value_mix.is_none() {
            v_first.first_mut(tokens).copy_from_slice(v.first(tokens));
        }
        let decay = self.decay.expand(ops, w_low);
        let iclr = self.iclr.expand(ops, a_low);
        let gate = self.gate.expand(ops, g_low);
        let value_mix = self.value_mix.as_ref().map(|mix| mix.expand(ops, v_low));
        let [k_k, k_a, r_k] = [self.k_k, self.k_a, self.r_k].map(|vector| ops.vector(vector));
        let (kernels, norm, n) = (ops.kernels, self.heads.group_norm(ops), self.heads.head_size());
        let (n_att, extended) = (k.len(), self.extended);
        step.for_each_tile(|tile| {
            let rows = tile.rows.clone();
            let out = (gated.rows_mut(), n_att);
            self.heads.for_each_group(ops.pool, tile, out, groups, &|mut group, matrices| {
                let [w, a, g, key, value, kk, wkv, tmp] = matrices;
                let (i, len) = (group.channels.clone(), group.channels.len());
                group.prefetch(kernels, n);
                [k_k, k_a, r_k].iter().for_each(|x| kernels.prefetch(&x[i.clone()]));
                norm.prefetch(i.clone());
                let [k_k, k_a, r_k] = [k_k, k_a, r_k].map(|x| &x[i.clone()]);
                decay.rows(kernels, w, i.clone(), rows.clone());
                kernels.decay7(w);
                iclr.rows(kernels, a, i.clone(), rows.clone());
                kernels.sigmoid(a);
                if extended {
                    tmp.copy_from_slice(a);
                    kernels.add(a, tmp);
                }
                gate.rows(kernels, g, i.clone(), rows.clone());
                if let Some(mix) = &value_mix {
                    mix.rows(kernels, tmp, i.clone(), rows.clone());
                    kernels.sigmoid(tmp);
                }

                for (t, row) in rows.clone().enumerate() {
                    let own = t * len..(t + 1) * len;
                    let [k, v, v_first] = [&*k, v, v_first].map(|x| &x.row(row)[i.clone()]);
                    let (tmp, value) = (&mut tmp[own.clone()], &mut value[own.clone()]);
                    // value = v + sigmoid(mix) * (v_first - v)
                    match value_mix {
                        Some(_) => kernels.lerp(value, v, v_first, tmp),
                        None => value.copy_from_slice(v),
                    }
                    // The key that removes is normalised. The key that adds is
                    // k * (1 + (a - 1) * k_a).
                    let kk = &mut kk[own.clone()];
                    kernels.mul(kk, k, k_k);
                    kk.chunks_exact_mut(n).for_each(|head| kernels.l2_normalize(head));
                    kernels.mul(tmp, k, &a[own.clone()]);
                    kernels.lerp(&mut key[own], k, tmp, k_a);
                }

                if extended {
                    kernels.mul(tmp, a, w);
                    a.copy_from_slice(tmp);
                }

                self.heads.recur(kernels, &mut group, wkv, |t, state, y, head| {
                    let r = &r.row(rows.start + t)[i.clone()][head.clone()];
                    let [w, k, v, kk, a] =
                        [&*w, &*key, &*value, &*kk, &*a].map(|x| &x[t * len..][head.clone()]);
                    kernels.wkv7(y, state, r, w, k, v, kk, a);
                });

                for (t, row) in rows.clone().enumerate() {
                    let own = t * len..(t + 1) * len;
                    let (r, key, value) = (&r.row(row)[i.clone()], &key[own.clone()], &value[own.clone()]);
                    let (w, wkv, tmp) = (&mut w[own.clone()], &mut wkv[own.clone()], &mut tmp[own.clone()]);
                    norm.normalize(tmp, wkv, i.clone());
                    // The bonus is one number for each head: sum(r * k * r_k).
                    for (head, bonus) in w.chunks_exact_mut(n).enumerate() {
                        let head = head * n..(head + 1) * n;
                        bonus.fill(kernels.dot3(&r[head.clone()], &key[head.clone()], &r_k[head]));
                    }
                    kernels.mul(wkv, w, value);
                    kernels.add(tmp, wkv);
                    kernels.mul(group.out.row(t), tmp, &g[own]);
                }
            });
        });
        let expansions = [Some(decay), Some(iclr), Some(gate), value_mix];
        expansions.iter().flatten().for_each(|expansion| ops.release(expansion.second.data()));
        ops.quantize(tokens, [gated]);
    }

    /// `out = Wo @ ((group_norm(wkv) + bonus * v) * g)`
    fn output<'s>(&self, scratch: &'s Scratch<'_>) -> (MatrixHandle, &'s Activations<'s>) {
        (self.output, &scratch.gated)
    }
}

/// The second factor of a low-rank matrix, with its inputs.
#[derive(Clone, Copy)]
struct Expansion<'f, 'x> {
    second: Matrix<'f>,
    inputs: &'x Activations<'x>,
    bias: Option<&'f [f32]>,
}

impl LowRank {
    fn expand<'f, 'x>(&self, ops: &mut Ops<'f>, inputs: &'x Activations<'_>) -> Expansion<'f, 'x> {
        let bias = self.bias.map(|bias| ops.vector(bias));
        Expansion { second: ops.read(self.second), inputs, bias }
    }
}

impl Expansion<'_, '_> {
    /// Computes the outputs `channels` of some tokens, with their bias, `[tokens, channels]`.
    fn rows(&self, kernels: &Kernels, out: &mut [f32], channels: Range<usize>, tokens: Range<usize>) {
        self.inputs.multiply(kernels, (&self.second, channels.start), tokens, out);
        if let Some(bias) = self.bias {
            let bias = &bias[channels];
            out.chunks_exact_mut(bias.len()).for_each(|out| kernels.add(out, bias));
        }
    }
}

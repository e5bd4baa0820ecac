//! Time mixing of RWKV-5.0, 5.1 and 5.2 (arXiv 2404.05892, section 4).
//!
//! Each head has a matrix-valued state with a constant decay. A group norm follows. Versions 5.1
//! and 5.2 have an output gate.

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixHandle, ModelFile, Rwkv5, Rwkv5Variant, VectorHandle};
use crate::memory::Buffers;

use super::batch::Step;
use super::layer;
use super::ops::{Ops, Product};
use super::vectors::{Activations, SCRATCH, Vectors};
use super::wkv_heads::{self, WkvHeads};

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: WkvHeads,
    time_mix_k: VectorHandle,
    time_mix_v: VectorHandle,
    time_mix_r: VectorHandle,
    /// Decay per channel, in (0, 1), `[n_att]`.
    time_decay: VectorHandle,
    /// Bonus of the current token, `[n_att]`.
    time_faaaa: VectorHandle,
    /// `[n_att, n_embd]`
    key: MatrixHandle,
    /// `[n_att, n_embd]`
    value: MatrixHandle,
    /// `[n_att, n_embd]`
    receptance: MatrixHandle,
    gate: Option<Gate>,
    /// `[n_embd, n_att]`
    output: MatrixHandle,
}

/// The output gate, which 5.0 does not have.
#[derive(Clone, Copy, Debug)]
struct Gate {
    time_mix_g: VectorHandle,
    /// `[n_att, n_embd]`
    weight: MatrixHandle,
}

/// Buffers for the tokens of a batch.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs, `[tokens, n_embd]`.
    xk: Activations<'a>,
    xv: Activations<'a>,
    xr: Activations<'a>,
    xg: Activations<'a>,
    /// `[tokens, n_att]` each.
    k: Vectors<'a>,
    v: Vectors<'a>,
    r: Vectors<'a>,
    g: Vectors<'a>,
    /// Two matrices for each group of heads.
    groups: &'a mut [f32],
    /// Input of the output projection, `[tokens, n_att]`.
    gated: Activations<'a>,
}

impl layer::TimeMix for TimeMix {
    type Arch = Rwkv5;
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config, arch: &Rwkv5) -> usize {
        wkv_heads::state_len(config, &arch.heads)
    }

    fn load(file: &ModelFile, config: &Config, arch: &Rwkv5, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let vector = |name: &str, len| file.vector_handle(&format!("blocks.{index}.att.{name}"), len);
        let matrix = |name: &str, rows, cols| {
            file.matrix_handle(&format!("blocks.{index}.att.{name}.weight"), rows, cols)
        };
        let gate = match arch.variant {
            Rwkv5Variant::V5_0 => None,
            Rwkv5Variant::V5_1 | Rwkv5Variant::V5_2 => Some(Gate {
                time_mix_g: vector("time_mix_g", n_embd)?,
                weight: matrix("gate", n_att, n_embd)?,
            }),
        };
        Ok(Self {
            heads: WkvHeads::load(file, config, &arch.heads, index)?,
            time_mix_k: vector("time_mix_k", n_embd)?,
            time_mix_v: vector("time_mix_v", n_embd)?,
            time_mix_r: vector("time_mix_r", n_embd)?,
            time_decay: vector("time_decay", n_att)?,
            time_faaaa: vector("time_faaaa", n_att)?,
            key: matrix("key", n_att, n_embd)?,
            value: matrix("value", n_att, n_embd)?,
            receptance: matrix("receptance", n_att, n_embd)?,
            gate,
            output: matrix("output", n_embd, n_att)?,
        })
    }

    fn take<'a>(
        buffers: &mut impl Buffers<'a>,
        config: &Config,
        _arch: &Rwkv5,
        tokens: usize,
    ) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        Scratch {
            xk: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xv: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xr: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            xg: Activations::take(buffers, SCRATCH, [tokens, n_embd]),
            k: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            v: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            r: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            g: Vectors::take(buffers, SCRATCH, [tokens, n_att]),
            groups: buffers.f32s(SCRATCH, WkvHeads::scratch_len(2, tokens, n_att)),
            gated: Activations::take(buffers, SCRATCH, [tokens, n_att]),
        }
    }

    fn shift(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { xk, xv, xr, xg, .. } = scratch;
        let [k, v, r] = [(xk, self.time_mix_k), (xv, self.time_mix_v), (xr, self.time_mix_r)];
        match &self.gate {
            Some(gate) => step.shift(ops, Shift::Current, [k, v, r, (xg, gate.time_mix_g)]),
            None => step.shift(ops, Shift::Current, [k, v, r]),
        }
    }

    /// Key, value, receptance and gate.
    fn project(&self, ops: &mut Ops<'_>, tokens: usize, scratch: &mut Scratch<'_>) {
        let Scratch { xk, xv, xr, xg, k, v, r, g, .. } = scratch;
        let [k, v, r] = [
            Product::new(self.key, xk, k.rows_mut()),
            Product::new(self.value, xv, v.rows_mut()),
            Product::new(self.receptance, xr, r.rows_mut()),
        ];
        match &self.gate {
            Some(gate) => ops.matmul(tokens, [k, v, r, Product::new(gate.weight, xg, g.rows_mut())]),
            None => ops.matmul(tokens, [k, v, r]),
        }
    }

    /// The recurrence, with its norm and gate.
    fn recur(&self, ops: &mut Ops<'_>, step: &mut Step<'_, '_>, scratch: &mut Scratch<'_>) {
        let Scratch { k, v, r, g, groups, gated, .. } = scratch;
        let (u, w) = (ops.vector(self.time_faaaa), ops.vector(self.time_decay));
        let (kernels, norm, gate) = (ops.kernels, self.heads.group_norm(ops), self.gate.is_some());
        let n_att = k.len();
        step.for_each_tile(|tile| {
            let first = tile.rows.start;
            let out = (gated.rows_mut(), n_att);
            self.heads.for_each_group(ops.pool, tile, out, groups, &|mut group, [wkv, normed]| {
                let i = group.channels.clone();
                self.heads.recur(kernels, &mut group, wkv, |t, state, y, head| {
                    let [r, k, v] = [&*r, k, v].map(|x| &x.row(first + t)[i.clone()][head.clone()]);
                    let [u, w] = [u, w].map(|x| &x[i.clone()][head.clone()]);
                    kernels.wkv6(y, state, r, k, v, u, w);
                });
                let each = wkv.chunks_exact(i.len()).zip(normed.chunks_exact_mut(i.len()));
                for (t, (wkv, normed)) in each.enumerate() {
                    let out = group.out.row(t);
                    if gate {
                        norm.normalize(normed, wkv, i.clone());
                        kernels.silu_mul(out, &g.row(first + t)[i.clone()], normed);
                    } else {
                        norm.normalize(out, wkv, i.clone());
                    }
                }
            });
        });
        ops.quantize(step.tokens(), [gated]);
    }

    /// `out = Wo @ (group_norm(wkv(r, k, v)) * silu(g))`
    fn output<'s>(&self, scratch: &'s Scratch<'_>) -> (MatrixHandle, &'s Activations<'s>) {
        (self.output, &scratch.gated)
    }
}

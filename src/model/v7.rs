//! Time mixing of RWKV-7 (arXiv 2503.14456, section 4): a generalised delta rule. The state forgets by a decay and
//! by what a normalised key removes, at an in-context learning rate; values are mixed with those of layer 0.

use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{Activation, Matrix, Shift};

use crate::error::{Error, Result};
use crate::format::{Config, MatrixRef, ModelFile, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Inputs, Ops, Tail};
use super::heads::{self, HeadNorm};
use super::layer::{self, SCRATCH, Step};
use super::meter::Phase;

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: HeadNorm,
    x_r: VectorRef,
    x_k: VectorRef,
    x_v: VectorRef,
    decay: LowRank,
    iclr: LowRank,
    /// Mix with the value of layer 0, which layer 0 itself does not have.
    value_mix: Option<LowRank>,
    gate: LowRank,
    /// Scales the key that removes, `[n_att]`.
    k_k: VectorRef,
    /// How far the learning rate scales the key that adds, `[n_att]`.
    k_a: VectorRef,
    /// Bonus of the current token, `[n_att]`.
    r_k: VectorRef,
    /// `[n_att, n_embd]`
    receptance: MatrixRef,
    /// `[n_att, n_embd]`
    key: MatrixRef,
    /// `[n_att, n_embd]`
    value: MatrixRef,
    /// `[n_embd, n_att]`
    output: MatrixRef,
}

/// `bias + second @ f(first @ x)` with the token-shifted input `x`.
#[derive(Clone, Copy, Debug)]
struct LowRank {
    /// Mix of the input, `[n_embd]`.
    mix: VectorRef,
    /// `[rank, n_embd]`
    first: MatrixRef,
    /// `[n_att, rank]`
    second: MatrixRef,
    /// `[n_att]`; the gate has none.
    bias: Option<VectorRef>,
}

/// Buffers for one token.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs, `[n_embd]`. The value's is also that of its mix.
    xr: Input<'a>,
    xw: Input<'a>,
    xk: Input<'a>,
    xv: Input<'a>,
    xa: Input<'a>,
    xg: Input<'a>,
    /// Inner vectors of the low-rank matrices.
    w_low: Input<'a>,
    a_low: Input<'a>,
    v_low: Input<'a>,
    g_low: Input<'a>,
    /// `[n_att]` each.
    r: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// Value of layer 0 for the current token.
    v_first: &'a mut [f32],
    /// Eight vectors of each unit of heads.
    units: &'a mut [f32],
    /// Input of the output projection, `[n_att]`.
    gated: Input<'a>,
}

impl layer::TimeMix for TimeMix {
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config) -> usize {
        heads::state_len(config)
    }

    fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let name = |tail: &str| format!("blocks.{index}.att.{tail}");
        let vector = |tail: &str, len| file.vector_ref(&name(tail), len);
        let matrix = |tail: &str| file.matrix_ref(&name(tail), n_att, n_embd);
        let low_rank = |letter: &str, mix: &str, rank: Option<usize>, bias: bool| {
            let rank = rank.ok_or_else(|| Error::malformed("RWKV-7 without its low ranks"))?;
            Ok::<_, Error>(LowRank {
                mix: vector(&format!("x_{mix}"), n_embd)?,
                first: file.matrix_ref(&name(&format!("{letter}1")), rank, n_embd)?,
                second: file.matrix_ref(&name(&format!("{letter}2")), n_att, rank)?,
                bias: if bias { Some(vector(&format!("{letter}0"), n_att)?) } else { None },
            })
        };
        Ok(Self {
            heads: HeadNorm::load(file, config, index)?,
            x_r: vector("x_r", n_embd)?,
            x_k: vector("x_k", n_embd)?,
            x_v: vector("x_v", n_embd)?,
            decay: low_rank("w", "w", config.decay_rank, true)?,
            iclr: low_rank("a", "a", config.iclr_rank, true)?,
            value_mix: if index > 0 { Some(low_rank("v", "v", config.value_rank, true)?) } else { None },
            gate: low_rank("g", "g", config.gate_rank, false)?,
            k_k: vector("k_k", n_att)?,
            k_a: vector("k_a", n_att)?,
            r_k: vector("r_k", n_att)?,
            receptance: matrix("receptance.weight")?,
            key: matrix("key.weight")?,
            value: matrix("value.weight")?,
            output: file.matrix_ref(&name("output.weight"), n_embd, n_att)?,
        })
    }

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        // A model of one layer has no value rank; one float keeps the buffers' shapes simple.
        let rank = |rank: Option<usize>| rank.unwrap_or(1);
        Scratch {
            xr: Input::take(buffers, SCRATCH, n_embd),
            xw: Input::take(buffers, SCRATCH, n_embd),
            xk: Input::take(buffers, SCRATCH, n_embd),
            xv: Input::take(buffers, SCRATCH, n_embd),
            xa: Input::take(buffers, SCRATCH, n_embd),
            xg: Input::take(buffers, SCRATCH, n_embd),
            w_low: Input::take(buffers, SCRATCH, rank(config.decay_rank)),
            a_low: Input::take(buffers, SCRATCH, rank(config.iclr_rank)),
            v_low: Input::take(buffers, SCRATCH, rank(config.value_rank)),
            g_low: Input::take(buffers, SCRATCH, rank(config.gate_rank)),
            r: buffers.f32s(SCRATCH, n_att),
            k: buffers.f32s(SCRATCH, n_att),
            v: buffers.f32s(SCRATCH, n_att),
            v_first: buffers.f32s(SCRATCH, n_att),
            units: buffers.f32s(SCRATCH, 8 * n_att),
            gated: Input::take(buffers, SCRATCH, n_att),
        }
    }

    /// `out = Wo @ ((group_norm(wkv) + bonus * v) * g)`
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Step { inputs, state, out } = step;
        self.shift(ops, inputs, tokens)?;
        ops.meter.end(Phase::Mix);
        self.project(ops, tokens)?;
        ops.meter.end(Phase::TimeMixIn);
        for token in &mut *tokens {
            self.heads(ops, state, token)?;
            ops.quantize(&mut token.gated);
        }
        ops.meter.end(Phase::Wkv);
        ops.matmul([self.output], out.zip(tokens).map(|(out, token)| ([out], [&token.gated])))
    }
}

impl TimeMix {
    fn shift(&self, ops: &Ops<'_>, mut inputs: Inputs<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let outs = tokens.iter_mut().map(|Scratch { xr, xw, xk, xv, xa, xg, .. }| {
            [
                (xr, self.x_r),
                (xk, self.x_k),
                (xv, self.x_v),
                (xw, self.decay.mix),
                (xa, self.iclr.mix),
                (xg, self.gate.mix),
            ]
        });
        inputs.shift(ops, Shift::Previous, outs)
    }

    /// Receptance, key, value, and the first factors of the low-rank matrices.
    fn project(&self, ops: &mut Ops<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Self { receptance, key, value, decay, iclr, gate, .. } = self;
        let [a, b, c] = [*receptance, *key, *value];
        let [d, e, f] = [decay.first, iclr.first, gate.first];
        match &self.value_mix {
            Some(mix) => {
                let projections = tokens.iter_mut().map(|token| {
                    let Scratch { xr, xw, xk, xv, xa, xg, w_low, a_low, v_low, g_low, r, k, v, .. } = token;
                    let lows = [w_low.values(), a_low.values(), g_low.values(), v_low.values()];
                    let [w_low, a_low, g_low, v_low] = lows;
                    ([&mut **r, k, v, w_low, a_low, g_low, v_low], [&*xr, xk, xv, xw, xa, xg, xv])
                });
                let tails =
                    [Tail::None, Tail::None, Tail::None, Tail::Tanh, Tail::None, Tail::Sigmoid, Tail::None];
                ops.matmul_then(tails, [a, b, c, d, e, f, mix.first], projections)?;
            }
            None => {
                let projections = tokens.iter_mut().map(|token| {
                    let Scratch { xr, xw, xk, xv, xa, xg, w_low, a_low, g_low, r, k, v, .. } = token;
                    let [w_low, a_low, g_low] = [w_low.values(), a_low.values(), g_low.values()];
                    ([&mut **r, k, v, w_low, a_low, g_low], [&*xr, xk, xv, xw, xa, xg])
                });
                let tails = [Tail::None, Tail::None, Tail::None, Tail::Tanh, Tail::None, Tail::Sigmoid];
                ops.matmul_then(tails, [a, b, c, d, e, f], projections)?;
            }
        }
        for Scratch { w_low, a_low, v_low, g_low, .. } in tokens {
            [w_low, a_low, v_low, g_low].into_iter().for_each(|low| ops.quantize(low));
        }
        Ok(())
    }

    /// All that a head does by itself: the second factors of the low-rank matrices, the recurrence, norm and gate.
    fn heads(&self, ops: &mut Ops<'_>, state: &mut [f32], token: &mut Scratch<'_>) -> Result<()> {
        let Scratch { w_low, a_low, v_low, g_low, r, k, v, v_first, units, gated, .. } = token;
        if self.value_mix.is_none() {
            v_first.copy_from_slice(v);
        }
        let decay = self.decay.expand(ops, w_low)?;
        let iclr = self.iclr.expand(ops, a_low)?;
        let gate = self.gate.expand(ops, g_low)?;
        let value_mix = match &self.value_mix {
            Some(mix) => Some(mix.expand(ops, v_low)?),
            None => None,
        };
        let vector = |r: VectorRef| ops.file.vector(r);
        let (k_k, k_a, r_k) = (vector(self.k_k)?, vector(self.k_a)?, vector(self.r_k)?);
        let (kernels, norms, n) = (ops.kernels, self.heads.norms(ops)?, self.heads.head_size());
        let (r, k, v, v_first) = (&**r, &**k, &**v, &**v_first);
        self.heads.for_each_unit(ops.pool, state, gated.values(), units, &|i, state, out, vectors| {
            let [w, a, g, key, value, kk, wkv, t] = vectors;
            kernels.prefetch(&state[..n * n]);
            [k_k, k_a, r_k].iter().for_each(|x| kernels.prefetch(&x[i.clone()]));
            norms.prefetch(i.clone());
            let [r, k, v, v_first] = [r, k, v, v_first].map(|x| &x[i.clone()]);
            let [k_k, k_a, r_k] = [k_k, k_a, r_k].map(|x| &x[i.clone()]);
            decay.rows(kernels, w, i.start);
            kernels.decay7(w);
            iclr.rows(kernels, a, i.start);
            kernels.sigmoid(a);
            gate.rows(kernels, g, i.start);

            // value = v + sigmoid(mix) * (v_first - v)
            match &value_mix {
                Some(mix) => {
                    mix.rows(kernels, t, i.start);
                    kernels.sigmoid(t);
                    kernels.lerp(value, v, v_first, t);
                }
                None => value.copy_from_slice(v),
            }
            // The key that removes is normalised, the one that adds is k * (1 + (a - 1) * k_a).
            kernels.mul(kk, k, k_k);
            kk.chunks_exact_mut(n).for_each(|head| kernels.l2_normalize(head));
            kernels.mul(t, k, a);
            kernels.lerp(key, k, t, k_a);

            self.heads.recur(kernels, state, wkv, |state, y, head| {
                let [w, k, v, kk, a] = [&*w, &*key, &*value, &*kk, &*a].map(|x| &x[head.clone()]);
                kernels.wkv7(y, state, &r[head], w, k, v, kk, a);
            });
            norms.normalize(t, wkv, i);
            // The bonus is one number for each head: sum(r * k * r_k).
            for (head, bonus) in w.chunks_exact_mut(n).enumerate() {
                let head = head * n..(head + 1) * n;
                bonus.fill(kernels.dot3(&r[head.clone()], &key[head.clone()], &r_k[head]));
            }
            kernels.mul(wkv, w, value);
            kernels.add(t, wkv);
            kernels.mul(out, t, g);
        });
        let expansions = [Some(decay), Some(iclr), Some(gate), value_mix];
        expansions.iter().flatten().for_each(|expansion| ops.release(expansion.second.data()));
        Ok(())
    }
}

/// The second factor of a low-rank matrix with its input.
#[derive(Clone, Copy)]
struct Expansion<'f, 'x> {
    second: Matrix<'f>,
    input: Activation<'x>,
    bias: Option<&'f [f32]>,
}

impl LowRank {
    fn expand<'f, 'x>(&self, ops: &mut Ops<'f>, input: &'x Input<'_>) -> Result<Expansion<'f, 'x>> {
        let bias = match self.bias {
            Some(bias) => Some(ops.file.vector(bias)?),
            None => None,
        };
        Ok(Expansion { second: ops.read(self.second)?, input: input.view(), bias })
    }
}

impl Expansion<'_, '_> {
    /// As many rows as `out` has, from `first` on, with their bias.
    fn rows(&self, kernels: &Kernels, out: &mut [f32], first: usize) {
        kernels.matvec(out, &self.second, first, self.input);
        if let Some(bias) = self.bias {
            kernels.add(out, &bias[first..][..out.len()]);
        }
    }
}

//! Time mixing of RWKV-7 (arXiv 2503.14456, section 4): a generalised delta rule. The state forgets by a decay and
//! by what a normalised key removes, at an in-context learning rate; values are mixed with those of layer 0.

use crate::error::{Error, Result};
use crate::format::{Config, MatrixRef, ModelFile, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Ops, Shift};
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

/// Buffers that live for one token.
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
    w: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    a: &'a mut [f32],
    g: &'a mut [f32],
    /// Mix of `v` with `v_first`.
    v_mix: &'a mut [f32],
    /// Value of layer 0 for the current token.
    v_first: &'a mut [f32],
    /// The key that removes.
    kk: &'a mut [f32],
    /// Room for one vector.
    t: &'a mut [f32],
    wkv: &'a mut [f32],
    normed: &'a mut [f32],
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
            w: buffers.f32s(SCRATCH, n_att),
            k: buffers.f32s(SCRATCH, n_att),
            v: buffers.f32s(SCRATCH, n_att),
            a: buffers.f32s(SCRATCH, n_att),
            g: buffers.f32s(SCRATCH, n_att),
            v_mix: buffers.f32s(SCRATCH, n_att),
            v_first: buffers.f32s(SCRATCH, n_att),
            kk: buffers.f32s(SCRATCH, n_att),
            t: buffers.f32s(SCRATCH, n_att),
            wkv: buffers.f32s(SCRATCH, n_att),
            normed: buffers.f32s(SCRATCH, n_att),
            gated: Input::take(buffers, SCRATCH, n_att),
        }
    }

    /// `out = Wo @ ((group_norm(wkv) + bonus * v) * g)`
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, scratch: &mut Scratch<'_>) -> Result<()> {
        let Step { h, h_prev, state, out } = step;
        self.project(ops, h, h_prev, scratch)?;
        ops.meter.end(Phase::TimeMixIn);
        self.expand(ops, scratch)?;
        self.mix_value(ops, scratch)?;
        self.split_key(ops, scratch)?;

        let Scratch { r, w, k, v, a, g, kk, t, wkv, normed, gated, .. } = scratch;
        let kernels = ops.kernels;
        let (r, w, k, v, a, kk) = (&**r, &**w, &**k, &**v, &**a, &**kk);
        self.heads.for_each(ops, state, wkv, &|head, state, y| {
            let [r, w, k, v, kk, a] = [r, w, k, v, kk, a].map(|x| &x[self.heads.channels(head)]);
            kernels.wkv7(y, state, r, w, k, v, kk, a);
        });
        self.heads.normalize(ops, normed, wkv)?;

        // The bonus is one number for each head: sum(r * k * r_k).
        let r_k = ops.file.vector(self.r_k)?;
        let n = self.heads.head_size();
        for (i, bonus) in t.chunks_exact_mut(n).enumerate() {
            let head = self.heads.channels(i);
            bonus.fill(kernels.dot3(&r[head.clone()], &k[head.clone()], &r_k[head]));
        }
        kernels.mul(wkv, t, v);
        kernels.add(normed, wkv);
        kernels.mul(gated.values(), normed, g);
        ops.quantize(gated);
        ops.meter.end(Phase::Wkv);
        ops.matvec([out], [(self.output, gated)])
    }
}

impl TimeMix {
    /// Receptance, key, value, and the first factors of the low-rank matrices.
    fn project(&self, ops: &mut Ops<'_>, h: &[f32], h_prev: &[f32], scratch: &mut Scratch<'_>) -> Result<()> {
        let Scratch { xr, xw, xk, xv, xa, xg, w_low, a_low, v_low, g_low, r, k, v, .. } = scratch;
        let shifts = [
            (&mut *xr, self.x_r),
            (&mut *xk, self.x_k),
            (&mut *xv, self.x_v),
            (&mut *xw, self.decay.mix),
            (&mut *xa, self.iclr.mix),
            (&mut *xg, self.gate.mix),
        ];
        for (x, mix) in shifts {
            ops.token_shift(x, Shift::Previous, h, h_prev, mix)?;
        }
        ops.meter.end(Phase::Mix);
        let jobs = [
            (self.receptance, &*xr),
            (self.key, &*xk),
            (self.value, &*xv),
            (self.decay.first, &*xw),
            (self.iclr.first, &*xa),
            (self.gate.first, &*xg),
        ];
        let outs = [&mut **r, &mut **k, &mut **v, w_low.values(), a_low.values(), g_low.values()];
        match &self.value_mix {
            Some(mix) => {
                let [a, b, c, d, e, f] = outs;
                let [ja, jb, jc, jd, je, jf] = jobs;
                ops.matvec([a, b, c, d, e, f, v_low.values()], [ja, jb, jc, jd, je, jf, (mix.first, &*xv)])?;
                ops.quantize(v_low);
            }
            None => ops.matvec(outs, jobs)?,
        }
        ops.kernels.tanh(w_low.values());
        ops.kernels.sigmoid(g_low.values());
        [w_low, a_low, g_low].into_iter().for_each(|low| ops.quantize(low));
        Ok(())
    }

    /// Decay, learning rate, gate and value mix, from the second factors of the low-rank matrices.
    fn expand(&self, ops: &mut Ops<'_>, scratch: &mut Scratch<'_>) -> Result<()> {
        let Scratch { w_low, a_low, v_low, g_low, w, a, g, v_mix, .. } = scratch;
        let outs = [&mut **w, &mut **a, &mut **g];
        let jobs = [(self.decay.second, &*w_low), (self.iclr.second, &*a_low), (self.gate.second, &*g_low)];
        match &self.value_mix {
            Some(mix) => {
                let ([w, a, g], [jw, ja, jg]) = (outs, jobs);
                ops.matvec([w, a, g, &mut **v_mix], [jw, ja, jg, (mix.second, &*v_low)])?;
                add_bias(ops, v_mix, mix)?;
                ops.kernels.sigmoid(v_mix);
            }
            None => ops.matvec(outs, jobs)?,
        }
        add_bias(ops, w, &self.decay)?;
        ops.kernels.decay7(w);
        add_bias(ops, a, &self.iclr)?;
        ops.kernels.sigmoid(a);
        Ok(())
    }

    /// `v = v + v_mix * (v_first - v)`; layer 0 sets `v_first`.
    fn mix_value(&self, ops: &mut Ops<'_>, scratch: &mut Scratch<'_>) -> Result<()> {
        let Scratch { v, v_mix, v_first, t, .. } = scratch;
        if self.value_mix.is_some() {
            ops.kernels.lerp(t, v, v_first, v_mix);
            v.copy_from_slice(t);
        } else {
            v_first.copy_from_slice(v);
        }
        Ok(())
    }

    /// The key that removes, `kk = normalize(k * k_k)` for each head, and the one that adds,
    /// `k = k * (1 + (a - 1) * k_a) = k + k_a * (k * a - k)`.
    fn split_key(&self, ops: &mut Ops<'_>, scratch: &mut Scratch<'_>) -> Result<()> {
        let Scratch { k, a, kk, t, normed, .. } = scratch;
        ops.kernels.mul(kk, k, ops.file.vector(self.k_k)?);
        kk.chunks_exact_mut(self.heads.head_size()).for_each(|head| ops.kernels.l2_normalize(head));
        ops.kernels.mul(t, k, a);
        ops.kernels.lerp(normed, k, t, ops.file.vector(self.k_a)?);
        k.copy_from_slice(normed);
        Ok(())
    }
}

/// Adds the bias of a low-rank matrix, if it has one.
fn add_bias(ops: &Ops<'_>, x: &mut [f32], low_rank: &LowRank) -> Result<()> {
    if let Some(bias) = low_rank.bias {
        ops.kernels.add(x, ops.file.vector(bias)?);
    }
    Ok(())
}

//! Time mixing of RWKV-6 (arXiv 2404.05892, section 4): as RWKV-5, with token shift and decay that depend on the
//! token through low-rank matrices.

use rwkv_edge_kernels::layout::Shift;

use crate::error::{Error, Result};
use crate::format::{Config, MatrixRef, ModelFile, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Inputs, Ops, Tail};
use super::heads::{self, HeadNorm};
use super::layer::{self, SCRATCH, Step};
use super::meter::Phase;
use super::names::V6_MIXES;

/// Weights of one layer's time mixing. Arrays are in the order of [`V6_MIXES`]: w, k, v, r, g.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: HeadNorm,
    /// Mix of the input that the dynamic mixes are computed from, `[n_embd]`.
    time_maa_x: VectorRef,
    /// Constant part of each mix, `[n_embd]`.
    time_maa: [VectorRef; 5],
    /// `[5 mix_rank, n_embd]`
    time_maa_w1: MatrixRef,
    /// `[n_embd, mix_rank]` each
    time_maa_w2: [MatrixRef; 5],
    /// Constant part of the decay before its exponentials, `[n_att]`.
    time_decay: VectorRef,
    /// `[decay_rank, n_embd]`
    time_decay_w1: MatrixRef,
    /// `[n_att, decay_rank]`
    time_decay_w2: MatrixRef,
    /// Bonus of the current token, `[n_att]`.
    time_faaaa: VectorRef,
    /// Key, value, receptance and gate, `[n_att, n_embd]`.
    projections: [MatrixRef; 4],
    /// `[n_embd, n_att]`
    output: MatrixRef,
}

/// Buffers for one token.
pub(crate) struct Scratch<'a> {
    /// Input of `time_maa_w1`, `[n_embd]`.
    xx: Input<'a>,
    /// `[5 mix_rank]`
    low: &'a mut [f32],
    /// Slices of `low`, inputs of `time_maa_w2`, `[mix_rank]`.
    lows: [Input<'a>; 5],
    /// Mix of each input, `[n_embd]`.
    mixes: [&'a mut [f32]; 5],
    /// Shifted inputs of decay, key, value, receptance and gate, `[n_embd]`.
    xs: [Input<'a>; 5],
    /// Input of `time_decay_w2`, `[decay_rank]`.
    decay_low: Input<'a>,
    /// `[n_att]` each.
    k: &'a mut [f32],
    v: &'a mut [f32],
    r: &'a mut [f32],
    g: &'a mut [f32],
    /// Three vectors of each unit of heads.
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
        let (Some(mix_rank), Some(decay_rank)) = (config.mix_rank, config.decay_rank) else {
            return Err(Error::malformed("RWKV-6 without its low ranks"));
        };
        let name = |tail: &str| format!("blocks.{index}.att.{tail}");
        let vector = |tail: &str, len| file.vector_ref(&name(tail), len);
        let matrix = |tail: &str, rows, cols| file.matrix_ref(&name(tail), rows, cols);
        let projection = |tail: &str| matrix(&format!("{tail}.weight"), n_att, n_embd);
        let [w, k, v, r, g] = V6_MIXES;
        let maa = |mix: &str| vector(&format!("time_maa_{mix}"), n_embd);
        let maa_w2 = |mix: &str| matrix(&format!("time_maa_w2.{mix}"), n_embd, mix_rank);
        Ok(Self {
            heads: HeadNorm::load(file, config, index)?,
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
        })
    }

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        let (mix_rank, decay_rank) = (config.mix_rank.unwrap_or(0), config.decay_rank.unwrap_or(0));
        Scratch {
            xx: Input::take(buffers, SCRATCH, n_embd),
            low: buffers.f32s(SCRATCH, 5 * mix_rank),
            lows: [(); 5].map(|()| Input::take(buffers, SCRATCH, mix_rank)),
            mixes: [(); 5].map(|()| buffers.f32s(SCRATCH, n_embd)),
            xs: [(); 5].map(|()| Input::take(buffers, SCRATCH, n_embd)),
            decay_low: Input::take(buffers, SCRATCH, decay_rank),
            k: buffers.f32s(SCRATCH, n_att),
            v: buffers.f32s(SCRATCH, n_att),
            r: buffers.f32s(SCRATCH, n_att),
            g: buffers.f32s(SCRATCH, n_att),
            units: buffers.f32s(SCRATCH, 3 * n_att),
            gated: Input::take(buffers, SCRATCH, n_att),
        }
    }

    /// `out = Wo @ (group_norm(wkv(r, k, v, w)) * silu(g))`
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Step { inputs, state, out } = step;
        self.dynamic_shift(ops, inputs, tokens)?;
        ops.meter.end(Phase::Mix);
        let [key, value, receptance, gate] = self.projections;
        let projections = tokens.iter_mut().map(|token| {
            let Scratch { xs: [xw, xk, xv, xr, xg], decay_low, k, v, r, g, .. } = token;
            ([&mut **k, v, r, g, decay_low.values()], [&*xk, xv, xr, xg, xw])
        });
        let tails = [Tail::None, Tail::None, Tail::None, Tail::None, Tail::Tanh];
        ops.matmul_then(tails, [key, value, receptance, gate, self.time_decay_w1], projections)?;
        ops.meter.end(Phase::TimeMixIn);
        for token in &mut *tokens {
            self.recur(ops, state, token)?;
        }
        ops.meter.end(Phase::Wkv);
        ops.matmul([self.output], out.zip(tokens).map(|(out, token)| ([out], [&token.gated])))
    }
}

impl TimeMix {
    /// `x_c = h + (h_prev - h) * (maa_c + w2_c @ tanh(w1 @ xx)_c)` for the five inputs c.
    fn dynamic_shift(
        &self,
        ops: &mut Ops<'_>,
        mut inputs: Inputs<'_>,
        tokens: &mut [Scratch<'_>],
    ) -> Result<()> {
        inputs.shift(ops, Shift::Previous, tokens.iter_mut().map(|t| [(&mut t.xx, self.time_maa_x)]))?;
        let lows = tokens.iter_mut().map(|token| ([&mut *token.low], [&token.xx]));
        ops.matmul_then([Tail::Tanh], [self.time_maa_w1], lows)?;
        for Scratch { low, lows, .. } in &mut *tokens {
            for (input, low) in lows.iter_mut().zip(low.chunks_exact(low.len() / 5)) {
                input.values().copy_from_slice(low);
                ops.quantize(input);
            }
        }
        let expansions = tokens
            .iter_mut()
            .map(|Scratch { mixes, lows, .. }| (mixes.each_mut().map(|mix| &mut **mix), lows.each_ref()));
        ops.matmul(self.time_maa_w2, expansions)?;
        for (Scratch { mixes, xs, .. }, [h, h_prev]) in tokens.iter_mut().zip(inputs.pairs()) {
            for ((x, mix), maa) in xs.iter_mut().zip(mixes).zip(self.time_maa) {
                ops.kernels.add(mix, ops.file.vector(maa)?);
                ops.kernels.lerp(x.values(), h, h_prev, mix);
                ops.quantize(x);
            }
        }
        Ok(())
    }

    /// The recurrence of one token, with its decay, norm and gate.
    fn recur(&self, ops: &mut Ops<'_>, state: &mut [f32], token: &mut Scratch<'_>) -> Result<()> {
        let Scratch { decay_low, k, v, r, g, units, gated, .. } = token;
        ops.quantize(decay_low);
        let decay_w2 = ops.read(self.time_decay_w2)?;
        let (u, decay) = (ops.file.vector(self.time_faaaa)?, ops.file.vector(self.time_decay)?);
        let (kernels, norms, decay_low) = (ops.kernels, self.heads.norms(ops)?, decay_low.view());
        let (k, v, r, g) = (&**k, &**v, &**r, &**g);
        self.heads.for_each_unit(
            ops.pool,
            state,
            gated.values(),
            units,
            &|i, state, out, [w, wkv, normed]| {
                // w = exp(-exp(time_decay + w2 @ tanh(w1 @ xw)))
                kernels.matvec(w, &decay_w2, i.start, decay_low);
                kernels.add(w, &decay[i.clone()]);
                kernels.decay6(w);
                self.heads.recur(kernels, state, wkv, |state, y, head| {
                    let [r, k, v, u] = [r, k, v, u].map(|x| &x[i.clone()][head.clone()]);
                    kernels.wkv6(y, state, r, k, v, u, &w[head]);
                });
                norms.normalize(normed, wkv, i.clone());
                kernels.silu_mul(out, &g[i], normed);
            },
        );
        ops.release(decay_w2.data());
        ops.quantize(gated);
        Ok(())
    }
}

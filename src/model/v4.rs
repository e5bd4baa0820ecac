//! Time mixing of RWKV-4 (arXiv 2305.13048, section 3; appendix D for the numerically stable WKV).

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixRef, ModelFile, VectorRef};
use crate::memory::Buffers;

use super::common::{Input, Ops, Tail};
use super::layer::{self, SCRATCH, Step};
use super::meter::Phase;

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    time_mix_k: VectorRef,
    time_mix_v: VectorRef,
    time_mix_r: VectorRef,
    /// Log decay per channel, negative, `[n_att]`.
    time_decay: VectorRef,
    /// Bonus of the current token, `[n_att]`.
    time_first: VectorRef,
    /// `[n_att, n_embd]`
    key: MatrixRef,
    /// `[n_att, n_embd]`
    value: MatrixRef,
    /// `[n_att, n_embd]`
    receptance: MatrixRef,
    /// `[n_embd, n_att]`
    output: MatrixRef,
}

/// Buffers for one token.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs of key, value and receptance, `[n_embd]`.
    xk: Input<'a>,
    xv: Input<'a>,
    xr: Input<'a>,
    /// `[n_att]` each.
    k: &'a mut [f32],
    v: &'a mut [f32],
    r: &'a mut [f32],
    wkv: &'a mut [f32],
    /// Input of the output projection, `[n_att]`.
    gated: Input<'a>,
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
    type Scratch<'a> = Scratch<'a>;

    fn state_len(config: &Config) -> usize {
        3 * config.n_att
    }

    fn init_state(state: &mut [f32]) {
        Wkv::split(state).pp.fill(-1e30);
    }

    fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Config { n_embd, n_att, .. } = *config;
        let vector = |name: &str, len| file.vector_ref(&format!("blocks.{index}.att.{name}"), len);
        let matrix = |name: &str, rows, cols| {
            file.matrix_ref(&format!("blocks.{index}.att.{name}.weight"), rows, cols)
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

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        Scratch {
            xk: Input::take(buffers, SCRATCH, n_embd),
            xv: Input::take(buffers, SCRATCH, n_embd),
            xr: Input::take(buffers, SCRATCH, n_embd),
            k: buffers.f32s(SCRATCH, n_att),
            v: buffers.f32s(SCRATCH, n_att),
            r: buffers.f32s(SCRATCH, n_att),
            wkv: buffers.f32s(SCRATCH, n_att),
            gated: Input::take(buffers, SCRATCH, n_att),
        }
    }

    /// `out = Wo @ (sigmoid(r) * wkv(k, v))`
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Step { mut inputs, state, out } = step;
        let outs = tokens.iter_mut().map(|Scratch { xk, xv, xr, .. }| {
            [(xk, self.time_mix_k), (xv, self.time_mix_v), (xr, self.time_mix_r)]
        });
        inputs.shift(ops, Shift::Current, outs)?;
        ops.meter.end(Phase::Mix);
        let projections = tokens.iter_mut().map(|token| {
            let Scratch { xk, xv, xr, k, v, r, .. } = token;
            ([&mut **k, v, r], [&*xk, xv, xr])
        });
        let tails = [Tail::None, Tail::None, Tail::Sigmoid];
        ops.matmul_then(tails, [self.key, self.value, self.receptance], projections)?;
        ops.meter.end(Phase::TimeMixIn);

        let (time_first, time_decay) = (ops.file.vector(self.time_first)?, ops.file.vector(self.time_decay)?);
        let Wkv { aa, bb, pp } = Wkv::split(state);
        for Scratch { k, v, r, wkv, gated, .. } in &mut *tokens {
            ops.kernels.wkv4(wkv, k, v, time_first, time_decay, aa, bb, pp);
            ops.kernels.mul(gated.values(), r, wkv);
            ops.quantize(gated);
        }
        ops.meter.end(Phase::Wkv);
        ops.matmul([self.output], out.zip(tokens).map(|(out, token)| ([out], [&token.gated])))
    }
}

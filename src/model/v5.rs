//! Time mixing of RWKV-5.0, 5.1 and 5.2 (arXiv 2404.05892, section 4): a matrix-valued state for each head with
//! a constant decay, a group norm, and from 5.1 on an output gate.

use rwkv_edge_kernels::layout::Shift;

use crate::error::Result;
use crate::format::{Config, MatrixRef, ModelFile, VectorRef, Version};
use crate::memory::Buffers;

use super::common::{Input, Inputs, Ops};
use super::heads::{self, HeadNorm};
use super::layer::{self, SCRATCH, Step};
use super::meter::Phase;

/// Weights of one layer's time mixing.
#[derive(Debug)]
pub(crate) struct TimeMix {
    heads: HeadNorm,
    time_mix_k: VectorRef,
    time_mix_v: VectorRef,
    time_mix_r: VectorRef,
    /// Decay per channel, in (0, 1), `[n_att]`.
    time_decay: VectorRef,
    /// Bonus of the current token, `[n_att]`.
    time_faaaa: VectorRef,
    /// `[n_att, n_embd]`
    key: MatrixRef,
    /// `[n_att, n_embd]`
    value: MatrixRef,
    /// `[n_att, n_embd]`
    receptance: MatrixRef,
    gate: Option<Gate>,
    /// `[n_embd, n_att]`
    output: MatrixRef,
}

/// What 5.0 does not have.
#[derive(Clone, Copy, Debug)]
struct Gate {
    time_mix_g: VectorRef,
    /// `[n_att, n_embd]`
    weight: MatrixRef,
}

/// Buffers for one token.
pub(crate) struct Scratch<'a> {
    /// Shifted inputs, `[n_embd]`.
    xk: Input<'a>,
    xv: Input<'a>,
    xr: Input<'a>,
    xg: Input<'a>,
    /// `[n_att]` each.
    k: &'a mut [f32],
    v: &'a mut [f32],
    r: &'a mut [f32],
    g: &'a mut [f32],
    /// Two vectors of each unit of heads.
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
        let Config { n_embd, n_att, version, .. } = *config;
        let vector = |name: &str, len| file.vector_ref(&format!("blocks.{index}.att.{name}"), len);
        let matrix = |name: &str, rows, cols| {
            file.matrix_ref(&format!("blocks.{index}.att.{name}.weight"), rows, cols)
        };
        let gate = match version {
            Version::V5_0 => None,
            _ => Some(Gate {
                time_mix_g: vector("time_mix_g", n_embd)?,
                weight: matrix("gate", n_att, n_embd)?,
            }),
        };
        Ok(Self {
            heads: HeadNorm::load(file, config, index)?,
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

    fn take<'a>(buffers: &mut impl Buffers<'a>, config: &Config) -> Scratch<'a> {
        let Config { n_embd, n_att, .. } = *config;
        Scratch {
            xk: Input::take(buffers, SCRATCH, n_embd),
            xv: Input::take(buffers, SCRATCH, n_embd),
            xr: Input::take(buffers, SCRATCH, n_embd),
            xg: Input::take(buffers, SCRATCH, n_embd),
            k: buffers.f32s(SCRATCH, n_att),
            v: buffers.f32s(SCRATCH, n_att),
            r: buffers.f32s(SCRATCH, n_att),
            g: buffers.f32s(SCRATCH, n_att),
            units: buffers.f32s(SCRATCH, 2 * n_att),
            gated: Input::take(buffers, SCRATCH, n_att),
        }
    }

    /// `out = Wo @ (group_norm(wkv(r, k, v)) * silu(g))`
    fn forward(&self, ops: &mut Ops<'_>, step: Step<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Step { inputs, state, out } = step;
        self.shift(ops, inputs, tokens)?;
        ops.meter.end(Phase::Mix);
        self.project(ops, tokens)?;
        ops.meter.end(Phase::TimeMixIn);
        for token in &mut *tokens {
            self.recur(ops, state, token)?;
        }
        ops.meter.end(Phase::Wkv);
        ops.matmul([self.output], out.zip(tokens).map(|(out, token)| ([out], [&token.gated])))
    }
}

impl TimeMix {
    fn shift(&self, ops: &Ops<'_>, mut inputs: Inputs<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Self { time_mix_k, time_mix_v, time_mix_r, .. } = *self;
        let tokens = tokens.iter_mut();
        match &self.gate {
            Some(Gate { time_mix_g, .. }) => {
                let outs = tokens.map(|Scratch { xk, xv, xr, xg, .. }| {
                    [(xk, time_mix_k), (xv, time_mix_v), (xr, time_mix_r), (xg, *time_mix_g)]
                });
                inputs.shift(ops, Shift::Current, outs)
            }
            None => {
                let outs = tokens
                    .map(|Scratch { xk, xv, xr, .. }| [(xk, time_mix_k), (xv, time_mix_v), (xr, time_mix_r)]);
                inputs.shift(ops, Shift::Current, outs)
            }
        }
    }

    /// Key, value, receptance and gate.
    fn project(&self, ops: &mut Ops<'_>, tokens: &mut [Scratch<'_>]) -> Result<()> {
        let Self { key, value, receptance, .. } = *self;
        match &self.gate {
            Some(gate) => {
                let projections = tokens.iter_mut().map(|token| {
                    let Scratch { xk, xv, xr, xg, k, v, r, g, .. } = token;
                    ([&mut **k, v, r, g], [&*xk, xv, xr, xg])
                });
                ops.matmul([key, value, receptance, gate.weight], projections)
            }
            None => {
                let projections = tokens.iter_mut().map(|token| {
                    let Scratch { xk, xv, xr, k, v, r, .. } = token;
                    ([&mut **k, v, r], [&*xk, xv, xr])
                });
                ops.matmul([key, value, receptance], projections)
            }
        }
    }

    /// The recurrence of one token, with its norm and gate.
    fn recur(&self, ops: &mut Ops<'_>, state: &mut [f32], token: &mut Scratch<'_>) -> Result<()> {
        let Scratch { k, v, r, g, units, gated, .. } = token;
        let (u, w) = (ops.file.vector(self.time_faaaa)?, ops.file.vector(self.time_decay)?);
        let (kernels, norms, gate) = (ops.kernels, self.heads.norms(ops)?, self.gate.is_some());
        let (k, v, r, g) = (&**k, &**v, &**r, &**g);
        self.heads.for_each_unit(ops.pool, state, gated.values(), units, &|i, state, out, [wkv, normed]| {
            self.heads.recur(kernels, state, wkv, |state, y, head| {
                let [r, k, v, u, w] = [r, k, v, u, w].map(|x| &x[i.clone()][head.clone()]);
                kernels.wkv6(y, state, r, k, v, u, w);
            });
            if gate {
                norms.normalize(normed, wkv, i.clone());
                kernels.silu_mul(out, &g[i], normed);
            } else {
                norms.normalize(out, wkv, i);
            }
        });
        ops.quantize(gated);
        Ok(())
    }
}

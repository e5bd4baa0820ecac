//! What the matrix-valued states of RWKV-5, 6 and 7 share: heads, group norm, and the recurrence over them.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{Config, Heads, ModelFile};
use crate::threads::PairWork;

use super::common::{Norm, Ops};

/// Heads of one layer's time mixing, with the group norm that follows the recurrence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorm {
    head_size: usize,
    eps: f32,
    /// `[n_att]`, each head normalised on its own.
    ln_x: Norm,
}

/// Floats of the state of all heads: `[n_head, head_size keys, head_size values]`.
pub(crate) fn state_len(config: &Config) -> usize {
    config.n_att * config.heads.map_or(0, |heads| heads.head_size)
}

impl HeadNorm {
    pub(crate) fn load(file: &ModelFile, config: &Config, index: usize) -> Result<Self> {
        let Some(Heads { head_size, group_norm_eps, .. }) = config.heads else {
            return Err(Error::malformed(format!("{} without heads", config.version)));
        };
        let ln_x = Norm::load(file, &format!("blocks.{index}.att.ln_x"), config.n_att)?;
        Ok(Self { head_size, eps: group_norm_eps, ln_x })
    }

    pub(crate) fn head_size(&self) -> usize {
        self.head_size
    }

    /// Channels of head `i`.
    pub(crate) fn channels(&self, i: usize) -> Range<usize> {
        i * self.head_size..(i + 1) * self.head_size
    }

    /// Calls `head(i, its state, its output)` for every head, on all threads.
    pub(crate) fn for_each(
        &self,
        ops: &mut Ops<'_>,
        state: &mut [f32],
        out: &mut [f32],
        head: &PairWork<'_>,
    ) {
        let n = self.head_size;
        ops.pool.for_each_pair((state, n * n), (out, n), head);
    }

    /// `out = group_norm(x)`, one group for each head.
    pub(crate) fn normalize(&self, ops: &Ops<'_>, out: &mut [f32], x: &[f32]) -> Result<()> {
        let (weight, bias) = ops.norm(self.ln_x)?;
        let n = self.head_size;
        let params = weight.chunks_exact(n).zip(bias.chunks_exact(n));
        for ((out, x), (weight, bias)) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(params) {
            ops.kernels.layer_norm(out, x, weight, bias, self.eps);
        }
        Ok(())
    }
}

//! What all RWKV versions share: weights as handles into the file, operations that run on the thread pool,
//! and input vectors in quantized form.

use arrayvec::ArrayVec;
use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{
    Activation, ActivationMut, GROUP_SIZE, Matrix, Normed, Shift, Shifted, padded_cols,
};

use crate::error::Result;
use crate::format::{MatrixRef, ModelFile, VectorRef};
use crate::memory::Buffers;
use crate::threads::Pool;

use super::meter::Meter;

/// Fewest rows that a thread takes at a time: four blocks of 16, which the kernels read as four streams.
const MATVEC_GRAIN: usize = 64;

/// Most tokens that go through the model together: with eight, on boards too, most products wait for arithmetic and no
/// longer for weights.
pub(crate) const MAX_TOKENS: usize = 8;

/// One of something for each token.
pub(crate) type PerToken<T> = ArrayVec<T, MAX_TOKENS>;

/// Tokens that follow each other, on their way into a mixing.
pub(crate) struct Inputs<'a> {
    /// Residual streams, `[tokens, n_embd]`.
    x: &'a [f32],
    norm: Norm,
    /// What the norm makes of them, and in front of it that of the token before the first one, `[tokens + 1, n_embd]`.
    h: &'a mut [f32],
    n_embd: usize,
}

impl<'a> Inputs<'a> {
    /// `h_prev` is the normalised stream of the token before the first one.
    pub(crate) fn new(x: &'a [f32], norm: Norm, h: &'a mut [f32], h_prev: &[f32]) -> Self {
        let n_embd = h_prev.len();
        h[..n_embd].copy_from_slice(h_prev);
        Self { x, norm, h, n_embd }
    }

    /// Normalises the tokens' streams and mixes each with the previous token's in the way of `shift`, quantized for the
    /// matrices that read them. `outs` has each token's vectors and mixes.
    pub(crate) fn shift<'o, 's: 'o, const N: usize>(
        &mut self,
        ops: &Ops<'_>,
        shift: Shift,
        outs: impl Iterator<Item = [(&'o mut Input<'s>, VectorRef); N]>,
    ) -> Result<()> {
        let (weight, bias) = ops.norm(self.norm)?;
        for ((i, x), outs) in self.x.chunks_exact(self.n_embd).enumerate().zip(outs) {
            let (before, h) = self.h.split_at_mut((i + 1) * self.n_embd);
            let h_prev = &before[i * self.n_embd..];
            let mut shifted = ArrayVec::<Shifted<'_, '_>, N>::new();
            for (out, mix) in outs {
                shifted.push(Shifted { mix: ops.file.vector(mix)?, out: &mut out.padded });
            }
            let x = Normed { x, weight, bias, eps: ops.layer_norm_eps };
            ops.kernels.norm_shift(&mut h[..self.n_embd], x, h_prev, shift, &mut shifted);
        }
        Ok(())
    }

    /// The normalised stream of each token, and that of the token before it, after [`shift`](Self::shift).
    pub(crate) fn pairs(&self) -> impl Iterator<Item = [&[f32]; 2]> {
        let rows = || self.h.chunks_exact(self.n_embd);
        rows().skip(1).zip(rows()).map(|(h, h_prev)| [h, h_prev])
    }
}

/// Weight and bias of a layer norm, `[n]` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    weight: VectorRef,
    bias: VectorRef,
}

impl Norm {
    pub(crate) fn load(file: &ModelFile, name: &str, len: usize) -> Result<Self> {
        Ok(Self {
            weight: file.vector_ref(&format!("{name}.weight"), len)?,
            bias: file.vector_ref(&format!("{name}.bias"), len)?,
        })
    }
}

/// An input vector of matrices: its values and their quantized form, padded to whole blocks.
pub(crate) struct Input<'a> {
    len: usize,
    padded: ActivationMut<'a>,
}

impl<'a> Input<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, name: &'static str, len: usize) -> Self {
        let padded = padded_cols(len);
        let padded = ActivationMut {
            values: buffers.f32s(name, padded),
            codes: buffers.i8s(name, padded),
            scales: buffers.f32s(name, padded / GROUP_SIZE),
            sums: buffers.i32s(name, padded / GROUP_SIZE),
        };
        Self { len, padded }
    }

    /// The values without padding, to be written before [`Ops::quantize`].
    pub(crate) fn values(&mut self) -> &mut [f32] {
        &mut self.padded.values[..self.len]
    }

    pub(crate) fn view(&self) -> Activation<'_> {
        self.padded.view()
    }
}

/// What outputs of a matrix go through next, while the core that made them has them at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tail {
    None,
    ReluSquared,
    Sigmoid,
    Tanh,
}

impl Tail {
    fn apply(self, kernels: &Kernels, x: &mut [f32]) {
        match self {
            Tail::None => (),
            Tail::ReluSquared => kernels.relu_squared(x),
            Tail::Sigmoid => kernels.sigmoid(x),
            Tail::Tanh => kernels.tanh(x),
        }
    }
}

/// Operations on a model's weights: kernels, threads and the file that the handles point into.
pub(crate) struct Ops<'a> {
    pub(crate) file: &'a ModelFile,
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: &'a mut Pool,
    /// Give the pages of a matrix back to the system after its use.
    pub(crate) transient: bool,
    pub(crate) layer_norm_eps: f32,
    /// Read the columns of `ffn.value` whose inputs are zero too.
    pub(crate) all_columns: bool,
    pub(crate) meter: &'a mut Meter,
}

impl<'a> Ops<'a> {
    /// `out = layer_norm(x)`.
    pub(crate) fn layer_norm(&self, out: &mut [f32], x: &[f32], norm: Norm) -> Result<()> {
        let (weight, bias) = self.norm(norm)?;
        self.kernels.layer_norm(out, x, weight, bias, self.layer_norm_eps);
        Ok(())
    }

    /// Weight and bias of a norm.
    pub(crate) fn norm(&self, norm: Norm) -> Result<(&'a [f32], &'a [f32])> {
        Ok((self.file.vector(norm.weight)?, self.file.vector(norm.bias)?))
    }

    /// Makes the quantized form of `input` from its values.
    pub(crate) fn quantize(&self, input: &mut Input<'_>) {
        self.kernels.quantize(&mut input.padded);
    }

    /// `out = matrix @ input` for all matrices and tokens at once, rows shared among the threads. `tokens` has the
    /// outputs and inputs of each token, one for each matrix.
    pub(crate) fn matmul<'x, const N: usize>(
        &mut self,
        matrices: [MatrixRef; N],
        tokens: impl Iterator<Item = ([&'x mut [f32]; N], [&'x Input<'x>; N])>,
    ) -> Result<()> {
        self.matmul_then([Tail::None; N], matrices, tokens)
    }

    /// As [`matmul`](Self::matmul), with a tail for each matrix.
    pub(crate) fn matmul_then<'x, const N: usize>(
        &mut self,
        tails: [Tail; N],
        matrices: [MatrixRef; N],
        tokens: impl Iterator<Item = ([&'x mut [f32]; N], [&'x Input<'x>; N])>,
    ) -> Result<()> {
        let mut views = [None; N];
        for (view, matrix) in views.iter_mut().zip(matrices) {
            *view = Some(self.read(matrix)?);
        }
        let mut outs = [(); N].map(|()| PerToken::new());
        let mut inputs = [(); N].map(|()| PerToken::new());
        for (token_outs, token_inputs) in tokens {
            outs.iter_mut().zip(token_outs).for_each(|(outs, out)| outs.push(out));
            inputs.iter_mut().zip(token_inputs).for_each(|(inputs, input)| inputs.push(input.view()));
        }
        let kernels = self.kernels;
        self.pool.for_each_range_of_all(outs, MATVEC_GRAIN, &|job, row, outs| {
            if let Some(matrix) = &views[job] {
                kernels.matmul(outs, matrix, row, &inputs[job]);
                outs.iter_mut().for_each(|out| tails[job].apply(kernels, out));
            }
        });
        views.iter().flatten().for_each(|matrix| self.release(matrix.data()));
        Ok(())
    }

    /// A matrix that will be read whole, counted as read.
    pub(crate) fn read(&mut self, matrix: MatrixRef) -> Result<Matrix<'a>> {
        let matrix = self.file.matrix(matrix)?;
        self.meter.traffic.weight_bytes += matrix.data().len() as u64;
        Ok(matrix)
    }

    /// Ends the use of a tensor's bytes for this token.
    pub(crate) fn release(&self, data: &[u8]) {
        if self.transient {
            self.file.release(data);
        }
    }
}

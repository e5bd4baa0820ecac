//! What all RWKV versions share: weights as handles into the file, operations that run on the thread pool,
//! and input vectors in quantized form.

use arrayvec::ArrayVec;
use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{Activation, ActivationMut, GROUP_SIZE, Matrix, padded_cols};

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

/// The normalised inputs of tokens that follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// That of the token before the first one, then one for each token, `[tokens + 1, n_embd]`.
    rows: &'a [f32],
    n_embd: usize,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(rows: &'a [f32], n_embd: usize) -> Self {
        Self { rows, n_embd }
    }

    /// The input of each token, and that of the token before it.
    pub(crate) fn pairs(self) -> impl Iterator<Item = [&'a [f32]; 2]> {
        let rows = || self.rows.chunks_exact(self.n_embd);
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

/// Which token a mix weighs: `mix` of the one and `1 - mix` of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// The current token: RWKV-4 and 5.
    Current,
    /// The previous token: RWKV-6 and 7.
    Previous,
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

    /// Mixes `h` with the previous token's in the way of `shift`, quantized for the matrices that read it.
    pub(crate) fn token_shift(
        &self,
        out: &mut Input<'_>,
        shift: Shift,
        [h, h_prev]: [&[f32]; 2],
        mix: VectorRef,
    ) -> Result<()> {
        let (from, to) = match shift {
            Shift::Current => (h_prev, h),
            Shift::Previous => (h, h_prev),
        };
        self.kernels.lerp(out.values(), from, to, self.file.vector(mix)?);
        self.kernels.quantize(&mut out.padded);
        Ok(())
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

//! Operations on a model's weights. They run on the thread pool, and the meter counts their reads.

use arrayvec::ArrayVec;
use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::Matrix;

use crate::error::Result;
use crate::format::{MatrixHandle, ModelFile, VectorHandle};
use crate::threads::{Pool, RowsMut};

use super::meter::Meter;
use super::observer::{MatrixInputs, Observer};
use super::vectors::{Activations, Vectors};

/// Fewest rows that a thread takes at a time: four blocks of 16. The kernels read the four blocks
/// as four streams.
const MATVEC_GRAIN: usize = 64;

/// Most tokens that go through a matrix kernel together. The kernels decode a block of weights once
/// for all of them.
const KERNEL_TOKENS: usize = 64;

/// Weight and bias of a layer norm, `[n]` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    weight: VectorHandle,
    bias: VectorHandle,
}

impl Norm {
    pub(crate) fn load(file: &ModelFile, name: &str, len: usize) -> Result<Self> {
        Ok(Self {
            weight: file.vector_handle(&format!("{name}.weight"), len)?,
            bias: file.vector_handle(&format!("{name}.bias"), len)?,
        })
    }
}

/// A function of the outputs of a matrix. The thread that computed the outputs applies it while
/// they are in its cache.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Epilogue {
    None,
    ReluSquared,
    Sigmoid,
    Tanh,
}

impl Epilogue {
    fn apply(self, kernels: &Kernels, x: &mut [f32]) {
        match self {
            Epilogue::None => (),
            Epilogue::ReluSquared => kernels.relu_squared(x),
            Epilogue::Sigmoid => kernels.sigmoid(x),
            Epilogue::Tanh => kernels.tanh(x),
        }
    }
}

/// `out = epilogue(weight @ input)` for the input of each token.
pub(crate) struct Product<'x> {
    weight: MatrixHandle,
    input: &'x Activations<'x>,
    out: RowsMut<'x>,
    epilogue: Epilogue,
}

impl<'x> Product<'x> {
    pub(crate) fn new(weight: MatrixHandle, input: &'x Activations<'_>, out: RowsMut<'x>) -> Self {
        Self { weight, input, out, epilogue: Epilogue::None }
    }

    /// The same product with a function of its outputs.
    pub(crate) fn then(self, epilogue: Epilogue) -> Self {
        Self { epilogue, ..self }
    }
}

/// A model's weights, and the means to compute with them.
pub(crate) struct Ops<'a> {
    pub(crate) file: &'a ModelFile,
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: &'a mut Pool,
    /// Give the pages of a matrix back to the system after its use.
    pub(crate) evict_pages: bool,
    pub(crate) layer_norm_eps: f32,
    /// Read only the columns of `ffn.value` whose input is not zero.
    pub(crate) sparse_ffn: bool,
    pub(crate) meter: &'a mut Meter,
    /// Sees the inputs of matrices.
    pub(crate) observer: Option<&'a mut dyn Observer>,
}

impl<'a> Ops<'a> {
    /// A vector of the file.
    pub(crate) fn vector(&self, vector: VectorHandle) -> &'a [f32] {
        self.file.vector(vector)
    }

    /// Weight and bias of a norm.
    pub(crate) fn norm(&self, norm: Norm) -> (&'a [f32], &'a [f32]) {
        (self.vector(norm.weight), self.vector(norm.bias))
    }

    /// Quantizes the values of the inputs of the first `tokens` tokens. The threads share the
    /// tokens.
    pub(crate) fn quantize<const N: usize>(&mut self, tokens: usize, inputs: [&mut Activations<'_>; N]) {
        let kernels = self.kernels;
        self.pool.for_each_piece(inputs.map(|input| input.pieces(tokens)), &|_, mut inputs| {
            inputs.iter_mut().for_each(|input| kernels.quantize(input));
        });
    }

    /// `x + y` in place of `x` for the first `tokens` tokens. The threads share the tokens.
    pub(crate) fn add(&mut self, tokens: usize, x: &mut Vectors<'_>, y: &Vectors<'_>) {
        let kernels = self.kernels;
        self.pool.for_each_piece(x.pieces(tokens), &|t, x| kernels.add(x, y.row(t)));
    }

    /// Computes all products for the first `tokens` tokens. The threads share the rows of the
    /// matrices.
    ///
    /// Each matrix is read once. The result of a token does not depend on the other tokens.
    pub(crate) fn matmul<const N: usize>(&mut self, tokens: usize, products: [Product<'_>; N]) {
        if let Some(observer) = &mut self.observer {
            let file = self.file;
            let shown =
                products.iter().map(|product| product.input.shown(file.matrix_name(product.weight), tokens));
            shown.for_each(|inputs| observer.inputs(inputs));
        }
        let matrices = products.each_ref().map(|product| self.read(product.weight));
        let inputs = products.each_ref().map(|product| (product.input, product.epilogue));
        let mut lens = matrices.iter().map(Matrix::rows);
        let outs = products.map(|product| product.out.cut(tokens, lens.next().unwrap_or(0)));
        let kernels = self.kernels;
        self.pool.for_each_range_of_rows(outs, MATVEC_GRAIN, &|job, start, part| {
            let (input, epilogue) = inputs[job];
            for first in (0..tokens).step_by(KERNEL_TOKENS) {
                // Filled in place: a list that is collected is copied whole, with all its room.
                let mut outs = ArrayVec::<_, KERNEL_TOKENS>::new();
                outs.extend((&mut *part).take(KERNEL_TOKENS));
                let mut inputs = ArrayVec::<_, KERNEL_TOKENS>::new();
                inputs.extend((first..).take(outs.len()).map(|t| input.row(t)));
                kernels.matmul(&mut outs, &matrices[job], start, &inputs);
                outs.iter_mut().for_each(|out| epilogue.apply(kernels, out));
            }
        });
        matrices.iter().for_each(|matrix| self.release(matrix.data()));
    }

    /// Shows the inputs of `ffn.value`.
    pub(crate) fn show(&mut self, name: &str, inputs: &Vectors<'_>, tokens: usize) {
        if let Some(observer) = &mut self.observer {
            let len = inputs.len();
            observer.inputs(MatrixInputs::new(name, inputs.first(tokens), [len, len]));
        }
    }

    /// A matrix that will be read whole. Counts it as read.
    pub(crate) fn read(&mut self, matrix: MatrixHandle) -> Matrix<'a> {
        let matrix = self.file.matrix(matrix);
        self.meter.traffic.weight_bytes += matrix.data().len() as u64;
        matrix
    }

    /// Ends the use of a tensor's bytes for this batch of tokens.
    pub(crate) fn release(&self, data: &[u8]) {
        if self.evict_pages {
            self.file.release(data);
        }
    }
}

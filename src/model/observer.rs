//! What a caller may see of a model at work: the inputs of its matrices.

/// Inputs of a matrix, one for each token, before they are quantized.
#[derive(Clone, Copy, Debug)]
pub struct MatrixInputs<'a> {
    name: &'a str,
    values: &'a [f32],
    /// Distance from one input to the next.
    stride: usize,
    len: usize,
}

impl<'a> MatrixInputs<'a> {
    /// Inputs of `len` values, which begin every `stride` values.
    pub(super) fn new(name: &'a str, values: &'a [f32], [stride, len]: [usize; 2]) -> Self {
        Self { name, values, stride, len }
    }

    /// Name of the matrix in the file, such as `blocks.0.att.key.weight`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Elements of an input: the matrix's columns.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether an input has no elements, which no matrix allows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The inputs in the order of the tokens, `[tokens, len]`.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + Clone + use<'a> {
        let len = self.len;
        self.values.chunks_exact(self.stride).map(move |row| &row[..len])
    }
}

/// Receives the inputs of the matrices of a layer while it runs: projections, the first factors of
/// low-rank matrices, and `ffn.value`.
pub trait Observer {
    /// Takes the inputs of a matrix for some consecutive tokens.
    fn inputs(&mut self, inputs: MatrixInputs<'_>);
}

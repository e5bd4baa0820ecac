//! Buffers with one row per token: plain vectors, and inputs of matrices with their quantized form.

use std::ops::Range;

use arrayvec::ArrayVec;
use rwkv_edge_kernels::DType;
use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{Activation, ActivationMut, GROUP_SIZE, Matrix, padded_cols, record_bytes};

use crate::memory::Buffers;
use crate::threads::{Cut, Map, Pieces, RowsMut};

use super::batch::TILE_TOKENS;
use super::observer::MatrixInputs;

/// Name of the layers' buffers in the memory plan.
pub(super) const SCRATCH: &str = "time and channel mixing";

/// Floats in the bytes of a record of `len` values, whatever its type.
pub(super) fn record_floats(len: usize) -> usize {
    let bytes = DType::ALL.iter().filter_map(|&dtype| record_bytes(dtype, len)).max();
    bytes.map_or(usize::MAX, |bytes| bytes / size_of::<f32>())
}

/// Vectors of f32, `[tokens, len]`.
pub(crate) struct Vectors<'a> {
    len: usize,
    data: &'a mut [f32],
}

impl<'a> Vectors<'a> {
    /// Takes a buffer of `[tokens, len]`.
    pub(crate) fn take(
        buffers: &mut impl Buffers<'a>,
        name: &'static str,
        [tokens, len]: [usize; 2],
    ) -> Self {
        Self { len, data: buffers.f32s(name, tokens.saturating_mul(len)) }
    }

    /// Elements of a vector.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The vector of token `t`.
    pub(crate) fn row(&self, t: usize) -> &[f32] {
        &self.data[t * self.len..][..self.len]
    }

    /// The vector of token `t`, for writing.
    pub(crate) fn row_mut(&mut self, t: usize) -> &mut [f32] {
        &mut self.data[t * self.len..][..self.len]
    }

    /// The vectors of the first `tokens` tokens, one after the other.
    pub(crate) fn first(&self, tokens: usize) -> &[f32] {
        &self.data[..tokens * self.len]
    }

    /// As [`first`](Self::first), for writing.
    pub(crate) fn first_mut(&mut self, tokens: usize) -> &mut [f32] {
        &mut self.data[..tokens * self.len]
    }

    /// The vectors of the first `tokens` tokens, each as a piece.
    pub(crate) fn pieces(&mut self, tokens: usize) -> Cut<'_, f32> {
        let len = self.len;
        Cut::new(self.first_mut(tokens), len)
    }

    /// The buffer itself.
    pub(crate) fn into_data(self) -> &'a mut [f32] {
        self.data
    }

    /// All vectors, for a matrix to write.
    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut::new(self.data, self.len)
    }
}

/// Inputs of matrices, `[tokens, len]`: values and their quantized form, each row padded to whole
/// blocks.
///
/// The padding is zero. The place of a row does not depend on the number of tokens, so its padding
/// stays zero.
pub(crate) struct Activations<'a> {
    len: usize,
    padded: usize,
    values: &'a mut [f32],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl<'a> Activations<'a> {
    /// Takes buffers for `[tokens, len]`.
    pub(crate) fn take(
        buffers: &mut impl Buffers<'a>,
        name: &'static str,
        [tokens, len]: [usize; 2],
    ) -> Self {
        let padded = padded_cols(len);
        let of = |row: usize| tokens.saturating_mul(row);
        Self {
            len,
            padded,
            values: buffers.f32s(name, of(padded)),
            codes: buffers.i8s(name, of(padded)),
            scales: buffers.f32s(name, of(padded / GROUP_SIZE)),
            sums: buffers.i32s(name, of(padded / GROUP_SIZE)),
        }
    }

    /// The inputs of the first `tokens` tokens, each as a piece to be quantized.
    pub(crate) fn pieces(&mut self, tokens: usize) -> impl Pieces<Piece = ActivationMut<'_>> {
        let (padded, groups) = (self.padded, self.padded / GROUP_SIZE);
        let parts = (
            Cut::new(&mut self.values[..tokens * padded], padded),
            Cut::new(&mut self.codes[..tokens * padded], padded),
            Cut::new(&mut self.scales[..tokens * groups], groups),
            Cut::new(&mut self.sums[..tokens * groups], groups),
        );
        Map::new(parts, |(values, codes, scales, sums)| ActivationMut { values, codes, scales, sums })
    }

    /// The values of all tokens without padding.
    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        let rows = self.values.len() / self.padded;
        RowsMut::new(self.values, self.padded).cut(rows, self.len)
    }

    /// The input of token `t`.
    pub(crate) fn row(&self, t: usize) -> Activation<'_> {
        let (at, group) = (t * self.padded, t * (self.padded / GROUP_SIZE));
        Activation {
            values: &self.values[at..][..self.padded],
            codes: &self.codes[at..][..self.padded],
            scales: &self.scales[group..][..self.padded / GROUP_SIZE],
            sums: &self.sums[group..][..self.padded / GROUP_SIZE],
        }
    }

    /// The values of the first `tokens` tokens, as inputs of the matrix `name`.
    pub(crate) fn shown<'s>(&'s self, name: &'s str, tokens: usize) -> MatrixInputs<'s> {
        MatrixInputs::new(name, &self.values[..tokens * self.padded], [self.padded, self.len])
    }

    /// The rows from `first` on of the product of `weight` with the inputs of a tile's `tokens`, as
    /// many as `out`, `[tokens, rows]`, has.
    pub(super) fn multiply(
        &self,
        kernels: &Kernels,
        (weight, first): (&Matrix<'_>, usize),
        tokens: Range<usize>,
        out: &mut [f32],
    ) {
        let rows = out.len() / tokens.len();
        let (mut outs, mut inputs) = (ArrayVec::<_, TILE_TOKENS>::new(), ArrayVec::<_, TILE_TOKENS>::new());
        outs.extend(out.chunks_exact_mut(rows));
        inputs.extend(tokens.map(|t| self.row(t)));
        kernels.matmul(&mut outs, weight, first, &inputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_any_type_fits_also_if_it_is_shorter_than_its_scales() {
        for len in [1, 16, 17, 31, 32, 33, 63, 64, 768, 1024, 1 << 20] {
            for dtype in DType::ALL {
                assert!(record_bytes(dtype, len).unwrap() <= 4 * record_floats(len), "{dtype} {len}");
            }
        }
        assert_eq!(record_floats(768), 768);
    }
}

//! The function table: one entry per operation, chosen once for the processor.
//!
//! A method checks the shapes of its arguments, in release builds too, and calls the entry. So an
//! entry meets only shapes that fit together.

mod activation;
mod encode;
mod feedback;
mod norm;
mod wkv;

use crate::isa::Isa;
use crate::layout::{
    Activation, ActivationMut, DType, GROUP_SIZE, K_BLOCK, Matrix, Normed, ROW_INTERLEAVE, Records, Shift,
    Shifted, Sparse, SparseScale, padded_cols, sparse_sums,
};
use crate::quant::{EncodeGroupFn, EncodeWeightedGroupFn};

pub(crate) type QuantizeFn = fn(&mut ActivationMut<'_>);
pub(crate) type MatvecFn = fn(&mut [f32], &Matrix<'_>, usize, Activation<'_>);
pub(crate) type MatmulFn = fn(&mut [&mut [f32]], &Matrix<'_>, usize, &[Activation<'_>]);
pub(crate) type NonzeroFn = fn(&mut [u32], &mut [f32], &[f32]) -> usize;
pub(crate) type SparseFn = fn(&mut [f32], &Records<'_>, usize, Sparse<'_>);
pub(crate) type SparseAccumulateFn = fn(&mut [i32], &Records<'_>, Sparse<'_>, SparseScale<'_>);
pub(crate) type SparseFinishFn = fn(&mut [f32], &Records<'_>, &[i32], SparseScale<'_>);
pub(crate) type LargestFn = fn(&[f32]) -> f32;
pub(crate) type ReachingFn = fn(&mut [u32], &[f32], &[f32], f32, f32) -> usize;
pub(crate) type RecordFn = fn(&mut [f32], &Records<'_>, usize);
pub(crate) type RecordDotsFn = fn(&mut [f32], &Records<'_>, &[u32], Activation<'_>);
pub(crate) type PrefetchFn = fn(&[f32]);
pub(crate) type ReadFn = fn(&[u8], usize) -> u64;
pub(crate) type PeakFn = fn(usize) -> u64;
pub(crate) type LayerNormFn = fn(&mut [f32], &[f32], &[f32], &[f32], f32);
pub(crate) type LerpFn = fn(&mut [f32], &[f32], &[f32], &[f32]);
pub(crate) type NormShiftFn = fn(&mut [f32], Normed<'_>, &[f32], Shift, &mut [Shifted<'_, '_>]);
pub(crate) type Wkv4Fn = fn(&mut [f32], &[f32], &[f32], &[f32], &[f32], &mut [f32], &mut [f32], &mut [f32]);
pub(crate) type ReluSquaredFn = fn(&mut [f32]);
pub(crate) type AddFn = fn(&mut [f32], &[f32]);
pub(crate) type SoftmaxFn = fn(&mut [f32], &[f32]) -> SoftmaxStats;
pub(crate) type Wkv6Fn = fn(&mut [f32], &mut [f32], &[f32], &[f32], &[f32], &[f32], &[f32]);
pub(crate) type Wkv7Fn = fn(&mut [f32], &mut [f32], &[f32], &[f32], &[f32], &[f32], &[f32], &[f32]);
pub(crate) type InPlaceFn = fn(&mut [f32]);
pub(crate) type MulFn = fn(&mut [f32], &[f32], &[f32]);
pub(crate) type Dot3Fn = fn(&[f32], &[f32], &[f32]) -> f32;

/// The largest number of streams of [`Kernels::read`].
pub const MAX_READ_STREAMS: usize = 8;

/// Rows that are multiplied with each of a few vectors before the next ones are read. They stay in
/// the cache next to a core meanwhile.
const FEW_ROWS: usize = 4 * ROW_INTERLEAVE;

/// Products with many vectors, which decode the weights once for all of them.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// Fewest vectors for which they are faster than vector by vector.
    pub(crate) many: usize,
    pub(crate) f32: MatmulFn,
    pub(crate) f16: MatmulFn,
    pub(crate) int8: MatmulFn,
    pub(crate) int4: MatmulFn,
    pub(crate) int4n: MatmulFn,
}

/// The intermediate results of [`Kernels::softmax`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxStats {
    /// The largest input; negative infinity for an empty one.
    pub max: f32,
    /// The sum of `exp(x - max)`.
    pub sum: f32,
}

/// The operations at one level of instructions.
///
/// The crate documentation states the result of each, to the bit.
#[derive(Clone, Copy)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) quantize: QuantizeFn,
    pub(crate) matvec_f32: MatvecFn,
    pub(crate) matvec_f16: MatvecFn,
    pub(crate) matvec_int8: MatvecFn,
    pub(crate) matvec_int4: MatvecFn,
    pub(crate) matvec_int4n: MatvecFn,
    /// Where the level has none, all vectors go one by one.
    pub(crate) tiles: Option<Tiles>,
    pub(crate) nonzero: NonzeroFn,
    pub(crate) sparse_f32: SparseFn,
    pub(crate) sparse_f16: SparseFn,
    pub(crate) largest_magnitude: LargestFn,
    pub(crate) max: LargestFn,
    pub(crate) reaching: ReachingFn,
    pub(crate) sparse_accumulate_int8: SparseAccumulateFn,
    pub(crate) sparse_accumulate_int4: SparseAccumulateFn,
    pub(crate) sparse_accumulate_int4n: SparseAccumulateFn,
    pub(crate) sparse_finish_int8: SparseFinishFn,
    pub(crate) sparse_finish_int4: SparseFinishFn,
    pub(crate) sparse_finish_int4n: SparseFinishFn,
    pub(crate) dequantize_record: RecordFn,
    pub(crate) record_dots: RecordDotsFn,
    pub(crate) prefetch: PrefetchFn,
    pub(crate) read: ReadFn,
    pub(crate) multiply_accumulate: PeakFn,
    pub(crate) layer_norm: LayerNormFn,
    pub(crate) lerp: LerpFn,
    pub(crate) norm_shift: NormShiftFn,
    pub(crate) wkv4: Wkv4Fn,
    pub(crate) relu_squared: ReluSquaredFn,
    pub(crate) add: AddFn,
    pub(crate) softmax: SoftmaxFn,
    pub(crate) wkv6: Wkv6Fn,
    pub(crate) wkv7: Wkv7Fn,
    pub(crate) tanh: InPlaceFn,
    pub(crate) sigmoid: InPlaceFn,
    pub(crate) silu_mul: MulFn,
    pub(crate) mul: MulFn,
    pub(crate) decay6: InPlaceFn,
    pub(crate) decay7: InPlaceFn,
    pub(crate) l2_normalize: InPlaceFn,
    pub(crate) dot3: Dot3Fn,
    pub(crate) encode_int8: EncodeGroupFn,
    pub(crate) encode_int4: EncodeGroupFn,
    pub(crate) encode_int4n: EncodeWeightedGroupFn,
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}

impl Kernels {
    /// The level of these kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Quantizes the values of `x` to codes, scales and sums.
    ///
    /// # Panics
    /// If the lengths in `x` do not fit together or `values` is not a whole number of column
    /// blocks.
    pub fn quantize(&self, x: &mut ActivationMut<'_>) {
        let n = x.values.len();
        assert!(n.is_multiple_of(K_BLOCK), "{n} activations are not whole blocks of {K_BLOCK}");
        check_activation(x.view(), n);
        (self.quantize)(x);
    }

    /// Rows `first_row..first_row + out.len()` of the product `w x`.
    ///
    /// Float matrices read the values of `x`, quantized ones its codes, scales and sums.
    ///
    /// # Panics
    /// If `first_row` is not a multiple of [`ROW_INTERLEAVE`], the rows are not all in `w`, or the
    /// lengths in `x` are not those of `w`'s padded columns.
    pub fn matvec(&self, out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
        assert!(first_row.is_multiple_of(ROW_INTERLEAVE), "row {first_row} does not start a block");
        check_range("rows", first_row, out.len(), w.rows());
        check_activation(x, padded_cols(w.cols()));
        self.matvec_kernel(w.dtype())(out, w, first_row, x);
    }

    fn matvec_kernel(&self, dtype: DType) -> MatvecFn {
        match dtype {
            DType::F32 => self.matvec_f32,
            DType::F16 => self.matvec_f16,
            DType::Int8 => self.matvec_int8,
            DType::Int4 => self.matvec_int4,
            DType::Int4n => self.matvec_int4n,
        }
    }

    /// The same rows of the products of `w` with several vectors. `outs[i]` has the bits that
    /// [`matvec`](Self::matvec) gives for `xs[i]`. The weights come from memory once for all
    /// vectors.
    ///
    /// # Panics
    /// As `matvec`, or if `outs` and `xs` differ in length, or two outputs do.
    pub fn matmul(&self, outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) {
        check_len("vectors", xs.len(), outs.len());
        if let ([out], [x]) = (&mut *outs, xs) {
            return self.matvec(out, w, first_row, *x);
        }
        let Some(rows) = outs.first().map(|out| out.len()) else { return };
        assert!(first_row.is_multiple_of(ROW_INTERLEAVE), "row {first_row} does not start a block");
        check_range("rows", first_row, rows, w.rows());
        outs.iter().for_each(|out| check_len("output", out.len(), rows));
        xs.iter().for_each(|x| check_activation(*x, padded_cols(w.cols())));
        let Some(tiles) = self.tiles.filter(|tiles| xs.len() >= tiles.many) else {
            return self.vector_by_vector(outs, w, first_row, xs);
        };
        let kernel = match w.dtype() {
            DType::F32 => tiles.f32,
            DType::F16 => tiles.f16,
            DType::Int8 => tiles.int8,
            DType::Int4 => tiles.int4,
            DType::Int4n => tiles.int4n,
        };
        kernel(outs, w, first_row, xs);
    }

    fn vector_by_vector(
        &self,
        outs: &mut [&mut [f32]],
        w: &Matrix<'_>,
        first_row: usize,
        xs: &[Activation<'_>],
    ) {
        let kernel = self.matvec_kernel(w.dtype());
        let rows = outs.first().map_or(0, |out| out.len());
        for start in (0..rows).step_by(FEW_ROWS) {
            let end = rows.min(start + FEW_ROWS);
            for (out, x) in outs.iter_mut().zip(xs) {
                kernel(&mut out[start..end], w, first_row + start, *x);
            }
        }
    }

    /// Copies the non-zero elements of `x` and their positions, in order, and returns their number.
    ///
    /// A NaN counts as non-zero, a negative zero as zero. Past the number returned the outputs are
    /// unspecified.
    ///
    /// # Panics
    /// If an output is shorter than `x`, or `x` has more than 2^32 elements.
    pub fn nonzero(&self, indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize {
        let n = x.len();
        assert!(u32::try_from(n).is_ok(), "{n} elements are too many");
        assert!(indices.len() >= n && values.len() >= n, "the outputs are shorter than {n} elements");
        (self.nonzero)(&mut indices[..n], &mut values[..n], x)
    }

    /// The largest magnitude among `x`; a NaN if there is one, 0 if `x` is empty.
    pub fn largest_magnitude(&self, x: &[f32]) -> f32 {
        (self.largest_magnitude)(x)
    }

    /// The largest number of `x`; a NaN if there is one, -infinity if `x` is empty.
    pub fn max(&self, x: &[f32]) -> f32 {
        (self.max)(x)
    }

    /// Writes the positions at which `x + bounds * norm`, rounded twice, is not below `least`, in
    /// order, and returns their number. A NaN is not below anything. Past the number returned
    /// `indices` is unspecified.
    ///
    /// # Panics
    /// If there are not as many bounds as elements of `x`, `indices` is shorter, or they are more
    /// than 2^32.
    pub fn reaching(&self, indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize {
        let n = x.len();
        check_len("bounds", bounds.len(), n);
        assert!(u32::try_from(n).is_ok(), "{n} elements are too many");
        assert!(indices.len() >= n, "the output is shorter than {n} elements");
        (self.reaching)(&mut indices[..n], x, bounds, norm, least)
    }

    /// Outputs `first..first + out.len()` of the sum of `x_j` times record `j` over the entries of
    /// `x`, for F32 and F16 records.
    ///
    /// How outputs are cut into calls does not change them.
    ///
    /// # Panics
    /// If the records are quantized, the outputs are not all in them, `x` has not as many values as
    /// indices, or an index is no record.
    pub fn sparse_matvec(&self, out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
        check_range("outputs", first, out.len(), w.record_len());
        check_sparse(x, w);
        let kernel = match w.dtype() {
            DType::F32 => self.sparse_f32,
            DType::F16 => self.sparse_f16,
            quantized => panic!("sparse_matvec of {quantized} records"),
        };
        kernel(out, w, first, x);
    }

    /// Adds the products of some entries of a sparse vector with quantized records to partial sums,
    /// which start with zeros and end with [`sparse_finish`](Self::sparse_finish).
    ///
    /// The sums are exact. So it does not matter how entries are cut into calls, nor to which
    /// partial sums a call adds. The order of the partial sums is the level's own: only its
    /// `sparse_finish` reads them.
    ///
    /// # Panics
    /// If the records are not quantized, `sums` does not have [`sparse_sums`] integers, `x` has not
    /// as many values as indices or more than `scale.active`, an index is no record, or `scale` has
    /// not a bound for each group.
    pub fn sparse_accumulate(
        &self,
        sums: &mut [i32],
        w: &Records<'_>,
        x: Sparse<'_>,
        scale: SparseScale<'_>,
    ) {
        check_len("partial sums", sums.len(), sparse_sums(w.record_len()));
        check_len("bounds", scale.bounds.len(), w.record_len().div_ceil(GROUP_SIZE));
        check_sparse(x, w);
        check_range("entries", 0, x.indices.len(), scale.active);
        let kernel = match w.dtype() {
            DType::Int8 => self.sparse_accumulate_int8,
            DType::Int4 => self.sparse_accumulate_int4,
            DType::Int4n => self.sparse_accumulate_int4n,
            float => panic!("sparse_accumulate of {float} records"),
        };
        kernel(sums, w, x, scale);
    }

    /// The outputs of a product with a sparse vector, from one or several partial sums that lie one
    /// after the other. They were made with the same `w` and `scale`.
    ///
    /// # Panics
    /// If the records are not quantized, `out` has another length than a record, `sums` is not a
    /// whole number of [`sparse_sums`], or `scale` has not a bound for each group.
    pub fn sparse_finish(&self, out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
        check_len("output", out.len(), w.record_len());
        check_len("bounds", scale.bounds.len(), w.record_len().div_ceil(GROUP_SIZE));
        let each = sparse_sums(w.record_len());
        assert!(sums.len().is_multiple_of(each), "{} partial sums are not times {each}", sums.len());
        let kernel = match w.dtype() {
            DType::Int8 => self.sparse_finish_int8,
            DType::Int4 => self.sparse_finish_int4,
            DType::Int4n => self.sparse_finish_int4n,
            float => panic!("sparse_finish of {float} records"),
        };
        kernel(out, w, sums, scale);
    }

    /// The values of record `index`.
    ///
    /// # Panics
    /// If `index` is no record or `out` has another length than a record.
    pub fn dequantize_record(&self, out: &mut [f32], w: &Records<'_>, index: usize) {
        assert!(index < w.count(), "record {index} of {}", w.count());
        check_len("output", out.len(), w.record_len());
        (self.dequantize_record)(out, w, index);
    }

    /// The product of `x` with each of the records `indices` of an Int4 tensor: rows of the second
    /// plane of a head (`docs/DESIGN.md`, The head in two planes).
    ///
    /// # Panics
    /// If the records are of another type, `out` and `indices` differ in length, an index is no
    /// record, or the lengths in `x` are not those of a padded record.
    pub fn record_dots(&self, out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
        assert!(w.dtype() == DType::Int4, "record_dots of {} records", w.dtype());
        check_len("output", out.len(), indices.len());
        check_indices(indices, w);
        check_activation(x, padded_cols(w.record_len()));
        (self.record_dots)(out, w, indices, x);
    }

    /// Prefetches `x`, which will be read soon. Levels without a prefetch instruction do nothing.
    pub fn prefetch(&self, x: &[f32]) {
        (self.prefetch)(x);
    }

    /// Reads `bytes` as `streams` equal parts side by side, and returns the xor of all 64-bit
    /// words.
    ///
    /// It does nothing but read: it measures how fast the instructions of this level read memory.
    /// Up to `64 * streams` bytes at the end are left out.
    ///
    /// # Panics
    /// If `streams` is not in `1..=MAX_READ_STREAMS`.
    pub fn read(&self, bytes: &[u8], streams: usize) -> u64 {
        assert!((1..=MAX_READ_STREAMS).contains(&streams), "{streams} streams");
        (self.read)(bytes, streams)
    }

    /// Runs `rounds` of the sequence with which this level multiplies and adds bytes, on registers
    /// alone. Returns the number of multiply-accumulates.
    ///
    /// It measures the peak of a core, as [`read`](Self::read) measures that of memory.
    pub fn multiply_accumulate(&self, rounds: usize) -> u64 {
        (self.multiply_accumulate)(rounds)
    }
}

#[track_caller]
fn check_len(what: &str, found: usize, expected: usize) {
    assert!(found == expected, "{what}: {found} elements, expected {expected}");
}

#[track_caller]
fn check_range(what: &str, first: usize, count: usize, total: usize) {
    assert!(first <= total && count <= total - first, "{what} {first} + {count} of {total}");
}

#[track_caller]
fn check_sparse(x: Sparse<'_>, w: &Records<'_>) {
    check_len("sparse values", x.values.len(), x.indices.len());
    check_indices(x.indices, w);
}

#[track_caller]
fn check_indices(indices: &[u32], w: &Records<'_>) {
    let last = indices.iter().copied().max().map_or(0, |j| j as usize);
    assert!(last < w.count(), "record {last} of {}", w.count());
}

#[track_caller]
fn check_activation(x: Activation<'_>, padded: usize) {
    check_len("activation values", x.values.len(), padded);
    check_len("activation codes", x.codes.len(), padded);
    check_len("activation scales", x.scales.len(), padded / GROUP_SIZE);
    check_len("activation sums", x.sums.len(), padded / GROUP_SIZE);
}

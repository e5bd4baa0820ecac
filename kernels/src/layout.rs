//! Block layouts of weight tensors. The converter writes them, the kernels read them in place.
//!
//! Everything is little-endian. No layout needs more alignment than a byte. Files keep 64-byte
//! lines aligned for speed.
//!
//! # Interleaved matrices ([`Matrix`])
//!
//! A `[rows, cols]` matrix (`[out, in]`) is cut into blocks of [`ROW_INTERLEAVE`] rows by
//! [`K_BLOCK`] columns. Column blocks run fastest. Rows and columns are padded to whole blocks;
//! padding weighs nothing.
//!
//! ```text
//! F32   4096 B  64 lines of 64 B: line k = 16 rows x 1 column
//! F16   2048 B  64 lines of 32 B: line k = 16 rows x 1 column
//! Int8  1088 B  64 B   scales: [group 0..1][row 0..15] fp16
//!               1024 B codes: line q (of 16) = [row 0..15][column 4q..4q+3] i8
//! Int4   576 B  64 B   scales: [group 0..1][row 0..15] fp16
//!               512 B  codes: line v (of 8) = [row 0..15][j 0..3] bytes
//!                      low nibble  = code of column 8v + j
//!                      high nibble = code of column 8v + 4 + j
//! Int4n  as Int4
//! ```
//!
//! A group is [`GROUP_SIZE`] consecutive columns of one row. The weight is
//! `code * scale * tensor_scale`. An Int8 code is in -127..=127. An Int4 code is stored as the
//! unsigned nibble `code + 8`. An Int4n code is [`INT4N_TABLE`]`[nibble]` plus [`int4n_shift`] of
//! the group's scale: in -35..=31.
//!
//! # Records ([`Records`])
//!
//! A record is one row, or one column, on cache lines of its own. So only the records that are
//! needed are read: embedding rows, the active *columns* of `ffn.value`, and rows of the head's
//! second plane. There are `count` records of `len` values each; a record starts on a 64-byte line.
//!
//! ```text
//! F32   len f32                                             F16   len fp16
//! Int8  ceil(len/32) fp16 scales, padded to 64 B; then ceil(len/32) runs of 32 B:
//!       run g = values 32g..32g+31
//! Int4  the same scales; then ceil(len/32) runs of 16 B:
//!       byte i of run g has the code of value 32g + i in its low nibble
//!       and that of value 32g + 16 + i in its high nibble
//! Int4n as Int4
//! ```
//!
//! The record is padded with zero bytes to a multiple of 64 B. A group is 32 consecutive values of
//! one record.

use core::fmt;

/// Weights that share one scale.
pub const GROUP_SIZE: usize = 32;
/// Rows whose weights are interleaved in a [`Matrix`].
pub const ROW_INTERLEAVE: usize = 16;
/// Columns in one block of a [`Matrix`].
pub const K_BLOCK: usize = 64;
/// Bytes of a cache line: the unit in which layouts are padded.
pub const LINE_BYTES: usize = 64;

/// Int4n codes before the [shift](int4n_shift) of their group, by nibble.
///
/// Denser in the middle, as weights are. No magnitude exceeds 32: 8 products with codes of an
/// [`Activation`] fit 16 bits.
pub const INT4N_TABLE: [i8; 16] = [-32, -26, -21, -16, -12, -9, -6, -3, 0, 3, 6, 10, 13, 17, 22, 28];

/// The number that all Int4n codes of a group have more than [`INT4N_TABLE`]: the two lowest bits of
/// the group's fp16 scale give -3, -1, 1 or 3. They count as a part of the scale too.
pub const fn int4n_shift(scale: u16) -> i32 {
    2 * (scale & 3) as i32 - 3
}

/// Element type of a weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// 8-bit codes in -127..=127, one fp16 scale per group.
    Int8,
    /// 4-bit codes in -8..=7, one fp16 scale per group.
    Int4,
    /// 4-bit codes of a table that the group shifts, one fp16 scale per group.
    Int4n,
}

impl DType {
    /// All element types.
    pub const ALL: [DType; 5] = [DType::F32, DType::F16, DType::Int8, DType::Int4, DType::Int4n];

    /// The name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Int8 => "int8",
            DType::Int4 => "int4",
            DType::Int4n => "int4n",
        }
    }

    /// Whether weights are codes with group scales.
    pub const fn is_quantized(self) -> bool {
        matches!(self, DType::Int8 | DType::Int4 | DType::Int4n)
    }

    /// Bytes of one interleaved block of [`ROW_INTERLEAVE`] rows x [`K_BLOCK`] columns.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4096,
            DType::F16 => 2048,
            DType::Int8 => 1088,
            DType::Int4 | DType::Int4n => 576,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The reason why bytes cannot be a tensor of the given shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// A dimension is zero, or the size does not fit the address space.
    Shape,
    /// The byte count differs from that of the shape and dtype.
    Length {
        /// Bytes of a tensor of this shape and dtype.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The tensor scale is not a positive, finite power of two.
    Scale,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::Shape => f.write_str("a dimension is zero or too large"),
            LayoutError::Length { expected, found } => write!(f, "expected {expected} bytes, found {found}"),
            LayoutError::Scale => f.write_str("the tensor scale is not a positive power of two"),
        }
    }
}

impl core::error::Error for LayoutError {}

/// `n` rounded up to whole column blocks: the length of an [`Activation`].
pub const fn padded_cols(n: usize) -> usize {
    n.next_multiple_of(K_BLOCK)
}

/// Bytes of an interleaved `[rows, cols]` matrix, or `None` if a dimension is zero or the size
/// overflows.
pub const fn matrix_bytes(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return None;
    }
    match rows.div_ceil(ROW_INTERLEAVE).checked_mul(cols.div_ceil(K_BLOCK)) {
        Some(blocks) => blocks.checked_mul(dtype.block_bytes()),
        None => None,
    }
}

/// Bytes of the scales at the start of a quantized record, padding included; 0 for float records.
pub const fn record_scale_bytes(dtype: DType, len: usize) -> usize {
    if dtype.is_quantized() { (2 * len.div_ceil(GROUP_SIZE)).next_multiple_of(LINE_BYTES) } else { 0 }
}

/// Bytes from one record of `len` values to the next, or `None` if `len` is zero or absurd.
pub const fn record_bytes(dtype: DType, len: usize) -> Option<usize> {
    if len == 0 || len > 1 << 30 {
        return None;
    }
    let groups = len.div_ceil(GROUP_SIZE);
    let (count, bytes) = match dtype {
        DType::F32 => (len, 4),
        DType::F16 => (len, 2),
        DType::Int8 => (groups, 32),
        DType::Int4 | DType::Int4n => (groups, 16),
    };
    let Some(values) = count.checked_mul(bytes) else { return None };
    let Some(used) = values.checked_add(record_scale_bytes(dtype, len)) else { return None };
    used.checked_next_multiple_of(LINE_BYTES)
}

/// Bytes of `count` records of `len` values, or `None` if a dimension is zero or the size
/// overflows.
pub const fn records_bytes(dtype: DType, count: usize, len: usize) -> Option<usize> {
    match record_bytes(dtype, len) {
        Some(bytes) if count > 0 => bytes.checked_mul(count),
        _ => None,
    }
}

fn check(expected: Option<usize>, found: usize, scale: f32) -> Result<(), LayoutError> {
    let expected = expected.ok_or(LayoutError::Shape)?;
    if expected != found {
        return Err(LayoutError::Length { expected, found });
    }
    let power_of_two = scale.is_normal() && scale > 0.0 && scale.to_bits() & 0x007f_ffff == 0;
    if power_of_two { Ok(()) } else { Err(LayoutError::Scale) }
}

/// A checked view of an interleaved matrix; see the module documentation for the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    scale: f32,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views `data` as `[rows, cols]`; `scale` is the tensor scale (1 for float types).
    ///
    /// # Errors
    /// If the shape is empty or too large, `data` has another length, or `scale` is no power of
    /// two.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        scale: f32,
        data: &'a [u8],
    ) -> Result<Self, LayoutError> {
        check(matrix_bytes(dtype, rows, cols), data.len(), scale)?;
        Ok(Self { dtype, rows, cols, scale, data })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Outputs of a product with this matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a product with this matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Power of two that all weights are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Blocks side by side in one block row.
    pub fn col_blocks(&self) -> usize {
        self.cols.div_ceil(K_BLOCK)
    }

    /// The bytes of the whole matrix.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of block row `i`: rows `16 i .. 16 i + 16`, padding included.
    ///
    /// # Panics
    /// If `i` is not a block row of the matrix.
    pub fn block_row(&self, i: usize) -> &'a [u8] {
        let bytes = self.col_blocks() * self.dtype.block_bytes();
        &self.data[i * bytes..][..bytes]
    }
}

/// A checked view of records; see the module documentation for the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    dtype: DType,
    count: usize,
    len: usize,
    stride: usize,
    scale: f32,
    data: &'a [u8],
}

impl<'a> Records<'a> {
    /// Views `data` as `count` records of `len` values; `scale` is the tensor scale (1 for float
    /// types).
    ///
    /// # Errors
    /// If the shape is empty or too large, `data` has another length, or `scale` is no power of
    /// two.
    pub fn new(
        dtype: DType,
        count: usize,
        len: usize,
        scale: f32,
        data: &'a [u8],
    ) -> Result<Self, LayoutError> {
        check(records_bytes(dtype, count, len), data.len(), scale)?;
        Ok(Self { dtype, count, len, stride: data.len() / count, scale, data })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Values in each record.
    pub fn record_len(&self) -> usize {
        self.len
    }

    /// Power of two that all weights are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes from one record to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The bytes of all records.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of record `i`, padding included.
    ///
    /// # Panics
    /// If `i` is not below [`count`](Self::count).
    pub fn record(&self, i: usize) -> &'a [u8] {
        assert!(i < self.count, "record {i} of {}", self.count);
        &self.data[i * self.stride..][..self.stride]
    }
}

/// An input vector in the forms that the matvec kernels read, padded with zeros to whole column
/// blocks.
///
/// All slices cover `padded_cols(n)` columns: `values` and `codes` one entry per column, `scales`
/// and `sums` one per group.
#[derive(Debug)]
pub struct ActivationMut<'a> {
    /// The vector itself, read by F32 and F16 matrices, `[padded]`.
    pub values: &'a mut [f32],
    /// `round(value / scale)` in -127..=127, `[padded]`.
    pub codes: &'a mut [i8],
    /// Scale of each group, `[padded / 32]`.
    pub scales: &'a mut [f32],
    /// Sum of the codes of each group, `[padded / 32]`.
    pub sums: &'a mut [i32],
}

impl ActivationMut<'_> {
    /// The same vector for reading.
    pub fn view(&self) -> Activation<'_> {
        Activation { values: self.values, codes: self.codes, scales: self.scales, sums: self.sums }
    }
}

/// Shared view of an [`ActivationMut`] after `Kernels::quantize`.
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// The vector itself, `[padded]`.
    pub values: &'a [f32],
    /// Codes in -127..=127, `[padded]`.
    pub codes: &'a [i8],
    /// Scale of each group, `[padded / 32]`.
    pub scales: &'a [f32],
    /// Sum of the codes of each group, `[padded / 32]`.
    pub sums: &'a [i32],
}

/// A vector and the parameters of its layer norm, `[n]` each.
#[derive(Clone, Copy, Debug)]
pub struct Normed<'a> {
    /// The vector.
    pub x: &'a [f32],
    /// Factor of each element.
    pub weight: &'a [f32],
    /// Summand of each element.
    pub bias: &'a [f32],
    /// Summand of the variance.
    pub eps: f32,
}

/// The token that a mix weighs. The other token weighs `1 - mix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// The current token: RWKV-4 and 5.
    Current,
    /// The previous token: RWKV-6 and 7.
    Previous,
}

/// An output of token shift: a mix of the current and the previous vector.
#[derive(Debug)]
pub struct Shifted<'m, 'a> {
    /// Weight of the token that [`Shift`] names, for each element, `[n]`.
    pub mix: &'m [f32],
    /// The output, padded from `n` elements on.
    pub out: &'m mut ActivationMut<'a>,
}

/// The non-zero entries of a vector, or some of them, in ascending order of index.
#[derive(Clone, Copy, Debug)]
pub struct Sparse<'a> {
    /// Positions of the entries.
    pub indices: &'a [u32],
    /// Values of the entries.
    pub values: &'a [f32],
}

/// The quantization step of the coefficients with which a sparse vector multiplies quantized
/// records.
///
/// It is the same for all parts of the vector, so that threads can add up their parts in integers
/// (`docs/DESIGN.md`, Exact sparsity in integers).
#[derive(Clone, Copy, Debug)]
pub struct SparseScale<'a> {
    /// Entries of the whole vector: the active columns.
    pub active: usize,
    /// The largest magnitude of an entry.
    pub largest: f32,
    /// For each group of outputs the largest magnitude of its scales in all records,
    /// `[ceil(len / 32)]`.
    pub bounds: &'a [f32],
}

/// Number of integers in the partial sums of a product with records of `len` values: one for each
/// output and one for each group. The number of groups is rounded up to a multiple of 8.
pub const fn sparse_sums(len: usize) -> usize {
    len.div_ceil(GROUP_SIZE).next_multiple_of(8) * (GROUP_SIZE + 1)
}

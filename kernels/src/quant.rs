//! Quantization: from fp32 to the block layouts and back.
//!
//! [`Kernels::encode_block_row`] and [`Kernels::encode_record`] encode. The same values give the same
//! bytes on every platform and instruction set: encoding uses IEEE operations in a fixed order, and
//! no fused ones.
//!
//! # Int8
//! With `u = w / tensor_scale` and `amax = max|u|` in a group, the scale is `amax / 127` rounded to
//! fp16, or the next larger fp16 number if `amax` would exceed 127.5 scales, which happens to
//! subnormal scales only. A code is `u * (1 / scale)` clamped to ±127 and rounded to nearest even.
//! If no `u` exceeds half a scale, scale and codes are 0.
//!
//! # Int4
//! The scale may have either sign. It is the candidate with the least squared error of the group.
//!
//! 1. Plain candidates: the first value of largest magnitude divided by -8, and `amax` divided by
//!    7, -7, 6, -6, 5, -5, 4 and -4.
//! 2. One candidate is searched. Codes `q = round(clamp(u f, -8, 7))` are tried for
//!    `f = i * (0.25 / amax)` with i = 20..=35, then for the negatives of these. The best scale for
//!    given codes is `s = sum(u q) / sum(q q)`. The trial with the largest `sum(u q) * s`, the
//!    first in a tie, gives its scale.
//!
//! All candidates are rounded to fp16. Codes are `u * (1 / scale)` clamped to -8..=7 and rounded to
//! nearest even. In a tie the first candidate wins, in the order given here. If `amax / 4` rounds
//! to 0 in fp16, scale and codes are 0.
//!
//! # Int4n
//! The scale may have either sign. Its two lowest bits are those that
//! [shift](crate::layout::int4n_shift) the codes.
//!
//! 1. For each value of the low bits from 0 to 3, and for both signs, the inverse scale that reaches
//!    all values with the codes from the first to the last is multiplied with 0.97, 1.015, 1.065,
//!    1.12, 1.18, 1.25, 1.35 and 1.515. The best scale for the codes `q` of a trial is
//!    `s = sum(u q) / sum(q q)`. The trial with the largest `sum(u q) * s`, the first in a tie, gives
//!    its scale.
//! 2. Twice, the scale is replaced by the best one for its codes, unless that has another sign.
//! 3. It is rounded to the nearest fp16 number with these low bits, the smaller one in a tie. It is 0
//!    if its codes have no smaller error than zeros.
//!
//! The code of `u` is the nearest one. With `t = u * (2 * (1 / scale)) + (-2 shift - 0.5)`, clamped
//! to -64..=63 and rounded to nearest even, the nibble is the number of neighbours in the table
//! whose sum is at most `t`. If no `u` reaches 2^-25, the scale is 0.
//!
//! Both sums may have factors: the importance of each column ([`Kernels::encode_block_row`]).
//! They are divided by the largest one of the group.
//!
//! # Padding
//! Padded rows, columns and values have code 0 (the nibble 8 for Int4 and Int4n) and, in whole
//! padded groups, scale 0. They take no part in the search of Int4n.

mod decode;
pub mod feedback;
mod group;
mod int4;
pub(crate) mod int4n;
mod int8;

pub use decode::{decode_matrix_row, decode_record, largest_scales};

use core::fmt;
use core::ops::{Add, AddAssign};

#[cfg(doc)]
use crate::Kernels;
use crate::fp16;
use crate::layout::{
    DType, GROUP_SIZE, K_BLOCK, LINE_BYTES, ROW_INTERLEAVE, matrix_bytes, record_bytes, record_scale_bytes,
};

pub use feedback::{FactorView, FedSums, Tile, group_start, output_bytes, store_outputs};
pub(crate) use feedback::{Feedback, FeedbackTable};
pub(crate) use group::Group;
pub(crate) use int4::encode as encode_int4;
pub(crate) use int4n::encode as encode_int4n;
pub(crate) use int8::encode as encode_int8;

/// Encodes one group of values that were divided by the tensor scale.
pub(crate) type EncodeGroupFn = fn(&[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow>;

/// The same with the importance of each value, and the number of values before the padding.
pub(crate) type EncodeWeightedGroupFn =
    fn(&[f32; GROUP_SIZE], &[f32; GROUP_SIZE], usize) -> Result<Group, ScaleOverflow>;

/// The tensor scale to try first: fp16 scales then reach from normal numbers of 2^-24 up to 64
/// (`docs/DESIGN.md`, Scales and their tensor scale).
pub const TENSOR_SCALE: f32 = 1.0 / 1024.0;

/// The error of encoding, as sums that add up over a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Sum of the squares of `decoded - value`.
    pub squared_error: f64,
    /// Sum of the squares of the values.
    pub squared_norm: f64,
}

impl ErrorSums {
    /// The error relative to the values, `sqrt(squared_error / squared_norm)`; 0 if there is no
    /// error.
    pub fn relative(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squared_norm).sqrt() }
    }

    /// Sums over values in units of the tensor scale, as sums over the values.
    fn scaled(self, tensor_scale: f32) -> Self {
        let square = f64::from(tensor_scale) * f64::from(tensor_scale);
        Self { squared_error: self.squared_error * square, squared_norm: self.squared_norm * square }
    }
}

impl Add for ErrorSums {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for ErrorSums {
    fn add_assign(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
    }
}

/// An fp16 number would have become infinite, or an input is not finite.
///
/// A larger tensor scale helps if [`largest`](Self::largest) is finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleOverflow {
    /// The largest magnitude in the group that could not be encoded; infinite or NaN if an input
    /// was.
    pub largest: f32,
}

impl fmt::Display for ScaleOverflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.largest.is_finite() {
            write!(f, "a weight of {:e} is too large for the tensor scale", self.largest)
        } else {
            f.write_str("a weight is not finite")
        }
    }
}

impl core::error::Error for ScaleOverflow {}

/// The encoders of one level of instructions.
#[derive(Clone, Copy)]
pub(crate) struct GroupEncoders {
    pub(crate) int8: EncodeGroupFn,
    pub(crate) int4: EncodeGroupFn,
    pub(crate) int4n: EncodeWeightedGroupFn,
}

/// As [`Kernels::encode_block_row`](crate::Kernels::encode_block_row).
pub(crate) fn encode_block_row(
    encoders: GroupEncoders,
    dtype: DType,
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    tensor_scale: f32,
    out: &mut [u8],
) -> Result<ErrorSums, ScaleOverflow> {
    assert!(cols > 0 && rows.len().is_multiple_of(cols), "{} values are not rows of {cols}", rows.len());
    let n_rows = rows.len() / cols;
    assert!((1..=ROW_INTERLEAVE).contains(&n_rows), "{n_rows} rows do not make a block row");
    let expected = matrix_bytes(dtype, ROW_INTERLEAVE, cols);
    assert!(expected == Some(out.len()), "{} bytes of output, expected {expected:?}", out.len());
    check_scale(tensor_scale);
    check_importance(importance, cols);
    let block_row = BlockRow { rows, cols };
    let groups = Groups { encoders, dtype, importance, inverse_scale: 1.0 / tensor_scale };
    let sums = match dtype {
        DType::F32 => block_row.float::<4>(groups.inverse_scale, out, group::encode_f32),
        DType::F16 => block_row.float::<2>(groups.inverse_scale, out, group::encode_f16),
        DType::Int8 | DType::Int4 | DType::Int4n => block_row.quantized(out, groups),
    }?;
    Ok(sums.scaled(tensor_scale))
}

/// As [`Kernels::encode_record`](crate::Kernels::encode_record).
pub(crate) fn encode_record(
    encoders: GroupEncoders,
    dtype: DType,
    values: &[f32],
    importance: Option<&[f32]>,
    tensor_scale: f32,
    out: &mut [u8],
) -> Result<ErrorSums, ScaleOverflow> {
    let expected = record_bytes(dtype, values.len());
    assert!(expected == Some(out.len()), "{} bytes of output, expected {expected:?}", out.len());
    check_scale(tensor_scale);
    check_importance(importance, values.len());
    let inverse_scale = 1.0 / tensor_scale;
    let groups = Groups { encoders, dtype, importance, inverse_scale };
    let sums = match dtype {
        DType::F32 => float_record::<4>(values, inverse_scale, out, group::encode_f32),
        DType::F16 => float_record::<2>(values, inverse_scale, out, group::encode_f16),
        DType::Int8 | DType::Int4 | DType::Int4n => quantized_record(values, out, groups),
    }?;
    Ok(sums.scaled(tensor_scale))
}

fn check_scale(scale: f32) {
    let power_of_two = scale.is_normal() && scale > 0.0 && scale.to_bits() & 0x007f_ffff == 0;
    assert!(power_of_two, "the tensor scale {scale} is not a positive power of two");
}

fn check_importance(importance: Option<&[f32]>, values: usize) {
    let found = importance.map_or(values, <[f32]>::len);
    assert!(found == values, "the importance of {found} of {values} values");
}

/// The encoding of groups of one type.
#[derive(Clone, Copy)]
struct Groups<'a> {
    encoders: GroupEncoders,
    dtype: DType,
    importance: Option<&'a [f32]>,
    inverse_scale: f32,
}

impl Groups<'_> {
    /// Encodes a group whose first value is number `first` of its row or record.
    fn encode(&self, values: &[f32], first: usize) -> Result<Group, ScaleOverflow> {
        let units = in_scale_units(values, self.inverse_scale);
        match self.dtype {
            DType::Int4n => {
                let importance = relative(self.importance.map(|all| &all[first..]), values.len());
                (self.encoders.int4n)(&units, &importance, values.len())
            }
            DType::Int8 => (self.encoders.int8)(&units),
            _ => (self.encoders.int4)(&units),
        }
    }
}

/// The importance of the first `len` values, divided by the largest one. Where there is none that is
/// a positive number, all are as important.
fn relative(importance: Option<&[f32]>, len: usize) -> [f32; GROUP_SIZE] {
    let largest = importance.map_or(0.0, |all| all[..len].iter().fold(0.0f32, |m, &i| m.max(i)));
    let mut out = [0.0; GROUP_SIZE];
    for (i, out) in out[..len].iter_mut().enumerate() {
        *out = match importance {
            Some(all) if largest.is_normal() => (all[i] / largest).max(0.0),
            _ => 1.0,
        };
    }
    out
}

/// Up to 16 rows on their way into one block row.
struct BlockRow<'a> {
    rows: &'a [f32],
    cols: usize,
}

impl BlockRow<'_> {
    fn float<const BYTES: usize>(
        &self,
        inverse_scale: f32,
        out: &mut [u8],
        encode: impl Fn(f32) -> Result<([u8; BYTES], ErrorSums), ScaleOverflow>,
    ) -> Result<ErrorSums, ScaleOverflow> {
        out.fill(0);
        let mut sums = ErrorSums::default();
        let (out, _) = out.as_chunks_mut::<BYTES>();
        for (r, row) in self.rows.chunks_exact(self.cols).enumerate() {
            for (&value, column) in row.iter().zip(out.chunks_exact_mut(ROW_INTERLEAVE)) {
                let (bytes, sum) = encode(value * inverse_scale)?;
                column[r] = bytes;
                sums += sum;
            }
        }
        Ok(sums)
    }

    fn quantized(&self, out: &mut [u8], groups: Groups<'_>) -> Result<ErrorSums, ScaleOverflow> {
        let dtype = groups.dtype;
        let mut sums = ErrorSums::default();
        for (i, block) in out.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            clear_block(dtype, block);
            for (r, row) in self.rows.chunks_exact(self.cols).enumerate() {
                let columns = &row[K_BLOCK * i..self.cols.min(K_BLOCK * (i + 1))];
                for (g, values) in columns.chunks(GROUP_SIZE).enumerate() {
                    let group = groups.encode(values, K_BLOCK * i + GROUP_SIZE * g)?;
                    store_group(dtype, block, g, r, &group);
                    sums += group.sums;
                }
            }
        }
        Ok(sums)
    }
}

/// Makes a block row of Int8 of codes: 1 to 16 rows of `cols` codes, row-major, all with scale 1.
///
/// Products with it are those with the codes, as long as no sum reaches 2^24.
///
/// # Panics
/// If `codes` is not a whole number of rows up to 16, or `out` does not take
/// `matrix_bytes(Int8, 16, cols)` bytes.
pub fn store_codes(codes: &[i8], cols: usize, out: &mut [u8]) {
    assert!(cols > 0 && codes.len().is_multiple_of(cols), "{} codes are not rows of {cols}", codes.len());
    assert!(codes.len() / cols <= ROW_INTERLEAVE, "{} codes for a block row", codes.len());
    assert!(matrix_bytes(DType::Int8, ROW_INTERLEAVE, cols) == Some(out.len()), "{} bytes", out.len());
    let scale = fp16::from_f32(1.0);
    for (i, block) in out.chunks_exact_mut(DType::Int8.block_bytes()).enumerate() {
        clear_block(DType::Int8, block);
        for (r, row) in codes.chunks_exact(cols).enumerate() {
            let columns = &row[K_BLOCK * i..cols.min(K_BLOCK * (i + 1))];
            for (g, codes) in columns.chunks(GROUP_SIZE).enumerate() {
                let mut group = Group { scale, codes: [0; GROUP_SIZE], sums: ErrorSums::default() };
                group.codes[..codes.len()].copy_from_slice(codes);
                store_group(DType::Int8, block, g, r, &group);
            }
        }
    }
}

/// Makes a block padding.
fn clear_block(dtype: DType, block: &mut [u8]) {
    let (scales, codes) = block.split_at_mut(LINE_BYTES);
    scales.fill(0);
    codes.fill(if dtype == DType::Int8 { 0 } else { 0x88 });
}

/// Stores group `g` of row `r` in a block.
fn store_group(dtype: DType, block: &mut [u8], g: usize, r: usize, group: &Group) {
    let (scales, codes) = block.split_at_mut(LINE_BYTES);
    scales[2 * (ROW_INTERLEAVE * g + r)..][..2].copy_from_slice(&group.scale.to_le_bytes());
    let bytes = codes.len() / (K_BLOCK / GROUP_SIZE);
    store_row(dtype, &group.codes, &mut codes[bytes * g..][..bytes], r);
}

/// Stores the codes of row `r` in the lines of its group, 4 bytes in each.
fn store_row(dtype: DType, codes: &[i8; GROUP_SIZE], lines: &mut [u8], r: usize) {
    let (lines, _) = lines.as_chunks_mut::<LINE_BYTES>();
    if dtype == DType::Int8 {
        for (line, quad) in lines.iter_mut().zip(codes.as_chunks::<4>().0) {
            line[4 * r..][..4].copy_from_slice(&quad.map(|code| code as u8));
        }
    } else {
        for (line, pair) in lines.iter_mut().zip(codes.as_chunks::<8>().0) {
            for j in 0..4 {
                line[4 * r + j] = nibbles(pair[j], pair[4 + j]);
            }
        }
    }
}

/// Stores the codes of a group of a record.
fn store_run(dtype: DType, codes: &[i8; GROUP_SIZE], run: &mut [u8]) {
    for (i, byte) in run.iter_mut().enumerate() {
        let second = codes[(i + GROUP_SIZE / 2) % GROUP_SIZE];
        *byte = if dtype == DType::Int8 { codes[i] as u8 } else { nibbles(codes[i], second) };
    }
}

/// The byte of two nibbles, given less 8.
fn nibbles(low: i8, high: i8) -> u8 {
    (low + 8) as u8 | ((high + 8) as u8) << 4
}

/// The values divided by the tensor scale, padded with zeros.
fn in_scale_units(values: &[f32], inverse_scale: f32) -> [f32; GROUP_SIZE] {
    let mut units = [0.0; GROUP_SIZE];
    for (unit, value) in units.iter_mut().zip(values) {
        *unit = value * inverse_scale;
    }
    units
}

fn float_record<const BYTES: usize>(
    values: &[f32],
    inverse_scale: f32,
    out: &mut [u8],
    encode: impl Fn(f32) -> Result<([u8; BYTES], ErrorSums), ScaleOverflow>,
) -> Result<ErrorSums, ScaleOverflow> {
    out.fill(0);
    let mut sums = ErrorSums::default();
    for (value, out) in values.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let (bytes, sum) = encode(value * inverse_scale)?;
        *out = bytes;
        sums += sum;
    }
    Ok(sums)
}

fn quantized_record(values: &[f32], out: &mut [u8], groups: Groups<'_>) -> Result<ErrorSums, ScaleOverflow> {
    out.fill(0);
    let dtype = groups.dtype;
    let mut sums = ErrorSums::default();
    let run_bytes = if dtype == DType::Int8 { GROUP_SIZE } else { GROUP_SIZE / 2 };
    let (scales, codes) = out.split_at_mut(record_scale_bytes(dtype, values.len()));
    for (g, (values, run)) in values.chunks(GROUP_SIZE).zip(codes.chunks_exact_mut(run_bytes)).enumerate() {
        let group = groups.encode(values, GROUP_SIZE * g)?;
        scales[2 * g..][..2].copy_from_slice(&group.scale.to_le_bytes());
        store_run(dtype, &group.codes, run);
        sums += group.sums;
    }
    Ok(sums)
}

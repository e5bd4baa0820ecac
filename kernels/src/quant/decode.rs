//! Decoding value by value, straight from the description of the layouts.

use crate::fp16;
use crate::layout::{
    DType, GROUP_SIZE, INT4N_TABLE, K_BLOCK, LINE_BYTES, Matrix, ROW_INTERLEAVE, Records, int4n_shift,
    record_scale_bytes,
};
use crate::math::magnitude_bits;

/// Decodes row `row` of a matrix.
///
/// # Panics
/// If `row` is not in the matrix or `out` has another length than a row.
pub fn decode_matrix_row(w: &Matrix<'_>, row: usize, out: &mut [f32]) {
    assert!(row < w.rows(), "row {row} of {}", w.rows());
    assert!(out.len() == w.cols(), "output: {} elements, expected {}", out.len(), w.cols());
    let block_row = w.block_row(row / ROW_INTERLEAVE);
    let r = row % ROW_INTERLEAVE;
    for (block, out) in block_row.chunks_exact(w.dtype().block_bytes()).zip(out.chunks_mut(K_BLOCK)) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = block_weight(w.dtype(), block, r, k, w.scale());
        }
    }
}

/// The weight in row `r` and column `k` of a block.
fn block_weight(dtype: DType, block: &[u8], r: usize, k: usize, tensor_scale: f32) -> f32 {
    let (group, in_group) = (k / GROUP_SIZE, k % GROUP_SIZE);
    let scale = || fp16::read(block, ROW_INTERLEAVE * group + r) * tensor_scale;
    match dtype {
        DType::F32 => read_f32(block, ROW_INTERLEAVE * k + r) * tensor_scale,
        DType::F16 => fp16::read(block, ROW_INTERLEAVE * k + r) * tensor_scale,
        DType::Int8 => {
            let (line, j) = (k / 4, k % 4);
            f32::from(block[LINE_BYTES * (1 + line) + 4 * r + j] as i8) * scale()
        }
        DType::Int4 | DType::Int4n => {
            let (line, half, j) = (4 * group + in_group / 8, in_group % 8 / 4, k % 4);
            let nibble = block[LINE_BYTES * (1 + line) + 4 * r + j] >> (4 * half) & 15;
            code_of(dtype, nibble, fp16::read_bits(block, ROW_INTERLEAVE * group + r)) * scale()
        }
    }
}

/// Decodes record `index`.
///
/// # Panics
/// If `index` is no record or `out` has another length than a record.
pub fn decode_record(w: &Records<'_>, index: usize, out: &mut [f32]) {
    assert!(out.len() == w.record_len(), "output: {} elements, expected {}", out.len(), w.record_len());
    let record = w.record(index);
    let codes = &record[record_scale_bytes(w.dtype(), w.record_len())..];
    for (i, out) in out.iter_mut().enumerate() {
        let (group, in_group) = (i / GROUP_SIZE, i % GROUP_SIZE);
        let scale = || fp16::read(record, group) * w.scale();
        *out = match w.dtype() {
            DType::F32 => read_f32(record, i) * w.scale(),
            DType::F16 => fp16::read(record, i) * w.scale(),
            DType::Int8 => f32::from(codes[i] as i8) * scale(),
            DType::Int4 | DType::Int4n => {
                let nibble = codes[16 * group + in_group % 16] >> (4 * (in_group / 16)) & 15;
                code_of(w.dtype(), nibble, fp16::read_bits(record, group)) * scale()
            }
        };
    }
}

/// Raises `largest`, one number for each group of a record, to the largest magnitudes of the scales
/// in `w`. These are the [`bounds`](crate::layout::SparseScale::bounds) of its sparse products.
///
/// # Panics
/// If the records are not quantized or `largest` has another length.
pub fn largest_scales(w: &Records<'_>, largest: &mut [f32]) {
    let groups = w.record_len().div_ceil(GROUP_SIZE);
    assert!(w.dtype().is_quantized(), "{} records have no scales", w.dtype());
    assert!(largest.len() == groups, "output: {} elements, expected {groups}", largest.len());
    for record in w.data().chunks_exact(w.stride()) {
        for (g, largest) in largest.iter_mut().enumerate() {
            let bits = magnitude_bits(fp16::read(record, g)).max(magnitude_bits(*largest));
            *largest = f32::from_bits(bits);
        }
    }
}

/// The code of a nibble in a group with this scale.
fn code_of(dtype: DType, nibble: u8, scale: u16) -> f32 {
    let code = match dtype {
        DType::Int4n => i32::from(INT4N_TABLE[usize::from(nibble)]) + int4n_shift(scale),
        _ => i32::from(nibble) - 8,
    };
    code as f32
}

fn read_f32(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

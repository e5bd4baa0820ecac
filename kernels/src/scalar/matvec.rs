//! Products of interleaved matrices with a vector.

use crate::fp16;
use crate::layout::{
    Activation, DType, GROUP_SIZE, INT4N_TABLE, K_BLOCK, LINE_BYTES, Matrix, ROW_INTERLEAVE, int4n_shift,
};
use crate::math::Fma;

const ROWS: usize = ROW_INTERLEAVE;
const GROUPS: usize = K_BLOCK / GROUP_SIZE;

/// Fills `out` with the rows from `first_row` on, block row by block row.
#[inline(always)]
fn by_block_rows(out: &mut [f32], first_row: usize, rows: impl Fn(usize) -> [f32; ROWS]) {
    for (i, out) in out.chunks_mut(ROWS).enumerate() {
        let y = rows(first_row / ROWS + i);
        out.copy_from_slice(&y[..out.len()]);
    }
}

pub(crate) fn matvec_f32<F: Fma>(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    float_matvec::<F, 64>(out, w, first_row, x, |line, r| {
        f32::from_le_bytes([line[4 * r], line[4 * r + 1], line[4 * r + 2], line[4 * r + 3]])
    });
}

pub(crate) fn matvec_f16<F: Fma>(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    float_matvec::<F, 32>(out, w, first_row, x, |line, r| fp16::read(line, r));
}

/// `LINE` bytes hold one column of a block.
#[inline(always)]
fn float_matvec<F: Fma, const LINE: usize>(
    out: &mut [f32],
    w: &Matrix<'_>,
    first_row: usize,
    x: Activation<'_>,
    weight: impl Fn(&[u8; LINE], usize) -> f32,
) {
    by_block_rows(out, first_row, |i| {
        let (lines, _) = w.block_row(i).as_chunks::<LINE>();
        let mut acc = [0.0; ROWS];
        for (lines, x) in lines.chunks(GROUP_SIZE).zip(x.values.chunks(GROUP_SIZE)) {
            let mut partial = [0.0f32; ROWS];
            for (line, &x) in lines.iter().zip(x) {
                for (r, partial) in partial.iter_mut().enumerate() {
                    *partial = F::fma(weight(line, r), x, *partial);
                }
            }
            for (acc, partial) in acc.iter_mut().zip(partial) {
                *acc += partial;
            }
        }
        acc.map(|acc| acc * w.scale())
    });
}

pub(crate) fn matvec_int8<F: Fma>(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    const BLOCK: usize = DType::Int8.block_bytes();
    quantized_matvec::<F, BLOCK>(out, w, first_row, x, |_, lines, codes, _| int8_dot(lines, codes));
}

pub(crate) fn matvec_int4<F: Fma>(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    const BLOCK: usize = DType::Int4.block_bytes();
    quantized_matvec::<F, BLOCK>(out, w, first_row, x, |_, lines, codes, sum| {
        int4_dot(lines, codes, i16::from).map(|dot| dot.wrapping_sub(sum.wrapping_mul(8)))
    });
}

pub(crate) fn matvec_int4n<F: Fma>(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    const BLOCK: usize = DType::Int4n.block_bytes();
    quantized_matvec::<F, BLOCK>(out, w, first_row, x, |scales, lines, codes, sum| {
        let mut dots = int4_dot(lines, codes, |nibble| i16::from(INT4N_TABLE[usize::from(nibble)]));
        for (r, dot) in dots.iter_mut().enumerate() {
            *dot = dot.wrapping_add(int4n_shift(fp16::read_bits(scales, r)).wrapping_mul(sum));
        }
        dots
    });
}

#[inline(always)]
fn quantized_matvec<F: Fma, const BLOCK: usize>(
    out: &mut [f32],
    w: &Matrix<'_>,
    first_row: usize,
    x: Activation<'_>,
    dot: impl Fn(&[u8], &[[u8; LINE_BYTES]], &[i8; GROUP_SIZE], i32) -> [i32; ROWS],
) {
    let (codes, _) = x.codes.as_chunks::<GROUP_SIZE>();
    by_block_rows(out, first_row, |i| {
        let (blocks, _) = w.block_row(i).as_chunks::<BLOCK>();
        let mut acc = [0.0f32; ROWS];
        for (i, block) in blocks.iter().enumerate() {
            let (weight_scales, lines) = block.split_at(LINE_BYTES);
            let (lines, _) = lines.as_chunks::<LINE_BYTES>();
            let weight_scales = weight_scales.chunks(2 * ROWS);
            for (g, (scales, lines)) in weight_scales.zip(lines.chunks(lines.len() / GROUPS)).enumerate() {
                let g = GROUPS * i + g;
                let dot = dot(scales, lines, &codes[g], x.sums[g]);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let scale = fp16::read(scales, r) * x.scales[g];
                    *acc = F::fma(scale, dot[r] as f32, *acc);
                }
            }
        }
        acc.map(|acc| acc * w.scale())
    });
}

/// Products of the codes of one group, `[line][row][4 columns]`, with the codes of the vector.
#[inline(always)]
fn int8_dot(lines: &[[u8; LINE_BYTES]], codes: &[i8; GROUP_SIZE]) -> [i32; ROWS] {
    let mut sums = [0i32; LINE_BYTES];
    let (quads, _) = codes.as_chunks::<4>();
    for (line, quad) in lines.iter().zip(quads) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += i32::from(i16::from(line[i] as i8) * i16::from(quad[i % 4]));
        }
    }
    add_quads(&sums)
}

/// The same for nibbles, each of which `weight` gives a number of at most 32 in magnitude. A 16-bit
/// lane sums 8 products of at most 32 * 127.
#[inline(always)]
fn int4_dot(lines: &[[u8; LINE_BYTES]], codes: &[i8; GROUP_SIZE], weight: impl Fn(u8) -> i16) -> [i32; ROWS] {
    let mut sums = [0i16; LINE_BYTES];
    let (pairs, _) = codes.as_chunks::<8>();
    for (line, pair) in lines.iter().zip(pairs) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(weight(line[i] & 15) * i16::from(pair[i % 4]));
            *sum = sum.wrapping_add(weight(line[i] >> 4) * i16::from(pair[4 + i % 4]));
        }
    }
    add_quads(&sums.map(i32::from))
}

#[inline(always)]
fn add_quads(sums: &[i32; LINE_BYTES]) -> [i32; ROWS] {
    let (quads, _) = sums.as_chunks::<4>();
    core::array::from_fn(|r| quads[r].iter().sum())
}

//! Products of quantized matrices and records with dot products of bytes.

use core::arch::aarch64::*;

use super::int::{Rows, add_group, finish, groups, int_matvec, load_line, nibbles, row_scales};
use super::memory::load_codes;
use super::shim::{prefetch, sdot_rows};
use super::streams::BlockStream;
use crate::generic::{Group, Int4Lines, Int8Lines, Parts};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

int_matvec!("neon,dotprod", matvec_int4, DType::Int4, Int4Lines, int4_dot);
int_matvec!("neon,dotprod", matvec_int8, DType::Int8, Int8Lines, int8_dot);

/// The 32 codes of a group.
#[target_feature(enable = "neon")]
#[inline]
fn load_group(x: &Group<'_>) -> [int8x16_t; 2] {
    let (halves, _) = x.codes.as_flattened().as_chunks::<16>();
    [load_codes(&halves[0]), load_codes(&halves[1])]
}

/// Sums of nibble times code. They start as -8 times the sum of the codes. Each line is loaded
/// before the line ahead of it is multiplied, as small cores wait for loads.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4_dot(lines: &Int4Lines, x: &Group<'_>, later: &Int4Lines) -> Rows<int32x4_t> {
    let ([a, b], later) = (load_group(x), later.as_flattened());
    let sums = [vdupq_n_s32(x.sum.wrapping_mul(-8)); 4];
    let (first, second) = (load_line(&lines[0]), load_line(&lines[1]));
    let sums = int4_line::<0, 0, 1>(sums, first, a, later);
    let third = load_line(&lines[2]);
    let sums = int4_line::<1, 2, 3>(sums, second, a, later);
    let fourth = load_line(&lines[3]);
    let sums = int4_line::<2, 0, 1>(sums, third, b, later);
    int4_line::<3, 2, 3>(sums, fourth, b, later)
}

/// Adds the products of a line's low nibbles with quad `LOW` of `x`, and of its high ones with quad
/// `HIGH`. Prefetches line `LINE` of `later`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int4_line<const LINE: usize, const LOW: usize, const HIGH: usize>(
    sums: Rows<int32x4_t>,
    line: Rows<uint8x16_t>,
    x: int8x16_t,
    later: &[u8],
) -> Rows<int32x4_t> {
    prefetch::<LINE>(later);
    let [a, b, c, d] = line;
    let ([a, a_high], [b, b_high]) = (nibbles(a), nibbles(b));
    let ([c, c_high], [d, d_high]) = (nibbles(c), nibbles(d));
    let sums = sdot_rows::<LOW>(sums, [a, b, c, d], x);
    sdot_rows::<HIGH>(sums, [a_high, b_high, c_high, d_high], x)
}

/// Sums of code times code.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int8_dot(lines: &Int8Lines, x: &Group<'_>, later: &Int8Lines) -> Rows<int32x4_t> {
    let ([a, b], later) = (load_group(x), later.as_flattened());
    let sums = [vdupq_n_s32(0); 4];
    let sums = int8_line::<0, 0>(sums, &lines[0], a, later);
    let sums = int8_line::<1, 1>(sums, &lines[1], a, later);
    let sums = int8_line::<2, 2>(sums, &lines[2], a, later);
    let sums = int8_line::<3, 3>(sums, &lines[3], a, later);
    let sums = int8_line::<4, 0>(sums, &lines[4], b, later);
    let sums = int8_line::<5, 1>(sums, &lines[5], b, later);
    let sums = int8_line::<6, 2>(sums, &lines[6], b, later);
    int8_line::<7, 3>(sums, &lines[7], b, later)
}

/// Adds the products of a line with quad `QUAD` of `x`. Prefetches line `LINE` of `later`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn int8_line<const LINE: usize, const QUAD: usize>(
    sums: Rows<int32x4_t>,
    line: &[u8; LINE_BYTES],
    x: int8x16_t,
    later: &[u8],
) -> Rows<int32x4_t> {
    let [a, b, c, d] = load_line(line);
    prefetch::<LINE>(later);
    let weights =
        [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)];
    sdot_rows::<QUAD>(sums, weights, x)
}

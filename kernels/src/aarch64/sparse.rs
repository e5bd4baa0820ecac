//! Products of quantized records with a sparse vector.
//!
//! ```text
//! accumulate, for each block of up to 128 output groups
//!     for each set of 8 entries j
//!         c[j][g] of all groups                      16 bits each, see `sparse_tile`
//!         for each group g
//!             load the sums of its 32 outputs
//!             prefetch a share of the next set's codes
//!             for each record of the set
//!                 sums += codes * c[j][g]            widened to 16 bits, added in 32
//!             store the sums
//! finish
//!     add up the partial sums of all threads, subtract the codes' offset, scale
//! ```
//!
//! Sums are integers, so their order is free (`docs/DESIGN.md`, Exact sparsity in integers). A set
//! has 8 records, so that sums are loaded and stored once for 8 of them, and so that the
//! coefficients of a group fill one register, whose lanes the multiply-adds take by number.

use core::arch::aarch64::*;

use super::int::nibbles;
use super::int4n;
use super::memory::{load, load_i16, load_i32, store_f32, store_i32};
use super::shim::prefetch;
use super::sparse_tile::{BLOCK_GROUPS, OutputBlock, SET_SIZE};
use crate::layout::{GROUP_SIZE, LINE_BYTES, Records, Sparse, SparseScale, sparse_sums};
use crate::scalar::sparse::{LARGEST_INT4N, cmax, split_sums};

/// The sums of a group's outputs.
type Sums = [int32x4_t; GROUP_SIZE / 4];

#[target_feature(enable = "neon")]
#[inline]
fn load_sums(outputs: &[i32; GROUP_SIZE]) -> Sums {
    let mut sums = [vdupq_n_s32(0); 8];
    for (sum, outputs) in sums.iter_mut().zip(outputs.as_chunks().0) {
        *sum = load_i32(outputs);
    }
    sums
}

#[target_feature(enable = "neon")]
#[inline]
fn store_sums(outputs: &mut [i32; GROUP_SIZE], sums: Sums) {
    for (outputs, sum) in outputs.as_chunks_mut().0.iter_mut().zip(sums) {
        store_i32(outputs, sum);
    }
}

#[target_feature(enable = "neon")]
pub(super) fn finish_int8(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, 127), 0);
}

#[target_feature(enable = "neon")]
pub(super) fn finish_int4(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, 15), 8);
}

#[target_feature(enable = "neon")]
pub(super) fn finish_int4n(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
    finish(out, w, sums, scale, cmax(scale.active, LARGEST_INT4N), -1);
}

/// The sums of outputs have `offset` times the group's sum too much.
#[target_feature(enable = "neon")]
fn finish(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>, cmax: f32, offset: i32) {
    let each = sparse_sums(w.record_len());
    for (g, (out, &bound)) in out.chunks_mut(GROUP_SIZE).zip(scale.bounds).enumerate() {
        let (mut totals, mut coefficients) = ([vdupq_n_s32(0); 8], 0i32);
        for part in sums.chunks_exact(each) {
            let (outputs, coefficient_sums) = part.split_at(each / (GROUP_SIZE + 1) * GROUP_SIZE);
            for (total, sum) in totals.iter_mut().zip(load_sums(&outputs.as_chunks().0[g])) {
                *total = vaddq_s32(*total, sum);
            }
            coefficients = coefficients.wrapping_add(coefficient_sums[g]);
        }
        let correction = vdupq_n_s32(coefficients.wrapping_mul(offset));
        let factor = ((scale.largest * bound) / cmax) * w.scale();
        let mut values = [0.0; GROUP_SIZE];
        for (values, total) in values.as_chunks_mut().0.iter_mut().zip(totals) {
            store_f32(values, vmulq_n_f32(vcvtq_f32_s32(vsubq_s32(total, correction)), factor));
        }
        out.copy_from_slice(&values[..out.len()]);
    }
}

/// Defines the product `$accumulate`. `$add(sums, codes, c)` adds the products of a group of each
/// record with its coefficient. If `$shifted`, groups have shifts that the codes lack.
macro_rules! accumulate {
    ($accumulate:ident, $run:literal, $largest_code:expr, $shifted:literal, $add:ident) => {
        #[target_feature(enable = "neon")]
        pub(super) fn $accumulate(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
            const GROUPS_IN_LINE: usize = LINE_BYTES / $run;
            let (outputs, coefficient_sums) = split_sums(sums);
            let (coefficient_sums, _) = coefficient_sums.as_chunks_mut::<8>();
            let mut coefficients = [[0; SET_SIZE]; BLOCK_GROUPS];
            let blocks = outputs.chunks_mut(BLOCK_GROUPS).zip(coefficient_sums.chunks_mut(BLOCK_GROUPS / 8));
            for (i, (outputs, sums)) in blocks.enumerate() {
                let block = OutputBlock::new(w, x, scale, i * BLOCK_GROUPS, $largest_code);
                for s in 0..block.sets() {
                    block.coefficients::<$shifted>(s, &mut coefficients, sums);
                    let (set, next) = (block.codes::<$run>(s), block.codes::<$run>(s + 1));
                    for (g, (outputs, c)) in outputs[..block.groups].iter_mut().zip(&coefficients).enumerate()
                    {
                        // Every line once, a few at each group.
                        let share = SET_SIZE / GROUPS_IN_LINE;
                        for next in &next[g % GROUPS_IN_LINE * share..][..share] {
                            prefetch::<0>(&next[g / GROUPS_IN_LINE * GROUPS_IN_LINE]);
                        }
                        let mut codes = [&[0; $run]; SET_SIZE];
                        codes.iter_mut().zip(&set).for_each(|(codes, set)| *codes = &set[g]);
                        store_sums(outputs, $add(load_sums(outputs), codes, c));
                    }
                }
            }
        }
    };
}

accumulate!(accumulate_int4, 16, 15, false, add_int4);
accumulate!(accumulate_int4n, 16, LARGEST_INT4N, true, add_int4n);
accumulate!(accumulate_int8, 32, 127, false, add_int8);

/// Defines `$add`, which adds the products of a group of each record by `$add_record`.
macro_rules! add_set {
    ($add:ident, $run:literal, $add_record:ident) => {
        #[target_feature(enable = "neon")]
        #[inline]
        fn $add(sums: Sums, codes: [&[u8; $run]; SET_SIZE], c: &[i16; SET_SIZE]) -> Sums {
            let c = load_i16(c);
            let sums = $add_record::<0>(sums, codes[0], c);
            let sums = $add_record::<1>(sums, codes[1], c);
            let sums = $add_record::<2>(sums, codes[2], c);
            let sums = $add_record::<3>(sums, codes[3], c);
            let sums = $add_record::<4>(sums, codes[4], c);
            let sums = $add_record::<5>(sums, codes[5], c);
            let sums = $add_record::<6>(sums, codes[6], c);
            $add_record::<7>(sums, codes[7], c)
        }
    };
}

add_set!(add_int4, 16, add_nibbles);
add_set!(add_int4n, 16, add_int4n_codes);
add_set!(add_int8, 32, add_bytes);

#[target_feature(enable = "neon")]
#[inline]
fn add_nibbles<const RECORD: i32>(sums: Sums, codes: &[u8; 16], c: int16x8_t) -> Sums {
    add_codes::<RECORD>(sums, nibbles(load(codes)), c)
}

#[target_feature(enable = "neon")]
#[inline]
fn add_int4n_codes<const RECORD: i32>(sums: Sums, codes: &[u8; 16], c: int16x8_t) -> Sums {
    add_codes::<RECORD>(sums, int4n::codes(load(codes)), c)
}

#[target_feature(enable = "neon")]
#[inline]
fn add_bytes<const RECORD: i32>(sums: Sums, codes: &[u8; 32], c: int16x8_t) -> Sums {
    let (halves, _) = codes.as_chunks::<16>();
    let codes = [vreinterpretq_s8_u8(load(&halves[0])), vreinterpretq_s8_u8(load(&halves[1]))];
    add_codes::<RECORD>(sums, codes, c)
}

/// Adds lane `RECORD` of `c` times the codes.
#[target_feature(enable = "neon")]
#[inline]
fn add_codes<const RECORD: i32>(sums: Sums, codes: [int8x16_t; 2], c: int16x8_t) -> Sums {
    let mut sums = sums;
    for (sums, codes) in sums.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
        let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
        sums[0] = vmlal_laneq_s16::<RECORD>(sums[0], vget_low_s16(low), c);
        sums[1] = vmlal_high_laneq_s16::<RECORD>(sums[1], low, c);
        sums[2] = vmlal_laneq_s16::<RECORD>(sums[2], vget_low_s16(high), c);
        sums[3] = vmlal_high_laneq_s16::<RECORD>(sums[3], high, c);
    }
    sums
}

//! Products of single records with a dense vector.

use core::arch::aarch64::*;

use super::int::{multiply_add, nibbles};
use super::memory::{load, load_codes, load_f16, load_f32, load_i32, store_f32};
use super::shim::{add_pairs, prefetch_all, sdot};
use crate::layout::{Activation, DType, GROUP_SIZE, Records, record_scale_bytes};
use crate::scalar::add_groups;
use crate::scalar::record::{DOT_LANES, dot_of_lanes};

/// Distance of the prefetch, in records.
const RECORDS_AHEAD: usize = 4;

/// A set of 8 groups, four in each register: a lane for each group.
type Lanes<T> = [T; DOT_LANES / 4];

/// Defines the product `$record_dots` of a level. `$dots(runs, codes, sums)` adds the products of
/// four groups to `sums`, which has a lane for each group.
macro_rules! record_dots {
    ($features:literal, $record_dots:ident, $record_dot:ident, $dots:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $record_dots(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
            for (i, out) in out.iter_mut().enumerate() {
                if let Some(&next) = indices.get(i + RECORDS_AHEAD) {
                    prefetch_all(w.record(next as usize));
                }
                *out = $record_dot(w, w.record(indices[i] as usize), x) * w.scale();
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn $record_dot(w: &Records<'_>, record: &[u8], x: Activation<'_>) -> f32 {
            let (scales, runs) = record.split_at(record_scale_bytes(DType::Int4, w.record_len()));
            // Whole sets of groups. The groups that are left have scalar code.
            let sets = w.record_len().div_ceil(GROUP_SIZE) / DOT_LANES;
            let (scales, _) = scales.as_chunks::<{ 2 * DOT_LANES }>();
            let (runs, _) = runs.as_chunks::<16>().0.as_chunks::<4>().0.as_chunks::<2>();
            let (codes, _) = x.codes.as_chunks::<GROUP_SIZE>().0.as_chunks::<4>().0.as_chunks::<2>();
            let x_scales = x.scales.as_chunks::<4>().0.as_chunks::<2>().0;
            let x_sums = x.sums.as_chunks::<4>().0.as_chunks::<2>().0;
            let mut acc: Lanes<_> = [vdupq_n_f32(0.0); 2];
            for i in 0..sets {
                let scales = load_f16(&scales[i]);
                for (half, acc) in acc.iter_mut().enumerate() {
                    let correction = vshlq_n_s32::<3>(vnegq_s32(load_i32(&x_sums[i][half])));
                    let dots = $dots(&runs[i][half], &codes[i][half], correction);
                    let scale = vmulq_f32(scales[half], load_f32(&x_scales[i][half]));
                    *acc = vfmaq_f32(*acc, scale, vcvtq_f32_s32(dots));
                }
            }
            let mut lanes = [0.0; DOT_LANES];
            for (lanes, acc) in lanes.as_chunks_mut().0.iter_mut().zip(acc) {
                store_f32(lanes, acc);
            }
            add_groups(&mut lanes, w, record, DOT_LANES * sets, x);
            dot_of_lanes(lanes)
        }
    };
}

record_dots!("neon", record_dots, record_dot, dots);
record_dots!("neon,dotprod", record_dots_dotprod, record_dot_dotprod, dots_dotprod);

/// The nibbles and the codes of a group. Low nibbles belong to the first half of the codes.
#[target_feature(enable = "neon")]
#[inline]
fn load_group(run: &[u8; 16], codes: &[i8; GROUP_SIZE]) -> [[int8x16_t; 2]; 2] {
    let (codes, _) = codes.as_chunks::<16>();
    [nibbles(load(run)), [load_codes(&codes[0]), load_codes(&codes[1])]]
}

/// Sums of 16 products in 16 bits reach 16 * 15 * 127 = 30480.
#[target_feature(enable = "neon")]
#[inline]
fn dots(runs: &[[u8; 16]; 4], codes: &[[i8; GROUP_SIZE]; 4], sums: int32x4_t) -> int32x4_t {
    let mut products = [vdupq_n_s16(0); 4];
    for ((product, run), codes) in products.iter_mut().zip(runs).zip(codes) {
        let [[low, high], codes] = load_group(run, codes);
        let first = [vmull_s8(vget_low_s8(low), vget_low_s8(codes[0])), vmull_high_s8(low, codes[0])];
        let [a, b] = multiply_add(first, high, codes[1]);
        *product = vaddq_s16(a, b);
    }
    let [a, b, c, d] = products;
    add_pairs(sums, vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d)))
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dots_dotprod(runs: &[[u8; 16]; 4], codes: &[[i8; GROUP_SIZE]; 4], sums: int32x4_t) -> int32x4_t {
    let mut products = [vdupq_n_s32(0); 4];
    for ((product, run), codes) in products.iter_mut().zip(runs).zip(codes) {
        let [[low, high], codes] = load_group(run, codes);
        *product = sdot(sdot(*product, low, codes[0]), high, codes[1]);
    }
    let [a, b, c, d] = products;
    vaddq_s32(sums, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)))
}

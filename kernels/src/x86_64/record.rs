//! Products of single records with a dense vector.
//!
//! ```text
//! for each pair of records                           rows of the head's second plane, in any order
//!     for each set of 8 groups
//!         prefetch a part of the pair that is RECORDS_AHEAD ahead
//!         put the vector's codes in order            once for both records
//!         dots = nibbles * codes                     8 integer sums, a lane for each group
//!         acc = fma(scales, dots, acc)
//!     the groups that are left, and the sum of the lanes
//! ```
//!
//! A register of bytes has the low nibbles of several groups, then the high ones. The codes of the
//! vector have to be in this order too: those of low nibbles apart from those of high ones. Two
//! records share that work.

use core::arch::x86_64::*;
use core::slice::Chunks;

use super::memory::{load, load_codes, load_f16, load_f32, load_i32, prefetch, store_f32};
use crate::layout::{Activation, DType, GROUP_SIZE, LINE_BYTES, Records, record_scale_bytes};
pub(super) use crate::scalar::add_groups;
use crate::scalar::record::DOT_LANES;
pub(super) use crate::scalar::record::dot_of_lanes;

/// Distance of the prefetch, in records.
const RECORDS_AHEAD: usize = 12;

/// Lane of each record: `[record][group mod 8]`.
pub(super) type Lanes = [[f32; DOT_LANES]; 2];

/// The whole sets of groups of two records and a vector.
pub(super) struct Sets<'a> {
    /// fp16 scales of each record.
    pub(super) scales: [&'a [[u8; 2 * DOT_LANES]]; 2],
    /// Nibbles of each record.
    pub(super) runs: [&'a [[u8; 16 * DOT_LANES]]; 2],
    pub(super) codes: &'a [[[i8; GROUP_SIZE]; DOT_LANES]],
    pub(super) x_scales: &'a [[f32; DOT_LANES]],
    pub(super) x_sums: &'a [[i32; DOT_LANES]],
}

impl<'a> Sets<'a> {
    pub(super) fn new(w: &Records<'a>, records: [&'a [u8]; 2], x: Activation<'a>) -> Self {
        let start = record_scale_bytes(DType::Int4, w.record_len());
        Self {
            scales: records.map(|record| record[..start].as_chunks().0),
            runs: records.map(|record| record[start..].as_chunks().0),
            codes: x.codes.as_chunks().0.as_chunks().0,
            x_scales: x.scales.as_chunks().0,
            x_sums: x.sums.as_chunks().0,
        }
    }

    /// The number of sets in records of `n` values.
    pub(super) fn count(n: usize) -> usize {
        n.div_ceil(GROUP_SIZE) / DOT_LANES
    }
}

/// The pair of records to prefetch during the one at entry `i` of `indices`: [`RECORDS_AHEAD`]
/// behind it, or at the end the entry's own.
#[inline]
pub(super) fn later<'a>(w: &Records<'a>, indices: &[u32], i: usize) -> [&'a [u8]; 2] {
    [i, i + 1].map(|i| {
        let index = indices.get(i + RECORDS_AHEAD).or(indices.get(i)).unwrap_or(&indices[0]);
        w.record(*index as usize)
    })
}

/// Prefetches two records part by part. Memory serves prefetches better if they come between other
/// work.
pub(super) struct PrefetchInParts<'a>([Chunks<'a, u8>; 2]);

impl<'a> PrefetchInParts<'a> {
    /// In `parts` parts of whole cache lines.
    #[inline]
    pub(super) fn new(records: [&'a [u8]; 2], parts: usize) -> Self {
        let part = records[0].len().div_ceil(parts.max(1)).next_multiple_of(LINE_BYTES);
        Self(records.map(|record| record.chunks(part)))
    }

    /// Prefetches the next part, if there is one.
    #[inline]
    pub(super) fn next(&mut self) {
        self.0.iter_mut().filter_map(Chunks::next).for_each(prefetch);
    }
}

/// Defines `$name`, given `$pair`, which multiplies the whole sets of two records and prefetches
/// later ones meanwhile. The groups that are left have scalar code.
macro_rules! record_dots {
    ($features:literal, $name:ident, $pair:expr) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
            let sets = Sets::count(w.record_len());
            for (i, (out, pair)) in out.chunks_mut(2).zip(indices.chunks(2)).enumerate() {
                let later = later(w, indices, 2 * i);
                let records = [pair[0], pair[pair.len() - 1]].map(|index| w.record(index as usize));
                let lanes = $pair(&Sets::new(w, records, x), PrefetchInParts::new(later, sets), sets);
                for ((out, record), mut lanes) in out.iter_mut().zip(records).zip(lanes) {
                    add_groups(&mut lanes, w, record, DOT_LANES * sets, x);
                    *out = dot_of_lanes(lanes) * w.scale();
                }
            }
        }
    };
}
pub(super) use record_dots;

/// Defines `$pair` for registers of 256 bits, given `$dot`: sums of four products each, of the
/// nibbles of two groups with codes.
macro_rules! pair_256 {
    ($features:literal, $pair:ident, $dot:ident) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $pair(of: &Sets<'_>, mut prefetches: PrefetchInParts<'_>, sets: usize) -> Lanes {
            let mut acc = [_mm256_setzero_ps(); 2];
            for i in 0..sets {
                prefetches.next();
                let mut dots = [[_mm256_setzero_si256(); 4]; 2];
                for (g, [first, second]) in of.codes[i].as_chunks::<2>().0.iter().enumerate() {
                    let (first, second) = (load_codes(first), load_codes(second));
                    let low = _mm256_permute2x128_si256::<0x20>(first, second);
                    let high = _mm256_permute2x128_si256::<0x31>(first, second);
                    for (dots, runs) in dots.iter_mut().zip(of.runs) {
                        dots[g] = $dot(&runs[i].as_chunks::<32>().0[g], low, high);
                    }
                }
                let correction = _mm256_slli_epi32::<3>(load_i32(&of.x_sums[i]));
                let x_scales = load_f32(&of.x_scales[i]);
                for ((acc, dots), scales) in acc.iter_mut().zip(dots).zip(of.scales) {
                    let dots = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums_of_fours(dots), correction));
                    *acc = _mm256_fmadd_ps(_mm256_mul_ps(load_f16(&scales[i]), x_scales), dots, *acc);
                }
            }
            let mut lanes = Lanes::default();
            lanes.iter_mut().zip(acc).for_each(|(lanes, acc)| store_f32(lanes, acc));
            lanes
        }
    };
}

record_dots!("avx2,fma,f16c", record_dots_avx2, pair_avx2);
pair_256!("avx2,fma,f16c", pair_avx2, dot_avx2);

record_dots!("avx2,fma,f16c,avxvnni", record_dots_avx_vnni, pair_avx_vnni);
pair_256!("avx2,fma,f16c,avxvnni", pair_avx_vnni, dot_avx_vnni);

/// 16-bit sums reach 4 * 15 * 127.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_avx2(run: &[u8; 32], low: __m256i, high: __m256i) -> __m256i {
    let (low_nibbles, high_nibbles) = nibbles(load(run));
    let low = _mm256_maddubs_epi16(low_nibbles, low);
    let high = _mm256_maddubs_epi16(high_nibbles, high);
    _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1))
}

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dot_avx_vnni(run: &[u8; 32], low: __m256i, high: __m256i) -> __m256i {
    let (low_nibbles, high_nibbles) = nibbles(load(run));
    let sums = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), low_nibbles, low);
    _mm256_dpbusd_avx_epi32(sums, high_nibbles, high)
}

#[target_feature(enable = "avx2")]
#[inline]
fn nibbles(bytes: __m256i) -> (__m256i, __m256i) {
    let low = _mm256_set1_epi8(15);
    (_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low))
}

/// The sum of every four lanes: groups 0 to 7 in order. The halves of the first register have
/// groups 0 and 1, those of the second 2 and 3, and so on.
#[target_feature(enable = "avx2")]
#[inline]
fn sums_of_fours([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let halves = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (ab, cd) = (halves(a, b), halves(c, d));
    let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

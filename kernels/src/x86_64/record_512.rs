//! Products of single records with a dense vector, in registers of 512 bits. The steps are those of
//! `record`; a register has the lanes of both records.

use core::arch::x86_64::*;

use super::memory::{load_512, load_codes_512, load_f32, load_half, load_i32, store_f32};
use super::record::{Lanes, PrefetchInParts, Sets, add_groups, dot_of_lanes, later, record_dots};
use crate::layout::{Activation, GROUP_SIZE, Records};
use crate::scalar::record::DOT_LANES;

record_dots!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", record_dots, pair);

/// The lanes of the first record are in the low half of a register, those of the second in the high
/// half.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
fn pair(of: &Sets<'_>, mut prefetches: PrefetchInParts<'_>, sets: usize) -> Lanes {
    let mut acc = _mm512_setzero_ps();
    for i in 0..sets {
        prefetches.next();
        let mut dots = [[_mm512_setzero_si512(); 2]; 2];
        for (half, codes) in of.codes[i].as_chunks::<2>().0.as_chunks::<2>().0.iter().enumerate() {
            let (low, high) = spread(codes);
            for (dots, runs) in dots.iter_mut().zip(of.runs) {
                dots[half] = dot(&runs[i].as_chunks::<64>().0[half], low, high);
            }
        }
        let correction = _mm512_slli_epi32::<3>(_mm512_broadcast_i64x4(load_i32(&of.x_sums[i])));
        let dots = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums_of_fours(dots), correction));
        let [first, second] = of.scales.map(|scales| load_half(&scales[i]));
        let scales = _mm512_cvtph_ps(_mm256_set_m128i(second, first));
        let x_scales = both(load_f32(&of.x_scales[i]));
        acc = _mm512_fmadd_ps(_mm512_mul_ps(scales, x_scales), dots, acc);
    }
    let mut lanes = Lanes::default();
    store_f32(&mut lanes[0], _mm512_castps512_ps256(acc));
    store_f32(&mut lanes[1], _mm256_castsi256_ps(_mm512_extracti64x4_epi64::<1>(_mm512_castps_si512(acc))));
    lanes
}

/// In both halves of a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn both(half: __m256) -> __m512 {
    _mm512_castsi512_ps(_mm512_broadcast_i64x4(_mm256_castps_si256(half)))
}

/// The codes of four groups: those that belong to low nibbles, and those that belong to high ones.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread([first, second]: &[[[i8; GROUP_SIZE]; 2]; 2]) -> (__m512i, __m512i) {
    let (first, second) = (load_codes_512(first), load_codes_512(second));
    let low = _mm512_shuffle_i64x2::<0b10_00_10_00>(first, second);
    (low, _mm512_shuffle_i64x2::<0b11_01_11_01>(first, second))
}

/// Sums of four products each, of four groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dot(run: &[u8; 64], low: __m512i, high: __m512i) -> __m512i {
    let mask = _mm512_set1_epi8(15);
    let bytes = load_512(run);
    let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(bytes, mask), low);
    _mm512_dpbusd_epi32(sums, _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask), high)
}

/// The sum of every four lanes: groups 0 to 7 of the first record, then of the second. `dots` has
/// groups 0 to 3 and 4 to 7 of each.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_fours(dots: [[__m512i; 2]; 2]) -> __m512i {
    let [p, q] =
        dots.map(|[a, b]| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)));
    let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(p, q), _mm512_unpackhi_epi64(p, q));
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, sums)
}

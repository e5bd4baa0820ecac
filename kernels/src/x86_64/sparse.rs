//! Products of quantized records with a sparse vector.
//!
//! Records go by in sets of [`SET`]: first the coefficients of a set for all groups of the tile, then, group by
//! group, its codes, while the sums of the group are in registers.

use core::arch::x86_64::*;

use super::memory::{load_f16, load_half, load_i32, prefetch, store_f32, store_i32};
use crate::layout::{GROUP_SIZE, Records, Sparse, record_scale_bytes};
use crate::scalar::sparse::{ZERO_BELOW, cmax};
use crate::table::SPARSE_TILE;

/// Records that go by together.
const SET: usize = 8;
/// Output groups in a tile.
const TILE_GROUPS: usize = SPARSE_TILE / GROUP_SIZE;
/// Runs of 8 groups in a tile.
const TILE_RUNS: usize = TILE_GROUPS / 8;
/// How many records ahead the scales are asked for.
const SCALES_AHEAD: usize = 16;

/// The sums of a group, 8 outputs in each register.
type Sums = [__m256i; 4];
/// Coefficients of two records, 16 bits each, for every group of a tile.
type PairCoefficients = [[i32; 8]; TILE_RUNS];

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sparse_int4(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    let tile = Tile::<16>::new(w, first, out.len(), x, cmax(x.indices.len(), 15));
    tile.product(out, w.scale(), 8, |sums, a, b, c| add_int4(sums, a, b, c));
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sparse_int8(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    let tile = Tile::<32>::new(w, first, out.len(), x, cmax(x.indices.len(), 127));
    tile.product(out, w.scale(), 0, |sums, a, b, c| add_int8(sums, a, b, c));
}

/// Adds the nibbles of two runs, each times its half of `c`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_int4(sums: Sums, a: &[u8; 16], b: &[u8; 16], c: __m256i) -> Sums {
    let (a, b) = (load_half(a), load_half(b));
    let first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
    let second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
    let low = _mm256_set1_epi16(15);
    [
        _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_and_si256(first, low), c)),
        _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_and_si256(second, low), c)),
        _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_srli_epi16::<4>(first), c)),
        _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_srli_epi16::<4>(second), c)),
    ]
}

/// Adds the codes of two runs, each times its half of `c`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_int8(sums: Sums, a: &[u8; 32], b: &[u8; 32], c: __m256i) -> Sums {
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let mut sums = sums;
    for half in 0..2 {
        let (a, b) = (load_half(&a[half]), load_half(&b[half]));
        let first = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
        let second = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
        sums[2 * half] = _mm256_add_epi32(sums[2 * half], _mm256_madd_epi16(first, c));
        sums[2 * half + 1] = _mm256_add_epi32(sums[2 * half + 1], _mm256_madd_epi16(second, c));
    }
    sums
}

/// Neighbouring outputs of a product, with `RUN` bytes of codes per group.
struct Tile<'a, const RUN: usize> {
    w: &'a Records<'a>,
    x: Sparse<'a>,
    first_group: usize,
    groups: usize,
    cmax: f32,
}

impl<'a, const RUN: usize> Tile<'a, RUN> {
    fn new(w: &'a Records<'a>, first: usize, len: usize, x: Sparse<'a>, cmax: f32) -> Self {
        Self { w, x, first_group: first / GROUP_SIZE, groups: len.div_ceil(GROUP_SIZE), cmax }
    }

    /// The codes of entry `i`, a run per group of the tile.
    fn runs(&self, i: usize) -> &'a [[u8; RUN]] {
        let codes = &self.w.record(self.x.indices[i] as usize)[self.scale_bytes()..];
        &codes.as_chunks::<RUN>().0[self.first_group..][..self.groups]
    }

    fn scale_bytes(&self) -> usize {
        record_scale_bytes(self.w.dtype(), self.w.value_count())
    }

    /// The scales of entry `i` and what follows: a record always has 16 bytes from any of its scales on.
    fn scales(&self, i: usize) -> &'a [u8] {
        &self.w.record(self.x.indices[i] as usize)[2 * self.first_group..]
    }

    /// The largest magnitude of any entry's product, for every group.
    #[target_feature(enable = "avx2,f16c")]
    fn largest(&self) -> [__m256; TILE_RUNS] {
        let magnitude = _mm256_set1_epi32(i32::MAX);
        let mut largest = [_mm256_setzero_si256(); TILE_RUNS];
        for i in 0..self.x.indices.len() {
            if i + SCALES_AHEAD < self.x.indices.len() {
                prefetch(&self.scales(i + SCALES_AHEAD)[..2 * self.groups]);
            }
            let (scales, x) = (self.scales(i), self.x.values[i]);
            for (run, largest) in largest[..self.groups.div_ceil(8)].iter_mut().enumerate() {
                let bits = _mm256_and_si256(_mm256_castps_si256(products(x, scales, run)), magnitude);
                *largest = _mm256_max_epi32(*largest, bits);
            }
        }
        largest.map(|bits| _mm256_castsi256_ps(bits))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn product(
        &self,
        out: &mut [f32],
        tensor_scale: f32,
        offset: i32,
        add: impl Fn(Sums, &[u8; RUN], &[u8; RUN], __m256i) -> Sums,
    ) {
        let largest = self.largest();
        let cmax = _mm256_set1_ps(self.cmax);
        let inverse = largest.map(|largest| {
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(largest, _mm256_set1_ps(ZERO_BELOW));
            _mm256_andnot_ps(small, _mm256_div_ps(cmax, largest))
        });
        let mut sums = [[[0i32; 8]; 4]; TILE_GROUPS];
        let mut coefficient_sums = [_mm256_setzero_si256(); TILE_RUNS];
        let live = self.x.indices.len();
        for start in (0..live).step_by(SET) {
            let coefficients = self.coefficients(start, &inverse, &mut coefficient_sums);
            let runs: [_; SET] = core::array::from_fn(|k| self.runs((start + k).min(live - 1)));
            let next: [_; SET] = core::array::from_fn(|k| self.runs((start + SET + k).min(live - 1)));
            for (g, sums) in sums[..self.groups].iter_mut().enumerate() {
                prefetch_share(&next, g);
                let mut acc =
                    [load_i32(&sums[0]), load_i32(&sums[1]), load_i32(&sums[2]), load_i32(&sums[3])];
                for (pair, c) in coefficients.iter().enumerate() {
                    let c = _mm256_set1_epi32(c.as_flattened()[g]);
                    acc = add(acc, &runs[2 * pair][g], &runs[2 * pair + 1][g], c);
                }
                sums.iter_mut().zip(acc).for_each(|(sums, acc)| store_i32(sums, acc));
            }
        }
        let scales = largest.map(|m| _mm256_mul_ps(_mm256_div_ps(m, cmax), _mm256_set1_ps(tensor_scale)));
        finish(out, &sums, coefficient_sums, scales, offset);
    }

    /// The coefficients of the set from `start` on; those of records that are not there are 0.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn coefficients(
        &self,
        start: usize,
        inverse: &[__m256; TILE_RUNS],
        coefficient_sums: &mut [__m256i; TILE_RUNS],
    ) -> [PairCoefficients; SET / 2] {
        let (low, high) = (_mm256_set1_ps(-self.cmax), _mm256_set1_ps(self.cmax));
        let mut pairs = [[[0; 8]; TILE_RUNS]; SET / 2];
        for k in 0..SET.min(self.x.indices.len() - start) {
            let (scales, x) = (self.scales(start + k), self.x.values[start + k]);
            for (run, out) in pairs[k / 2][..self.groups.div_ceil(8)].iter_mut().enumerate() {
                let c = _mm256_mul_ps(products(x, scales, run), inverse[run]);
                let c = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(c, low), high));
                coefficient_sums[run] = _mm256_add_epi32(coefficient_sums[run], c);
                let pair = if k % 2 == 0 {
                    _mm256_and_si256(c, _mm256_set1_epi32(0xffff))
                } else {
                    _mm256_or_si256(load_i32(out), _mm256_slli_epi32::<16>(c))
                };
                store_i32(out, pair);
            }
        }
        pairs
    }
}

/// `x` times the scales of the groups `8 run..8 run + 8`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn products(x: f32, scales: &[u8], run: usize) -> __m256 {
    _mm256_mul_ps(_mm256_set1_ps(x), load_f16(&scales.as_chunks::<16>().0[run]))
}

/// Asks for a share of the next set that is complete after the last group: as many bytes as one group has.
#[target_feature(enable = "avx2")]
#[inline]
fn prefetch_share<const RUN: usize>(next: &[&[[u8; RUN]]; SET], g: usize) {
    let groups_per_line = 64 / RUN;
    let records = SET / groups_per_line;
    let first = g % groups_per_line * records;
    for runs in &next[first..first + records] {
        prefetch(&runs[g - g % groups_per_line]);
    }
}

/// Corrects and scales the sums.
#[target_feature(enable = "avx2")]
#[inline]
fn finish(
    out: &mut [f32],
    sums: &[[[i32; 8]; 4]; TILE_GROUPS],
    coefficient_sums: [__m256i; TILE_RUNS],
    scales: [__m256; TILE_RUNS],
    offset: i32,
) {
    let (mut corrections, mut group_scales) = ([[0; 8]; TILE_RUNS], [[0.0; 8]; TILE_RUNS]);
    for run in 0..TILE_RUNS {
        let correction = _mm256_mullo_epi32(coefficient_sums[run], _mm256_set1_epi32(offset));
        store_i32(&mut corrections[run], correction);
        store_f32(&mut group_scales[run], scales[run]);
    }
    for (g, (out, sums)) in out.chunks_mut(GROUP_SIZE).zip(sums).enumerate() {
        let correction = _mm256_set1_epi32(corrections.as_flattened()[g]);
        let scale = _mm256_set1_ps(group_scales.as_flattened()[g]);
        let mut values = [[0.0; 8]; 4];
        for (value, sum) in values.iter_mut().zip(sums) {
            let sum = _mm256_sub_epi32(load_i32(sum), correction);
            store_f32(value, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale));
        }
        out.copy_from_slice(&values.as_flattened()[..out.len()]);
    }
}

//! Products of quantized records with a sparse vector.
//!
//! Records go by in sets of [`SET`]: first the coefficients of a set for all groups of the tile, then its codes in
//! chunks of [`CHUNK`] bytes, while the sums of the chunk's outputs are in registers.

use core::arch::x86_64::*;

use super::memory::{load, load_f16, load_half, load_i32, prefetch, store_f32, store_i32};
use super::sparse_codes::{add_int4, add_int8, order_int4, spread_int4};
use crate::layout::{GROUP_SIZE, Records, Sparse, record_scale_bytes};
use crate::scalar::sparse::{ZERO_BELOW, cmax};
use crate::table::SPARSE_TILE;

/// Records that go by together.
const SET: usize = 8;
/// Bytes of codes that go by together: one group of Int8, two of Int4.
pub(super) const CHUNK: usize = 32;
/// Output groups in a tile.
const TILE_GROUPS: usize = SPARSE_TILE / GROUP_SIZE;
/// Runs of 8 groups in a tile.
const TILE_RUNS: usize = TILE_GROUPS / 8;
/// How many records ahead the scales are asked for.
const SCALES_AHEAD: usize = 16;

/// Coefficients of two records, 16 bits each, for every group of a tile.
pub(super) type PairCoefficients = [[i32; 8]; TILE_RUNS];

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sparse_int4(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    Tile::<2> { w, x, first_group: first / GROUP_SIZE, cmax: cmax(x.indices.len(), 15) }
        .product::<{ TILE_GROUPS / 2 }, 8>(
            out,
            8,
            |c, chunk| spread_int4(c, chunk),
            |sums, a, b, c| add_int4(sums, a, b, c),
            |sums| order_int4(sums),
        );
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sparse_int8(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
    Tile::<1> { w, x, first_group: first / GROUP_SIZE, cmax: cmax(x.indices.len(), 127) }
        .product::<TILE_GROUPS, 4>(
            out,
            0,
            |c, chunk| _mm256_set1_epi32(c.as_flattened()[chunk]),
            |sums, a, b, c| add_int8(sums, a, b, c),
            |sums| sums,
        );
}

/// Neighbouring outputs of a product, with `GROUPS` groups in a chunk of codes.
struct Tile<'a, const GROUPS: usize> {
    w: &'a Records<'a>,
    x: Sparse<'a>,
    first_group: usize,
    cmax: f32,
}

impl<'a, const GROUPS: usize> Tile<'a, GROUPS> {
    /// The record of entry `i`.
    #[inline]
    fn record(&self, i: usize) -> &'a [u8] {
        self.w.record(self.x.indices[i] as usize)
    }

    /// The codes of entry `i` for `groups` groups of the tile.
    #[inline]
    fn codes(&self, i: usize, groups: usize) -> &'a [u8] {
        let codes = record_scale_bytes(self.w.dtype(), self.w.value_count());
        let run = CHUNK / GROUPS;
        &self.record(i)[codes + run * self.first_group..][..run * groups]
    }

    /// The scales of entry `i` and what follows: a record always has 16 bytes from any of its scales on.
    #[inline]
    fn scales(&self, i: usize) -> &'a [u8] {
        &self.record(i)[2 * self.first_group..]
    }

    /// The largest magnitude of any entry's product with its scale, for every group.
    #[target_feature(enable = "avx2,f16c")]
    fn largest(&self, groups: usize) -> [__m256; TILE_RUNS] {
        let magnitude = _mm256_set1_epi32(i32::MAX);
        let mut largest = [_mm256_setzero_si256(); TILE_RUNS];
        for i in 0..self.x.indices.len() {
            if i + SCALES_AHEAD < self.x.indices.len() {
                prefetch(&self.scales(i + SCALES_AHEAD)[..2 * groups]);
            }
            let (scales, x) = (self.scales(i), self.x.values[i]);
            for (run, largest) in largest[..groups.div_ceil(8)].iter_mut().enumerate() {
                let bits = _mm256_and_si256(_mm256_castps_si256(products(x, scales, run)), magnitude);
                *largest = _mm256_max_epi32(*largest, bits);
            }
        }
        largest.map(|bits| _mm256_castsi256_ps(bits))
    }

    /// The whole product. Stored codes are `code + offset`; `spread` puts coefficients where `add` wants them,
    /// which adds two chunks of codes; `order` undoes the order in which `add` left the outputs.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn product<const CHUNKS: usize, const SUMS: usize>(
        &self,
        out: &mut [f32],
        offset: i32,
        spread: impl Fn(&PairCoefficients, usize) -> __m256i,
        add: impl Fn([__m256i; SUMS], __m256i, __m256i, __m256i) -> [__m256i; SUMS],
        order: impl Fn([__m256i; SUMS]) -> [__m256i; SUMS],
    ) {
        let groups = out.len().div_ceil(GROUP_SIZE);
        let largest = self.largest(groups);
        let cmax = _mm256_set1_ps(self.cmax);
        let inverse = largest.map(|largest| {
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(largest, _mm256_set1_ps(ZERO_BELOW));
            _mm256_andnot_ps(small, _mm256_div_ps(cmax, largest))
        });
        let mut sums = [[[0i32; 8]; SUMS]; CHUNKS];
        let mut coefficient_sums = [_mm256_setzero_si256(); TILE_RUNS];
        let mut coefficients = [[[0; 8]; TILE_RUNS]; SET / 2];
        let runs = groups.div_ceil(8);
        for start in (0..self.x.indices.len()).step_by(SET) {
            self.coefficients(start, &inverse[..runs], &mut coefficient_sums, &mut coefficients);
            self.add_set(start, groups, &coefficients, &mut sums, &spread, &add);
        }
        let scales = largest.map(|m| _mm256_mul_ps(_mm256_div_ps(m, cmax), _mm256_set1_ps(self.w.scale())));
        let corrections = coefficient_sums.map(|sum| _mm256_mullo_epi32(sum, _mm256_set1_epi32(offset)));
        let finish = Finish::new(scales, corrections);
        for (i, (out, sums)) in out.chunks_mut(GROUPS * GROUP_SIZE).zip(&sums).enumerate() {
            let sums = order(core::array::from_fn(|s| load_i32(&sums[s])));
            finish.store(out, sums, i * GROUPS);
        }
    }

    /// Adds the set from `start` on. Entries that are not there have coefficient 0 and the codes of the last one.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn add_set<const SUMS: usize>(
        &self,
        start: usize,
        groups: usize,
        coefficients: &[PairCoefficients; SET / 2],
        sums: &mut [[[i32; 8]; SUMS]],
        spread: &impl Fn(&PairCoefficients, usize) -> __m256i,
        add: &impl Fn([__m256i; SUMS], __m256i, __m256i, __m256i) -> [__m256i; SUMS],
    ) {
        let last = self.x.indices.len() - 1;
        let mut codes = [&[][..]; SET];
        let mut next = [&[][..]; SET];
        for k in 0..SET {
            codes[k] = self.codes(last.min(start + k), groups);
            next[k] = self.codes(last.min(start + SET + k), groups);
        }
        for (i, sums) in sums[..groups.div_ceil(GROUPS)].iter_mut().enumerate() {
            prefetch_share(&next, i);
            let mut acc = [_mm256_setzero_si256(); SUMS];
            acc.iter_mut().zip(sums.iter()).for_each(|(acc, sum)| *acc = load_i32(sum));
            for (pair, c) in coefficients.iter().enumerate() {
                let (a, b) = (chunk(codes[2 * pair], i), chunk(codes[2 * pair + 1], i));
                acc = add(acc, a, b, spread(c, i));
            }
            sums.iter_mut().zip(acc).for_each(|(sum, acc)| store_i32(sum, acc));
        }
    }

    /// Sets the coefficients of the set from `start` on; those of records that are not there are 0.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn coefficients(
        &self,
        start: usize,
        inverse: &[__m256],
        coefficient_sums: &mut [__m256i; TILE_RUNS],
        out: &mut [PairCoefficients; SET / 2],
    ) {
        for (pair, out) in out.iter_mut().enumerate() {
            let [a, b] = [start + 2 * pair, start + 2 * pair + 1].map(|i| self.factors(i));
            let coefficient = |factors: Option<(f32, &[u8])>, run: usize| match factors {
                Some((x, scales)) => round(_mm256_mul_ps(products(x, scales, run), inverse[run]), self.cmax),
                None => _mm256_setzero_si256(),
            };
            for (run, (out, sum)) in
                out[..inverse.len()].iter_mut().zip(coefficient_sums.iter_mut()).enumerate()
            {
                let (a, b) = (coefficient(a, run), coefficient(b, run));
                *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(a, b));
                store_i32(out, _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b)));
            }
        }
    }

    /// Value and scales of entry `i`, if there is one.
    #[inline]
    fn factors(&self, i: usize) -> Option<(f32, &'a [u8])> {
        self.x.values.get(i).map(|&x| (x, self.scales(i)))
    }
}

/// Clamped to `-cmax..=cmax` and rounded to nearest even; -cmax for a NaN.
#[target_feature(enable = "avx2")]
#[inline]
fn round(c: __m256, cmax: f32) -> __m256i {
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(c, _mm256_set1_ps(-cmax)), _mm256_set1_ps(cmax)))
}

/// `x` times the scales of the groups `8 run..8 run + 8`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn products(x: f32, scales: &[u8], run: usize) -> __m256 {
    _mm256_mul_ps(_mm256_set1_ps(x), load_f16(&scales.as_chunks::<16>().0[run]))
}

/// Chunk `i` of `codes`; the last one may be half a chunk, filled up with zeros.
#[target_feature(enable = "avx2")]
#[inline]
fn chunk(codes: &[u8], i: usize) -> __m256i {
    match codes.as_chunks::<CHUNK>().0.get(i) {
        Some(chunk) => load(chunk),
        None => _mm256_zextsi128_si256(load_half(&codes.as_chunks::<16>().0[2 * i])),
    }
}

/// Asks for a share of the next set's codes: all of them after the last chunk.
#[target_feature(enable = "avx2")]
#[inline]
fn prefetch_share(next: &[&[u8]; SET], i: usize) {
    for codes in &next[i % 2 * (SET / 2)..][..SET / 2] {
        prefetch(&codes[i / 2 * 64..][..1]);
    }
}

/// What turns the sums of a group into outputs.
struct Finish {
    scales: [[f32; 8]; TILE_RUNS],
    corrections: [[i32; 8]; TILE_RUNS],
}

impl Finish {
    #[target_feature(enable = "avx2")]
    fn new(scales: [__m256; TILE_RUNS], corrections: [__m256i; TILE_RUNS]) -> Self {
        let mut new = Self { scales: [[0.0; 8]; TILE_RUNS], corrections: [[0; 8]; TILE_RUNS] };
        for run in 0..TILE_RUNS {
            store_f32(&mut new.scales[run], scales[run]);
            store_i32(&mut new.corrections[run], corrections[run]);
        }
        new
    }

    /// Stores the outputs of the groups from `group` on, each in four of the sums.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn store<const SUMS: usize>(&self, out: &mut [f32], sums: [__m256i; SUMS], group: usize) {
        let mut values = [[0.0; 8]; SUMS];
        for (i, (value, sum)) in values.iter_mut().zip(sums).enumerate() {
            let group = group + 8 * i / GROUP_SIZE;
            let (Some(&scale), Some(&correction)) =
                (self.scales.as_flattened().get(group), self.corrections.as_flattened().get(group))
            else {
                break;
            };
            let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(correction)));
            store_f32(value, _mm256_mul_ps(sum, _mm256_set1_ps(scale)));
        }
        out.copy_from_slice(&values.as_flattened()[..out.len()]);
    }
}

//! Products of quantized records with a sparse vector: what all levels share.
//!
//! Records go by in sets of [`SET`]: first the coefficients of a set for all groups of the tile, then its codes, one
//! register of each record at a time, while the sums of its outputs are in registers. The records of a set are from
//! [`SET`] parts of the vector, so that as many places of memory are read side by side, and the codes of the next set
//! are asked for meanwhile.
//!
//! A 32-bit lane of a coefficient register holds the coefficient of one record in its low half and that of another in
//! its high half; codes are brought into pairs of 16 bits alike, to be multiplied and added up. Within 128 bits all
//! codes belong to one group.

use core::arch::x86_64::*;

use super::memory::{load_f16, prefetch, store_i32};
use crate::layout::{GROUP_SIZE, LINE_BYTES, Records, Sparse, record_scale_bytes};
use crate::scalar::sparse::{ZERO_BELOW, cmax};
use crate::table::SPARSE_TILE;

/// Records that go by together.
pub(super) const SET: usize = 8;
/// Output groups in a tile.
const TILE_GROUPS: usize = SPARSE_TILE / GROUP_SIZE;
/// Runs of 8 groups in a tile.
const TILE_RUNS: usize = TILE_GROUPS / 8;
/// How many sets ahead scales are asked for.
const SETS_AHEAD: usize = 2;

/// A number for every group of a tile.
pub(super) type PerGroup = [[i32; 8]; TILE_RUNS];

/// Coefficients of two records, 16 bits each, for every group of a tile.
pub(super) type PairCoefficients = PerGroup;

/// An entry of the vector, and what a tile needs of its record.
#[derive(Clone, Copy)]
struct Member<'a> {
    x: f32,
    /// Scales, and what follows: a record always has 16 bytes from any of its scales on.
    scales: &'a [u8],
    codes: &'a [u8],
}

/// Neighbouring outputs of a product.
pub(super) struct Tile<'a> {
    w: &'a Records<'a>,
    x: Sparse<'a>,
    first_group: usize,
    groups: usize,
    /// Bytes of a group's codes.
    run: usize,
    /// Number of sets.
    pub(super) sets: usize,
    cmax: f32,
    largest: [__m256; TILE_RUNS],
    inverse: [__m256; TILE_RUNS],
    coefficient_sums: [__m256i; TILE_RUNS],
}

impl<'a> Tile<'a> {
    /// The tile of `n` outputs from `first` on, of records with `run` bytes of codes in a group.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn new(
        w: &'a Records<'a>,
        x: Sparse<'a>,
        first: usize,
        n: usize,
        run: usize,
        largest_code: usize,
    ) -> Self {
        let zero = _mm256_setzero_ps();
        let mut new = Self {
            w,
            x,
            first_group: first / GROUP_SIZE,
            groups: n.div_ceil(GROUP_SIZE),
            run,
            sets: x.indices.len().div_ceil(SET),
            cmax: cmax(x.indices.len(), largest_code),
            largest: [zero; TILE_RUNS],
            inverse: [zero; TILE_RUNS],
            coefficient_sums: [_mm256_setzero_si256(); TILE_RUNS],
        };
        new.find_largest();
        for (inverse, &largest) in new.inverse.iter_mut().zip(&new.largest) {
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(largest, _mm256_set1_ps(ZERO_BELOW));
            *inverse = _mm256_andnot_ps(small, _mm256_div_ps(_mm256_set1_ps(new.cmax), largest));
        }
        new
    }

    /// The entries of set `s`. Those that are not there have coefficients of 0, and the codes of the last one.
    fn members(&self, s: usize) -> [Member<'a>; SET] {
        let last = self.x.indices.len() - 1;
        let codes = record_scale_bytes(self.w.dtype(), self.w.value_count()) + self.run * self.first_group;
        let mut members = [Member { x: 0.0, scales: &[0; 2 * TILE_GROUPS], codes: &[] }; SET];
        for (k, member) in members.iter_mut().enumerate() {
            let position = k * self.sets + s;
            let exists = s < self.sets && position <= last;
            let record = self.w.record(self.x.indices[if exists { position } else { last }] as usize);
            member.codes = &record[codes..][..self.run * self.groups];
            if exists {
                member.x = self.x.values[position];
                member.scales = &record[2 * self.first_group..];
            }
        }
        members
    }

    /// The codes of set `s`.
    pub(super) fn codes(&self, s: usize) -> [&'a [u8]; SET] {
        let mut codes = [&[][..]; SET];
        for (codes, member) in codes.iter_mut().zip(self.members(s)) {
            *codes = member.codes;
        }
        codes
    }

    /// Finds the largest magnitude of any entry's product with its scale, for every group.
    #[target_feature(enable = "avx2,f16c")]
    fn find_largest(&mut self) {
        let magnitude = _mm256_set1_epi32(i32::MAX);
        for s in 0..self.sets {
            let members = self.members(s);
            for later in self.members(s + SETS_AHEAD) {
                prefetch(&later.scales[..2 * self.groups]);
            }
            for (run, largest) in self.largest[..self.groups.div_ceil(8)].iter_mut().enumerate() {
                let mut bits = _mm256_castps_si256(*largest);
                for member in &members {
                    let product = _mm256_castps_si256(products(member.x, member.scales, run));
                    bits = _mm256_max_epi32(bits, _mm256_and_si256(product, magnitude));
                }
                *largest = _mm256_castsi256_ps(bits);
            }
        }
    }

    /// Sets the coefficients of set `s`, and adds them up.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn coefficients(&mut self, s: usize, out: &mut [PairCoefficients; SET / 2]) {
        let members = self.members(s);
        for run in 0..self.groups.div_ceil(8) {
            let mut sum = self.coefficient_sums[run];
            for (pair, out) in members.as_chunks::<2>().0.iter().zip(out.iter_mut()) {
                let (a, b) = (self.coefficient(&pair[0], run), self.coefficient(&pair[1], run));
                sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
                store_i32(&mut out[run], _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b)));
            }
            self.coefficient_sums[run] = sum;
        }
    }

    /// The coefficients of the groups `8 run..8 run + 8` of one record.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn coefficient(&self, member: &Member<'_>, run: usize) -> __m256i {
        round(_mm256_mul_ps(products(member.x, member.scales, run), self.inverse[run]), self.cmax)
    }

    /// For every group the sum of its coefficients, and the bits of what its sums are multiplied with.
    #[target_feature(enable = "avx2")]
    pub(super) fn corrections_and_scales(&self) -> [PerGroup; 2] {
        let [mut corrections, mut scales] = [[[0; 8]; TILE_RUNS]; 2];
        let (cmax, tensor_scale) = (_mm256_set1_ps(self.cmax), _mm256_set1_ps(self.w.scale()));
        for run in 0..TILE_RUNS {
            store_i32(&mut corrections[run], self.coefficient_sums[run]);
            let scale = _mm256_mul_ps(_mm256_div_ps(self.largest[run], cmax), tensor_scale);
            store_i32(&mut scales[run], _mm256_castps_si256(scale));
        }
        [corrections, scales]
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

/// Stores the values of a chunk: `values[k]` has outputs `4 k..4 k + 4` of every 128 bits' outputs.
#[inline]
pub(super) fn store_chunk<const REGISTER: usize, const SUMS: usize>(
    out: &mut [f32],
    values: &[[f32; REGISTER]; SUMS],
) {
    for (i, out) in out.chunks_mut(4).enumerate() {
        out.copy_from_slice(&values[i % SUMS][4 * (i / SUMS)..][..out.len()]);
    }
}

/// Asks for the share of chunk `i` and a pair of records in the codes of the next set, so that every line is asked for.
#[inline]
pub(super) fn ask_share<const CHUNK: usize>(next: &[&[u8]; SET], pair: usize, i: usize) {
    let in_line = const { LINE_BYTES / CHUNK };
    for k in [2 * pair, 2 * pair + 1] {
        if k % in_line == i % in_line {
            prefetch(&next[k][LINE_BYTES * (i / in_line)..][..1]);
        }
    }
}

/// Chunk `i` of `codes`, or `rest`, which is what is left after the whole chunks.
#[inline]
pub(super) fn chunk<'a, const CHUNK: usize>(
    codes: &'a [u8],
    rest: &'a [u8; CHUNK],
    i: usize,
) -> &'a [u8; CHUNK] {
    codes.as_chunks().0.get(i).unwrap_or(rest)
}

/// Copies what is left of the codes after their whole chunks. What `rest` has beyond may be anything.
pub(super) fn copy_rest<const CHUNK: usize>(rest: &mut [[u8; CHUNK]; SET], codes: &[&[u8]; SET]) {
    for (rest, codes) in rest.iter_mut().zip(codes) {
        let (_, last) = codes.as_chunks::<CHUNK>();
        if !last.is_empty() {
            rest[..last.len()].copy_from_slice(last);
        }
    }
}

/// Defines the product `$name` of a level.
///
/// Of the level are, by these names, `LANES`, how many times 128 bits a register has, `load_codes`, `load_sums`,
/// `store_sums` and `to_values`. `$spread` brings numbers of groups to where a chunk of codes wants them, `$add` adds
/// such chunks of two records, and `$order` undoes the order in which it left the `$sums` registers of sums, given the
/// sums of coefficients.
macro_rules! sparse_product {
    (
        $features:literal, $name:ident, $run:literal, $largest_code:literal, $sums:literal,
        $spread:ident, $add:ident, $order:ident
    ) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) {
            const OUTPUTS: usize = 4 * LANES * $sums;
            let mut tile = Tile::new(w, x, first, out.len(), $run, $largest_code);
            let mut sums = [[[0; 4 * LANES]; $sums]; SPARSE_TILE / OUTPUTS];
            let mut coefficients = <[PairCoefficients; SET / 2]>::default();
            let mut rest = [[0; 16 * LANES]; SET];
            for s in 0..tile.sets {
                tile.coefficients(s, &mut coefficients);
                let (set, next) = (tile.codes(s), tile.codes(s + 1));
                copy_rest(&mut rest, &set);
                for (i, sums) in sums[..out.len().div_ceil(OUTPUTS)].iter_mut().enumerate() {
                    let mut acc = load_sums(sums);
                    for (pair, c) in coefficients.iter().enumerate() {
                        ask_share::<{ 16 * LANES }>(&next, pair, i);
                        let a = load_codes(chunk(set[2 * pair], &rest[2 * pair], i));
                        let b = load_codes(chunk(set[2 * pair + 1], &rest[2 * pair + 1], i));
                        acc = $add(acc, a, b, $spread(c, i));
                    }
                    store_sums(sums, acc);
                }
            }
            let [corrections, scales] = tile.corrections_and_scales();
            for (i, (out, sums)) in out.chunks_mut(OUTPUTS).zip(&sums).enumerate() {
                let sums = $order(load_sums(sums), $spread(&corrections, i));
                store_chunk(out, &to_values(sums, $spread(&scales, i)));
            }
        }
    };
}
pub(super) use sparse_product;

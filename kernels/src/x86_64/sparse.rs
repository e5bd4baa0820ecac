//! Products of quantized records with a sparse vector: what all levels share.
//!
//! Records go by in sets of [`SET_SIZE`]: first the coefficients of a set for all groups of the block, then its codes, one
//! register of each record at a time, while the sums of its outputs are in registers. The records of a set are from
//! [`SET_SIZE`] parts of the vector, so that as many places of memory are read side by side, and the codes of the next set
//! are asked for meanwhile.
//!
//! A 32-bit lane of a coefficient register holds the coefficient of one record in its low half and that of another in
//! its high half; codes are brought into pairs of 16 bits alike, to be multiplied and added up. Within 128 bits all
//! codes belong to one group.
//!
//! Partial sums are in the order in which the codes of a chunk come out, those of several codes of a word weighed
//! together; they can be added up like that, and are taken apart at the end.

use core::arch::x86_64::*;

use super::memory::{load_f16, load_f32, load_i32, prefetch, store_i32};
use crate::layout::{GROUP_SIZE, LINE_BYTES, Records, Sparse, SparseScale, record_scale_bytes};
use crate::math::ZERO_BELOW;
use crate::scalar::sparse::cmax;

/// Records that go by together.
pub(super) const SET_SIZE: usize = 8;
/// Output groups in a block: what fits the stack of a worker easily, and is enough for all known models.
pub(super) const BLOCK_GROUPS: usize = 256;
/// Runs of 8 groups in a block.
const BLOCK_RUNS: usize = BLOCK_GROUPS / 8;

/// A number for every group of a block.
pub(super) type PerGroup = [[i32; 8]; BLOCK_RUNS];

/// Coefficients of two records, 16 bits each, for every group of a block.
pub(super) type PairCoefficients = PerGroup;

/// An entry of the vector, and what a block needs of its record.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    x: f32,
    /// Scales, and what follows: a record always has 16 bytes from any of its scales on.
    scales: &'a [u8],
    pub(super) codes: &'a [u8],
}

/// Entries that go by together.
pub(super) type Set<'a> = [Member<'a>; SET_SIZE];

/// Neighbouring outputs of some entries' product.
pub(super) struct OutputBlock<'a> {
    w: &'a Records<'a>,
    x: Sparse<'a>,
    first_group: usize,
    groups: usize,
    /// Bytes of a group's codes.
    run: usize,
    /// Number of sets.
    pub(super) sets: usize,
    cmax: f32,
    inverse: [__m256; BLOCK_RUNS],
}

impl<'a> OutputBlock<'a> {
    /// The block of the groups from `first_group` on, of records with `run` bytes of codes in a group.
    #[target_feature(enable = "avx2")]
    pub(super) fn new(
        w: &'a Records<'a>,
        x: Sparse<'a>,
        scale: SparseScale<'a>,
        first_group: usize,
        run: usize,
        largest_code: usize,
    ) -> Self {
        let cmax = cmax(scale.active, largest_code);
        let bounds = &scale.bounds[first_group..];
        let groups = bounds.len().min(BLOCK_GROUPS);
        let mut inverse = [_mm256_setzero_ps(); BLOCK_RUNS];
        for (inverse, bounds) in inverse.iter_mut().zip(bounds.chunks(8)) {
            let largest = largest_products(scale.largest, bounds);
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(largest, _mm256_set1_ps(ZERO_BELOW));
            *inverse = _mm256_andnot_ps(small, _mm256_div_ps(_mm256_set1_ps(cmax), largest));
        }
        Self { w, x, first_group, groups, run, sets: x.indices.len().div_ceil(SET_SIZE), cmax, inverse }
    }

    /// The entries of set `s`. Those that are not there have coefficients of 0, and the codes of the last one.
    #[inline]
    pub(super) fn set(&self, s: usize) -> Set<'a> {
        let last = self.x.indices.len() - 1;
        let codes = record_scale_bytes(self.w.dtype(), self.w.record_len()) + self.run * self.first_group;
        let mut members = [Member { x: 0.0, scales: &[0; 2 * BLOCK_GROUPS], codes: &[] }; SET_SIZE];
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

    /// Asks for the scales of a set.
    #[inline]
    pub(super) fn ask_scales(&self, set: &Set<'a>) {
        set.iter().for_each(|member| prefetch(&member.scales[..2 * self.groups]));
    }

    /// Sets the coefficients of a set, and adds them to the sums of each run's.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn coefficients(
        &self,
        set: &Set<'a>,
        out: &mut [PairCoefficients; SET_SIZE / 2],
        sums: &mut [[i32; 8]],
    ) {
        for (run, sums) in sums.iter_mut().enumerate() {
            let mut sum = load_i32(sums);
            for (pair, out) in set.as_chunks::<2>().0.iter().zip(out.iter_mut()) {
                let (a, b) = (self.coefficient(&pair[0], run), self.coefficient(&pair[1], run));
                sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
                store_i32(&mut out[run], _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b)));
            }
            store_i32(sums, sum);
        }
    }

    /// The coefficients of the groups `8 run..8 run + 8` of one record.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn coefficient(&self, member: &Member<'_>, run: usize) -> __m256i {
        let scales = load_f16(&member.scales.as_chunks::<16>().0[run]);
        let product = _mm256_mul_ps(_mm256_set1_ps(member.x), scales);
        round(_mm256_mul_ps(product, self.inverse[run]), self.cmax)
    }
}

/// The largest products of up to 8 groups; 0 for those that are not there.
#[target_feature(enable = "avx2")]
#[inline]
fn largest_products(largest: f32, bounds: &[f32]) -> __m256 {
    let mut eight = [0.0; 8];
    eight[..bounds.len()].copy_from_slice(bounds);
    _mm256_mul_ps(_mm256_set1_ps(largest), load_f32(&eight))
}

/// The bits of what the sums of up to 8 groups are multiplied with.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn factors(
    w: &Records<'_>,
    scale: SparseScale<'_>,
    bounds: &[f32],
    largest_code: usize,
) -> [i32; 8] {
    let largest = largest_products(scale.largest, bounds);
    let cmax = _mm256_set1_ps(cmax(scale.active, largest_code));
    let factors = _mm256_mul_ps(_mm256_div_ps(largest, cmax), _mm256_set1_ps(w.scale()));
    let mut bits = [0; 8];
    store_i32(&mut bits, _mm256_castps_si256(factors));
    bits
}

/// Adds numbers to others.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add_to(sums: &mut [i32; 8], more: &[i32; 8]) {
    store_i32(sums, _mm256_add_epi32(load_i32(sums), load_i32(more)));
}

/// The sums of outputs, and those of coefficients.
pub(super) fn split_sums(sums: &[i32]) -> (&[i32], &[[i32; 8]]) {
    let (outputs, coefficients) = sums.split_at(sums.len() / (GROUP_SIZE + 1) * GROUP_SIZE);
    (outputs, coefficients.as_chunks().0)
}

/// As [`split_sums`].
pub(super) fn split_sums_mut(sums: &mut [i32]) -> (&mut [i32], &mut [[i32; 8]]) {
    let (outputs, coefficients) = sums.split_at_mut(sums.len() / (GROUP_SIZE + 1) * GROUP_SIZE);
    (outputs, coefficients.as_chunks_mut().0)
}

/// Clamped to `-cmax..=cmax` and rounded to nearest even; -cmax for a NaN.
#[target_feature(enable = "avx2")]
#[inline]
fn round(c: __m256, cmax: f32) -> __m256i {
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(c, _mm256_set1_ps(-cmax)), _mm256_set1_ps(cmax)))
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
pub(super) fn ask_share<const CHUNK: usize>(next: &Set<'_>, pair: usize, i: usize) {
    let in_line = const { LINE_BYTES / CHUNK };
    for k in [2 * pair, 2 * pair + 1] {
        if k % in_line == i % in_line {
            prefetch(&next[k].codes[LINE_BYTES * (i / in_line)..][..1]);
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
pub(super) fn copy_rest<const CHUNK: usize>(rest: &mut [[u8; CHUNK]; SET_SIZE], set: &Set<'_>) {
    for (rest, member) in rest.iter_mut().zip(set) {
        let (_, last) = member.codes.as_chunks::<CHUNK>();
        if !last.is_empty() {
            rest[..last.len()].copy_from_slice(last);
        }
    }
}

/// Defines the products `$accumulate` and `$finish` of a level.
///
/// Of the level are, by these names, `LANES`, how many times 128 bits a register has, `load_codes`, `load_sums`,
/// `store_sums`, `add_sums` and `to_values`. `$spread` brings numbers of groups to where a chunk of codes wants them, `$add`
/// adds such chunks of two records, and `$order` undoes the order in which it left the `$sums` registers of sums, given
/// the sums of coefficients.
macro_rules! sparse_product {
    (
        $features:literal, $accumulate:ident, $finish:ident, $run:literal, $largest_code:literal, $sums:literal,
        $spread:ident, $add:ident, $order:ident
    ) => {
        #[target_feature(enable = $features)]
        pub(super) fn $accumulate(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
            let (outputs, coefficient_sums) = split_sums_mut(sums);
            let outputs = outputs.as_chunks_mut::<{ 4 * LANES }>().0.as_chunks_mut::<$sums>().0;
            let blocks = outputs.chunks_mut(8 * BLOCK_GROUPS / LANES / $sums);
            for (i, (outputs, sums)) in blocks.zip(coefficient_sums.chunks_mut(BLOCK_GROUPS / 8)).enumerate()
            {
                let block = OutputBlock::new(w, x, scale, i * BLOCK_GROUPS, $run, $largest_code);
                let mut coefficients = <[PairCoefficients; SET_SIZE / 2]>::default();
                let mut rest = [[0; 16 * LANES]; SET_SIZE];
                if block.sets == 0 {
                    return;
                }
                let mut set = block.set(0);
                for s in 0..block.sets {
                    let next = block.set(s + 1);
                    block.ask_scales(&next);
                    block.coefficients(&set, &mut coefficients, sums);
                    copy_rest(&mut rest, &set);
                    let chunks = set[0].codes.len().div_ceil(16 * LANES);
                    for (i, sums) in outputs[..chunks].iter_mut().enumerate() {
                        let mut acc = load_sums(sums);
                        for (pair, c) in coefficients.iter().enumerate() {
                            ask_share::<{ 16 * LANES }>(&next, pair, i);
                            let [a, b] = [2 * pair, 2 * pair + 1];
                            let a = load_codes(chunk(set[a].codes, &rest[a], i));
                            let b = load_codes(chunk(set[b].codes, &rest[b], i));
                            acc = $add(acc, a, b, $spread(c, i));
                        }
                        store_sums(sums, acc);
                    }
                    set = next;
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn $finish(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) {
            const OUTPUTS: usize = 4 * LANES * $sums;
            let parts = || sums.chunks_exact(sparse_sums(w.record_len())).map(split_sums);
            let blocks = out.chunks_mut(GROUP_SIZE * BLOCK_GROUPS).zip(scale.bounds.chunks(BLOCK_GROUPS));
            for (block, (out, bounds)) in blocks.enumerate() {
                let [mut corrections, mut scales] = <[PerGroup; 2]>::default();
                for (run, bounds) in bounds.chunks(8).enumerate() {
                    scales[run] = factors(w, scale, bounds, $largest_code);
                    for (_, coefficients) in parts() {
                        add_to(&mut corrections[run], &coefficients[block * BLOCK_GROUPS / 8 + run]);
                    }
                }
                for (i, out) in out.chunks_mut(OUTPUTS).enumerate() {
                    let first = block * GROUP_SIZE * BLOCK_GROUPS / OUTPUTS;
                    let mut acc = load_sums(&[[0; 4 * LANES]; $sums]);
                    for (outputs, _) in parts() {
                        let outputs = outputs.as_chunks::<{ 4 * LANES }>().0.as_chunks::<$sums>().0;
                        acc = add_sums(acc, &outputs[first + i]);
                    }
                    let sums = $order(acc, $spread(&corrections, i));
                    store_chunk(out, &to_values(sums, $spread(&scales, i)));
                }
            }
        }
    };
}
pub(super) use sparse_product;

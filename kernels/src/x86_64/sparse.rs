//! Products of quantized records with a sparse vector: the parts that all levels share.
//!
//! ```text
//! accumulate, for each block of up to 256 output groups
//!     inverse[g] = cmax / largest product of group g
//!     for each set of 8 entries j, one of each eighth of the vector
//!         c[j][g] = round(x[j] * scale[j][g] * inverse[g])     of all groups, 16 bits each
//!         coefficient sums[g] += c[j][g]
//!         for each chunk of codes                              a register of each record
//!             load the sums of the chunk's outputs
//!             for each pair of records
//!                 prefetch a share of the next set's codes
//!                 sums += codes * c                            pairs of 16 bits into 32 bits
//!             store the sums
//! finish
//!     add up the partial sums of all threads, put them in order, subtract the codes' offset, scale
//! ```
//!
//! Sums are integers, so their order is free: threads take any entries, and a level keeps sums in
//! any order (`docs/DESIGN.md`, Exact sparsity in integers).
//!
//! - Coefficients come first, for all groups: the scales of a record lie together, and the loop
//!   over codes is left with integers alone.
//! - A set has 8 records, so that the sums of an output are loaded and stored once for 8 of them.
//! - The entries of a set are an eighth of the vector apart. So 8 places of memory are read side by
//!   side, each in ascending order.
//! - A multiply-add takes pairs of 16 bits in a 32-bit lane. The low half of a coefficient lane
//!   belongs to one record, the high half to another. Codes are interleaved alike. Within 128 bits
//!   all codes belong to one group.
//! - Partial sums stay in the order in which the codes of a chunk come out of the registers.
//!   Several codes of a word are added together, the higher ones with a larger weight. `finish`
//!   takes them apart, once.

use core::arch::x86_64::*;

use super::int4n;
use super::memory::{load_f16, load_f32, load_half, load_i32, prefetch, prefetch_line, store_i32};
use crate::layout::{GROUP_SIZE, LINE_BYTES, Records, Sparse, SparseScale, record_scale_bytes};
use crate::math::ZERO_BELOW;
use crate::scalar::sparse::cmax;

/// Records in a set.
pub(super) const SET_SIZE: usize = 8;
/// Output groups in a block. Its arrays fit the stack of a worker, and every known model has one
/// block.
pub(super) const BLOCK_GROUPS: usize = 256;
/// Runs of 8 groups in a block.
const BLOCK_RUNS: usize = BLOCK_GROUPS / 8;

/// A number for every group of a block.
pub(super) type PerGroup = [[i32; 8]; BLOCK_RUNS];

/// Coefficients of two records, 16 bits each, for every group of a block.
pub(super) type PairCoefficients = PerGroup;

/// An entry of the vector, and the part of its record that belongs to a block.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    x: f32,
    /// Scales, and the bytes after them: a record has at least 16 bytes from any of its scales on.
    scales: &'a [u8],
    pub(super) codes: &'a [u8],
}

/// Entries that are multiplied together.
pub(super) type Set<'a> = [Member<'a>; SET_SIZE];

/// A block of neighbouring outputs, for some entries of the vector.
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
    /// The block of the groups from `first_group` on. A group has `run` bytes of codes.
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

    /// The entries of set `s`. Where there are none left, an entry has coefficients of 0, and the
    /// codes of the last one.
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

    /// Prefetches the scales of a set.
    #[inline]
    pub(super) fn prefetch_scales(&self, set: &Set<'a>) {
        set.iter().for_each(|member| prefetch(&member.scales[..2 * self.groups]));
    }

    /// Sets the coefficients of a set, and adds them to the coefficient sums: each times what the
    /// codes of its group have added, if that depends on the group.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn coefficients<const SHIFTED: bool>(
        &self,
        set: &Set<'a>,
        out: &mut [PairCoefficients; SET_SIZE / 2],
        sums: &mut [[i32; 8]],
    ) {
        for (run, sums) in sums.iter_mut().enumerate() {
            let mut sum = load_i32(sums);
            for (pair, out) in set.as_chunks::<2>().0.iter().zip(out.iter_mut()) {
                let (a, b) = (self.coefficient(&pair[0], run), self.coefficient(&pair[1], run));
                let both = _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b));
                let more = match SHIFTED {
                    true => _mm256_madd_epi16(both, int4n_offsets(pair, run)),
                    false => _mm256_add_epi32(a, b),
                };
                sum = _mm256_add_epi32(sum, more);
                store_i32(&mut out[run], both);
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

/// What the Int4n codes of the groups `8 run..8 run + 8` of two records have added, in the lanes of
/// their coefficients.
#[target_feature(enable = "avx2")]
#[inline]
fn int4n_offsets(pair: &[Member<'_>; 2], run: usize) -> __m256i {
    let [a, b] = [&pair[0], &pair[1]].map(|member| load_half(&member.scales.as_chunks::<16>().0[run]));
    let scales = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
    let low_bits = _mm256_and_si256(scales, _mm256_set1_epi16(3));
    let twice = _mm256_add_epi16(low_bits, low_bits);
    _mm256_sub_epi16(_mm256_set1_epi16(int4n::SHIFTED_OFFSET as i16), twice)
}

/// The largest products of up to 8 groups; 0 for those that are not there.
#[target_feature(enable = "avx2")]
#[inline]
fn largest_products(largest: f32, bounds: &[f32]) -> __m256 {
    let mut eight = [0.0; 8];
    eight[..bounds.len()].copy_from_slice(bounds);
    _mm256_mul_ps(_mm256_set1_ps(largest), load_f32(&eight))
}

/// The factors from sums to outputs of up to 8 groups, as bits.
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

/// Stores the values of a chunk. Run `r` of 128 bits in `values[k]` has outputs `4 k..4 k + 4` of
/// the `4 SUMS` outputs that begin at `4 SUMS r`.
#[inline]
pub(super) fn store_chunk<const REGISTER: usize, const SUMS: usize>(
    out: &mut [f32],
    values: &[[f32; REGISTER]; SUMS],
) {
    for (i, out) in out.chunks_mut(4).enumerate() {
        out.copy_from_slice(&values[i % SUMS][4 * (i / SUMS)..][..out.len()]);
    }
}

/// The numbers of the groups of each chunk.
#[inline]
pub(super) fn groups_of_chunks<const GROUPS: usize>(
    numbers: &PerGroup,
) -> core::slice::Iter<'_, [i32; GROUPS]> {
    numbers.as_flattened().as_chunks().0.iter()
}

/// The numbers of the groups of chunk `i`.
#[inline]
pub(super) fn of_chunk<const GROUPS: usize>(numbers: &PerGroup, i: usize) -> &[i32; GROUPS] {
    &numbers.as_flattened().as_chunks().0[i]
}

/// Whole chunks of the codes of each record of a set: as many of each.
#[inline]
pub(super) fn whole_chunks<'a, const CHUNK: usize>(set: &Set<'a>) -> [&'a [[u8; CHUNK]]; SET_SIZE] {
    let whole = set[0].codes.len() / CHUNK;
    set.map(|member| &member.codes.as_chunks().0[..whole])
}

/// The codes after the whole chunks. The bytes after them may be anything.
pub(super) fn last_chunks<const CHUNK: usize>(set: &Set<'_>) -> [[u8; CHUNK]; SET_SIZE] {
    set.map(|member| {
        let (_, rest) = member.codes.as_chunks::<CHUNK>();
        let mut chunk = [0; CHUNK];
        chunk[..rest.len()].copy_from_slice(rest);
        chunk
    })
}

/// Prefetches the share that chunk `i` and a pair of records have in the codes of the next set,
/// which begin at `next`. All shares together cover every line of whole chunks once.
#[inline]
pub(super) fn prefetch_share<const CHUNK: usize>(next: &[*const u8; SET_SIZE], pair: usize, i: usize) {
    let in_line = const { LINE_BYTES / CHUNK };
    for k in (0..2).step_by(in_line) {
        prefetch_line(next[2 * pair + k + i % in_line].wrapping_add(LINE_BYTES * (i / in_line)));
    }
}

/// Defines the products `$accumulate` and `$finish` of a level.
///
/// The invoking module has, by these names, `LANES`, the runs of 128 bits in a register,
/// `load_codes`, `load_sums`, `store_sums`, `add_sums` and `to_values`. `$spread` brings numbers of
/// groups to the lanes of a chunk of codes. `$add` adds the chunks of two records. `$order` puts
/// the `$sums` registers of sums in order, given the sums of coefficients, which count what codes
/// have added if `$shifted`.
macro_rules! sparse_product {
    (
        $features:literal, $accumulate:ident, $finish:ident, $run:literal, $largest_code:expr, $sums:literal,
        $shifted:literal, $spread:ident, $add:ident, $order:ident
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
                if block.sets == 0 {
                    return;
                }
                let mut set = block.set(0);
                for s in 0..block.sets {
                    let next = block.set(s + 1);
                    block.prefetch_scales(&next);
                    block.coefficients::<$shifted>(&set, &mut coefficients, sums);
                    let codes = whole_chunks::<{ 16 * LANES }>(&set);
                    let later = next.map(|member| member.codes.as_ptr());
                    let (whole, rest) = outputs.split_at_mut(codes[0].len());
                    let [(a, b), (c, d), (e, f), (g, h)] =
                        [0, 2, 4, 6].map(|k| (codes[k].iter(), codes[k + 1].iter()));
                    let pairs = a.zip(b).zip(c.zip(d)).zip(e.zip(f).zip(g.zip(h)));
                    let [c0, c1, c2, c3] =
                        coefficients.each_ref().map(groups_of_chunks::<{ 16 * LANES / $run }>);
                    // Iterators that go side by side need no check of an index.
                    let chunks = whole.iter_mut().zip(pairs).zip(c0.zip(c1).zip(c2.zip(c3)));
                    for (i, ((sums, ((ab, cd), (ef, gh))), ((c0, c1), (c2, c3)))) in chunks.enumerate() {
                        let mut acc = [zero(); $sums];
                        for (pair, ((a, b), c)) in
                            [(ab, c0), (cd, c1), (ef, c2), (gh, c3)].into_iter().enumerate()
                        {
                            prefetch_share::<{ 16 * LANES }>(&later, pair, i);
                            acc = $add(acc, load_codes(a), load_codes(b), $spread(c));
                        }
                        store_sums(sums, add_sums(acc, sums));
                    }
                    // A loop over these codes too would take ten instructions more for each chunk.
                    if let (Some(sums), false) = (rest.first_mut(), set[0].codes.len() % (16 * LANES) == 0) {
                        let (codes, i) = (last_chunks(&set), codes[0].len());
                        let mut acc = load_sums(sums);
                        for (pair, c) in coefficients.iter().enumerate() {
                            let [a, b] = [&codes[2 * pair], &codes[2 * pair + 1]];
                            acc = $add(acc, load_codes(a), load_codes(b), $spread(of_chunk(c, i)));
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
                    let sums = $order(acc, $spread(of_chunk(&corrections, i)));
                    store_chunk(out, &to_values(sums, $spread(of_chunk(&scales, i))));
                }
            }
        }
    };
}
pub(super) use sparse_product;

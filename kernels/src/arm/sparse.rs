//! Products of quantized records with a sparse vector.

use super::neon::{self, SPARSE_SET, SparseSet};
use crate::layout::{DType, GROUP_SIZE, Records, Sparse, SparseScale, record_scale_bytes};
use crate::math::ZERO_BELOW;
use crate::math::magnitude_bits;
use crate::scalar::sparse::{self, LARGEST_INT4N, cmax, split_sums};

/// Output groups of a block, whose sums and coefficients stay in the L1 cache.
const BLOCK_GROUPS: usize = 64;

/// Scales of the entries that a set lacks.
static NO_SCALES: [u8; 2 * BLOCK_GROUPS] = [0; 2 * BLOCK_GROUPS];

pub(super) fn accumulate_int8(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    if stay_normal(x, scale) {
        accumulate::<false>(sums, w, x, scale, cmax(scale.active, 127));
    } else {
        sparse::accumulate_int8(sums, w, x, scale);
    }
}

pub(super) fn accumulate_int4(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    if stay_normal(x, scale) {
        accumulate::<false>(sums, w, x, scale, cmax(scale.active, 15));
    } else {
        sparse::accumulate_int4(sums, w, x, scale);
    }
}

pub(super) fn accumulate_int4n(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) {
    if stay_normal(x, scale) {
        accumulate::<true>(sums, w, x, scale, cmax(scale.active, LARGEST_INT4N));
    } else {
        sparse::accumulate_int4n(sums, w, x, scale);
    }
}

/// Whether neither an entry nor an inverse of a largest product is subnormal.
///
/// Products of entries and scales may be subnormal. Their coefficients are 0 either way, as
/// inverses are below 2^115.
fn stay_normal(x: Sparse<'_>, scale: SparseScale<'_>) -> bool {
    /// 2^126, the largest number whose inverse is normal.
    const LARGEST: u32 = (127 + 126) << 23;
    scale.bounds.iter().all(|bound| magnitude_bits(scale.largest * bound) <= LARGEST)
        && x.values.iter().all(|value| !value.is_subnormal())
}

/// The steps of the portable functions, with [`SPARSE_SET`] entries at a time. Int4n is `SHIFTED`.
fn accumulate<const SHIFTED: bool>(
    sums: &mut [i32],
    w: &Records<'_>,
    x: Sparse<'_>,
    scale: SparseScale<'_>,
    cmax: f32,
) {
    let (outputs, coefficient_sums) = split_sums(sums);
    let blocks = scale.bounds.chunks(BLOCK_GROUPS);
    let sums = outputs.chunks_mut(BLOCK_GROUPS).zip(coefficient_sums.chunks_mut(BLOCK_GROUPS));
    for (first, (bounds, (outputs, coefficient_sums))) in (0..).step_by(BLOCK_GROUPS).zip(blocks.zip(sums)) {
        let mut inverses = [0.0; BLOCK_GROUPS];
        for (inverse, &bound) in inverses.iter_mut().zip(bounds) {
            let m = scale.largest * bound;
            *inverse = if m < ZERO_BELOW { 0.0 } else { cmax / m };
        }
        let outputs = &mut outputs[..bounds.len()];
        let mut coefficients = [[0; SPARSE_SET]; BLOCK_GROUPS];
        let mut set = set_from(w, x, first, bounds.len(), 0);
        for s in (SPARSE_SET..x.indices.len() + SPARSE_SET).step_by(SPARSE_SET) {
            // After the last set this one again: its prefetch finds everything in the cache.
            let next = if s < x.indices.len() { set_from(w, x, first, bounds.len(), s) } else { set };
            neon::sparse_coefficients::<SHIFTED, _>(
                &mut coefficients,
                &set,
                &next,
                &inverses,
                coefficient_sums,
                cmax,
            );
            match w.dtype() {
                DType::Int8 => neon::sparse_add_int8(outputs, &set, &next, &coefficients),
                DType::Int4n => neon::sparse_add_int4n(outputs, &set, &next, &coefficients),
                _ => neon::sparse_add_int4(outputs, &set, &next, &coefficients),
            }
            set = next;
        }
    }
}

/// The entries from `start` on and their records from group `first` on. Where there are none left,
/// value and scales are 0, and the codes are those of the last one.
fn set_from<'a>(w: &Records<'a>, x: Sparse<'_>, first: usize, groups: usize, start: usize) -> SparseSet<'a> {
    let run = if w.dtype() == DType::Int8 { GROUP_SIZE } else { GROUP_SIZE / 2 };
    let codes_start = record_scale_bytes(w.dtype(), w.record_len()) + run * first;
    let mut set = SparseSet { scales: [&NO_SCALES; SPARSE_SET], ..SparseSet::default() };
    for k in 0..SPARSE_SET {
        let Some(&index) = x.indices.get(start + k).or(x.indices.last()) else { return set };
        let record = w.record(index as usize);
        set.codes[k] = &record[codes_start..][..run * groups];
        if let Some(&value) = x.values.get(start + k) {
            set.values[k] = value;
            set.scales[k] = &record[2 * first..][..2 * groups.next_multiple_of(4)];
        }
    }
    set
}

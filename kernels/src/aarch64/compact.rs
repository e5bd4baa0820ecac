//! Lists of entries that a vector operation keeps.

use core::arch::aarch64::*;

use super::memory::{load, load_f32, store_f32, store_u32};
use crate::scalar::compact::below;

/// For every set of lanes, the bytes of the lanes of the set one after the other.
const COMPRESS: [[u8; 16]; 16] = {
    let mut table = [[0; 16]; 16];
    let mut set = 0;
    while set < 16 {
        let (mut lane, mut n) = (0, 0);
        while lane < 4 {
            if set >> lane & 1 == 1 {
                let mut byte = 0;
                while byte < 4 {
                    table[set][4 * n + byte] = (4 * lane + byte) as u8;
                    byte += 1;
                }
                n += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

/// For every set of lanes their number, in four bits each.
const COUNTS: u64 = 0x4332_3221_3221_2110;

/// Some of four lanes.
#[derive(Clone, Copy)]
struct LaneSet(usize);

impl LaneSet {
    /// The lanes that are zero in `dropped`; the others have all bits set.
    #[target_feature(enable = "neon")]
    #[inline]
    fn new(dropped: uint32x4_t) -> Self {
        let bits = vcombine_u32(vcreate_u32(1 | 2 << 32), vcreate_u32(4 | 8 << 32));
        Self(vaddvq_u32(vbicq_u32(bits, dropped)) as usize)
    }

    #[inline(always)]
    fn count(self) -> usize {
        (COUNTS >> (4 * self.0)) as usize & 15
    }

    /// The kept lanes one after the other; what follows them may be anything.
    #[target_feature(enable = "neon")]
    #[inline]
    fn compress(self, lanes: uint8x16_t) -> uint8x16_t {
        vqtbl1q_u8(lanes, load(&COMPRESS[self.0]))
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn store_positions(self, indices: &mut [u32; 4], positions: uint32x4_t) {
        store_u32(indices, vreinterpretq_u32_u8(self.compress(vreinterpretq_u8_u32(positions))));
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn first_positions() -> uint32x4_t {
    vcombine_u32(vcreate_u32(1 << 32), vcreate_u32(2 | 3 << 32))
}

#[target_feature(enable = "neon")]
pub(super) fn nonzero(indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize {
    let mut n = 0;
    let mut positions = first_positions();
    let (chunks, tail) = x.as_chunks::<4>();
    for chunk in chunks {
        let x = load_f32(chunk);
        let active = LaneSet::new(vceqzq_f32(x));
        // No more entries are active than were read, so 4 more fit.
        if let (Some(indices), Some(values)) =
            (indices[n..].first_chunk_mut::<4>(), values[n..].first_chunk_mut::<4>())
        {
            active.store_positions(indices, positions);
            store_f32(values, vreinterpretq_f32_u8(active.compress(vreinterpretq_u8_f32(x))));
        }
        n += active.count();
        positions = vaddq_u32(positions, vdupq_n_u32(4));
    }
    let first = x.len() - tail.len();
    for (i, &v) in tail.iter().enumerate() {
        indices[n] = (first + i) as u32;
        values[n] = v;
        n += usize::from(v != 0.0);
    }
    n
}

#[target_feature(enable = "neon")]
pub(super) fn reaching(indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize {
    let mut n = 0;
    let mut positions = first_positions();
    let (chunks, tail) = x.as_chunks::<4>();
    for (chunk, bounds) in chunks.iter().zip(bounds.as_chunks().0) {
        let most = vaddq_f32(load_f32(chunk), vmulq_n_f32(load_f32(bounds), norm));
        let kept = LaneSet::new(vcltq_f32(most, vdupq_n_f32(least)));
        // No more entries are kept than were read, so 4 more fit.
        if let Some(indices) = indices[n..].first_chunk_mut::<4>() {
            kept.store_positions(indices, positions);
        }
        n += kept.count();
        positions = vaddq_u32(positions, vdupq_n_u32(4));
    }
    let first = x.len() - tail.len();
    for (i, (&x, &bound)) in tail.iter().zip(&bounds[first..]).enumerate() {
        indices[n] = (first + i) as u32;
        n += usize::from(!below(x, bound, norm, least));
    }
    n
}

//! Stream compaction with registers of four entries.

use core::arch::aarch64::*;

use super::memory::{load, load_f32, store_f32, store_u32};
use crate::generic::compact;

compact!("neon", 4);

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

/// Some of the lanes of a register, a bit for each.
#[derive(Clone, Copy)]
struct LaneSet(usize);

impl LaneSet {
    /// The lanes in which `others` is 0. In the rest it has all bits set.
    #[target_feature(enable = "neon")]
    #[inline]
    fn all_but(others: uint32x4_t) -> Self {
        let bits = vcombine_u32(vcreate_u32(1 | 2 << 32), vcreate_u32(4 | 8 << 32));
        Self(vaddvq_u32(vbicq_u32(bits, others)) as usize)
    }

    /// The lanes that are not zero, NaNs included.
    #[target_feature(enable = "neon")]
    #[inline]
    fn nonzero(x: float32x4_t) -> Self {
        Self::all_but(vceqzq_f32(x))
    }

    /// The lanes of `x + bounds * norm` that are not below `least`.
    #[target_feature(enable = "neon")]
    #[inline]
    fn reaching(x: float32x4_t, bounds: float32x4_t, norm: f32, least: f32) -> Self {
        Self::all_but(vcltq_f32(vaddq_f32(x, vmulq_n_f32(bounds, norm)), vdupq_n_f32(least)))
    }

    #[inline(always)]
    fn count(self) -> usize {
        (COUNTS >> (4 * self.0)) as usize & 15
    }

    /// The lanes of the set one after the other. The lanes after them may be anything.
    #[target_feature(enable = "neon")]
    #[inline]
    fn compress(self, lanes: uint8x16_t) -> uint8x16_t {
        vqtbl1q_u8(lanes, load(&COMPRESS[self.0]))
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn compress_u32(self, lanes: uint32x4_t) -> uint32x4_t {
        vreinterpretq_u32_u8(self.compress(vreinterpretq_u8_u32(lanes)))
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn compress_f32(self, lanes: float32x4_t) -> float32x4_t {
        vreinterpretq_f32_u8(self.compress(vreinterpretq_u8_f32(lanes)))
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn first_positions() -> uint32x4_t {
    vcombine_u32(vcreate_u32(1 << 32), vcreate_u32(2 | 3 << 32))
}

#[target_feature(enable = "neon")]
#[inline]
fn advance(positions: uint32x4_t) -> uint32x4_t {
    vaddq_u32(positions, vdupq_n_u32(4))
}

//! Reading of memory, to measure its speed.

use core::arch::aarch64::veorq_u8 as xor;
use core::arch::aarch64::*;

use super::memory::load;
use super::shim;
use crate::generic::read;
use crate::layout::LINE_BYTES;

read!("neon", 4, 1024);

#[inline(always)]
fn prefetch(line: &[u8; LINE_BYTES]) {
    shim::prefetch::<0>(line);
}

#[target_feature(enable = "neon")]
#[inline]
fn zero() -> uint8x16_t {
    vdupq_n_u8(0)
}

#[target_feature(enable = "neon")]
#[inline]
fn fold(words: [uint8x16_t; 4]) -> u64 {
    let all = xor(xor(words[0], words[1]), xor(words[2], words[3]));
    let halves = vreinterpretq_u64_u8(all);
    vgetq_lane_u64::<0>(halves) ^ vgetq_lane_u64::<1>(halves)
}

//! Reading and nothing else.

use core::arch::aarch64::*;

use super::memory::load;
use super::shim::prefetch;
use crate::layout::LINE_BYTES;

/// How far ahead a line is asked for.
const AHEAD: usize = 1024 / LINE_BYTES;

#[target_feature(enable = "neon")]
pub(super) fn read(bytes: &[u8], streams: usize) -> u64 {
    match streams {
        1 => read_streams::<1>(bytes),
        2 => read_streams::<2>(bytes),
        3 => read_streams::<3>(bytes),
        4 => read_streams::<4>(bytes),
        5 => read_streams::<5>(bytes),
        6 => read_streams::<6>(bytes),
        7 => read_streams::<7>(bytes),
        _ => read_streams::<8>(bytes),
    }
}

#[target_feature(enable = "neon")]
fn read_streams<const N: usize>(bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let part = lines.len() / N;
    let mut streams = [&[][..]; N];
    for (n, stream) in streams.iter_mut().enumerate() {
        *stream = &lines[n * part..][..part];
    }
    let mut words = [vdupq_n_u8(0); 4];
    for i in 0..part {
        for lines in streams {
            if let Some(line) = lines.get(i + AHEAD) {
                prefetch::<0>(line);
            }
            for (word, quarter) in words.iter_mut().zip(lines[i].as_chunks::<16>().0) {
                *word = veorq_u8(*word, load(quarter));
            }
        }
    }
    let all = veorq_u8(veorq_u8(words[0], words[1]), veorq_u8(words[2], words[3]));
    let halves = vreinterpretq_u64_u8(all);
    vgetq_lane_u64::<0>(halves) ^ vgetq_lane_u64::<1>(halves)
}

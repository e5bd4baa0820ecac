//! Reading and nothing else.

use core::arch::x86_64::*;

use super::memory::{load, prefetch};
use crate::layout::LINE_BYTES;

/// How far ahead a line is asked for.
const AHEAD: usize = 2048 / LINE_BYTES;

#[target_feature(enable = "avx2")]
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

#[target_feature(enable = "avx2")]
fn read_streams<const N: usize>(bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let part = lines.len() / N;
    let streams: [_; N] = core::array::from_fn(|n| &lines[n * part..][..part]);
    let mut words = [_mm256_setzero_si256(); 2];
    for i in 0..part {
        for lines in streams {
            if let Some(line) = lines.get(i + AHEAD) {
                prefetch(line);
            }
            for (word, half) in words.iter_mut().zip(lines[i].as_chunks::<32>().0) {
                *word = _mm256_xor_si256(*word, load(half));
            }
        }
    }
    let all = _mm256_xor_si256(words[0], words[1]);
    let half = _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    (_mm_extract_epi64::<0>(half) ^ _mm_extract_epi64::<1>(half)) as u64
}

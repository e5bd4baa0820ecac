//! Reading of memory, and multiply-accumulates, to measure their speed.

use core::hint::black_box;

use crate::layout::LINE_BYTES;

/// The xor of all words of `streams` equal parts of `bytes`. It reads a line of each part in turn.
pub(crate) fn read(bytes: &[u8], streams: usize) -> u64 {
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let part = lines.len() / streams;
    let mut words = [0u64; LINE_BYTES / 8];
    for i in 0..part {
        for stream in 0..streams {
            let (line, _) = lines[stream * part + i].as_chunks::<8>();
            for (word, bytes) in words.iter_mut().zip(line) {
                *word ^= u64::from_le_bytes(*bytes);
            }
        }
    }
    words.iter().fold(0, |all, word| all ^ word)
}

/// Multiply-accumulates of bytes, in a form that compilers vectorise.
pub(crate) fn multiply_accumulate(rounds: usize) -> u64 {
    const BYTES: usize = 64;
    let weights = black_box([3i8; BYTES]);
    let mut sums = [0i32; BYTES];
    for _ in 0..rounds {
        let codes = black_box([1i8; BYTES]);
        for ((sum, weight), code) in sums.iter_mut().zip(weights).zip(codes) {
            *sum = sum.wrapping_add(i32::from(i16::from(weight) * i16::from(code)));
        }
    }
    black_box(sums);
    (rounds * BYTES) as u64
}

//! Reading of memory, to measure its speed.

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

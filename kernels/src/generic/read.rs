//! Reading of memory, to measure its speed.

/// Defines `read` with lines of `$registers` registers, which are prefetched `$bytes` bytes ahead.
///
/// The invoking module has, by these names, `load`, `zero()`, `xor`, `prefetch(line)`, and
/// `fold(words)`, the xor of all 64-bit words of a line's registers.
macro_rules! read {
    ($features:literal, $registers:literal, $bytes:literal) => {
        #[target_feature(enable = $features)]
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

        #[target_feature(enable = $features)]
        fn read_streams<const N: usize>(bytes: &[u8]) -> u64 {
            use $crate::layout::LINE_BYTES;

            let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
            let part = lines.len() / N;
            let streams: [_; N] = core::array::from_fn(|n| &lines[n * part..][..part]);
            let mut words = [zero(); $registers];
            for i in 0..part {
                for lines in streams {
                    if let Some(line) = lines.get(i + $bytes / LINE_BYTES) {
                        prefetch(line);
                    }
                    let (registers, _) = lines[i].as_chunks::<{ LINE_BYTES / $registers }>();
                    for (word, register) in words.iter_mut().zip(registers) {
                        *word = xor(*word, load(register));
                    }
                }
            }
            fold(words)
        }
    };
}
pub(crate) use read;

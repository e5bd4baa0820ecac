//! Quantized elements: blocks of small integers that share scales.
//!
//! The arithmetic is ggml's, in single precision and in its order. So a block has the values that
//! llama.cpp computes with, to the bit.

use std::fmt;

use half::f16;

/// A type of blocks of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockType {
    /// 32 integers of 8 bits and a scale.
    Q8_0,
    /// 32 integers of 4 bits and a scale.
    Q4_0,
    /// 32 integers of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 integers of 5 bits and a scale.
    Q5_0,
    /// 32 integers of 5 bits, a scale and a minimum.
    Q5_1,
    /// Eight groups of 32 integers of 4 bits, with scales and minima of 6 bits.
    Q4K,
    /// Eight groups of 32 integers of 5 bits, with scales and minima of 6 bits.
    Q5K,
    /// 16 groups of 16 integers of 6 bits, with scales of 8 bits.
    Q6K,
    /// 32 values of a table of 16, and a scale.
    Iq4Nl,
    /// Eight groups of 32 values of that table, with scales of 6 bits.
    Iq4Xs,
}

/// Values of the codes of `Iq4Nl` and `Iq4Xs`.
const CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl BlockType {
    /// Elements of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => 32,
            Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub fn size(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Whether the type keeps clearly less of a model than 16 bits do.
    pub fn is_coarse(self) -> bool {
        self != Self::Q8_0
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        })
    }
}

/// Decodes `out.len()` elements, the first of which is element `skip` of the first block. `bytes`
/// holds the blocks of these elements.
pub(in crate::source) fn decode(kind: BlockType, bytes: &[u8], skip: usize, out: &mut [f32]) {
    match kind {
        BlockType::Q8_0 => each(bytes, skip, out, q8_0),
        BlockType::Q4_0 => each(bytes, skip, out, q4_0),
        BlockType::Q4_1 => each(bytes, skip, out, q4_1),
        BlockType::Q5_0 => each(bytes, skip, out, q5_0),
        BlockType::Q5_1 => each(bytes, skip, out, q5_1),
        BlockType::Q4K => each(bytes, skip, out, q4_k),
        BlockType::Q5K => each(bytes, skip, out, q5_k),
        BlockType::Q6K => each(bytes, skip, out, q6_k),
        BlockType::Iq4Nl => each(bytes, skip, out, iq4_nl),
        BlockType::Iq4Xs => each(bytes, skip, out, iq4_xs),
    }
}

/// Decodes block after block, and leaves out `skip` elements of the first.
fn each<const SIZE: usize, const LEN: usize>(
    bytes: &[u8],
    mut skip: usize,
    mut out: &mut [f32],
    decode: fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    let mut values = [0.0; LEN];
    for block in bytes.as_chunks::<SIZE>().0 {
        decode(block, &mut values);
        let (part, rest) = out.split_at_mut(out.len().min(LEN - skip));
        part.copy_from_slice(&values[skip..skip + part.len()]);
        (skip, out) = (0, rest);
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The lower four bits of a byte, or the upper ones.
fn nibble(byte: u8, upper: bool) -> u8 {
    if upper { byte >> 4 } else { byte & 15 }
}

/// Integers of 4 bits: the lower halves of 16 bytes, then the upper ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    [false, true].into_iter().flat_map(|upper| bytes.iter().map(move |&byte| nibble(byte, upper)))
}

/// The same with a fifth bit each, bit after bit of the first four bytes.
fn fives(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (0..).zip(nibbles(&bytes[4..])).map(move |(i, low)| low | ((fifth >> i & 1) as u8) << 4)
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = scale * f32::from(q as i8));
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    out.iter_mut().zip(nibbles(&block[2..])).for_each(|(out, q)| *out = scale * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    out.iter_mut().zip(nibbles(&block[4..])).for_each(|(out, q)| *out = scale * f32::from(q) + minimum);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    out.iter_mut().zip(fives(&block[2..])).for_each(|(out, q)| *out = scale * (f32::from(q) - 16.0));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    out.iter_mut().zip(fives(&block[4..])).for_each(|(out, q)| *out = scale * f32::from(q) + minimum);
}

fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    let codes = nibbles(&block[2..]);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(CODES[usize::from(code)]));
}

/// Scale and minimum of each of eight groups, of 6 bits each.
fn scales_and_minima(packed: &[u8]) -> [[f32; 2]; 8] {
    std::array::from_fn(|i| {
        let both = match i.checked_sub(4) {
            None => [packed[i] & 63, packed[i + 4] & 63],
            Some(first) => {
                [packed[i + 4] & 15 | packed[first] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4]
            }
        };
        both.map(f32::from)
    })
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (groups, integers) = (scales_and_minima(&block[4..16]), &block[16..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = (scale * groups[group][0], minimum * groups[group][1]);
        for (out, &byte) in out.iter_mut().zip(&integers[group / 2 * 32..]) {
            *out = scale * f32::from(nibble(byte, group % 2 == 1)) - minimum;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (groups, fifth, integers) = (scales_and_minima(&block[4..16]), &block[16..48], &block[48..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = (scale * groups[group][0], minimum * groups[group][1]);
        for ((out, &byte), &fifth) in out.iter_mut().zip(&integers[group / 2 * 32..]).zip(fifth) {
            let q = nibble(byte, group % 2 == 1) | (fifth >> group & 1) << 4;
            *out = scale * f32::from(q) - minimum;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (side, quarter) = (group / 4, group % 4);
        let low = &low[64 * side + 32 * (quarter % 2)..];
        for (i, (out, (&low, &high))) in out.iter_mut().zip(low.iter().zip(&high[32 * side..])).enumerate() {
            let q = nibble(low, quarter > 1) | (high >> (2 * quarter) & 3) << 4;
            let scale = scale * f32::from(scales[2 * group + i / 16] as i8);
            *out = scale * (f32::from(q) - 32.0);
        }
    }
}

fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (scale, upper) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    let (lower, codes) = (&block[4..8], &block[8..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let upper = (upper >> (2 * group) & 3) as u8;
        let group_scale = nibble(lower[group / 2], group % 2 == 1) | upper << 4;
        let scale = scale * (f32::from(group_scale) - 32.0);
        for (out, code) in out.iter_mut().zip(nibbles(&codes[16 * group..][..16])) {
            *out = scale * f32::from(CODES[usize::from(code)]);
        }
    }
}

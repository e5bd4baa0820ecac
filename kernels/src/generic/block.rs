//! The parts of an interleaved block, and the parts of a vector that they are multiplied with.

#[cfg(target_arch = "x86_64")]
use crate::layout::Activation;
use crate::layout::{GROUP_SIZE, K_BLOCK, LINE_BYTES, ROW_INTERLEAVE};

const QUADS: usize = GROUP_SIZE / 4;
/// Groups in a row of a block.
pub(crate) const GROUPS: usize = K_BLOCK / GROUP_SIZE;

/// The weights of a group: 16 rows of 4 columns in each line.
pub(crate) type Int8Lines = [[u8; LINE_BYTES]; QUADS];
/// The weights of a group: 16 rows of 4 columns in the low nibbles of each line, and of 4 in the
/// high ones.
pub(crate) type Int4Lines = [[u8; LINE_BYTES]; QUADS / 2];

/// A group of the vector, which all rows of a block are multiplied with.
pub(crate) struct Group<'a> {
    pub(crate) codes: &'a [[i8; 4]; QUADS],
    pub(crate) scale: f32,
    pub(crate) sum: i32,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Group<'a> {
    /// Group `g` of the vector.
    #[inline(always)]
    pub(crate) fn of(x: Activation<'a>, g: usize) -> Self {
        let (codes, _) = x.codes.as_chunks::<4>().0.as_chunks();
        Self { codes: &codes[g], scale: x.scales[g], sum: x.sums[g] }
    }
}

/// A block of quantized weights: fp16 scales of 16 rows for each group, then the groups.
pub(crate) struct Parts<'a, const LINES: usize> {
    pub(crate) scales: &'a [[u8; 2 * ROW_INTERLEAVE]; GROUPS],
    pub(crate) lines: &'a [[[u8; LINE_BYTES]; LINES]; GROUPS],
}

impl<'a, const LINES: usize> Parts<'a, LINES> {
    #[inline(always)]
    pub(crate) fn of(block: &'a [u8]) -> Self {
        let (scales, lines) = block.split_at(LINE_BYTES);
        Self {
            scales: &scales.as_chunks().0.as_chunks().0[0],
            lines: &lines.as_chunks().0.as_chunks().0.as_chunks().0[0],
        }
    }
}

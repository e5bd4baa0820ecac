//! The codes of Int4n. PSHUFB finds those of the table. They are unsigned here, as VPMADDUBSW and
//! VPDPBUSD take one unsigned factor.

use core::arch::x86_64::*;

use super::int::Rows;
use super::memory::{load, load_512, load_half};
use crate::generic::Group;
use crate::layout::INT4N_TABLE;

/// What codes of the table have added here: they are 0..=60.
pub(super) const OFFSET: i32 = 32;

/// What codes have added before their shift is: 0..=3 times 2.
pub(super) const SHIFTED_OFFSET: i32 = OFFSET + 3;

const TABLE: [u8; 64] = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < table.len() {
        table[i] = (INT4N_TABLE[i % 16] as i32 + OFFSET) as u8;
        i += 1;
    }
    table
};

/// Codes of the table + [`OFFSET`], by nibble, in every 128 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn table() -> __m256i {
    load(TABLE.first_chunk().expect("32 bytes"))
}

/// The same in 512 bits.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn table_512() -> __m512i {
    load_512(&TABLE)
}

/// Codes of the table + [`OFFSET`] of the low nibbles of all bytes, and of the high ones.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn codes(bytes: __m256i) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
    [_mm256_shuffle_epi8(table(), _mm256_and_si256(bytes, low)), _mm256_shuffle_epi8(table(), high)]
}

/// The same in 512 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn codes_512(bytes: __m512i) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
    [_mm512_shuffle_epi8(table_512(), _mm512_and_si512(bytes, low)), _mm512_shuffle_epi8(table_512(), high)]
}

/// The two lowest bits of the fp16 scales of 8 rows.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn low_bits(scales: &[u8; 16]) -> __m256i {
    _mm256_and_si256(_mm256_cvtepu16_epi32(load_half(scales)), _mm256_set1_epi32(3))
}

/// What makes sums of products with codes of the table + [`OFFSET`] those with codes: the rows'
/// shifts, less the offset, times the sum of the vector's codes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn start(scales: &[u8; 32], x: &Group<'_>) -> Rows<__m256i> {
    let (scales, _) = scales.as_chunks::<16>();
    let none = _mm256_set1_epi32(x.sum.wrapping_mul(-SHIFTED_OFFSET));
    // Twice the sum fits 16 bits.
    let each = _mm256_set1_epi32(x.sum.wrapping_mul(2));
    [
        _mm256_add_epi32(none, _mm256_madd_epi16(low_bits(&scales[0]), each)),
        _mm256_add_epi32(none, _mm256_madd_epi16(low_bits(&scales[1]), each)),
    ]
}

/// The same in 512 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn start_512(scales: &[u8; 32], x: &Group<'_>) -> __m512i {
    let low_bits = _mm512_and_si512(_mm512_cvtepu16_epi32(load(scales)), _mm512_set1_epi32(3));
    let products = _mm512_madd_epi16(low_bits, _mm512_set1_epi32(x.sum.wrapping_mul(2)));
    _mm512_add_epi32(_mm512_set1_epi32(x.sum.wrapping_mul(-SHIFTED_OFFSET)), products)
}

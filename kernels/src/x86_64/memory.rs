//! Loads and stores whose length is in the type of their argument.

use core::arch::x86_64::*;
use core::sync::atomic::{Ordering, compiler_fence};

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(from: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_codes(from: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_codes(to: &mut [i8; 32], value: __m256i) {
    // SAFETY: 32 bytes are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_half(from: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_f32(from: &[f32; 8]) -> __m256 {
    // SAFETY: 8 floats are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_f32(to: &mut [f32; 8], value: __m256) {
    // SAFETY: 8 floats are writable; the store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_i32(from: &[i32; 8]) -> __m256i {
    // SAFETY: 8 integers are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_i32(to: &mut [i32; 8], value: __m256i) {
    // SAFETY: 8 integers are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_u32(to: &mut [u32; 8], value: __m256i) {
    // SAFETY: 8 integers are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: 32 bytes are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

/// Eight fp16 numbers.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) fn load_f16(from: &[u8; 16]) -> __m256 {
    _mm256_cvtph_ps(load_half(from))
}

/// Four codes in every 32-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn broadcast(codes: &[i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(codes.map(|code| code as u8)))
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_512(from: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_f32_512(from: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats are readable; the load needs no alignment.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_f32_512(to: &mut [f32; 16], value: __m512) {
    // SAFETY: 16 floats are writable; the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_i32_512(from: &[i32; 16]) -> __m512i {
    // SAFETY: 16 integers are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store_i32_512(to: &mut [i32; 16], value: __m512i) {
    // SAFETY: 16 integers are writable; the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_codes_512(from: &[[i8; 32]; 2]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Four codes in every 32-bit lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn broadcast_512(codes: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_ne_bytes(codes.map(|code| code as u8)))
}

/// Prefetches every cache line of `items`.
///
/// The fence keeps each prefetch between the loads around it. A compiler would group them, and a
/// group overflows the line-fill buffers.
#[inline]
pub(super) fn prefetch<T>(items: &[T]) {
    let start = items.as_ptr().cast::<u8>();
    for line in 0..size_of_val(items).div_ceil(64) {
        prefetch_line(start.wrapping_add(64 * line));
    }
}

/// Prefetches the cache line of an address, which may be any; see [`prefetch`].
#[inline]
pub(super) fn prefetch_line(at: *const u8) {
    // SAFETY: a prefetch never faults, whatever the address.
    #[allow(unused_unsafe, reason = "not an unsafe function in newer compilers")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast())
    };
    compiler_fence(Ordering::SeqCst);
}

/// Prefetches every cache line of `bytes` to the second level: they are read after the first level
/// has seen much else.
#[inline]
pub(super) fn prefetch_near(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch never faults, whatever the address.
        #[allow(unused_unsafe, reason = "not an unsafe function in newer compilers")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast())
        };
    }
}

//! Products of several vectors by VPDPBUSD. `generic` has the loops around them.
//!
//! VPDPBUSD takes one unsigned factor, so the panel has codes + offset, and sums start as `-offset`
//! times the sum of the vector's codes.

use core::arch::x86_64::*;

use super::int4n;
use super::matmul::{add_group, decode_int4, decode_lines, decode_scales};
use super::memory::{
    broadcast, broadcast_512, load, load_512, load_f32_512, prefetch_near, store, store_f32_512,
};
use crate::generic::{BYTE_PANEL, ByteBlock, Parts, RowSums, corrections, int_columns, matmul, steps};
use crate::layout::{Activation, DType, GROUP_SIZE, Matrix};

// Four vectors have eight registers of sums.
matmul!(
    "avx2,fma,f16c,avxvnni",
    matmul_int4_256,
    DType::Int4,
    [ByteBlock<8>; BYTE_PANEL],
    prefetch_near,
    decode_int4,
    tile_256,
    4: [1 2 3 4]
);
matmul!(
    "avx2,fma,f16c,avxvnni",
    matmul_int4n_256,
    DType::Int4n,
    [ByteBlock<{ int4n::SHIFTED_OFFSET }>; BYTE_PANEL],
    prefetch_near,
    decode_int4n,
    tile_256,
    4: [1 2 3 4]
);
matmul!(
    "avx2,fma,f16c,avxvnni",
    matmul_int8_256,
    DType::Int8,
    [ByteBlock<128>; BYTE_PANEL],
    prefetch_near,
    decode_int8,
    tile_256,
    4: [1 2 3 4]
);
// Eight vectors have eight registers of sums. Their chains hide the latency of VPDPBUSD.
matmul!(
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni",
    matmul_int4_512,
    DType::Int4,
    [ByteBlock<8>; BYTE_PANEL],
    prefetch_near,
    decode_int4,
    tile_512,
    8: [1 2 3 4 5 6 7 8]
);
matmul!(
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni",
    matmul_int4n_512,
    DType::Int4n,
    [ByteBlock<{ int4n::SHIFTED_OFFSET }>; BYTE_PANEL],
    prefetch_near,
    decode_int4n,
    tile_512,
    8: [1 2 3 4 5 6 7 8]
);
matmul!(
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni",
    matmul_int8_512,
    DType::Int8,
    [ByteBlock<128>; BYTE_PANEL],
    prefetch_near,
    decode_int8,
    tile_512,
    8: [1 2 3 4 5 6 7 8]
);

/// Shifted codes + [`SHIFTED_OFFSET`](int4n::SHIFTED_OFFSET).
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_int4n(
    block: &[u8; DType::Int4n.block_bytes()],
    decoded: &mut ByteBlock<{ int4n::SHIFTED_OFFSET }>,
) {
    let parts = Parts::<4>::of(block);
    let first_bytes =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    for (g, (lines, decoded)) in parts.lines.iter().zip(&mut decoded.lines).enumerate() {
        let shifts = parts.scales[g].as_chunks().0;
        let shifts = [&shifts[0], &shifts[1]].map(|scales| {
            let low_bits = _mm256_shuffle_epi8(int4n::low_bits(scales), first_bytes);
            _mm256_add_epi8(low_bits, low_bits)
        });
        decode_lines(lines, decoded, |half, bytes| {
            let [low, high] = int4n::codes(bytes);
            [_mm256_add_epi8(low, shifts[half]), _mm256_add_epi8(high, shifts[half])]
        });
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Codes + 128.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn decode_int8(block: &[u8; DType::Int8.block_bytes()], decoded: &mut ByteBlock<128>) {
    let parts = Parts::<8>::of(block);
    let sign = _mm256_set1_epi8(i8::MIN);
    let lines = parts.lines.as_flattened().as_flattened().as_chunks().0;
    let decoded_lines = decoded.lines.as_flattened_mut().as_flattened_mut().as_chunks_mut().0;
    for (half, decoded) in lines.iter().zip(decoded_lines) {
        store(decoded, _mm256_xor_si256(load(half), sign));
    }
    decode_scales(parts.scales, &mut decoded.scales);
}

/// Defines `$tile` with lines of `$registers` registers of `$bytes` bytes. `$splat` brings a number
/// to all lanes and `$broadcast` four codes. `$multiply` is VPDPBUSD. `$add_group` adds the sums of
/// a group to those of floats.
macro_rules! tile {
    (
        $features:literal, $tile:ident, $registers:literal x $bytes:literal, $splat:ident, $load:ident,
        $broadcast:ident, $multiply:ident, $add_group:ident
    ) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $tile<const T: usize, const OFFSET: i32>(
            panel: &[ByteBlock<OFFSET>],
            first: usize,
            xs: &[Activation<'_>; T],
            sums: &mut [RowSums; T],
        ) {
            let xs = int_columns(xs, first, panel.len());
            let corrections = corrections(&xs, panel);
            let quads = steps(GROUP_SIZE / 4);
            for (i, block) in panel.iter().enumerate() {
                for (g, (lines, scales)) in block.lines.iter().zip(&block.scales).enumerate() {
                    let codes = xs.each_ref().map(|x| &x.codes[i][g]);
                    let mut dots = [[$splat(0); $registers]; T];
                    for (dots, corrections) in dots.iter_mut().zip(&corrections) {
                        *dots = [$splat(corrections[i][g]); $registers];
                    }
                    for (q, line) in lines.iter().take(quads).enumerate() {
                        let mut weights = [$splat(0); $registers];
                        for (weights, part) in weights.iter_mut().zip(line.as_chunks::<$bytes>().0) {
                            *weights = $load(part);
                        }
                        for (dots, codes) in dots.iter_mut().zip(&codes) {
                            let codes = $broadcast(&codes[q]);
                            for (dot, weights) in dots.iter_mut().zip(weights) {
                                *dot = $multiply(*dot, weights, codes);
                            }
                        }
                    }
                    for ((sums, dots), x) in sums.iter_mut().zip(dots).zip(&xs) {
                        $add_group(sums, scales, x.scales[i][g], dots);
                    }
                }
            }
        }
    };
}

tile!(
    "avx2,fma,f16c,avxvnni",
    tile_256,
    2 x 32,
    _mm256_set1_epi32,
    load,
    broadcast,
    _mm256_dpbusd_avx_epi32,
    add_group
);
tile!(
    "avx512f,avx512bw,avx512vnni",
    tile_512,
    1 x 64,
    _mm512_set1_epi32,
    load_512,
    broadcast_512,
    _mm512_dpbusd_epi32,
    add_group_512
);

/// `sums + scales * scale * dots`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_group_512(sums: &mut RowSums, scales: &RowSums, scale: f32, [dots]: [__m512i; 1]) {
    let scales = _mm512_mul_ps(load_f32_512(scales), _mm512_set1_ps(scale));
    store_f32_512(sums, _mm512_fmadd_ps(scales, _mm512_cvtepi32_ps(dots), load_f32_512(sums)));
}

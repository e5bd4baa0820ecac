//! Kernels for x86-64.
//!
//! The kernels are safe functions over slices. Two things are unsafe: the loads and stores of
//! `memory`, whose lengths are in their argument types, and the calls from a table, which is handed
//! out after detection.
#![allow(unsafe_code, reason = "vector loads and stores, and calls of functions with target features")]

mod avx512_vnni;
mod avx_vnni;
mod compact;
mod encode;
mod float;
mod int;
mod int4n;
mod matmul;
mod matmul_vnni;
mod memory;
mod peak;
mod quantize;
mod read;
mod record;
mod record_512;
mod shared;
mod shift;
mod sparse;
mod sparse_256;
mod sparse_512;
mod sparse_codes;
mod sparse_float;
mod streams;
mod wkv;

use crate::generic::entries;
use crate::isa::Isa;
use crate::layout::{
    Activation, ActivationMut, GROUP_SIZE, Matrix, Normed, ROW_INTERLEAVE, Records, Shift, Shifted, Sparse,
    SparseScale,
};
use crate::quant::feedback::{GroupRows, Outputs, Rounded, Rows};
use crate::quant::{FeedbackTable, Group, ScaleOverflow, Tile};
use crate::table::{Kernels, SoftmaxStats, Tiles};

const AVX2_TILES: Tiles = Tiles {
    many: 6,
    f32: entry::matmul_f32,
    f16: entry::matmul_f16,
    int8: entry::matmul_int8,
    int4: entry::matmul_int4,
    int4n: entry::matmul_int4n,
};

/// The kernels of [`Isa::Avx2`]; to be used only where that level is available.
pub(crate) const AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    quantize: entry::quantize,
    matvec_f32: entry::matvec_f32,
    matvec_f16: entry::matvec_f16,
    matvec_int8: entry::matvec_int8,
    matvec_int4: entry::matvec_int4,
    matvec_int4n: entry::matvec_int4n,
    tiles: Some(AVX2_TILES),
    nonzero: entry::nonzero,
    sparse_f32: entry::sparse_f32,
    sparse_f16: entry::sparse_f16,
    largest_magnitude: entry::largest_magnitude,
    max: entry::max,
    reaching: entry::reaching,
    sparse_accumulate_int8: entry::accumulate_int8,
    sparse_accumulate_int4: entry::accumulate_int4,
    sparse_accumulate_int4n: entry::accumulate_int4n,
    sparse_finish_int8: entry::finish_int8,
    sparse_finish_int4: entry::finish_int4,
    sparse_finish_int4n: entry::finish_int4n,
    dequantize_record: entry::dequantize_record,
    record_dots: entry::record_dots_avx2,
    prefetch: memory::prefetch,
    read: entry::read,
    multiply_accumulate: entry::multiply_accumulate,
    layer_norm: entry::layer_norm,
    lerp: entry::lerp,
    norm_shift: entry::norm_shift,
    wkv4: entry::wkv4,
    relu_squared: entry::relu_squared,
    add: entry::add,
    softmax: entry::softmax,
    wkv6: entry::wkv6,
    wkv7: entry::wkv7,
    tanh: entry::tanh,
    sigmoid: entry::sigmoid,
    silu_mul: entry::silu_mul,
    mul: entry::mul,
    decay6: entry::decay6,
    decay7: entry::decay7,
    l2_normalize: entry::l2_normalize,
    dot3: entry::dot3,
    encode_int8: entry::encode_int8,
    encode_int4: entry::encode_int4,
    encode_int4n: entry::encode_int4n,
};

/// The kernels of [`Isa::AvxVnni`]; to be used only where that level is available.
pub(crate) const AVX_VNNI: Kernels = Kernels {
    isa: Isa::AvxVnni,
    matvec_int8: avx_vnni_entry::matvec_int8,
    matvec_int4: avx_vnni_entry::matvec_int4,
    matvec_int4n: avx_vnni_entry::matvec_int4n,
    tiles: Some(Tiles {
        many: 4,
        int8: avx_vnni_entry::matmul_int8_256,
        int4: avx_vnni_entry::matmul_int4_256,
        int4n: avx_vnni_entry::matmul_int4n_256,
        ..AVX2_TILES
    }),
    record_dots: avx_vnni_entry::record_dots_avx_vnni,
    multiply_accumulate: avx_vnni_entry::multiply_accumulate_avx_vnni,
    ..AVX2
};

/// The kernels of [`Isa::Avx512Vnni`]; to be used only where that level is available.
pub(crate) const AVX512_VNNI: Kernels = Kernels {
    isa: Isa::Avx512Vnni,
    matvec_int8: avx512_vnni_entry::matvec_int8,
    matvec_int4: avx512_vnni_entry::matvec_int4,
    matvec_int4n: avx512_vnni_entry::matvec_int4n,
    tiles: Some(Tiles {
        many: 4,
        int8: avx512_vnni_entry::matmul_int8_512,
        int4: avx512_vnni_entry::matmul_int4_512,
        int4n: avx512_vnni_entry::matmul_int4n_512,
        ..AVX2_TILES
    }),
    record_dots: avx512_vnni_entry::record_dots,
    multiply_accumulate: avx512_vnni_entry::multiply_accumulate_avx512_vnni,
    sparse_accumulate_int8: avx512_vnni_entry::accumulate_int8,
    sparse_accumulate_int4: avx512_vnni_entry::accumulate_int4,
    sparse_accumulate_int4n: avx512_vnni_entry::accumulate_int4n,
    sparse_finish_int8: avx512_vnni_entry::finish_int8,
    sparse_finish_int4: avx512_vnni_entry::finish_int4,
    sparse_finish_int4n: avx512_vnni_entry::finish_int4n,
    ..AVX2
};

/// Encoding with error feedback on [`Isa::Avx2`]; to be used only where that level is available.
pub(crate) const FEEDBACK: FeedbackTable = FeedbackTable {
    carry_rows: feedback_entry::carry_rows,
    carry_outputs: feedback_entry::carry_outputs,
    round_int8: feedback_entry::round_int8,
    round_int4: feedback_entry::round_int4,
    round_int4n: feedback_entry::round_int4n,
    subtract_products: feedback_entry::subtract_products,
};

entries! { feedback_entry:
    fn carry_rows(targets: &mut [Rows], errors: &[Rows; GROUP_SIZE], factors: &[[f32; GROUP_SIZE]]) = shared;
    fn carry_outputs(
        targets: &mut [Outputs], errors: &[Outputs; GROUP_SIZE], factors: &[[f32; GROUP_SIZE]]
    ) = shared;
    fn round_int8(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = shared;
    fn round_int4(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = shared;
    fn round_int4n(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = shared;
    fn subtract_products(
        tile: &mut Tile, a: &[[f32; GROUP_SIZE]], b: &[[f32; GROUP_SIZE]], d: &[f32]
    ) = shared;
}

entries! { avx_vnni_entry:
    fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx_vnni;
    fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx_vnni;
    fn matvec_int4n(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx_vnni;
    fn matmul_int8_256(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn matmul_int4_256(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn matmul_int4n_256(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn multiply_accumulate_avx_vnni(rounds: usize) -> u64 = peak;
    fn record_dots_avx_vnni(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) = record;
}

entries! { avx512_vnni_entry:
    fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx512_vnni;
    fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx512_vnni;
    fn matvec_int4n(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = avx512_vnni;
    fn matmul_int8_512(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn matmul_int4_512(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn matmul_int4n_512(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul_vnni;
    fn accumulate_int8(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_512;
    fn accumulate_int4(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_512;
    fn accumulate_int4n(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_512;
    fn finish_int8(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_512;
    fn finish_int4(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_512;
    fn finish_int4n(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_512;
    fn multiply_accumulate_avx512_vnni(rounds: usize) -> u64 = peak;
    fn record_dots(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) = record_512;
}

entries! { entry:
    fn quantize(x: &mut ActivationMut<'_>) = quantize;
    fn norm_shift(
        h: &mut [f32], x: Normed<'_>, h_prev: &[f32], shift: Shift, outs: &mut [Shifted<'_, '_>]
    ) = shift;
    fn matvec_f32(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = float;
    fn matvec_f16(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = float;
    fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = int;
    fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = int;
    fn matvec_int4n(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = int;
    fn matmul_f32(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul;
    fn matmul_f16(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul;
    fn matmul_int8(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul;
    fn matmul_int4(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul;
    fn matmul_int4n(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = matmul;
    fn nonzero(indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize = compact;
    fn sparse_f32(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) = sparse_float;
    fn sparse_f16(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) = sparse_float;
    fn accumulate_int8(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_256;
    fn accumulate_int4(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_256;
    fn accumulate_int4n(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse_256;
    fn finish_int8(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_256;
    fn finish_int4(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_256;
    fn finish_int4n(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse_256;
    fn dequantize_record(out: &mut [f32], w: &Records<'_>, index: usize) = shared;
    fn record_dots_avx2(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) = record;
    fn read(bytes: &[u8], streams: usize) -> u64 = read;
    fn multiply_accumulate(rounds: usize) -> u64 = peak;
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = shared;
    fn lerp(out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]) = shared;
    fn wkv4(
        y: &mut [f32], k: &[f32], v: &[f32], time_first: &[f32], time_decay: &[f32],
        aa: &mut [f32], bb: &mut [f32], pp: &mut [f32]
    ) = shared;
    fn relu_squared(x: &mut [f32]) = shared;
    fn largest_magnitude(x: &[f32]) -> f32 = shared;
    fn max(x: &[f32]) -> f32 = shared;
    fn reaching(indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize = compact;
    fn add(x: &mut [f32], y: &[f32]) = shared;
    fn softmax(out: &mut [f32], x: &[f32]) -> SoftmaxStats = shared;
    fn wkv6(
        y: &mut [f32], state: &mut [f32], r: &[f32], k: &[f32], v: &[f32], u: &[f32], w: &[f32]
    ) = wkv;
    fn wkv7(
        y: &mut [f32], state: &mut [f32], r: &[f32], w: &[f32], k: &[f32], v: &[f32], kk: &[f32], a: &[f32]
    ) = wkv;
    fn tanh(x: &mut [f32]) = shared;
    fn sigmoid(x: &mut [f32]) = shared;
    fn silu_mul(out: &mut [f32], gate: &[f32], x: &[f32]) = shared;
    fn mul(out: &mut [f32], a: &[f32], b: &[f32]) = shared;
    fn decay6(x: &mut [f32]) = shared;
    fn decay7(x: &mut [f32]) = shared;
    fn l2_normalize(x: &mut [f32]) = shared;
    fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 = shared;
    fn encode_int8(values: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> = shared;
    fn encode_int4(values: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> = shared;
    fn encode_int4n(
        values: &[f32; GROUP_SIZE], importance: &[f32; GROUP_SIZE], len: usize
    ) -> Result<Group, ScaleOverflow> = encode;
}

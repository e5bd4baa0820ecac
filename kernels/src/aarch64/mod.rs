//! Kernels for 64-bit ARM.
//!
//! NEON with fused multiply-add is in the baseline of the target, so compilers make good code of
//! most portable bodies. A table takes them from scalar unless compilers do poorly on them.
//!
//! The kernels are safe functions over slices. Three things are unsafe: the loads and stores of
//! `memory`, whose lengths are in their argument types; the instructions of `shim`; and the calls
//! from a table, which is handed out after detection.
#![allow(
    unsafe_code,
    reason = "vector loads and stores, assembly, and calls of functions with target features"
)]

mod compact;
mod dotprod;
mod encode;
mod float;
mod i8mm;
mod int;
mod int4n;
mod matmul;
mod memory;
#[cfg(miri)]
mod miri;
mod peak;
mod read;
mod record;
mod shim;
mod sparse;
mod sparse_float;
mod sparse_tile;
mod streams;
mod wkv;

use crate::generic::entries;
use crate::isa::Isa;
use crate::layout::{Activation, GROUP_SIZE, Matrix, Records, Sparse, SparseScale};
use crate::quant::{Group, ScaleOverflow};
use crate::scalar;
use crate::table::{Kernels, Tiles};

const NEON_TILES: Tiles = Tiles {
    many: 4,
    f32: entry::matmul_f32,
    f16: entry::matmul_f16,
    int8: entry::matmul_int8,
    int4: entry::matmul_int4,
    int4n: entry::matmul_int4n,
};

/// The kernels of [`Isa::Neon`]; to be used only where that level is available.
pub(crate) const NEON: Kernels = Kernels {
    isa: Isa::Neon,
    matvec_f32: entry::matvec_f32,
    matvec_f16: entry::matvec_f16,
    matvec_int8: entry::matvec_int8,
    matvec_int4: entry::matvec_int4,
    matvec_int4n: entry::matvec_int4n,
    tiles: Some(NEON_TILES),
    nonzero: entry::nonzero,
    reaching: entry::reaching,
    sparse_f32: entry::sparse_f32,
    sparse_f16: entry::sparse_f16,
    sparse_accumulate_int8: entry::accumulate_int8,
    sparse_accumulate_int4: entry::accumulate_int4,
    sparse_accumulate_int4n: entry::accumulate_int4n,
    sparse_finish_int8: entry::finish_int8,
    sparse_finish_int4: entry::finish_int4,
    sparse_finish_int4n: entry::finish_int4n,
    record_dots: entry::record_dots,
    prefetch: shim::prefetch_all,
    read: entry::read,
    multiply_accumulate: entry::multiply_accumulate,
    wkv6: entry::wkv6,
    wkv7: entry::wkv7,
    encode_int4n: entry::encode_int4n,
    ..scalar::KERNELS
};

/// The kernels of [`Isa::Dotprod`]; to be used only where that level is available.
pub(crate) const DOTPROD: Kernels = Kernels {
    isa: Isa::Dotprod,
    matvec_int8: dotprod_entry::matvec_int8,
    matvec_int4: dotprod_entry::matvec_int4,
    matvec_int4n: dotprod_entry::matvec_int4n,
    tiles: Some(Tiles {
        int8: dotprod_entry::matmul_int8,
        int4: dotprod_entry::matmul_int4,
        int4n: dotprod_entry::matmul_int4n,
        ..NEON_TILES
    }),
    record_dots: dotprod_entry::record_dots_dotprod,
    multiply_accumulate: dotprod_entry::multiply_accumulate_dotprod,
    ..NEON
};

/// The kernels of [`Isa::I8mm`]; to be used only where that level is available.
pub(crate) const I8MM: Kernels = Kernels {
    isa: Isa::I8mm,
    tiles: Some(Tiles {
        int8: i8mm_entry::matmul_int8,
        int4: i8mm_entry::matmul_int4,
        int4n: i8mm_entry::matmul_int4n,
        ..NEON_TILES
    }),
    multiply_accumulate: i8mm_entry::multiply_accumulate_i8mm,
    ..DOTPROD
};

entries! { i8mm_entry:
    fn multiply_accumulate_i8mm(rounds: usize) -> u64 = peak;
    fn matmul_int8(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = i8mm;
    fn matmul_int4(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = i8mm;
    fn matmul_int4n(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = i8mm;
}

entries! { dotprod_entry:
    fn multiply_accumulate_dotprod(rounds: usize) -> u64 = peak;
    fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = dotprod;
    fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = dotprod;
    fn matvec_int4n(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) = dotprod;
    fn matmul_int8(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = dotprod;
    fn matmul_int4(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = dotprod;
    fn matmul_int4n(outs: &mut [&mut [f32]], w: &Matrix<'_>, first_row: usize, xs: &[Activation<'_>]) = dotprod;
    fn record_dots_dotprod(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) = record;
}

entries! { entry:
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
    fn reaching(indices: &mut [u32], x: &[f32], bounds: &[f32], norm: f32, least: f32) -> usize = compact;
    fn sparse_f32(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) = sparse_float;
    fn sparse_f16(out: &mut [f32], w: &Records<'_>, first: usize, x: Sparse<'_>) = sparse_float;
    fn accumulate_int8(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse;
    fn accumulate_int4(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse;
    fn accumulate_int4n(sums: &mut [i32], w: &Records<'_>, x: Sparse<'_>, scale: SparseScale<'_>) = sparse;
    fn finish_int8(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse;
    fn finish_int4(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse;
    fn finish_int4n(out: &mut [f32], w: &Records<'_>, sums: &[i32], scale: SparseScale<'_>) = sparse;
    fn record_dots(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) = record;
    fn read(bytes: &[u8], streams: usize) -> u64 = read;
    fn multiply_accumulate(rounds: usize) -> u64 = peak;
    fn wkv6(
        y: &mut [f32], state: &mut [f32], r: &[f32], k: &[f32], v: &[f32], u: &[f32], w: &[f32]
    ) = wkv;
    fn wkv7(
        y: &mut [f32], state: &mut [f32], r: &[f32], w: &[f32], k: &[f32], v: &[f32], kk: &[f32], a: &[f32]
    ) = wkv;
    fn encode_int4n(
        values: &[f32; GROUP_SIZE], importance: &[f32; GROUP_SIZE], len: usize
    ) -> Result<Group, ScaleOverflow> = encode;
}

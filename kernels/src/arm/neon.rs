//! The functions in assembly, as safe ones over slices.

use core::arch::global_asm;

use crate::layout::{Activation, DType, GROUP_SIZE, K_BLOCK, LINE_BYTES, ROW_INTERLEAVE};
use crate::math::magnitude_bits;
use crate::scalar::record::DOT_LANES;

global_asm!(include_str!("int.S"), options(raw));
global_asm!(include_str!("float.S"), options(raw));
global_asm!(include_str!("record.S"), options(raw));
global_asm!(include_str!("read.S"), options(raw));

/// A value for each row of a block row.
pub(super) type Rows = [f32; ROW_INTERLEAVE];

type IntRows = unsafe extern "C" fn(*mut Rows, *const u8, usize, *const i8, *const f32, *const i32);
type FloatRows = unsafe extern "C" fn(*mut Rows, *const u8, usize, *const f32);

unsafe extern "C" {
    fn rwkv_edge_neon32_int4_rows(
        acc: *mut Rows,
        blocks: *const u8,
        count: usize,
        codes: *const i8,
        scales: *const f32,
        sums: *const i32,
    );
    fn rwkv_edge_neon32_int8_rows(
        acc: *mut Rows,
        blocks: *const u8,
        count: usize,
        codes: *const i8,
        scales: *const f32,
        sums: *const i32,
    );
    fn rwkv_edge_neon32_f32_rows(acc: *mut Rows, lines: *const u8, groups: usize, values: *const f32);
    fn rwkv_edge_neon32_f16_rows(acc: *mut Rows, lines: *const u8, groups: usize, values: *const f32);
    fn rwkv_edge_neon32_record_dot(
        lanes: *mut [f32; DOT_LANES],
        runs: *const u8,
        weight_scales: *const u8,
        sets: usize,
        codes: *const i8,
        scales: *const f32,
        sums: *const i32,
    );
    fn rwkv_edge_neon32_read(bytes: *const u8, part: usize, streams: usize) -> u64;
}

/// Whether sums of products with these group scales meet no subnormal number.
///
/// The smallest fp16 number is 2^-24. Times a scale of 2^-79 or more that gives, rounded to 24 bits, a multiple of
/// 2^-126. Dot products are integers, so that all sums are multiples of 2^-126: zero or normal.
pub(super) fn stay_normal(scales: &[f32]) -> bool {
    const SMALLEST: u32 = (127 - 79) << 23;
    scales.iter().all(|&scale| scale == 0.0 || magnitude_bits(scale) >= SMALLEST)
}

/// The product of a block row of Int4 before the tensor scale; the scales of `x` have to [stay normal](stay_normal).
pub(super) fn int4_rows(blocks: &[u8], x: Activation<'_>) -> Rows {
    // SAFETY: what `int_rows` asks for; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { int_rows(DType::Int4, rwkv_edge_neon32_int4_rows, blocks, x) }
}

/// The same for Int8.
pub(super) fn int8_rows(blocks: &[u8], x: Activation<'_>) -> Rows {
    // SAFETY: what `int_rows` asks for; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { int_rows(DType::Int8, rwkv_edge_neon32_int8_rows, blocks, x) }
}

/// # Safety
/// `kernel` reads the given number of blocks of `dtype` and as many column blocks of the vector, writes the rows,
/// and the processor can run it.
#[inline(always)]
unsafe fn int_rows(dtype: DType, kernel: IntRows, blocks: &[u8], x: Activation<'_>) -> Rows {
    let count = blocks.len() / dtype.block_bytes();
    assert!(count > 0 && x.codes.len() >= count * K_BLOCK);
    assert!(x.scales.len() >= count * K_BLOCK / GROUP_SIZE && x.sums.len() >= count * K_BLOCK / GROUP_SIZE);
    let mut acc = [0.0; ROW_INTERLEAVE];
    // SAFETY: the lengths were just checked.
    unsafe {
        kernel(&mut acc, blocks.as_ptr(), count, x.codes.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
    }
    acc
}

/// The product of a block row of F32 before the tensor scale.
pub(super) fn f32_rows(blocks: &[u8], values: &[f32]) -> Rows {
    // SAFETY: what `float_rows` asks for; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { float_rows(DType::F32, rwkv_edge_neon32_f32_rows, blocks, values) }
}

/// The same for F16.
pub(super) fn f16_rows(blocks: &[u8], values: &[f32]) -> Rows {
    // SAFETY: what `float_rows` asks for; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { float_rows(DType::F16, rwkv_edge_neon32_f16_rows, blocks, values) }
}

/// # Safety
/// `kernel` reads the lines of `dtype` and the values of the given number of groups, writes the rows, and the
/// processor can run it.
#[inline(always)]
unsafe fn float_rows(dtype: DType, kernel: FloatRows, blocks: &[u8], values: &[f32]) -> Rows {
    let groups = blocks.len() / dtype.block_bytes() * (K_BLOCK / GROUP_SIZE);
    assert!(groups > 0 && values.len() >= groups * GROUP_SIZE);
    let mut acc = [0.0; ROW_INTERLEAVE];
    // SAFETY: the lengths were just checked.
    unsafe { kernel(&mut acc, blocks.as_ptr(), groups, values.as_ptr()) };
    acc
}

/// The lanes of the first `sets` times 8 groups of an Int4 record; the scales of `x` have to
/// [stay normal](stay_normal).
pub(super) fn record_dot(
    sets: usize,
    weight_scales: &[u8],
    runs: &[u8],
    x: Activation<'_>,
) -> [f32; DOT_LANES] {
    let mut lanes = [0.0; DOT_LANES];
    let groups = sets * DOT_LANES;
    assert!(weight_scales.len() >= 2 * groups && runs.len() >= GROUP_SIZE / 2 * groups);
    assert!(x.codes.len() >= GROUP_SIZE * groups && x.scales.len() >= groups && x.sums.len() >= groups);
    if sets > 0 {
        let (runs, weight_scales) = (runs.as_ptr(), weight_scales.as_ptr());
        let (codes, scales, sums) = (x.codes.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
        // SAFETY: reads and writes `groups` groups of what was just checked; the processor has the level, as
        // `Kernels::for_isa` sees to.
        unsafe { rwkv_edge_neon32_record_dot(&mut lanes, runs, weight_scales, sets, codes, scales, sums) };
    }
    lanes
}

/// The words of `streams` equal parts of `bytes`, xored.
pub(super) fn read(bytes: &[u8], streams: usize) -> u64 {
    let part = bytes.len() / LINE_BYTES / streams;
    // SAFETY: reads `streams * part` lines, which `bytes` has; `streams` is not 0, or the division would have
    // panicked; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { rwkv_edge_neon32_read(bytes.as_ptr(), part, streams) }
}

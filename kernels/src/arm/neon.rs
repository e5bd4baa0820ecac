//! Safe functions over slices around those in assembly.

use core::arch::global_asm;

use crate::layout::{Activation, DType, GROUP_SIZE, K_BLOCK, LINE_BYTES, ROW_INTERLEAVE};
use crate::math::{magnitude_bits, settled};
use crate::scalar::record::DOT_LANES;

// In one piece, as the macros of the first serve the others.
global_asm!(include_str!("int4n.S"), include_str!("int.S"), include_str!("sparse.S"), options(raw));
global_asm!(include_str!("float.S"), options(raw));
global_asm!(include_str!("record.S"), options(raw));
global_asm!(include_str!("read.S"), options(raw));
global_asm!(include_str!("peak.S"), options(raw));
global_asm!(include_str!("settle.S"), options(raw));

/// Records in a set of a sparse product.
pub(super) const SPARSE_SET: usize = 4;

/// A value for each row of a block row.
pub(super) type Rows = [f32; ROW_INTERLEAVE];

type IntRows = unsafe extern "C" fn(*mut Rows, *const u8, usize, *const i8, *const f32, *const i32);
type AddCodes =
    unsafe extern "C" fn(*mut [i32; GROUP_SIZE], *const SetPointers, *const [i16; SPARSE_SET], usize);
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
    fn rwkv_edge_neon32_int4n_rows(
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
    fn rwkv_edge_neon32_coefficients(
        out: *mut [i16; SPARSE_SET],
        set: *const SetPointers,
        inverses: *const f32,
        sums: *mut i32,
        groups: usize,
        cmax: u32,
    );
    fn rwkv_edge_neon32_coefficients_int4n(
        out: *mut [i16; SPARSE_SET],
        set: *const SetPointers,
        inverses: *const f32,
        sums: *mut i32,
        groups: usize,
        cmax: u32,
    );
    fn rwkv_edge_neon32_add_int4(
        sums: *mut [i32; GROUP_SIZE],
        set: *const SetPointers,
        coefficients: *const [i16; SPARSE_SET],
        groups: usize,
    );
    fn rwkv_edge_neon32_add_int4n(
        sums: *mut [i32; GROUP_SIZE],
        set: *const SetPointers,
        coefficients: *const [i16; SPARSE_SET],
        groups: usize,
    );
    fn rwkv_edge_neon32_add_int8(
        sums: *mut [i32; GROUP_SIZE],
        set: *const SetPointers,
        coefficients: *const [i16; SPARSE_SET],
        groups: usize,
    );
    fn rwkv_edge_neon32_settle(x: *mut [f32; 8], count: usize);
    fn rwkv_edge_neon32_read(bytes: *const u8, part: usize, streams: usize) -> u64;
    fn rwkv_edge_neon32_multiply_accumulate(rounds: usize);
}

/// Whether sums of products with these group scales meet no subnormal number.
///
/// The smallest fp16 number is 2^-24. Its product with a scale of 2^-79 or more, rounded to 24
/// bits, is a multiple of 2^-126. Dot products are integers, so all sums are multiples of 2^-126:
/// zero or normal.
pub(super) fn stay_normal(scales: &[f32]) -> bool {
    const SMALLEST: u32 = (127 - 79) << 23;
    scales.iter().all(|&scale| scale == 0.0 || magnitude_bits(scale) >= SMALLEST)
}

/// The product of a block row of Int4 before the tensor scale. The scales of `x` have to
/// [stay normal](stay_normal).
pub(super) fn int4_rows(blocks: &[u8], x: Activation<'_>) -> Rows {
    // SAFETY: the kernel meets the contract of `int_rows`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { int_rows(DType::Int4, rwkv_edge_neon32_int4_rows, blocks, x) }
}

/// The same for Int4n.
pub(super) fn int4n_rows(blocks: &[u8], x: Activation<'_>) -> Rows {
    // SAFETY: the kernel meets the contract of `int_rows`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { int_rows(DType::Int4n, rwkv_edge_neon32_int4n_rows, blocks, x) }
}

/// The same for Int8.
pub(super) fn int8_rows(blocks: &[u8], x: Activation<'_>) -> Rows {
    // SAFETY: the kernel meets the contract of `int_rows`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { int_rows(DType::Int8, rwkv_edge_neon32_int8_rows, blocks, x) }
}

/// # Safety
/// `kernel` reads the given number of blocks of `dtype` and as many column blocks of the vector,
/// writes the rows, and the processor can run it.
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
    // SAFETY: the kernel meets the contract of `float_rows`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { float_rows(DType::F32, rwkv_edge_neon32_f32_rows, blocks, values) }
}

/// The same for F16.
pub(super) fn f16_rows(blocks: &[u8], values: &[f32]) -> Rows {
    // SAFETY: the kernel meets the contract of `float_rows`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { float_rows(DType::F16, rwkv_edge_neon32_f16_rows, blocks, values) }
}

/// # Safety
/// `kernel` reads the lines of `dtype` and the values of the given number of groups, writes the
/// rows, and the processor can run it.
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
        // SAFETY: reads and writes `groups` groups, and the lengths were just checked; the
        // processor has the level, as `Kernels::for_isa` sees to.
        unsafe { rwkv_edge_neon32_record_dot(&mut lanes, runs, weight_scales, sets, codes, scales, sums) };
    }
    lanes
}

/// Entries of a sparse vector, and the parts of their records that belong to a block of outputs.
#[derive(Clone, Copy, Default)]
pub(super) struct SparseSet<'a> {
    pub(super) scales: [&'a [u8]; SPARSE_SET],
    pub(super) codes: [&'a [u8]; SPARSE_SET],
    pub(super) values: [f32; SPARSE_SET],
}

/// A set and the place of the next one, as `sparse.S` reads them.
#[repr(C)]
struct SetPointers {
    scales: [*const u8; SPARSE_SET],
    codes: [*const u8; SPARSE_SET],
    next_scales: [*const u8; SPARSE_SET],
    next_codes: [*const u8; SPARSE_SET],
    values: [f32; SPARSE_SET],
}

impl SetPointers {
    fn new(set: &SparseSet<'_>, next: &SparseSet<'_>) -> Self {
        let pointers = |slices: [&[u8]; SPARSE_SET]| slices.map(<[u8]>::as_ptr);
        Self {
            scales: pointers(set.scales),
            codes: pointers(set.codes),
            next_scales: pointers(next.scales),
            next_codes: pointers(next.codes),
            values: set.values,
        }
    }
}

/// Sets the coefficients of a set for as many groups as there are sums, and adds them to the sums:
/// each times the shift of its Int4n group if `SHIFTED`. Neither values nor inverses may be
/// subnormal.
pub(super) fn sparse_coefficients<const SHIFTED: bool, const GROUPS: usize>(
    out: &mut [[i16; SPARSE_SET]; GROUPS],
    set: &SparseSet<'_>,
    next: &SparseSet<'_>,
    inverses: &[f32; GROUPS],
    sums: &mut [i32],
    cmax: f32,
) {
    let groups = set.scales.iter().fold(GROUPS.min(sums.len()), |n, scales| n.min(scales.len() / 2)) & !3;
    let set = SetPointers::new(set, next);
    if groups > 0 {
        let (inverses, sums) = (inverses.as_ptr(), sums.as_mut_ptr());
        let kernel =
            if SHIFTED { rwkv_edge_neon32_coefficients_int4n } else { rwkv_edge_neon32_coefficients };
        // SAFETY: `groups` is a multiple of 4 and at most the length of everything; the processor
        // has the level, as `Kernels::for_isa` sees to.
        unsafe {
            kernel(out.as_mut_ptr(), &set, inverses, sums, groups, cmax.to_bits());
        }
    }
}

/// Adds coefficient times stored code of a set of Int4 records to all sums.
pub(super) fn sparse_add_int4(
    sums: &mut [[i32; GROUP_SIZE]],
    set: &SparseSet<'_>,
    next: &SparseSet<'_>,
    coefficients: &[[i16; SPARSE_SET]],
) {
    // SAFETY: the kernel meets the contract of `sparse_add`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { sparse_add(rwkv_edge_neon32_add_int4, GROUP_SIZE / 2, sums, set, next, coefficients) };
}

/// Adds coefficient times code of the table of a set of Int4n records to all sums.
pub(super) fn sparse_add_int4n(
    sums: &mut [[i32; GROUP_SIZE]],
    set: &SparseSet<'_>,
    next: &SparseSet<'_>,
    coefficients: &[[i16; SPARSE_SET]],
) {
    // SAFETY: the kernel meets the contract of `sparse_add`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { sparse_add(rwkv_edge_neon32_add_int4n, GROUP_SIZE / 2, sums, set, next, coefficients) };
}

/// Adds coefficient times code of a set of Int8 records to all sums.
pub(super) fn sparse_add_int8(
    sums: &mut [[i32; GROUP_SIZE]],
    set: &SparseSet<'_>,
    next: &SparseSet<'_>,
    coefficients: &[[i16; SPARSE_SET]],
) {
    // SAFETY: the kernel meets the contract of `sparse_add`; `Kernels::for_isa` sees to it that the
    // processor has the level.
    unsafe { sparse_add(rwkv_edge_neon32_add_int8, GROUP_SIZE, sums, set, next, coefficients) };
}

/// # Safety
/// `kernel` reads `run` bytes of codes of each record for each of the given number of groups, and
/// as many coefficients, changes as many sums, and the processor can run it.
unsafe fn sparse_add(
    kernel: AddCodes,
    run: usize,
    sums: &mut [[i32; GROUP_SIZE]],
    set: &SparseSet<'_>,
    next: &SparseSet<'_>,
    coefficients: &[[i16; SPARSE_SET]],
) {
    let groups = sums.len();
    assert!(coefficients.len() >= groups && set.codes.iter().all(|codes| codes.len() >= run * groups));
    let set = SetPointers::new(set, next);
    if groups > 0 {
        // SAFETY: the lengths were just checked.
        unsafe { kernel(sums.as_mut_ptr(), &set, coefficients.as_ptr(), groups) };
    }
}

/// Replaces each element by its [`settled`].
pub(super) fn settle(x: &mut [f32]) {
    let (x, tail) = x.as_chunks_mut::<8>();
    if !x.is_empty() {
        // SAFETY: changes as many elements as there are; the processor has the level, as
        // `Kernels::for_isa` sees to.
        unsafe { rwkv_edge_neon32_settle(x.as_mut_ptr(), x.len()) };
    }
    tail.iter_mut().for_each(|x| *x = settled(*x));
}

/// The xor of all words of `streams` equal parts of `bytes`.
pub(super) fn read(bytes: &[u8], streams: usize) -> u64 {
    let part = bytes.len() / LINE_BYTES / streams;
    // SAFETY: reads `streams * part` lines, which `bytes` has; `streams` is not 0, or the division
    // would have panicked; the processor has the level, as `Kernels::for_isa` sees to.
    unsafe { rwkv_edge_neon32_read(bytes.as_ptr(), part, streams) }
}

/// Multiply-accumulates of bytes. Returns their number.
pub(super) fn multiply_accumulate(rounds: usize) -> u64 {
    const EACH: u64 = 96;
    if rounds > 0 {
        // SAFETY: touches registers only; the processor has the level, as `Kernels::for_isa` sees
        // to.
        unsafe { rwkv_edge_neon32_multiply_accumulate(rounds) };
    }
    EACH * rounds as u64
}

//! Instructions that have no stable intrinsic, or none that Miri knows.

use core::arch::aarch64::*;
#[cfg(not(miri))]
use core::arch::asm;

#[cfg(miri)]
use super::model;
use crate::layout::LINE_BYTES;

/// Asks for the cache line `LINE` lines behind the start of `bytes`, at this place among the loads.
#[inline(always)]
pub(super) fn prefetch<const LINE: usize>(bytes: &[u8]) {
    #[cfg(not(miri))]
    // SAFETY: a prefetch changes nothing and never faults, whatever the address.
    unsafe {
        asm!("prfm pldl1keep, [{at}, {offset}]", at = in(reg) bytes.as_ptr(), offset = const LINE_BYTES * LINE,
            options(nostack, preserves_flags, readonly))
    };
    #[cfg(miri)]
    let _ = bytes;
}

/// Asks for every cache line of `bytes`.
#[inline(always)]
pub(super) fn prefetch_all(bytes: &[u8]) {
    bytes.chunks(LINE_BYTES).for_each(prefetch::<0>);
}

/// Four times four codes, each in every 32-bit lane of a register (LD4R).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn broadcast(codes: &[[i8; 4]; 4]) -> [int8x16_t; 4] {
    #[cfg(miri)]
    return model::broadcast(codes);
    #[cfg(not(miri))]
    {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        let int32x4x4_t(a, b, c, d) = unsafe { vld4q_dup_s32(codes.as_ptr().cast()) };
        [a, b, c, d].map(|codes| vreinterpretq_s8_s32(codes))
    }
}

/// The values of eight fp16 numbers (FCVTL, FCVTL2).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn half_to_f32(halves: uint16x8_t) -> [float32x4_t; 2] {
    #[cfg(miri)]
    return model::half_to_f32(halves);
    #[cfg(not(miri))]
    {
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: touches registers only, with instructions that every ARMv8 has.
        unsafe {
            asm!("fcvtl {o:v}.4s, {i:v}.4h", o = lateout(vreg) low, i = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags))
        };
        // SAFETY: as above.
        unsafe {
            asm!("fcvtl2 {o:v}.4s, {i:v}.8h", o = lateout(vreg) high, i = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags))
        };
        [low, high]
    }
}

/// `acc[i] + x[2i] + x[2i + 1]` (SADALP).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add_pairs(acc: int32x4_t, x: int16x8_t) -> int32x4_t {
    #[cfg(miri)]
    return model::add_pairs(acc, x);
    #[cfg(not(miri))]
    vpadalq_s16(acc, x)
}

/// Defines `$name`: `sums[r][i] + w[r][4i..4i + 4] . x[4 QUAD..4 QUAD + 4]` for the four lanes `i` of four registers `r`.
///
/// One block of assembly, as compilers that do not know how long the instruction takes would put dependent ones next
/// to each other, and small cores wait for them.
macro_rules! dot_rows {
    ($(#[$doc:meta])* $name:ident, $instruction:literal, $x:ty) => {
        $(#[$doc])*
        #[target_feature(enable = "neon,dotprod")]
        #[inline]
        pub(super) fn $name<const QUAD: usize>(
            sums: [int32x4_t; 4],
            w: [int8x16_t; 4],
            x: $x,
        ) -> [int32x4_t; 4] {
            #[cfg(miri)]
            return model::$name::<QUAD>(sums, w, x);
            #[cfg(not(miri))]
            {
                let [mut a, mut b, mut c, mut d] = sums;
                // SAFETY: touches registers only; `dotprod` is enabled on this function.
                unsafe {
                    asm!(
                        concat!($instruction, " {a:v}.4s, {wa:v}.16b, {x:v}.4b[{quad}]"),
                        concat!($instruction, " {b:v}.4s, {wb:v}.16b, {x:v}.4b[{quad}]"),
                        concat!($instruction, " {c:v}.4s, {wc:v}.16b, {x:v}.4b[{quad}]"),
                        concat!($instruction, " {d:v}.4s, {wd:v}.16b, {x:v}.4b[{quad}]"),
                        a = inout(vreg) a, b = inout(vreg) b, c = inout(vreg) c, d = inout(vreg) d,
                        wa = in(vreg) w[0], wb = in(vreg) w[1], wc = in(vreg) w[2], wd = in(vreg) w[3],
                        x = in(vreg) x, quad = const QUAD, options(pure, nomem, nostack, preserves_flags)
                    )
                };
                [a, b, c, d]
            }
        }
    };
}

dot_rows! {
    /// Adds dot products of bytes (SDOT).
    sdot_rows, "sdot", int8x16_t
}

dot_rows! {
    /// Adds dot products of bytes, which are unsigned on both sides (UDOT).
    udot_rows, "udot", uint8x16_t
}

/// `acc[i] + w[4i..4i + 4] . x[4i..4i + 4]` for the four lanes `i` (SDOT).
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    #[cfg(miri)]
    return model::sdot(acc, w, x);
    #[cfg(not(miri))]
    {
        let mut out = acc;
        // SAFETY: touches registers only; `dotprod` is enabled on this function.
        unsafe {
            asm!("sdot {o:v}.4s, {w:v}.16b, {x:v}.16b", o = inlateout(vreg) out, w = in(vreg) w,
                x = in(vreg) x, options(pure, nomem, nostack, preserves_flags))
        };
        out
    }
}

//! Instructions that have no stable intrinsic, or none that Miri knows.

use core::arch::aarch64::*;
#[cfg(not(miri))]
use core::arch::asm;

#[cfg(not(miri))]
use super::memory::load_codes;
#[cfg(miri)]
use super::miri;
use crate::layout::LINE_BYTES;

/// Prefetches the cache line `LINE` lines after the start of `bytes`. The assembly keeps its place
/// among the loads.
#[inline(always)]
pub(super) fn prefetch<const LINE: usize>(bytes: &[u8]) {
    prefetch_at::<LINE>(bytes.as_ptr());
}

#[inline(always)]
fn prefetch_at<const LINE: usize>(at: *const u8) {
    #[cfg(not(miri))]
    // SAFETY: a prefetch changes nothing and never faults, whatever the address.
    unsafe {
        asm!("prfm pldl1keep, [{at}, {offset}]", at = in(reg) at, offset = const LINE_BYTES * LINE,
            options(nostack, preserves_flags, readonly))
    };
    #[cfg(miri)]
    let _ = at;
}

/// Prefetches every cache line of `items`.
#[inline(always)]
pub(super) fn prefetch_all<T>(items: &[T]) {
    items.chunks(LINE_BYTES / size_of::<T>()).for_each(|line| prefetch_at::<0>(line.as_ptr().cast()));
}

/// Prefetches every cache line of what is decoded into the next panel, into the cache that the panel
/// of the moment does not fill.
#[inline(always)]
pub(super) fn prefetch_panel(bytes: &[u8]) {
    #[cfg(not(miri))]
    for line in bytes.chunks(LINE_BYTES) {
        // SAFETY: a prefetch changes nothing and never faults, whatever the address.
        unsafe {
            asm!("prfm pldl2keep, [{at}]", at = in(reg) line.as_ptr(),
                options(nostack, preserves_flags, readonly))
        };
    }
    #[cfg(miri)]
    let _ = bytes;
}

/// Four times four codes, each in every 32-bit lane of a register (LD4R).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn broadcast(codes: &[[i8; 4]; 4]) -> [int8x16_t; 4] {
    #[cfg(miri)]
    return miri::broadcast(codes);
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
    return miri::half_to_f32(halves);
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

/// The bytes of the table that the numbers 0 to 15 in each lane name (TBL).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn look_up(table: int8x16_t, positions: int8x16_t) -> int8x16_t {
    #[cfg(miri)]
    return miri::look_up(table, positions);
    #[cfg(not(miri))]
    vqtbl1q_s8(table, vreinterpretq_u8_s8(positions))
}

/// The bytes of the table of 7 parts that the numbers in each lane name (TBL and TBX).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn look_up_parts(table: &[[i8; 16]; 7], positions: int8x16_t) -> int8x16_t {
    #[cfg(miri)]
    return miri::look_up_parts(table, positions);
    #[cfg(not(miri))]
    {
        let [a, b, c, d, e, f, g] = table.each_ref().map(|part| load_codes(part));
        let first = vqtbl4q_s8(int8x16x4_t(a, b, c, d), vreinterpretq_u8_s8(positions));
        let rest = vreinterpretq_u8_s8(vsubq_s8(positions, vdupq_n_s8(64)));
        vqtbx3q_s8(first, int8x16x3_t(e, f, g), rest)
    }
}

/// `acc[i] + x[2i] + x[2i + 1]` (SADALP).
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add_pairs(acc: int32x4_t, x: int16x8_t) -> int32x4_t {
    #[cfg(miri)]
    return miri::add_pairs(acc, x);
    #[cfg(not(miri))]
    vpadalq_s16(acc, x)
}

/// `sums[r][i] + w[r][4i..4i + 4] . x[4 QUAD..4 QUAD + 4]` for the four lanes `i` of four registers
/// `r` (SDOT).
///
/// The four are one block of assembly. A compiler that does not know the latency of the instruction
/// would put dependent ones next to each other, and small cores would wait for them.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn sdot_rows<const QUAD: usize>(
    sums: [int32x4_t; 4],
    w: [int8x16_t; 4],
    x: int8x16_t,
) -> [int32x4_t; 4] {
    #[cfg(miri)]
    return miri::sdot_rows::<QUAD>(sums, w, x);
    #[cfg(not(miri))]
    {
        let [mut a, mut b, mut c, mut d] = sums;
        // SAFETY: touches registers only; `dotprod` is enabled on this function.
        unsafe {
            asm!(
                "sdot {a:v}.4s, {wa:v}.16b, {x:v}.4b[{quad}]",
                "sdot {b:v}.4s, {wb:v}.16b, {x:v}.4b[{quad}]",
                "sdot {c:v}.4s, {wc:v}.16b, {x:v}.4b[{quad}]",
                "sdot {d:v}.4s, {wd:v}.16b, {x:v}.4b[{quad}]",
                a = inout(vreg) a, b = inout(vreg) b, c = inout(vreg) c, d = inout(vreg) d,
                wa = in(vreg) w[0], wb = in(vreg) w[1], wc = in(vreg) w[2], wd = in(vreg) w[3],
                x = in(vreg) x, quad = const QUAD, options(pure, nomem, nostack, preserves_flags)
            )
        };
        [a, b, c, d]
    }
}

/// The number in every lane, from a general register (DUP): for a start of sums that takes no turn
/// of the units that multiply, and keeps no vector register. Compilers copy one.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn broadcast_i32(x: i32) -> int32x4_t {
    #[cfg(miri)]
    return vdupq_n_s32(x);
    #[cfg(not(miri))]
    {
        let out: int32x4_t;
        // SAFETY: touches registers only. It is not `pure`, as a compiler would do it once.
        unsafe {
            asm!("dup {o:v}.4s, {x:w}", o = lateout(vreg) out, x = in(reg) x,
                options(nomem, nostack, preserves_flags))
        };
        out
    }
}

/// Defines `$name`, which changes nothing. Whatever the registers are computed from is computed
/// before it, for all vectors of a tile.
///
/// A compiler that may do one vector after the other moves weights to the stack in between.
macro_rules! in_step {
    ($name:ident, $register:ty) => {
        #[target_feature(enable = "neon")]
        #[inline]
        pub(super) fn $name<const N: usize>(registers: &mut [$register; N]) {
            #[cfg(not(miri))]
            for register in registers {
                // SAFETY: there is no instruction.
                unsafe { asm!("/* {r:v} */", r = inout(vreg) * register, options(nostack, preserves_flags)) };
            }
            #[cfg(miri)]
            let _ = registers;
        }
    };
}

in_step!(in_step, int32x4_t);
in_step!(shorts_in_step, int16x8_t);
in_step!(floats_in_step, float32x4_t);

/// `acc[i] + w[4i..4i + 4] . x[4i..4i + 4]` for the four lanes `i` (SDOT).
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    #[cfg(miri)]
    return miri::sdot(acc, w, x);
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

/// `acc[2r + v] + w[8r..8r + 8] . x[8v..8v + 8]` for two rows `r` and two vectors `v` (SMMLA).
#[target_feature(enable = "neon,i8mm")]
#[inline]
pub(super) fn smmla(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    #[cfg(miri)]
    return miri::smmla(acc, w, x);
    #[cfg(not(miri))]
    {
        let mut out = acc;
        // SAFETY: touches registers only; `i8mm` is enabled on this function.
        unsafe {
            asm!("smmla {o:v}.4s, {w:v}.16b, {x:v}.16b", o = inlateout(vreg) out, w = in(vreg) w,
                x = in(vreg) x, options(pure, nomem, nostack, preserves_flags))
        };
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lanes of a register.
    fn lanes<From: Copy, To, const N: usize>(from: From) -> [To; N] {
        assert_eq!(size_of::<From>(), size_of::<[To; N]>());
        // SAFETY: vectors and arrays of integers or floats have all bit patterns, and the sizes are
        // equal.
        unsafe { core::mem::transmute_copy(&from) }
    }

    /// The register with these lanes.
    fn vector<From, To: Copy, const N: usize>(from: [From; N]) -> To {
        assert_eq!(size_of::<To>(), size_of::<[From; N]>());
        // SAFETY: as in `lanes`.
        unsafe { core::mem::transmute_copy(&from) }
    }

    fn has_dotprod() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }

    #[test]
    fn sdot_adds_each_product_to_its_lane() {
        if !has_dotprod() {
            return;
        }
        for i in 0..16 {
            for (w, x) in [(1, 1), (-128, -128), (127, -128), (-1, 3)] {
                let (mut ws, mut xs) = ([0i8; 16], [0i8; 16]);
                (ws[i], xs[i]) = (w, x);
                let mut wanted = [7, i32::MAX, -9, 0];
                // SAFETY: the feature was detected.
                let sums = unsafe { sdot(vector(wanted), vector(ws), vector(xs)) };
                wanted[i / 4] = wanted[i / 4].wrapping_add(i32::from(w) * i32::from(x));
                assert_eq!(lanes::<_, i32, 4>(sums), wanted, "{i} {w} {x}");
            }
        }
    }

    #[test]
    fn sdot_rows_takes_the_codes_of_one_quad() {
        fn check<const QUAD: usize>() {
            for (row, i) in (0..4).flat_map(|row| (0..16).map(move |i| (row, i))) {
                let mut w = [[0i8; 16]; 4];
                w[row][i] = -128;
                let x: [i8; 16] = core::array::from_fn(|i| i8::MIN + i as i8);
                let sums = [[1i32; 4]; 4];
                // SAFETY: the feature was detected.
                let found = unsafe { sdot_rows::<QUAD>(sums.map(vector), w.map(vector), vector(x)) };
                let mut wanted = sums;
                wanted[row][i / 4] += -128 * i32::from(x[4 * QUAD + i % 4]);
                assert_eq!(found.map(lanes::<_, i32, 4>), wanted, "{QUAD} {row} {i}");
            }
        }
        if has_dotprod() {
            check::<0>();
            check::<1>();
            check::<2>();
            check::<3>();
        }
    }

    #[test]
    fn smmla_adds_each_product_to_its_row_and_vector() {
        if !std::arch::is_aarch64_feature_detected!("i8mm") {
            return;
        }
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            for (w, x) in [(1, 1), (-128, -128), (127, -128), (-1, 3)] {
                let (mut ws, mut xs) = ([0i8; 16], [0i8; 16]);
                (ws[i], xs[j]) = (w, x);
                let mut wanted = [7, i32::MAX, -9, 0];
                // SAFETY: the feature was detected.
                let sums = unsafe { smmla(vector(wanted), vector(ws), vector(xs)) };
                if i % 8 == j % 8 {
                    let lane = &mut wanted[2 * (i / 8) + j / 8];
                    *lane = lane.wrapping_add(i32::from(w) * i32::from(x));
                }
                assert_eq!(lanes::<_, i32, 4>(sums), wanted, "{i} {j} {w} {x}");
            }
        }
    }

    #[test]
    fn pairs_of_extremes_do_not_saturate() {
        for i in 0..8 {
            for x in [i16::MIN, -1, 1, i16::MAX] {
                let mut xs = [i16::MIN; 8];
                xs[i] = x;
                let mut wanted = [i32::MAX, 0, -5, i32::MIN];
                // SAFETY: every ARMv8 has NEON.
                let sums = unsafe { add_pairs(vector(wanted), vector(xs)) };
                for (lane, wanted) in wanted.iter_mut().enumerate() {
                    *wanted = wanted.wrapping_add(i32::from(xs[2 * lane]) + i32::from(xs[2 * lane + 1]));
                }
                assert_eq!(lanes::<_, i32, 4>(sums), wanted);
            }
        }
    }

    #[test]
    fn every_fp16_number_is_converted_exactly() {
        for first in (0..=u16::MAX).step_by(8) {
            let halves: [u16; 8] = core::array::from_fn(|i| first + i as u16);
            // SAFETY: every ARMv8 has NEON.
            let found = unsafe { half_to_f32(vector(halves)) }.map(lanes::<_, f32, 4>);
            for (half, found) in halves.into_iter().zip(found.into_iter().flatten()) {
                let wanted = crate::fp16::to_f32(half);
                assert!(
                    wanted.to_bits() == found.to_bits() || wanted.is_nan() && found.is_nan(),
                    "{half:#x}"
                );
            }
        }
    }
}

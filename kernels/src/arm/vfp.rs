//! The operations that the portable bodies lack: fused multiply-adds of single numbers, and
//! settling of states.

use crate::math::Fma;

/// The VFPv4 instruction, and NEON for states. Only for tables of levels that have both.
pub(super) struct Vfp4;

impl Fma for Vfp4 {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        let mut sum = c;
        // SAFETY: touches registers only; `Kernels::for_isa` hands out tables with this function
        // only if the processor has VFPv4.
        unsafe {
            core::arch::asm!(
                ".fpu neon-vfpv4",
                "vfma.f32 {sum}, {a}, {b}",
                sum = inout(sreg) sum,
                a = in(sreg) a,
                b = in(sreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline(always)]
    fn settle(x: &mut [f32]) {
        super::neon::settle(x);
    }
}

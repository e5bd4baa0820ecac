//! The most multiply-accumulates of bytes that a core can do: loops on registers alone.
//!
//! The steps are assembly, as a compiler would leave out what gives the same result again.

use core::arch::aarch64::*;
use core::arch::asm;
use core::hint::black_box;

/// Independent sums: enough to hide the latency of the step.
const SUMS: usize = 12;

/// Defines `$name`, a loop of steps with `$macs` multiply-accumulates each. `$step` changes `{sum}`
/// by the products of `{weights}` and `{codes}`. Each of its instructions is done for all sums
/// before the next one, as small cores wait for results.
macro_rules! peak {
    ($features:literal, $name:ident, $macs:literal, $($step:literal),+) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(rounds: usize) -> u64 {
            let mut sums = [vdupq_n_s32(0); SUMS];
            let mut scratch = sums;
            let (weights, codes) = (vdupq_n_s8(3), vdupq_n_s8(1));
            for _ in 0..rounds {
                $(for (sum, scratch) in sums.iter_mut().zip(&mut scratch) {
                    // SAFETY: the instruction touches the named registers only, and the function has
                    // its target features. It is not `pure`, so that it keeps its place.
                    unsafe {
                        asm!(
                            $step,
                            "/* {sum:v} {weights:v} {codes:v} {scratch:v} */",
                            sum = inout(vreg) *sum,
                            weights = in(vreg) weights,
                            codes = in(vreg) codes,
                            scratch = inout(vreg) *scratch,
                            options(nomem, nostack, preserves_flags),
                        );
                    }
                })+
            }
            black_box(sums);
            (rounds * SUMS * $macs) as u64
        }
    };
}

peak!(
    "neon",
    multiply_accumulate,
    16,
    "smull {scratch:v}.8h, {weights:v}.8b, {codes:v}.8b",
    "smlal2 {scratch:v}.8h, {weights:v}.16b, {codes:v}.16b",
    "sadalp {sum:v}.4s, {scratch:v}.8h"
);
peak!("neon,dotprod", multiply_accumulate_dotprod, 16, "sdot {sum:v}.4s, {weights:v}.16b, {codes:v}.16b");
peak!("neon,i8mm", multiply_accumulate_i8mm, 32, "smmla {sum:v}.4s, {weights:v}.16b, {codes:v}.16b");

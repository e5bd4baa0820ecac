//! The most multiply-accumulates of bytes that a core can do: loops on registers alone.
//!
//! The steps are assembly, as a compiler would leave out what gives the same result again.

use core::arch::asm;
use core::arch::x86_64::*;
use core::hint::black_box;

/// Independent sums: enough to hide the latency of the step.
const SUMS: usize = 12;

/// Defines `$name`, a loop of steps with `$macs` multiply-accumulates each. `$step` changes
/// `{sum}` by the products of `{weights}` and `{codes}`, given `{ones}` and `{scratch}`.
macro_rules! peak {
    ($features:literal, $name:ident, $class:ident, $register:ty, $bytes:ident, $words:ident, $macs:literal, $($step:literal),+) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(rounds: usize) -> u64 {
            let mut sums: [$register; SUMS] = [$bytes(0); SUMS];
            let (weights, codes, ones) = ($bytes(3), $bytes(1), $words(1));
            for _ in 0..rounds {
                for sum in &mut sums {
                    // SAFETY: the instructions touch the named registers only, and the function has
                    // their target features.
                    unsafe {
                        asm!(
                            $($step,)+
                            "/* {scratch} {ones} */",
                            sum = inout($class) *sum,
                            weights = in($class) weights,
                            codes = in($class) codes,
                            ones = in($class) ones,
                            scratch = out($class) _,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                }
            }
            black_box(sums);
            (rounds * SUMS * $macs) as u64
        }
    };
}

peak!(
    "avx2",
    multiply_accumulate,
    ymm_reg,
    __m256i,
    _mm256_set1_epi8,
    _mm256_set1_epi16,
    32,
    "vpmaddubsw {scratch}, {weights}, {codes}",
    "vpmaddwd {scratch}, {scratch}, {ones}",
    "vpaddd {sum}, {sum}, {scratch}"
);
peak!(
    "avx2,avxvnni",
    multiply_accumulate_avx_vnni,
    ymm_reg,
    __m256i,
    _mm256_set1_epi8,
    _mm256_set1_epi16,
    32,
    "{{vex}} vpdpbusd {sum}, {weights}, {codes}"
);
peak!(
    "avx512f,avx512bw,avx512vnni",
    multiply_accumulate_avx512_vnni,
    zmm_reg,
    __m512i,
    _mm512_set1_epi8,
    _mm512_set1_epi16,
    64,
    "vpdpbusd {sum}, {weights}, {codes}"
);

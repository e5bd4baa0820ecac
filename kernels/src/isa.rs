//! Levels of vector instructions and their detection.

use core::fmt;
use core::str::FromStr;

/// A level of vector instructions that the kernels are written for.
///
/// Levels are no chain: [`AvxVnni`](Isa::AvxVnni) and [`Avx512Vnni`](Isa::Avx512Vnni) both build on
/// [`Avx2`](Isa::Avx2), and a processor may have either without the other. Every level gives the
/// same bits, so the choice concerns speed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Portable Rust, compiled for the baseline of the target.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] with AVX-VNNI: dot products of bytes in registers of 256 bits.
    AvxVnni,
    /// [`Isa::Avx2`] with AVX-512 F, BW, VL and VNNI: dot products of bytes in registers of 512
    /// bits.
    Avx512Vnni,
    /// Any 64-bit ARM: NEON with fused multiply-add.
    Neon,
    /// [`Isa::Neon`] with dot products of bytes: SDOT.
    Dotprod,
    /// [`Isa::Dotprod`] with products of byte matrices: SMMLA.
    I8mm,
    /// ARMv7 with NEON and VFPv4: integers in registers of 128 bits, and fused multiply-adds.
    Neon32,
}

impl Isa {
    /// All levels of all architectures, slower ones first within an architecture.
    pub const ALL: &'static [Isa] = &[
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::Dotprod,
        Isa::I8mm,
        Isa::Neon32,
    ];

    /// The name used in options, reports and benchmark ids.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
            Isa::I8mm => "i8mm",
            Isa::Neon32 => "neon32",
        }
    }

    /// Whether this build has the level and the processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => has_avx2(),
            Isa::AvxVnni => has_avx2() && has_avx_vnni(),
            Isa::Avx512Vnni => has_avx2() && has_avx512_vnni(),
            Isa::Neon => has_neon(),
            Isa::Dotprod => has_neon() && has_dotprod(),
            Isa::I8mm => has_neon() && has_dotprod() && has_i8mm(),
            #[cfg(target_arch = "arm")]
            Isa::Neon32 => crate::arm::detect::is_available(),
            #[cfg(not(target_arch = "arm"))]
            Isa::Neon32 => false,
        }
    }

    /// The best available level. Under Miri always [`Isa::Scalar`].
    pub fn detect() -> Isa {
        if cfg!(miri) {
            return Isa::Scalar;
        }
        Isa::ALL.iter().rev().copied().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        fn has_avx2() -> bool {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }

        fn has_avx_vnni() -> bool {
            is_x86_feature_detected!("avxvnni")
        }

        fn has_avx512_vnni() -> bool {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
        }
    } else {
        fn has_avx2() -> bool {
            false
        }

        fn has_avx_vnni() -> bool {
            false
        }

        fn has_avx512_vnni() -> bool {
            false
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_arch = "aarch64")] {
        fn has_neon() -> bool {
            std::arch::is_aarch64_feature_detected!("neon")
        }

        fn has_dotprod() -> bool {
            std::arch::is_aarch64_feature_detected!("dotprod")
        }

        fn has_i8mm() -> bool {
            std::arch::is_aarch64_feature_detected!("i8mm")
        }
    } else {
        fn has_neon() -> bool {
            false
        }

        fn has_dotprod() -> bool {
            false
        }

        fn has_i8mm() -> bool {
            false
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that belongs to no [`Isa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseIsaError;

impl fmt::Display for ParseIsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown instruction set; known are")?;
        Isa::ALL.iter().try_for_each(|isa| write!(f, " {isa}"))
    }
}

impl core::error::Error for ParseIsaError {}

impl FromStr for Isa {
    type Err = ParseIsaError;

    fn from_str(name: &str) -> Result<Self, ParseIsaError> {
        Isa::ALL.iter().copied().find(|isa| isa.name() == name).ok_or(ParseIsaError)
    }
}

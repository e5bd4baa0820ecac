//! The choice of a table: one for each level of instructions. A table is handed out only if the
//! processor has its level.

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
#[cfg(target_arch = "arm")]
use crate::arm;
use crate::isa::Isa;
use crate::scalar;
use crate::table::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::x86_64;

impl Kernels {
    /// The kernels of `isa`, or `None` if this processor or this build does not have them.
    pub fn for_isa(isa: Isa) -> Option<&'static Kernels> {
        if !isa.is_available() {
            return None;
        }
        match isa {
            Isa::Scalar => Some(&scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&x86_64::AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&x86_64::AVX_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(&x86_64::AVX512_VNNI),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => None,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&aarch64::NEON),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => Some(&aarch64::DOTPROD),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Some(&aarch64::I8MM),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon | Isa::Dotprod | Isa::I8mm => None,
            #[cfg(target_arch = "arm")]
            Isa::Neon32 => Some(&arm::NEON32),
            #[cfg(not(target_arch = "arm"))]
            Isa::Neon32 => None,
        }
    }

    /// The kernels of [`Isa::detect`].
    pub fn best() -> &'static Kernels {
        Self::for_isa(Isa::detect()).unwrap_or(&scalar::KERNELS)
    }
}

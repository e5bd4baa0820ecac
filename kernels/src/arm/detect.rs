//! Detection of NEON and VFPv4.

cfg_if::cfg_if! {
    if #[cfg(any(all(target_os = "linux", target_abi = "eabihf"), target_os = "android"))] {
        use core::ffi::c_ulong;

        const AT_HWCAP: c_ulong = 16;
        const HWCAP_NEON: c_ulong = 1 << 12;
        const HWCAP_VFPV4: c_ulong = 1 << 16;

        unsafe extern "C" {
            /// An entry of the auxiliary vector, which the system hands to a program at its start,
            /// or 0.
            safe fn getauxval(kind: c_ulong) -> c_ulong;
        }

        /// Whether there are NEON and VFPv4, the first VFP with fused multiply-adds. Cortex-A8 and
        /// A9 have NEON without.
        pub(crate) fn is_available() -> bool {
            const NEEDED: c_ulong = HWCAP_NEON | HWCAP_VFPV4;
            !cfg!(miri) && getauxval(AT_HWCAP) & NEEDED == NEEDED
        }
    } else {
        pub(crate) fn is_available() -> bool {
            false
        }
    }
}

//! Kernels for 32-bit ARM.
//!
//! NEON's float instructions flush subnormal numbers, so they are used only where none can appear
//! (`docs/ARM.md`). Other floats go through the VFP unit, which keeps them. The compiler offers
//! neither on its stable channel, hence assembly: inline for the one instruction that the portable
//! bodies lack, and functions in `.S` files for the inner loops.
#![allow(unsafe_code, reason = "assembly")]

pub(crate) mod detect;

cfg_if::cfg_if! {
    // Linux with floats in VFP registers, which all ARMv7 systems have. ARMv6 passes too, and stays
    // scalar by detection.
    if #[cfg(any(all(target_os = "linux", target_abi = "eabihf"), target_os = "android"))] {
        mod neon;
        mod products;
        mod sparse;
        mod vfp;

        use crate::isa::Isa;
        use crate::scalar;
        use crate::table::Kernels;

        /// The kernels of [`Isa::Neon32`]; to be used only where that level is available.
        pub(crate) const NEON32: Kernels = Kernels {
            matvec_f32: products::matvec_f32,
            matvec_f16: products::matvec_f16,
            matvec_int8: products::matvec_int8,
            matvec_int4: products::matvec_int4,
            matvec_int4n: products::matvec_int4n,
            sparse_accumulate_int8: sparse::accumulate_int8,
            sparse_accumulate_int4: sparse::accumulate_int4,
            sparse_accumulate_int4n: sparse::accumulate_int4n,
            record_dots: products::record_dots,
            read: neon::read,
            multiply_accumulate: neon::multiply_accumulate,
            ..scalar::kernels::<vfp::Vfp4>(Isa::Neon32)
        };
    } else {
        pub(crate) use crate::scalar::KERNELS as NEON32;
    }
}

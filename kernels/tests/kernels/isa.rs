//! Names and detection of levels.

use rwkv_edge_kernels::{Isa, Kernels};

use crate::support::expected_isa;

#[test]
fn names_parse_back() {
    for &isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
        assert_eq!(isa.to_string(), isa.name());
    }
}

#[test]
fn unknown_names_are_errors_that_list_the_known_ones() {
    for name in ["", "AVX2", "avx", "avx2 ", "sse9"] {
        let message = name.parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("scalar") && message.contains("avx2"), "{message}");
    }
}

#[test]
fn scalar_is_always_available() {
    assert!(Isa::Scalar.is_available());
    assert_eq!(Kernels::for_isa(Isa::Scalar).map(Kernels::isa), Some(Isa::Scalar));
}

#[test]
fn kernels_exist_for_exactly_the_available_levels() {
    for &isa in Isa::ALL {
        assert_eq!(Kernels::for_isa(isa).map(Kernels::isa), isa.is_available().then_some(isa));
    }
}

#[test]
fn best_is_the_detected_level() {
    assert_eq!(Kernels::best().isa(), Isa::detect());
    assert!(Isa::detect().is_available());
    if cfg!(miri) {
        assert_eq!(Isa::detect(), Isa::Scalar);
    }
}

/// Keeps a job that emulates a processor from passing on the scalar level.
#[test]
fn detected_level_is_the_expected_one() {
    if let Some(expected) = expected_isa() {
        assert_eq!(Isa::detect().name(), expected);
    }
}

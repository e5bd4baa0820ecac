//! The floating-point environment of the caller.

use std::hint::black_box;

use rwkv_edge_kernels::{FloatEnvironment, default_float_environment};

use crate::support::scalar;

/// A product that is subnormal, and a sum that rounds up.
fn product_and_sum() -> [u32; 2] {
    let (mut product, mut sum) = ([0.0], [1.0]);
    scalar().mul(&mut product, &[black_box(1e-30)], &[black_box(1e-9)]);
    scalar().add(&mut sum, &[black_box(1e-7)]);
    [product[0], sum[0]].map(f32::to_bits)
}

#[test]
#[cfg_attr(miri, ignore = "has no such registers")]
fn the_environment_of_the_caller_neither_matters_nor_is_lost() {
    let (usual, bits) = (FloatEnvironment::bits(), product_and_sum());
    assert!(f32::from_bits(bits[0]).is_subnormal() && f32::from_bits(bits[1]) > 1.0);
    {
        // SAFETY: all arithmetic is behind `default_float_environment`, or shows the effect of this
        // environment.
        let _environment = unsafe { FloatEnvironment::unusual() };
        let unusual = FloatEnvironment::bits();
        assert_ne!(unusual, usual);
        assert_ne!(product_and_sum()[1], bits[1], "the environment has no effect");
        {
            let _environment = default_float_environment();
            assert_eq!(FloatEnvironment::bits(), usual);
            assert_eq!(product_and_sum(), bits);
        }
        assert_eq!(FloatEnvironment::bits(), unusual);
    }
    assert_eq!(FloatEnvironment::bits(), usual);
}

//! The exponential: error, monotonicity, ends of its range, and equality of its vector forms.

use rwkv_edge_kernels::{exp, sigmoid};

use crate::support::{Report, all_floats, vector_levels};

#[test]
fn exp_is_within_one_ulp() {
    let mut worst = (0.0, 0.0);
    for x in all_floats().filter(|x| (-87.0..=88.0).contains(x)) {
        let wanted = f64::from(x).exp();
        let ulp =
            f64::from(f32::from_bits((wanted as f32).to_bits() & 0x7f80_0000)) * f64::from(f32::EPSILON);
        let error = (f64::from(exp(x)) - wanted).abs() / ulp;
        if error > worst.0 {
            worst = (error, x);
        }
    }
    assert!(worst.0 < 1.0, "{} ulp at {:e}", worst.0, worst.1);
}

#[test]
fn exp_of_zero_is_one() {
    assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
    assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
    assert_eq!(sigmoid(0.0), 0.5);
}

#[test]
fn exp_clamps_outside_its_range() {
    for x in [(-87.0f32).next_down(), -100.0, -1e30, f32::NEG_INFINITY] {
        assert_eq!(exp(x).to_bits(), exp(-87.0).to_bits(), "{x}");
    }
    for x in [88.0f32.next_up(), 100.0, 1e30, f32::INFINITY] {
        assert_eq!(exp(x).to_bits(), exp(88.0).to_bits(), "{x}");
    }
    assert!(exp(-87.0) >= f32::MIN_POSITIVE && exp(88.0).is_finite());
}

#[test]
fn exp_and_sigmoid_of_nan_are_nan() {
    assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    assert!(sigmoid(f32::NAN).is_nan());
}

#[test]
fn exp_is_monotone_near_zero_and_in_larger_steps() {
    for start in [1e-7f32, 1e-5, 1e-3, 0.0275] {
        let first = start.to_bits();
        for bits in first..first + 1_000_000 {
            let (x, next) = (f32::from_bits(bits), f32::from_bits(bits + 1));
            assert!(exp(x) <= exp(next), "{x:e}");
            assert!(exp(-x) >= exp(-next), "{:e}", -x);
        }
    }
    let mut previous = 0.0;
    for i in 0..350_000 {
        let value = exp(i as f32 * (175.0 / 350_000.0) - 87.0);
        assert!(value >= previous);
        previous = value;
    }
}

#[test]
fn sigmoid_of_all_floats_is_alike_on_every_level() {
    let mut report = Report::default();
    let floats: Vec<f32> = all_floats().collect();
    let wanted: Vec<f32> = floats.iter().map(|&x| sigmoid(x)).collect();
    for kernels in vector_levels() {
        let mut got = floats.clone();
        kernels.sigmoid(&mut got);
        report.compare("sigmoid", kernels.isa(), "all floats", &wanted, &got);
    }
    report.finish();
}

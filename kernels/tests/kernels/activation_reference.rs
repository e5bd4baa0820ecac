//! Element-wise operations, the L2 norm and the product of three vectors, against f64.

use rwkv_edge_kernels::{Kernels, sigmoid, tanh};

use crate::support::{Report, Rng, all_floats, scalar, vector_levels};

const EPS: f64 = f32::EPSILON as f64;

/// The largest error of `got` for `inputs`, in units of the last place of the result.
fn worst_ulps(
    inputs: impl Iterator<Item = f32>,
    got: impl Fn(f32) -> f32,
    wanted: impl Fn(f64) -> f64,
) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for x in inputs {
        let wanted = wanted(f64::from(x));
        let exponent = (wanted.abs() as f32).max(f32::MIN_POSITIVE).to_bits() & 0x7f80_0000;
        let ulp = f64::from(f32::from_bits(exponent)) * EPS;
        let error = (f64::from(got(x)) - wanted).abs() / ulp;
        assert!(!error.is_nan(), "{x:e}");
        if error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

fn in_place(op: fn(&Kernels, &mut [f32]), x: f32) -> f32 {
    let mut x = [x];
    op(scalar(), &mut x);
    x[0]
}

#[test]
fn tanh_is_within_three_ulp_everywhere() {
    let (error, x) = worst_ulps(all_floats().filter(|x| !x.is_nan()), tanh, f64::tanh);
    assert!(error <= 3.0, "{error} ulp at {x:e}");
}

#[test]
fn tanh_is_odd_and_never_beyond_one() {
    for x in all_floats().filter(|x| !x.is_nan()) {
        assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits(), "{x:e}");
        assert!(tanh(x).abs() <= 1.0, "{x:e}");
    }
}

#[test]
fn tanh_keeps_zeros_tiny_numbers_and_nan() {
    for x in [0.0, -0.0, 1e-45, -1e-45, 1e-39, f32::MIN_POSITIVE, 1e-20, -1e-5] {
        assert_eq!(tanh(x).to_bits(), x.to_bits(), "{x:e}");
    }
    for x in [9.1, 20.0, 1e30, f32::INFINITY] {
        assert_eq!(tanh(x), 1.0, "{x:e}");
    }
    assert!(tanh(f32::NAN).is_nan());
}

#[test]
fn sigmoid_is_within_three_ulp() {
    let inputs = all_floats().filter(|x| (-87.0..=88.0).contains(x));
    let (error, x) = worst_ulps(inputs, sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
    assert!(error <= 3.0, "{error} ulp at {x:e}");
}

#[test]
fn tanh_and_sigmoid_of_slices_are_those_of_numbers() {
    let floats: Vec<f32> = all_floats().collect();
    let mut report = Report::default();
    for kernels in vector_levels().into_iter().chain([scalar()]) {
        for (what, op, number) in [
            ("tanh", Kernels::tanh as fn(&Kernels, &mut [f32]), tanh as fn(f32) -> f32),
            ("sigmoid", Kernels::sigmoid, sigmoid),
        ] {
            let wanted: Vec<f32> = floats.iter().map(|&x| number(x)).collect();
            let mut got = floats.clone();
            op(kernels, &mut got);
            report.compare(what, kernels.isa(), "all floats", &wanted, &got);
        }
    }
    report.finish();
}

#[test]
fn decays_of_all_floats_are_alike_on_every_level() {
    let floats: Vec<f32> = all_floats().collect();
    let mut report = Report::default();
    for (what, op) in [("decay6", Kernels::decay6 as fn(&Kernels, &mut [f32])), ("decay7", Kernels::decay7)] {
        let mut wanted = floats.clone();
        op(scalar(), &mut wanted);
        for kernels in vector_levels() {
            let mut got = floats.clone();
            op(kernels, &mut got);
            report.compare(what, kernels.isa(), "all floats", &wanted, &got);
        }
    }
    report.finish();
}

#[test]
fn decay6_is_close_to_f64_and_so_is_what_slow_channels_lose() {
    for i in 0..400_000 {
        let x = -40.0 + i as f32 * 1.25e-4;
        let (w, wanted) = (f64::from(in_place(Kernels::decay6, x)), (-f64::from(x).exp()).exp());
        assert!((w - wanted).abs() <= 0.5 * EPS, "{x}: {w:e}, wanted {wanted:e}");
        // Rounding a number just below 1 alone costs a quarter.
        let (taken, wanted) = (1.0 - w, -(-f64::from(x).exp()).exp_m1());
        assert!(x > -4.0 || (taken - wanted).abs() <= 0.27 * EPS, "{x}: {taken:e}, wanted {wanted:e}");
    }
}

#[test]
fn decay6_of_extremes_is_positive_and_at_most_one() {
    for x in all_floats().filter(|x| !x.is_nan()) {
        let w = in_place(Kernels::decay6, x);
        assert!(w > 0.0 && w <= 1.0, "{x:e}: {w:e}");
    }
    assert_eq!(in_place(Kernels::decay6, f32::NEG_INFINITY), 1.0);
    assert!(in_place(Kernels::decay6, f32::INFINITY) < 1e-37);
    assert!(in_place(Kernels::decay6, f32::NAN).is_nan());
}

#[test]
fn decay7_is_within_two_ulp() {
    let inputs = all_floats().filter(|x| (-87.0..=88.0).contains(x));
    let got = |x| in_place(Kernels::decay7, x);
    let (error, x) = worst_ulps(inputs, got, |x| (-0.606531 / (1.0 + (-x).exp())).exp());
    assert!(error <= 2.0, "{error} ulp at {x:e}");
    assert_eq!(got(f32::NEG_INFINITY), 1.0);
    assert!((got(f32::INFINITY) - 0.545_239).abs() < 1e-6);
    assert!(got(f32::NAN).is_nan());
}

#[test]
fn silu_mul_and_mul_compute_their_formulas() {
    let mut rng = Rng(60);
    let (gate, x) = (rng.normals(100), rng.normals(100));
    let (mut silu, mut product) = ([0.0; 100], [0.0; 100]);
    scalar().silu_mul(&mut silu, &gate, &x);
    scalar().mul(&mut product, &gate, &x);
    for i in 0..100 {
        assert_eq!(product[i], gate[i] * x[i]);
        let (gate, x) = (f64::from(gate[i]), f64::from(x[i]));
        let wanted = gate / (1.0 + (-gate).exp()) * x;
        assert!((f64::from(silu[i]) - wanted).abs() <= 4.0 * EPS * wanted.abs());
    }
}

#[test]
fn l2_normalize_gives_unit_vectors_of_the_same_direction() {
    let mut rng = Rng(61);
    for n in [1, 2, 15, 16, 17, 64, 100] {
        for scale in [1e-12, 1e-3, 1.0, 1e12] {
            let x: Vec<f32> = rng.normals(n).iter().map(|x| scale * x).collect();
            let norm = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let mut got = x.clone();
            scalar().l2_normalize(&mut got);
            for (&x, &got) in x.iter().zip(&got) {
                let wanted = f64::from(x) / norm.max(1e-12);
                assert!((f64::from(got) - wanted).abs() <= 4.0 * EPS * wanted.abs(), "{n} {scale:e}");
            }
        }
    }
}

#[test]
fn l2_normalize_divides_by_no_less_than_the_floor() {
    let mut x = [0.0, -0.0, 1e-14, -1e-13];
    scalar().l2_normalize(&mut x);
    assert_eq!(x.map(f32::to_bits), [0.0, -0.0, 1e-14 / 1e-12, -1e-13 / 1e-12].map(f32::to_bits));
    let mut x = [1.0; 40];
    x[33] = f32::NAN;
    scalar().l2_normalize(&mut x);
    assert!(x.iter().all(|x| x.is_nan()));
}

#[test]
fn dot3_is_close_to_f64() {
    let mut rng = Rng(62);
    for n in [0, 1, 15, 16, 17, 64, 1000] {
        let (a, b, c) = (rng.normals(n), rng.normals(n), rng.normals(n));
        let products = || (0..n).map(|i| f64::from(a[i]) * f64::from(b[i]) * f64::from(c[i]));
        let (wanted, magnitude) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
        let got = f64::from(scalar().dot3(&a, &b, &c));
        let roundings = 5.0 + n.div_ceil(16) as f64;
        assert!((got - wanted).abs() <= roundings * EPS * magnitude, "{n}: {got}, wanted {wanted}");
    }
}

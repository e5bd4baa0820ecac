//! The operations of RWKV-5, 6 and 7 in scalar, against f64 and against the arithmetic that their
//! documentation writes down.

use rwkv_edge_kernels::{Kernels, sigmoid, tanh};

use crate::support::{Report, Rng, scalar, vector_levels};

const EPS: f64 = f32::EPSILON as f64;

/// Floats of every magnitude and sign, infinities and NaNs. The stride is a prime, so that all low bits occur.
fn all_floats() -> impl Iterator<Item = f32> {
    (0..=u32::MAX).step_by(499).map(f32::from_bits)
}

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

/// Ordinary vectors for one step of one head.
struct Step {
    r: Vec<f32>,
    w: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of length 1.
    kk: Vec<f32>,
    /// In 0..1.
    a: Vec<f32>,
}

impl Step {
    /// With decays from `fastest` to nearly 1.
    fn new(n: usize, fastest: f32, rng: &mut Rng) -> Self {
        let [r, k, v, mut kk] = [0; 4].map(|_| rng.normals(n));
        scalar().l2_normalize(&mut kk);
        let [a, part] = [0; 2].map(|_| (0..n).map(|_| 0.5 + 0.499 * rng.uniform()).collect::<Vec<f32>>());
        let w = part.iter().map(|&part| 1.0 - (1.0 - fastest) * part * part * part).collect();
        Self { r, w, k, v, kk, a }
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn wkv6_follows_the_plain_recurrence_over_200_steps() {
    let mut rng = Rng(63);
    for n in [1, 8, 19, 64] {
        let u = rng.normals(n);
        let mut state = vec![0.0; n * n];
        // Of each key and value, the exact state and the sum of magnitudes in it.
        let mut exact = vec![vec![(0.0f64, 0.0f64); n]; n];
        for t in 0..200 {
            let step = Step::new(n, 0.01, &mut rng);
            let mut y = vec![f32::NAN; n];
            scalar().wkv6(&mut y, &mut state, &step.r, &step.k, &step.v, &u, &step.w);
            let [r, k, v, u, w] = [&step.r, &step.k, &step.v, &u, &step.w].map(|x| widen(x));
            for i in 0..n {
                let (mut wanted, mut magnitude) = (0.0, 0.0);
                for j in 0..n {
                    let (s, m) = exact[j][i];
                    wanted += r[j] * (s + u[j] * k[j] * v[i]);
                    magnitude += r[j].abs() * (m + (u[j] * k[j] * v[i]).abs());
                    exact[j][i] = (w[j] * s + k[j] * v[i], w[j] * m + (k[j] * v[i]).abs());
                }
                let bound = (t + n + 2) as f64 * EPS * magnitude;
                let error = (f64::from(y[i]) - wanted).abs();
                assert!(error <= bound, "size {n} step {t} value {i}: {}, wanted {wanted}", y[i]);
            }
        }
    }
}

/// One step in the matrix form of RWKV-7, with rows for values and columns for keys.
fn plain_wkv7(state: &mut [Vec<f64>], step: &Step) -> Vec<f64> {
    let [r, w, k, v, kk, a] = [&step.r, &step.w, &step.k, &step.v, &step.kk, &step.a].map(|x| widen(x));
    let mut y = vec![];
    for (row, v) in state.iter_mut().zip(v) {
        let removed: f64 = row.iter().zip(&kk).map(|(s, kk)| s * kk).sum();
        for (j, s) in row.iter_mut().enumerate() {
            *s = *s * w[j] - removed * kk[j] * a[j] + v * k[j];
        }
        y.push(row.iter().zip(&r).map(|(s, r)| s * r).sum());
    }
    y
}

#[test]
fn wkv7_follows_the_plain_recurrence_over_200_steps() {
    let mut rng = Rng(64);
    for n in [1, 8, 19, 64] {
        let mut state = vec![0.0; n * n];
        let mut exact = vec![vec![0.0; n]; n];
        for t in 0..200 {
            let step = Step::new(n, 0.5452, &mut rng);
            let mut y = vec![f32::NAN; n];
            scalar().wkv7(&mut y, &mut state, &step.r, &step.w, &step.k, &step.v, &step.kk, &step.a);
            let wanted = plain_wkv7(&mut exact, &step);
            let scale = exact.iter().flatten().fold(1.0, |m: f64, s| m.max(s.abs())) * n as f64;
            for i in 0..n {
                let error = (f64::from(y[i]) - wanted[i]).abs();
                assert!(error <= 16.0 * EPS * scale, "size {n} step {t} value {i}: {error:e} of {scale}");
            }
        }
    }
}

#[test]
fn recurrences_fuse_what_their_documentation_says() {
    let mut rng = Rng(65);
    let n = 11;
    let [mut state6, mut state7] = [0; 2].map(|_| rng.normals(n * n));
    let [mut wanted6, mut wanted7] = [state6.clone(), state7.clone()];
    for _ in 0..20 {
        let Step { r, w, k, v, kk, a } = Step::new(n, 0.3, &mut rng);
        let u = rng.normals(n);
        let [mut y6, mut y7] = [0; 2].map(|_| vec![f32::NAN; n]);
        scalar().wkv6(&mut y6, &mut state6, &r, &k, &v, &u, &w);
        scalar().wkv7(&mut y7, &mut state7, &r, &w, &k, &v, &kk, &a);
        for i in 0..n {
            let [mut y, mut s] = [0.0f32; 2];
            for j in 0..n {
                let old = &mut wanted6[j * n + i];
                let kv = k[j] * v[i];
                y = r[j].mul_add(u[j].mul_add(kv, *old), y);
                *old = w[j].mul_add(*old, kv);
                s = wanted7[j * n + i].mul_add(kk[j], s);
            }
            assert_eq!(y6[i].to_bits(), y.to_bits());
            y = 0.0;
            for j in 0..n {
                let old = &mut wanted7[j * n + i];
                *old = k[j].mul_add(v[i], (-s).mul_add(kk[j] * a[j], *old * w[j]));
                y = old.mul_add(r[j], y);
            }
            assert_eq!(y7[i].to_bits(), y.to_bits());
        }
        assert!(state6 == wanted6 && state7 == wanted7);
    }
}

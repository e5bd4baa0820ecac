//! The recurrences of RWKV-6 and 7 in scalar, against f64 and against the arithmetic that their
//! documentation writes down.

use crate::support::{Rng, scalar};

const EPS: f64 = f32::EPSILON as f64;

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

//! Scalar against independent f64 arithmetic.

use rwkv_edge_kernels::quant::{decode_matrix_row, decode_record};
use rwkv_edge_kernels::{DType, GROUP_SIZE, Isa, Kernels, Sparse, SparseScale, sparse_sums};

use crate::support::{
    Bytes, Element, Fill, Input, Rng, TestMatrix, TestRecords, scalar, sparse_product, vector_levels,
};

const EPS: f64 = f32::EPSILON as f64;

fn assert_close(what: &str, wanted: f64, got: f32, bound: f64) {
    let error = (wanted - f64::from(got)).abs();
    assert!(error <= bound, "{what}: wanted {wanted:e} got {got:e}, off by {error:e}, allowed {bound:e}");
}

#[test]
fn quantized_activations_are_within_half_a_scale() {
    let mut rng = Rng(30);
    for fill in [Fill::Normal, Fill::Extremes, Fill::OneHot, Fill::Zero] {
        let x = fill.vector(2048, &mut rng);
        let input = Input::new(&x, scalar());
        for (i, &x) in x.iter().enumerate() {
            let scale = f64::from(input.scales[i / GROUP_SIZE]);
            let value = f64::from(input.codes[i]) * scale;
            assert_close("code", f64::from(x), value as f32, 0.5 * scale * (1.0 + 1e-5));
        }
        for (codes, &sum) in input.codes.chunks(GROUP_SIZE).zip(input.sums.iter()) {
            assert_eq!(sum, codes.iter().map(|&q| i32::from(q)).sum::<i32>());
            assert!(codes.iter().all(|&q| q != -128));
        }
    }
}

#[test]
fn quantize_gives_zeros_below_two_to_the_minus_100() {
    let threshold = 2f32.powi(-100);
    let at = Input::new(&[threshold; 64], scalar());
    assert!(at.codes.iter().all(|&q| q == 127) && at.scales.iter().all(|&s| s == threshold / 127.0));
    let below = Input::new(&[threshold.next_down(); 64], scalar());
    assert!(below.codes.iter().all(|&q| q == 0) && below.scales.iter().all(|&s| s.to_bits() == 0));
    assert!(below.sums.iter().all(|&s| s == 0));
}

#[test]
fn quantize_passes_a_nan_on_through_the_scale() {
    for position in [0, 5, 31] {
        let mut x = [1.0; 64];
        x[position] = f32::NAN;
        let input = Input::new(&x, scalar());
        assert!(input.scales[0].is_nan() && input.scales[1] == 1.0 / 127.0);
    }
}

/// A dot product in f64 with the sum of magnitudes that scales its rounding error.
fn dot(w: &[f32], x: impl Fn(usize) -> f64) -> (f64, f64) {
    let products = || w.iter().enumerate().map(|(i, &w)| f64::from(w) * x(i));
    (products().sum(), products().map(f64::abs).sum())
}

#[test]
fn record_dots_are_those_of_decoded_records() {
    let mut rng = Rng(37);
    for len in [1, 31, 64, 100, 256, 768, 2048] {
        let w = TestRecords::new(DType::Int4, 3, len, Bytes::Encoded, &mut rng);
        let input = Input::new(&rng.normals(len), scalar());
        let mut out = [0.0; 2];
        scalar().record_dots(&mut out, &w.view(), &[2, 0], input.view());
        for (record, got) in [2, 0].into_iter().zip(out) {
            let mut row = vec![0.0; len];
            decode_record(&w.view(), record, &mut row);
            let x = |k: usize| f64::from(input.codes[k]) * f64::from(input.scales[k / GROUP_SIZE]);
            let (wanted, magnitude) = dot(&row, x);
            assert_close("record_dots", wanted, got, 20.0 * EPS * magnitude);
        }
    }
}

#[test]
fn matvec_is_the_dot_product_of_decoded_rows() {
    let mut rng = Rng(31);
    for dtype in DType::ALL {
        for (rows, cols) in [(1, 1), (16, 64), (17, 65), (40, 200), (19, 768)] {
            let w = TestMatrix::new(dtype, rows, cols, Bytes::Encoded, &mut rng);
            let x = rng.normals(cols);
            let input = Input::new(&x, scalar());
            let mut out = vec![0.0; rows];
            scalar().matvec(&mut out, &w.view(), 0, input.view());
            for (row, &y) in out.iter().enumerate() {
                let mut decoded = vec![0.0; cols];
                decode_matrix_row(&w.view(), row, &mut decoded);
                let exact = |i: usize| f64::from(x[i]);
                let coded = |i: usize| f64::from(input.codes[i]) * f64::from(input.scales[i / GROUP_SIZE]);
                let (wanted, magnitude) =
                    if dtype.is_quantized() { dot(&decoded, coded) } else { dot(&decoded, exact) };
                // Float: 32 roundings in a group and one per group. Quantized: two per group.
                let roundings = if dtype.is_quantized() { 2 } else { GROUP_SIZE } + cols.div_ceil(GROUP_SIZE);
                let what = format!("matvec {dtype} {rows}x{cols} row {row}");
                assert_close(&what, wanted, y, roundings as f64 * EPS * magnitude);
            }
        }
    }
}

#[test]
fn matvec_is_close_to_the_product_of_the_original_values() {
    let mut rng = Rng(32);
    let (rows, cols) = (64, 1024);
    for (dtype, allowed) in [
        (DType::F32, 1e-6),
        (DType::F16, 4e-4),
        (DType::Int8, 0.012),
        (DType::Int4, 0.095),
        (DType::Int4n, 0.08),
    ] {
        let values = rng.normals(rows * cols);
        let data = crate::support::encode_matrix(dtype, &values, cols, 1.0 / 1024.0);
        let w = rwkv_edge_kernels::Matrix::new(dtype, rows, cols, 1.0 / 1024.0, &data).unwrap();
        let x = rng.normals(cols);
        let mut out = vec![0.0; rows];
        scalar().matvec(&mut out, &w, 0, Input::new(&x, scalar()).view());
        let (mut error, mut norm) = (0.0, 0.0);
        for (row, &y) in values.chunks(cols).zip(&out) {
            let (wanted, _) = dot(row, |i| f64::from(x[i]));
            error += (wanted - f64::from(y)).powi(2);
            norm += wanted.powi(2);
        }
        let relative = (error / norm).sqrt();
        assert!(relative < allowed, "{dtype}: {relative}");
    }
}

#[test]
fn sparse_product_is_the_sum_of_decoded_records() {
    let mut rng = Rng(33);
    for dtype in DType::ALL {
        for (count, len) in [(1, 1), (9, 70), (64, 1024), (300, 96)] {
            let w = TestRecords::new(dtype, count, len, Bytes::Encoded, &mut rng);
            let indices: Vec<u32> = (0..count as u32).filter(|_| count == 1 || rng.below(4) == 0).collect();
            let values: Vec<f32> = indices.iter().map(|_| rng.normal()).collect();
            let mut out = vec![0.0; len];
            let x = Sparse { indices: &indices, values: &values };
            sparse_product(scalar(), &mut out, &w, x, 9);
            check_sparse(&w, &indices, &values, &out);
        }
    }
}

fn check_sparse(w: &TestRecords, indices: &[u32], values: &[f32], out: &[f32]) {
    let records: Vec<Vec<f32>> = indices
        .iter()
        .map(|&j| {
            let mut record = vec![0.0; w.len];
            decode_record(&w.view(), j as usize, &mut record);
            record
        })
        .collect();
    for (i, &y) in out.iter().enumerate() {
        let products = || records.iter().zip(values).map(|(r, &x)| f64::from(r[i]) * f64::from(x));
        let (wanted, magnitude) = (products().sum(), products().map(f64::abs).sum::<f64>());
        let roundings = indices.len() as f64 * EPS * magnitude;
        let bound = if w.dtype.is_quantized() {
            roundings + coefficient_error(w, indices, values, i)
        } else {
            roundings
        };
        assert_close(&format!("sparse {} {}x{} [{i}]", w.dtype, w.count, w.len), wanted, y, bound);
    }
}

/// Half a step of every coefficient times the largest code.
fn coefficient_error(w: &TestRecords, indices: &[u32], values: &[f32], i: usize) -> f64 {
    let largest_code = match w.dtype {
        DType::Int4 => 15.0,
        DType::Int4n => 35.0,
        _ => 127.0,
    };
    let scale = |j: u32| {
        let bytes = &w.view().record(j as usize)[2 * (i / GROUP_SIZE)..][..2];
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f64() * f64::from(w.view().scale())
    };
    let top = values.iter().fold(0.0, |m, &x| f64::max(m, f64::from(x).abs()));
    let largest = top * (0..w.count as u32).map(|j| scale(j).abs()).fold(0.0, f64::max);
    let active = indices.len().max(1) as f64;
    let cmax = ((f64::from(i32::MAX) / largest_code).floor() / active).floor().min(32767.0);
    (0.5 + 0.01) * largest / cmax * 8.0f64.max(largest_code) * active
}

fn run_sparse(w: &TestRecords, indices: &[u32], values: &[f32], cut: usize) -> Vec<f32> {
    let mut out = vec![9.9; w.len];
    sparse_product(scalar(), &mut out, w, Sparse { indices, values }, cut);
    out
}

#[test]
fn sparse_product_does_not_depend_on_cuts_order_or_zeros() {
    let mut rng = Rng(34);
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        let w = TestRecords::new(dtype, 60, 2500, Bytes::Encoded, &mut rng);
        let indices: Vec<u32> = (0..30).map(|i| 2 * i).collect();
        let values = rng.normals(30);
        let wanted = run_sparse(&w, &indices, &values, 30);
        assert_eq!(wanted, run_sparse(&w, &indices, &values, 1));
        assert_eq!(wanted, run_sparse(&w, &indices, &values, 7));

        let reversed: (Vec<u32>, Vec<f32>) =
            indices.iter().copied().zip(values.iter().copied()).rev().unzip();
        assert_eq!(wanted, run_sparse(&w, &reversed.0, &reversed.1, 30));

        let dense: Vec<u32> = (0..60).collect();
        let mut dense_values = vec![0.0; 60];
        values.iter().enumerate().for_each(|(i, &v)| dense_values[2 * i] = v);
        assert_eq!(wanted, run_sparse(&w, &dense, &dense_values, 60));
    }
}

#[test]
fn sparse_product_gives_zeros_below_two_to_the_minus_100() {
    let mut rng = Rng(40);
    let threshold = 2f32.powi(-100);
    let mut w = TestRecords::new(DType::Int8, 1, 32, Bytes::Constant(1), &mut rng);
    w.data[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
    for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
        let mut out = [0.0; 32];
        for (x, wanted) in [(threshold, threshold * w.view().scale()), (threshold.next_down(), 0.0)] {
            sparse_product(kernels, &mut out, &w, Sparse { indices: &[0], values: &[x] }, 1);
            assert_eq!(out, [wanted; 32], "{} {x:e}", kernels.isa());
        }
    }
}

#[test]
fn sparse_product_of_nothing_is_zero() {
    let mut rng = Rng(35);
    for dtype in DType::ALL {
        let w = TestRecords::new(dtype, 3, 70, Bytes::Encoded, &mut rng);
        assert!(run_sparse(&w, &[], &[], 1).iter().all(|y| y.to_bits() == 0));
    }
}

/// A file may claim smaller bounds than its scales have. Coefficients are clamped then.
#[test]
fn sparse_product_with_bounds_that_do_not_hold_is_defined() {
    let mut rng = Rng(41);
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        let w = TestRecords::new(dtype, 40, 70, Bytes::Finite, &mut rng);
        let (indices, values): (Vec<u32>, Vec<f32>) = (0..40).map(|j| (j, rng.normal())).unzip();
        for bound in [0.0, -1.0, 1e-3, f32::MIN_POSITIVE, f32::INFINITY, f32::NAN] {
            let scale = SparseScale { active: 40, largest: 3.0, bounds: &[bound; 3] };
            let run = |kernels: &Kernels| {
                let (mut sums, mut out) = (vec![0; sparse_sums(70)], vec![9.9; 70]);
                let x = Sparse { indices: &indices, values: &values };
                kernels.sparse_accumulate(&mut sums, &w.view(), x, scale);
                kernels.sparse_finish(&mut out, &w.view(), &sums, scale);
                out
            };
            let wanted = run(scalar());
            for kernels in vector_levels() {
                let same = wanted.iter().zip(run(kernels)).all(|(a, b)| a.same(b));
                assert!(same, "{dtype} {} {bound}", kernels.isa());
            }
        }
    }
}

#[test]
fn nonzero_keeps_nan_and_drops_both_zeros() {
    let x = [0.0, -0.0, 1.0, f32::NAN, 0.0, f32::MIN_POSITIVE / 2.0, -2.0];
    let (mut indices, mut values) = ([9; 7], [9.0; 7]);
    assert_eq!(scalar().nonzero(&mut indices, &mut values, &x), 4);
    assert_eq!(indices[..4], [2, 3, 5, 6]);
    assert!(values[0] == 1.0 && values[1].is_nan() && values[2] == x[5] && values[3] == -2.0);
}

#[test]
fn dequantized_records_equal_plain_decoding() {
    let mut rng = Rng(36);
    for dtype in DType::ALL {
        for len in [1, 31, 32, 33, 64, 100, 1100] {
            let w = TestRecords::new(dtype, 3, len, Bytes::Encoded, &mut rng);
            let (mut got, mut wanted) = (vec![0.0; len], vec![0.0; len]);
            scalar().dequantize_record(&mut got, &w.view(), 2);
            decode_record(&w.view(), 2, &mut wanted);
            assert_eq!(got, wanted, "{dtype} {len}");
        }
    }
}

#[test]
fn layer_norm_is_close_to_f64() {
    let mut rng = Rng(37);
    for n in [1, 2, 15, 16, 17, 64, 768, 2048] {
        let x: Vec<f32> = rng.normals(n).iter().map(|x| 3.0 * x + 5.0).collect();
        let (weight, bias) = (rng.normals(n), rng.normals(n));
        let mut out = vec![0.0; n];
        scalar().layer_norm(&mut out, &x, &weight, &bias, 1e-5);
        let count = n as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let deviation = (variance + f64::from(1e-5f32)).sqrt();
        for i in 0..n {
            let (w, b) = (f64::from(weight[i]), f64::from(bias[i]));
            let normalized = (f64::from(x[i]) - mean) / deviation;
            // The rounding of the mean, some 5 here, weighs most.
            let bound = 8.0 * EPS * (w.abs() * (normalized.abs() + 8.0 / deviation) + b.abs());
            assert_close(&format!("layer_norm {n} [{i}]"), normalized * w + b, out[i], bound);
        }
    }
}

#[test]
fn softmax_is_close_to_f64_and_sums_to_one() {
    let mut rng = Rng(38);
    for n in [1, 2, 15, 16, 17, 1000, 50_277] {
        let x: Vec<f32> = rng.normals(n).iter().map(|x| 4.0 * x).collect();
        let mut out = vec![0.0; n];
        let stats = scalar().softmax(&mut out, &x);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
        assert_eq!(stats.max, max);
        assert_close("sum", sum, stats.sum, 1e-5 * sum);
        for (&x, &y) in x.iter().zip(&out) {
            let wanted = (f64::from(x) - f64::from(max)).exp() / sum;
            assert_close(&format!("softmax {n}"), wanted, y, 1e-5 * wanted);
        }
        let total: f64 = out.iter().map(|&y| f64::from(y)).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }
}

#[test]
fn softmax_of_nan_or_infinity_is_nan() {
    for odd in [f32::NAN, f32::INFINITY] {
        for position in [0, 7, 39] {
            let mut x = [1.0; 40];
            x[position] = odd;
            let mut out = [0.0; 40];
            scalar().softmax(&mut out, &x);
            assert!(out.iter().all(|y| y.is_nan()), "{odd} at {position}");
        }
    }
}

#[test]
fn softmax_of_minus_infinity_is_nearly_zero() {
    let mut out = [0.0; 3];
    let stats = scalar().softmax(&mut out, &[0.0, f32::NEG_INFINITY, 0.0]);
    assert!(stats.max == 0.0 && stats.sum == 2.0);
    assert!(out[0] == 0.5 && out[1] < 1e-37 && out[2] == 0.5);
}

#[test]
fn softmax_of_nothing_has_neutral_stats() {
    let stats = scalar().softmax(&mut [], &[]);
    assert!(stats.max == f32::NEG_INFINITY && stats.sum == 0.0);
}

/// The sums that the recurrence stands for, without any rescaling; fine for small exponents.
#[derive(Default)]
struct NaiveWkv {
    numerator: f64,
    denominator: f64,
}

impl NaiveWkv {
    fn step(&mut self, k: f64, v: f64, bonus: f64, decay: f64) -> f64 {
        let current = (bonus + k).exp();
        let y = (self.numerator + current * v) / (self.denominator + current);
        self.numerator = self.numerator * decay.exp() + k.exp() * v;
        self.denominator = self.denominator * decay.exp() + k.exp();
        y
    }
}

#[test]
fn wkv4_follows_the_plain_sums_over_200_steps() {
    let mut rng = Rng(39);
    let n = 19;
    let time_first = rng.normals(n);
    let time_decay: Vec<f32> = (0..n).map(|i| -(0.5 * i as f32 - 7.0).exp()).collect();
    let (mut aa, mut bb, mut pp) = (vec![0.0; n], vec![0.0; n], vec![-1e30; n]);
    let mut naive: Vec<NaiveWkv> = (0..n).map(|_| NaiveWkv::default()).collect();
    for step in 0..200 {
        let (k, v) = (rng.normals(n), rng.normals(n));
        let mut y = vec![0.0; n];
        scalar().wkv4(&mut y, &k, &v, &time_first, &time_decay, &mut aa, &mut bb, &mut pp);
        for i in 0..n {
            let [k, v, u, w] = [k[i], v[i], time_first[i], time_decay[i]].map(f64::from);
            let wanted = naive[i].step(k, v, u, w);
            assert_close(&format!("wkv4 step {step} channel {i}"), wanted, y[i], 2e-5);
        }
    }
}

#[test]
fn wkv4_gives_the_first_value_and_survives_large_keys() {
    let (mut aa, mut bb, mut pp) = ([0.0], [0.0], [-1e30]);
    let mut y = [0.0];
    scalar().wkv4(&mut y, &[1000.0], &[2.5], &[3.0], &[-0.1], &mut aa, &mut bb, &mut pp);
    assert_eq!(y, [2.5]);
    scalar().wkv4(&mut y, &[-1000.0], &[7.0], &[3.0], &[-0.1], &mut aa, &mut bb, &mut pp);
    assert_eq!(y, [2.5]);
    assert!(pp[0] > 999.0 && bb[0] == 1.0);
}

#[test]
fn element_wise_operations_compute_their_formulas() {
    let mut out = [0.0; 2];
    scalar().lerp(&mut out, &[1.0, -2.0], &[3.0, 2.0], &[0.25, 0.5]);
    assert_eq!(out, [1.5, 0.0]);
    let mut x = [-3.0, 3.0, 0.0, f32::NAN];
    scalar().relu_squared(&mut x);
    assert_eq!(x, [0.0, 9.0, 0.0, 0.0]);
    let mut x = [1.0, 2.0];
    scalar().add(&mut x, &[0.5, -4.0]);
    assert_eq!(x, [1.5, -2.0]);
}

#[test]
fn max_is_the_largest_number_or_a_nan() {
    let mut rng = Rng(42);
    for len in [0, 1, 31, 32, 33, 100] {
        let mut x = rng.normals(len);
        let wanted = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(scalar().max(&x), wanted);
        for i in 0..len {
            let number = std::mem::replace(&mut x[i], f32::NAN);
            assert!(scalar().max(&x).is_nan());
            x[i] = number;
        }
    }
}

#[test]
fn reaching_keeps_what_is_not_surely_below() {
    let x = [1.0, 4.0, f32::NAN, 5.0, 0.0, 4.5];
    let bounds = [2.0, 0.5, 0.0, 0.0, f32::NAN, 0.25];
    let mut indices = [99; 6];
    assert_eq!(scalar().reaching(&mut indices, &x, &bounds, 2.0, 5.0), 6);
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_eq!(scalar().reaching(&mut indices, &x, &bounds, 1.0, 5.0), 3);
    assert_eq!(indices[..3], [2, 3, 4]);
}

//! The promises of encoding: error bounds, code ranges, repeatability, and refusals.

use rwkv_edge_kernels::quant::{ErrorSums, TENSOR_SCALE, decode_matrix_row, decode_record};
use rwkv_edge_kernels::{
    DType, GROUP_SIZE, INT4N_TABLE, Kernels, Matrix, Records, int4n_shift, matrix_bytes, record_bytes,
};

use crate::support::{Rng, encode_matrix, encode_records, fingerprint};

fn encode(dtype: DType, values: &[f32]) -> (Vec<u8>, ErrorSums) {
    let mut bytes = vec![0; record_bytes(dtype, values.len()).unwrap()];
    let sums = Kernels::best().encode_record(dtype, values, None, TENSOR_SCALE, &mut bytes).unwrap();
    (bytes, sums)
}

fn decode(dtype: DType, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    decode_record(&Records::new(dtype, 1, n, TENSOR_SCALE, bytes).unwrap(), 0, &mut out);
    out
}

fn scale(bytes: &[u8], g: usize) -> f32 {
    half::f16::from_le_bytes([bytes[2 * g], bytes[2 * g + 1]]).to_f32() * TENSOR_SCALE
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// Groups of many shapes: normal, heavy-tailed, one-sided, tiny, nearly constant.
fn sample(rng: &mut Rng, n: usize) -> Vec<f32> {
    let kinds = n.div_ceil(GROUP_SIZE);
    let group: Vec<usize> = (0..kinds).map(|_| rng.below(5)).collect();
    (0..n)
        .map(|i| {
            let x = rng.normal();
            match group[i / GROUP_SIZE] {
                0 => x,
                1 => x * x * x,
                2 => x.abs(),
                3 => 1e-3 * x,
                _ => 1.0 + 0.01 * x,
            }
        })
        .collect()
}

#[test]
fn int8_is_within_half_a_scale() {
    let mut rng = Rng(50);
    let values = sample(&mut rng, 32 * 500);
    let (bytes, _) = encode(DType::Int8, &values);
    for (i, (&w, &d)) in values.iter().zip(&decode(DType::Int8, &bytes, values.len())).enumerate() {
        let scale = scale(&bytes, i / GROUP_SIZE);
        assert!((w - d).abs() <= 0.5 * scale * (1.0 + 1e-5), "{i}: {w} {d} scale {scale}");
    }
}

#[test]
fn int8_is_within_half_a_scale_where_scales_are_subnormal() {
    let mut rng = Rng(51);
    for exponent in 10..60 {
        let values: Vec<f32> = rng.normals(32).iter().map(|x| x * 0.5f32.powi(exponent)).collect();
        let (bytes, _) = encode(DType::Int8, &values);
        let step = scale(&bytes, 0).max(2f32.powi(-24) * TENSOR_SCALE);
        for (&w, &d) in values.iter().zip(&decode(DType::Int8, &bytes, 32)) {
            assert!((w - d).abs() <= 0.5 * step * (1.0 + 1e-5), "2^-{exponent}: {w:e} {d:e} step {step:e}");
        }
    }
}

#[test]
fn int8_never_stores_minus_128() {
    let mut rng = Rng(52);
    for scale in [1.0, 1e-5, 1e-7, 1e-9, 50.0] {
        let values: Vec<f32> = sample(&mut rng, 3200).iter().map(|x| x * scale).collect();
        let (bytes, _) = encode(DType::Int8, &values);
        assert!(bytes[2 * 100..].iter().all(|&b| b != 0x80));
    }
}

#[test]
fn int8_codes_reach_127() {
    let mut rng = Rng(53);
    for _ in 0..200 {
        let (bytes, _) = encode(DType::Int8, &rng.normals(32));
        assert!(bytes[64..96].iter().any(|&b| (b as i8).unsigned_abs() == 127));
    }
}

#[test]
fn encoding_decoded_values_changes_nothing() {
    let mut rng = Rng(54);
    // Of Int4n the search may miss the scale that it came from.
    for dtype in DType::ALL.into_iter().filter(|&dtype| dtype != DType::Int4n) {
        let n = 32 * 300;
        let values = sample(&mut rng, n);
        let once = decode(dtype, &encode(dtype, &values).0, n);
        let (bytes, sums) = encode(dtype, &once);
        assert_eq!(decode(dtype, &bytes, n), once, "{dtype}");
        assert_eq!(sums.squared_error, 0.0, "{dtype}");
    }
}

#[test]
fn error_sums_are_those_of_decoding() {
    let mut rng = Rng(55);
    let values = sample(&mut rng, 1000);
    for dtype in DType::ALL {
        let (bytes, sums) = encode(dtype, &values);
        let wanted = squared_error(&values, &decode(dtype, &bytes, 1000));
        let norm = squared_error(&values, &[0.0; 1000]);
        assert!((sums.squared_error - wanted).abs() <= 1e-5 * wanted, "{dtype}: {sums:?} {wanted}");
        assert!((sums.squared_norm - norm).abs() <= 1e-9 * norm, "{dtype}: {sums:?} {norm}");
        assert!((sums.relative() - (wanted / norm).sqrt()).abs() < 1e-5);
    }
}

#[test]
fn error_sums_add_up() {
    let one = ErrorSums { squared_error: 1.0, squared_norm: 4.0 };
    let sum = one + ErrorSums { squared_error: 3.0, squared_norm: 12.0 };
    assert_eq!(sum, ErrorSums { squared_error: 4.0, squared_norm: 16.0 });
    assert_eq!(sum.relative(), 0.5);
    assert_eq!(ErrorSums::default().relative(), 0.0);
}

/// Error of a group when rounded with a given scale.
fn rounding_error(values: &[f32], scale: f32) -> f64 {
    let scale = half::f16::from_f32(scale / TENSOR_SCALE).to_f32() * TENSOR_SCALE;
    let decoded: Vec<f32> =
        values.iter().map(|w| (w / scale).round_ties_even().clamp(-8.0, 7.0) * scale).collect();
    squared_error(values, &decoded)
}

#[test]
fn int4_search_is_never_worse_than_plain_scales_and_better_on_average() {
    let mut rng = Rng(56);
    let (mut searched, mut seventh, mut eighth) = (0.0, 0.0, 0.0);
    for _ in 0..2000 {
        let values = sample(&mut rng, 32);
        let (_, sums) = encode(DType::Int4, &values);
        let largest = values.iter().copied().fold(0.0f32, |m, w| if w.abs() > m.abs() { w } else { m });
        let plain = [rounding_error(&values, largest.abs() / 7.0), rounding_error(&values, largest / -8.0)];
        for plain in plain {
            assert!(sums.squared_error <= plain * (1.0 + 1e-5), "{} {plain}", sums.squared_error);
        }
        let norm = sums.squared_norm;
        searched += sums.squared_error / norm;
        seventh += plain[0] / norm;
        eighth += plain[1] / norm;
    }
    assert!(searched < 0.93 * eighth && searched < 0.8 * seventh, "{searched} {eighth} {seventh}");
}

#[test]
fn int4_error_of_normal_weights_is_about_eight_percent() {
    let mut rng = Rng(57);
    let (_, sums) = encode(DType::Int4, &rng.normals(64_000));
    assert!((0.070..0.085).contains(&sums.relative()), "{}", sums.relative());
}

#[test]
fn int4n_error_is_at_most_73_percent_of_that_of_int4() {
    let mut rng = Rng(60);
    let normal = rng.normals(64_000);
    let heavy: Vec<f32> = normal.iter().map(|x| x * x.abs()).collect();
    for (values, share) in [(normal, 0.73), (heavy, 0.65)] {
        let [linear, table] = [DType::Int4, DType::Int4n].map(|dtype| encode(dtype, &values).1.squared_error);
        assert!(table <= share * linear, "{}", table / linear);
    }
}

/// The search against all scales and the nearest codes.
#[test]
fn int4n_search_is_close_to_the_best_scale() {
    let mut rng = Rng(61);
    let (mut searched, mut best) = (0.0, 0.0);
    for _ in 0..20 {
        let values = rng.normals(32);
        searched += encode(DType::Int4n, &values).1.squared_error;
        best += (0..=u16::MAX).map(|bits| int4n_error(&values, bits)).fold(f64::INFINITY, f64::min);
    }
    assert!(searched >= best * (1.0 - 1e-6) && searched < 1.02 * best, "{searched} {best}");
}

fn int4n_error(values: &[f32], bits: u16) -> f64 {
    let scale = half::f16::from_bits(bits).to_f64() * f64::from(TENSOR_SCALE);
    let largest = values.iter().fold(0.0, |m: f64, &w| m.max(f64::from(w).abs()));
    if !(largest / 60.0..largest / 15.0).contains(&scale.abs()) {
        return f64::INFINITY;
    }
    let shift = f64::from(int4n_shift(bits));
    let error = |&w: &f32| {
        let errors =
            INT4N_TABLE.iter().map(|&code| (f64::from(w) - (f64::from(code) + shift) * scale).powi(2));
        errors.fold(f64::INFINITY, f64::min)
    };
    values.iter().map(error).sum()
}

#[test]
fn importance_moves_the_error_away_from_important_values() {
    let mut rng = Rng(62);
    let values = rng.normals(3200);
    let importance: Vec<f32> = (0..3200).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    let weighted = |importance: Option<&[f32]>| -> f64 {
        let mut bytes = vec![0; record_bytes(DType::Int4n, 3200).unwrap()];
        Kernels::best().encode_record(DType::Int4n, &values, importance, TENSOR_SCALE, &mut bytes).unwrap();
        let decoded = decode(DType::Int4n, &bytes, 3200);
        values.iter().zip(&decoded).step_by(8).map(|(&w, &d)| f64::from(w - d).powi(2)).sum()
    };
    let (with, without) = (weighted(Some(&importance)), weighted(None));
    assert!(with < 0.6 * without, "{with} {without}");
}

/// Values in the middle of the codes that matter little, and values at the limits of fp16.
#[test]
fn int4n_scales_are_finite_and_never_worse_than_zero() {
    let mut rng = Rng(64);
    for i in 0..3000 {
        let magnitude = 0.5f32.powi(i % 60) * 65504.0;
        let mut values = rng.normals(32);
        let largest = values.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        for (j, w) in values.iter_mut().enumerate() {
            *w *= magnitude / largest * if j % 4 == 0 { 20.0 } else { [1e-3, 1.0, 1.6][i as usize % 3] };
        }
        let importance: Vec<f32> = (0..32).map(|j| if j % 4 == 0 { 1e-12 } else { 1.0 }).collect();
        let mut bytes = vec![0; record_bytes(DType::Int4n, 32).unwrap()];
        Kernels::best().encode_record(DType::Int4n, &values, Some(&importance), 1.0, &mut bytes).unwrap();
        let mut decoded = vec![0.0; 32];
        decode_record(&Records::new(DType::Int4n, 1, 32, 1.0, &bytes).unwrap(), 0, &mut decoded);
        let error = |decoded: &[f32]| -> f64 {
            let errors = values.iter().zip(decoded).map(|(&w, &d)| (f64::from(w) - f64::from(d)).powi(2));
            errors.zip(&importance).map(|(error, &importance)| error * f64::from(importance)).sum()
        };
        let (found, zero) = (error(&decoded), error(&[0.0; 32]));
        assert!(found <= zero * (1.0 + 1e-5), "{i}: {found:e} {zero:e} {values:?}");
    }
}

#[test]
fn equal_importance_gives_the_bytes_of_none() {
    let mut rng = Rng(63);
    let (rows, cols) = (3, 100);
    let values = sample(&mut rng, rows * cols);
    for dtype in DType::ALL {
        let block_row = |importance: Option<&[f32]>| {
            let mut out = vec![0; matrix_bytes(dtype, 16, cols).unwrap()];
            let kernels = Kernels::best();
            kernels.encode_block_row(dtype, &values, cols, importance, TENSOR_SCALE, &mut out).unwrap();
            out
        };
        for equal in [1.0, 3.7e-9, 5e30, 0.0, f32::NAN] {
            assert_eq!(block_row(Some(&vec![equal; cols])), block_row(None), "{dtype} {equal:e}");
        }
    }
}

#[test]
fn groups_of_zeros_have_scale_zero() {
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        for zero in [0.0, -0.0, 1e-40, 1e-12] {
            let (bytes, _) = encode(dtype, &[zero; 64]);
            assert_eq!(bytes[..4], [0; 4], "{dtype} {zero:e}");
            assert!(decode(dtype, &bytes, 64).iter().all(|&w| w == 0.0));
        }
    }
}

#[test]
fn weights_too_large_for_the_tensor_scale_are_refused() {
    for (dtype, fits, too_large) in [
        (DType::F16, 65504.0, 65520.0),
        (DType::Int8, 65504.0 * 127.0, 65540.0 * 127.0),
        (DType::Int4, 65504.0 * 7.0, 65540.0 * 7.0),
        (DType::Int4n, 65504.0 * 20.0, 65540.0 * 20.0),
    ] {
        let mut bytes = vec![0; record_bytes(dtype, 40).unwrap()];
        for sign in [1.0, -1.0] {
            let mut values = [0.5; 40];
            values[33] = fits * sign;
            assert!(Kernels::best().encode_record(dtype, &values, None, 1.0, &mut bytes).is_ok(), "{dtype}");
            values[33] = too_large * sign;
            let error = Kernels::best().encode_record(dtype, &values, None, 1.0, &mut bytes).unwrap_err();
            assert_eq!(error.largest.abs(), too_large, "{dtype}");
            assert!(Kernels::best().encode_record(dtype, &values, None, 2.0, &mut bytes).is_ok(), "{dtype}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for dtype in DType::ALL {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for position in [0, 31, 69] {
                let mut values = [1.0; 70];
                values[position] = odd;
                let mut bytes = vec![0; record_bytes(dtype, 70).unwrap()];
                let error = Kernels::best().encode_record(dtype, &values, None, 1.0, &mut bytes).unwrap_err();
                assert!(!error.largest.is_finite(), "{dtype} {odd}");
                let mut bytes = vec![0; 2 * dtype.block_bytes()];
                let error =
                    Kernels::best().encode_block_row(dtype, &values, 70, None, 1.0, &mut bytes).unwrap_err();
                assert!(!error.largest.is_finite(), "{dtype} {odd}");
            }
        }
    }
}

#[test]
fn matrices_and_records_encode_groups_alike() {
    let mut rng = Rng(58);
    for dtype in DType::ALL {
        for (rows, cols) in [(1, 1), (3, 33), (16, 64), (17, 100)] {
            let values = sample(&mut rng, rows * cols);
            let data = encode_matrix(dtype, &values, cols, TENSOR_SCALE);
            let matrix = Matrix::new(dtype, rows, cols, TENSOR_SCALE, &data).unwrap();
            let data = encode_records(dtype, &values, cols, TENSOR_SCALE);
            let records = Records::new(dtype, rows, cols, TENSOR_SCALE, &data).unwrap();
            let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..rows {
                decode_matrix_row(&matrix, row, &mut a);
                decode_record(&records, row, &mut b);
                assert_eq!(a, b, "{dtype} {rows}x{cols} row {row}");
            }
        }
    }
}

#[test]
fn encoded_bytes_are_the_same_on_every_platform() {
    let mut rng = Rng(59);
    let values = sample(&mut rng, 48 * 100);
    let fingerprints = DType::ALL.map(|dtype| fingerprint(&encode_matrix(dtype, &values, 100, TENSOR_SCALE)));
    let wanted = [
        0x400f_b49f_08eb_c326,
        0xa306_67e4_da34_f895,
        0xeae0_b3ae_9c8f_d93c,
        0x17a7_f6cc_a6a1_3feb,
        0xbc8a_6266_abb5_439a,
    ];
    assert_eq!(fingerprints, wanted, "{fingerprints:#x?}");
}

#[test]
fn fp16_rounding_agrees_with_an_independent_one() {
    let mut bytes = vec![0; 64];
    for bits in (0..=u32::MAX).step_by(1_009) {
        let x = f32::from_bits(bits);
        let wanted = half::f16::from_f32(x);
        if Kernels::best().encode_record(DType::F16, &[x], None, 1.0, &mut bytes).is_ok() {
            assert_eq!(bytes[..2], wanted.to_le_bytes(), "{x:e}");
        } else {
            assert!(!wanted.is_finite(), "{x:e}");
        }
    }
}

#[test]
fn all_fp16_numbers_decode_exactly() {
    for bits in 0..=u16::MAX {
        let mut bytes = [0; 64];
        bytes[..2].copy_from_slice(&bits.to_le_bytes());
        let mut got = [0.0];
        decode_record(&Records::new(DType::F16, 1, 1, 1.0, &bytes).unwrap(), 0, &mut got);
        let wanted = half::f16::from_bits(bits).to_f32();
        assert!(got[0].to_bits() == wanted.to_bits() || wanted.is_nan() && got[0].is_nan(), "{bits:#x}");
    }
}

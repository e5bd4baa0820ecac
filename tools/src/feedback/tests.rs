use rwkv_edge::kernels::layout::{Matrix, Records, matrix_bytes, records_bytes};
use rwkv_edge::kernels::quant::{FedSums, TENSOR_SCALE, decode_matrix_row, decode_record};
use rwkv_edge::kernels::{DType, Isa, Kernels};

use super::*;

const QUANTIZED: [DType; 3] = [DType::Int4n, DType::Int4, DType::Int8];
const DAMPING: f64 = 0.1;

/// Pseudo-random numbers, about normal.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..12).map(|_| uniform()).sum()
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Tokens `[tokens, channels]` that are mixtures of a few causes, of channels with energies of their
/// own.
fn correlated(tokens: usize, channels: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let causes = channels / 4;
    let (mixing, gains) = (random.many(causes * channels), random.many(channels));
    let mut out = Vec::new();
    for _ in 0..tokens {
        let hidden = random.many(causes);
        for (c, gain) in gains.iter().enumerate() {
            let mixed: f32 = hidden.iter().zip(&mixing[c * causes..]).map(|(h, m)| h * m).sum();
            out.push((mixed / (causes as f32).sqrt() + 0.3 * random.next()) * gain.exp());
        }
    }
    out
}

fn rows(tokens: &[f32], channels: usize) -> Vec<&[f32]> {
    tokens.chunks_exact(channels).collect()
}

fn scales(tokens: &[f32], channels: usize) -> Vec<f32> {
    let mut ranges = Ranges::new(channels);
    ranges.add(&rows(tokens, channels));
    ranges.scales()
}

fn gram(kernels: &'static Kernels, threads: usize, tokens: &[f32], channels: usize) -> Gram {
    let mut gram = Gram::new(kernels, threads, scales(tokens, channels));
    gram.add(&rows(tokens, channels));
    gram
}

fn factor(tokens: &[f32], channels: usize, order: Order) -> Factor {
    Factor::new(Kernels::best(), 1, &mut gram(Kernels::best(), 1, tokens, channels), order, DAMPING)
}

/// A matrix `[rows, columns]` as blocks of rows.
fn encode_rows(
    kernels: &'static Kernels,
    dtype: DType,
    weights: &[f32],
    factor: &Factor,
) -> (Vec<u8>, FedSums) {
    let columns = factor.columns();
    let mut encoder = RowEncoder::new(kernels, factor);
    let mut bytes = vec![0xaa; matrix_bytes(dtype, weights.len() / columns, columns).unwrap()];
    let mut sums = FedSums::default();
    let blocks = bytes.chunks_mut(matrix_bytes(dtype, 16, columns).unwrap());
    for (rows, out) in weights.chunks(16 * columns).zip(blocks) {
        sums += encoder.encode(dtype, rows, TENSOR_SCALE, out).unwrap();
    }
    (bytes, sums)
}

fn encode_records(threads: usize, dtype: DType, weights: &[f32], factor: &Factor) -> (Vec<u8>, FedSums) {
    let (columns, outputs) = (factor.columns(), weights.len() / factor.columns());
    let mut bytes = vec![0xaa; records_bytes(dtype, columns, outputs).unwrap()];
    let kernels = Kernels::best();
    let sums = encode_columns(kernels, threads, dtype, weights, factor, TENSOR_SCALE, &mut bytes).unwrap();
    (bytes, sums)
}

/// Row-major weights of encoded rows.
fn decode_rows(dtype: DType, bytes: &[u8], rows: usize, columns: usize) -> Vec<f32> {
    let matrix = Matrix::new(dtype, rows, columns, TENSOR_SCALE, bytes).unwrap();
    let mut out = vec![0.0; rows * columns];
    out.chunks_exact_mut(columns).enumerate().for_each(|(r, out)| decode_matrix_row(&matrix, r, out));
    out
}

/// Row-major weights of encoded columns.
fn decode_columns(dtype: DType, bytes: &[u8], outputs: usize, columns: usize) -> Vec<f32> {
    let records = Records::new(dtype, columns, outputs, TENSOR_SCALE, bytes).unwrap();
    let (mut out, mut record) = (vec![0.0; outputs * columns], vec![0.0; outputs]);
    for column in 0..columns {
        decode_record(&records, column, &mut record);
        (0..outputs).for_each(|r| out[r * columns + column] = record[r]);
    }
    out
}

/// `tr(E H E^T)` of the errors `E` of rows, with damping.
fn loss(gram: &mut Gram, weights: &[f32], rounded: &[f32], damping: f64) -> f64 {
    let n = gram.channels();
    let mean = gram.diagonal().iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
    let h = gram.moments();
    let mut total = 0.0;
    for (weights, rounded) in weights.chunks_exact(n).zip(rounded.chunks_exact(n)) {
        let errors: Vec<f64> =
            weights.iter().zip(rounded).map(|(&w, &q)| f64::from(w) - f64::from(q)).collect();
        for (i, e) in errors.iter().enumerate() {
            let row: f64 = errors.iter().enumerate().map(|(j, e)| h(i, j) * e).sum();
            total += e * (row + damping * mean * e);
        }
    }
    total
}

#[test]
fn moments_are_those_of_the_codes_however_tokens_are_cut() {
    let n = 72;
    let tokens = correlated(2100, n, 1);
    let scales = scales(&tokens[..100 * n], n);
    let codes: Vec<f64> = (tokens.iter().enumerate())
        .map(|(i, x)| f64::from((x / scales[i % n]).round_ties_even().clamp(-127.0, 127.0)))
        .collect();
    let mut whole = Gram::new(Kernels::best(), 2, scales.clone());
    whole.add(&rows(&tokens, n));
    let mut cut = BlockGram::new(Kernels::best(), 1, &scales, 40);
    tokens.chunks(37 * n).for_each(|tokens| cut.add(&rows(tokens, n)));
    let mut blocks = cut.into_blocks();
    assert_eq!([whole.tokens(), blocks[1].tokens()], [2100; 2]);
    assert_eq!([blocks[0].channels(), blocks[1].channels()], [40, 32]);
    let [first, second] = &mut blocks[..] else { panic!() };
    let (whole, first, second) = (whole.moments(), first.moments(), second.moments());
    let mut off = 0;
    for i in 0..n {
        for j in 0..n {
            let sum: f64 = codes.chunks_exact(n).map(|token| token[i] * token[j]).sum();
            let expected = sum * (f64::from(scales[i]) * f64::from(scales[j])) / 2100.0;
            // A quotient next to a tie may round the other way than a product with the inverse.
            off += usize::from(whole(i, j) != expected);
            assert!((whole(i, j) - expected).abs() <= 1e-3 * (1.0 + expected.abs()), "{i} {j}");
            if i < 40 && j < 40 {
                assert_eq!(first(i, j), whole(i, j));
            } else if i >= 40 && j >= 40 {
                assert_eq!(second(i - 40, j - 40), whole(i, j));
            }
        }
    }
    assert!(off < n * n / 10, "{off} moments differ");
}

#[test]
fn inputs_without_correlation_give_the_bytes_of_the_weighted_search() {
    let (n, rows) = (100, 20);
    // One channel in each token.
    let gains = Random(2).many(n);
    let tokens: Vec<f32> =
        (0..n * n).map(|i| if i / n == i % n { 3.0 * gains[i % n].exp() } else { 0.0 }).collect();
    let weights: Vec<f32> = Random(3).many(rows * n).iter().map(|w| 0.05 * w).collect();
    let by_rows = factor(&tokens, n, Order::Groups);
    let by_columns = factor(&tokens, n, Order::Columns);
    let importance = by_rows.own_energy();
    assert_eq!(importance, by_columns.own_energy());
    for dtype in QUANTIZED {
        let (bytes, sums) = encode_rows(Kernels::best(), dtype, &weights, &by_rows);
        let mut expected = vec![0; bytes.len()];
        let blocks = expected.chunks_mut(bytes.len() / 2);
        let mut plain = rwkv_edge::kernels::quant::ErrorSums::default();
        for (rows, out) in weights.chunks(16 * n).zip(blocks) {
            let kernels = Kernels::best();
            plain += kernels.encode_block_row(dtype, rows, n, Some(&importance), TENSOR_SCALE, out).unwrap();
        }
        assert!(bytes == expected, "rows of {dtype}");
        assert!((sums.weights.relative() / plain.relative() - 1.0).abs() < 1e-6);

        let (bytes, _) = encode_records(1, dtype, &weights, &by_columns);
        for (c, record) in bytes.chunks(bytes.len() / n).enumerate() {
            let column: Vec<f32> = weights.iter().copied().skip(c).step_by(n).collect();
            let mut expected = vec![0; record.len()];
            Kernels::best().encode_record(dtype, &column, None, TENSOR_SCALE, &mut expected).unwrap();
            assert!(record == expected, "column {c} of {dtype}");
        }
    }
}

#[test]
fn feedback_lowers_the_loss_and_knows_it() {
    let (n, rows) = (168, 40);
    let tokens = correlated(1500, n, 4);
    let weights: Vec<f32> = Random(5).many(rows * n).iter().map(|w| 0.05 * w).collect();
    let mut gram = gram(Kernels::best(), 1, &tokens, n);
    let importance = gram.diagonal();
    let by_rows = factor(&tokens, n, Order::Groups);
    let by_columns = factor(&tokens, n, Order::Columns);
    for dtype in QUANTIZED {
        let (bytes, sums) = encode_rows(Kernels::best(), dtype, &weights, &by_rows);
        let rounded = decode_rows(dtype, &bytes, rows, n);
        let damped = loss(&mut gram, &weights, &rounded, DAMPING);
        assert!((sums.outputs / damped - 1.0).abs() < 1e-4, "rows of {dtype}: {} {damped}", sums.outputs);
        let mut plain = vec![0; bytes.len()];
        let each = matrix_bytes(dtype, 16, n).unwrap();
        for (rows, out) in weights.chunks(16 * n).zip(plain.chunks_mut(each)) {
            let kernels = Kernels::best();
            kernels.encode_block_row(dtype, rows, n, Some(&importance), TENSOR_SCALE, out).unwrap();
        }
        let plain = loss(&mut gram, &weights, &decode_rows(dtype, &plain, rows, n), 0.0);
        let fed = loss(&mut gram, &weights, &rounded, 0.0);
        assert!(fed < 0.6 * plain, "rows of {dtype}: {fed} of {plain}");

        let (bytes, sums) = encode_records(1, dtype, &weights, &by_columns);
        let rounded = decode_columns(dtype, &bytes, rows, n);
        let damped = loss(&mut gram, &weights, &rounded, DAMPING);
        assert!((sums.outputs / damped - 1.0).abs() < 1e-4, "columns of {dtype}: {} {damped}", sums.outputs);
        let mut plain = vec![0; bytes.len()];
        for (c, record) in plain.chunks_mut(bytes.len() / n).enumerate() {
            let column: Vec<f32> = weights.iter().copied().skip(c).step_by(n).collect();
            Kernels::best().encode_record(dtype, &column, None, TENSOR_SCALE, record).unwrap();
        }
        let plain = loss(&mut gram, &weights, &decode_columns(dtype, &plain, rows, n), 0.0);
        let fed = loss(&mut gram, &weights, &rounded, 0.0);
        assert!(fed < 0.6 * plain, "columns of {dtype}: {fed} of {plain}");
    }
}

#[test]
fn extreme_channels_and_few_tokens_give_finite_bytes() {
    let (n, rows) = (104, 33);
    let mut weights: Vec<f32> = Random(6).many(rows * n).iter().map(|w| 0.05 * w).collect();
    for row in weights.chunks_mut(n) {
        row[32..64].fill(0.0);
    }
    let usual = correlated(40, n, 7);
    let zeros = vec![0.0; 40 * n];
    let with = |channel: usize, gain: f32| {
        let mut tokens = usual.clone();
        tokens.iter_mut().skip(channel).step_by(n).for_each(|x| *x *= gain);
        tokens
    };
    let inputs = [usual.clone(), zeros, with(5, 0.0), with(5, 3e3), with(70, 1e7), with(103, 1e-12)];
    for (i, tokens) in inputs.iter().enumerate() {
        for damping in [0.01, DAMPING] {
            let mut gram = gram(Kernels::best(), 1, tokens, n);
            let mut factor = |order| Factor::new(Kernels::best(), 1, &mut gram, order, damping);
            let (by_rows, by_columns) = (factor(Order::Groups), factor(Order::Columns));
            for dtype in QUANTIZED {
                let (bytes, sums) = encode_rows(Kernels::best(), dtype, &weights, &by_rows);
                let rounded = decode_rows(dtype, &bytes, rows, n);
                assert!(rounded.iter().all(|w| w.abs() < 1.0), "rows of {dtype}, inputs {i}, {damping}");
                assert!(sums.outputs.is_finite() && sums.weights.relative().is_finite());
                let (bytes, sums) = encode_records(1, dtype, &weights, &by_columns);
                let rounded = decode_columns(dtype, &bytes, rows, n);
                assert!(rounded.iter().all(|w| w.abs() < 1.0), "columns of {dtype}, inputs {i}, {damping}");
                assert!(sums.outputs.is_finite() && sums.weights.relative().is_finite());
            }
        }
    }
}

#[test]
fn threads_and_instructions_do_not_change_bytes() {
    let (n, rows) = (200, 70);
    let tokens = correlated(300, n, 8);
    let weights: Vec<f32> = Random(9).many(rows * n).iter().map(|w| 0.05 * w).collect();
    let encode = |kernels: &'static Kernels, threads| {
        let mut gram = gram(kernels, threads, &tokens, n);
        let mut bytes = Vec::new();
        for dtype in QUANTIZED {
            let factor = Factor::new(kernels, threads, &mut gram, Order::Groups, DAMPING);
            bytes.extend(encode_rows(kernels, dtype, &weights, &factor).0);
            let factor = Factor::new(kernels, threads, &mut gram, Order::Columns, DAMPING);
            let mut records = vec![0; records_bytes(dtype, n, rows).unwrap()];
            encode_columns(kernels, threads, dtype, &weights, &factor, TENSOR_SCALE, &mut records).unwrap();
            bytes.extend(records);
        }
        bytes
    };
    let expected = encode(Kernels::for_isa(Isa::Scalar).unwrap(), 1);
    for &isa in Isa::ALL {
        for threads in [1, 3] {
            if let Some(kernels) = Kernels::for_isa(isa) {
                assert!(encode(kernels, threads) == expected, "{isa}, {threads} threads");
            }
        }
    }
}

#[test]
#[should_panic(expected = "a group of positions is not one of columns")]
fn rows_refuse_an_order_that_tears_groups_apart() {
    let tokens = correlated(100, 64, 10);
    let factor = factor(&tokens, 64, Order::Columns);
    encode_rows(Kernels::best(), DType::Int4n, &[0.01; 64], &factor);
}

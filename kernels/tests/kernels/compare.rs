//! Every available level against scalar: the same bits, nothing read or written outside.

use rwkv_edge_kernels::{
    ActivationMut, DType, Isa, Kernels, MAX_READ_STREAMS, Normed, Shift, Shifted, Sparse,
};

use crate::guard::Guarded;
use crate::support::{
    Bytes, Element, Fill, Input, Output, Part, Report, Rng, TestMatrix, TestRecords, lengths, scalar,
    sparse_product, vector_levels,
};

/// Runs `op`, an operation of [`Part::Base`], as [`check_part`] does.
pub(crate) fn check_f32(
    report: &mut Report,
    what: &str,
    shape: &str,
    start: &[f32],
    op: impl Fn(&Kernels, &mut [f32]),
) {
    check_part(Part::Base, report, what, shape, start, op);
}

/// Runs `op` into a guarded output and into one between canaries, for scalar and every other level.
/// Miri checks bounds by itself, so there is one output for it.
fn check_part(
    part: Part,
    report: &mut Report,
    what: &str,
    shape: &str,
    start: &[f32],
    op: impl Fn(&Kernels, &mut [f32]),
) {
    let levels = part.levels();
    if levels.is_empty() {
        return;
    }
    let mut wanted = start.to_vec();
    op(scalar(), &mut wanted);
    for kernels in levels {
        let mut out = Guarded::new(start);
        op(kernels, &mut out);
        report.compare(what, kernels.isa(), shape, &wanted, &out);
        if cfg!(miri) {
            continue;
        }
        let mut out = Output::new(start.len(), f32::CANARY);
        out.slice().copy_from_slice(start);
        op(kernels, out.slice());
        report.compare(what, kernels.isa(), shape, &wanted, out.slice());
        report.contained(what, kernels.isa(), shape, &out);
    }
}

pub(crate) fn canaries(n: usize) -> Vec<f32> {
    vec![f32::CANARY; n]
}

#[test]
#[cfg_attr(all(miri, not(target_arch = "x86_64")), ignore = "no unsafe code on ARM")]
fn quantize() {
    let mut report = Report::default();
    let mut rng = Rng(1);
    let sizes = if cfg!(miri) { vec![0, 128] } else { vec![0, 64, 128, 192, 768, 2048, 2560] };
    for n in sizes {
        for &fill in Fill::ALL {
            let x = fill.vector(n, &mut rng);
            let wanted = Input::new(&x, scalar());
            for kernels in vector_levels() {
                let got = Input::new(&x, kernels);
                let shape = format!("{n} {fill:?}");
                report.compare("quantize values", kernels.isa(), &shape, &wanted.values, &got.values);
                report.compare("quantize codes", kernels.isa(), &shape, &wanted.codes, &got.codes);
                report.compare("quantize scales", kernels.isa(), &shape, &wanted.scales, &got.scales);
                report.compare("quantize sums", kernels.isa(), &shape, &wanted.sums, &got.sums);
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn quantize_rounds_ties_and_small_groups_alike() {
    let mut report = Report::default();
    // With a largest magnitude of 127 the codes are the values, so that halves are ties.
    let mut x: Vec<f32> = (0..64).map(|i| i as f32 - 31.5).collect();
    (x[0], x[32]) = (127.0, -127.0);
    for magnitude in [1.0, f32::from_bits(27 << 23), f32::from_bits((27 << 23) - 1), f32::MIN_POSITIVE, 2e36]
    {
        let x: Vec<f32> = x.iter().map(|x| x * (magnitude / 127.0)).collect();
        let wanted = Input::new(&x, scalar());
        for kernels in vector_levels() {
            let got = Input::new(&x, kernels);
            let shape = format!("{magnitude:e}");
            report.compare("quantize codes", kernels.isa(), &shape, &wanted.codes, &got.codes);
            report.compare("quantize scales", kernels.isa(), &shape, &wanted.scales, &got.scales);
        }
    }
    report.finish();
}

fn check_matvec(report: &mut Report, w: &TestMatrix, x: &Input, first: usize, n: usize, label: &str) {
    let shape = format!("{} {}x{} rows {first}+{n} {label}", w.dtype, w.rows, w.cols);
    check_part(Part::of(w.dtype), report, "matvec", &shape, &canaries(n), |kernels, out| {
        kernels.matvec(out, &w.view(), first, x.view());
    });
}

#[test]
fn matvec_of_every_row_range() {
    let mut report = Report::default();
    let mut rng = Rng(2);
    let (rows, cols) = if cfg!(miri) { (67, 1) } else { (147, 65) };
    for dtype in DType::ALL {
        let w = TestMatrix::new(dtype, rows, cols, Bytes::Finite, &mut rng);
        let x = Input::new(&rng.normals(cols), scalar());
        for first in (0..rows).step_by(16) {
            for n in 0..=rows - first {
                // Under Miri 2 block rows, and on x86-64 5: four, two and one at a time.
                let few = n == rows - first && (first == 48 || first == 0 && cfg!(target_arch = "x86_64"));
                if few || !cfg!(miri) {
                    check_matvec(&mut report, &w, &x, first, n, "");
                }
            }
        }
    }
    report.finish();
}

#[test]
fn matvec_of_every_width() {
    let mut report = Report::default();
    let mut rng = Rng(3);
    for dtype in DType::ALL {
        let widths = if cfg!(miri) { vec![67] } else { lengths() };
        for cols in widths.into_iter().filter(|&n| n > 0) {
            let rows = if cols > 300 { 17 } else { 83 };
            let rows = if cfg!(miri) { 1 } else { rows };
            let w = TestMatrix::new(dtype, rows, cols, Bytes::Finite, &mut rng);
            let x = Input::new(&rng.normals(cols), scalar());
            check_matvec(&mut report, &w, &x, 0, rows, "");
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn matvec_of_real_shapes() {
    let mut report = Report::default();
    let mut rng = Rng(4);
    let shapes = &[(80, 768), (80, 2048), (80, 2560), (80, 10240), (65536, 64)];
    for dtype in DType::ALL {
        for &(rows, cols) in shapes {
            let w = TestMatrix::new(dtype, rows, cols, Bytes::Finite, &mut rng);
            let x = Input::new(&rng.normals(cols), scalar());
            check_matvec(&mut report, &w, &x, 0, rows, "");
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn matvec_of_every_input_and_any_bytes() {
    let mut report = Report::default();
    let mut rng = Rng(5);
    let (rows, cols) = (83, 200);
    for dtype in DType::ALL {
        for &bytes in Bytes::ALL {
            let w = TestMatrix::new(dtype, rows, cols, bytes, &mut rng);
            for &fill in Fill::ALL {
                let x = Input::new(&fill.vector(cols, &mut rng), scalar());
                check_matvec(&mut report, &w, &x, 0, rows, &format!("{bytes:?} {fill:?}"));
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn matvec_of_one_hot_columns() {
    let mut report = Report::default();
    let mut rng = Rng(6);
    for dtype in DType::ALL {
        let w = TestMatrix::new(dtype, 20, 130, Bytes::Encoded, &mut rng);
        for hot in 0..130 {
            let x: Vec<f32> = (0..130).map(|i| f32::from(u8::from(i == hot))).collect();
            check_matvec(&mut report, &w, &Input::new(&x, scalar()), 0, 20, &format!("hot {hot}"));
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn matvec_of_extreme_codes_saturates_nowhere() {
    let mut report = Report::default();
    let mut rng = Rng(7);
    let nibbles = &[0xff, 0x00, 0xf0, 0x0f, 0x88][..];
    for (dtype, bytes, low) in [
        (DType::Int4, nibbles, 0x00),
        (DType::Int4n, nibbles, 0x00),
        (DType::Int4n, nibbles, 0x03),
        (DType::Int8, &[0x7f, 0x81, 0x80, 0xff, 0x00], 0x00),
    ] {
        for &byte in bytes {
            let mut w = TestMatrix::new(dtype, 147, 128, Bytes::Constant(byte), &mut rng);
            for block in w.data.chunks_exact_mut(dtype.block_bytes()) {
                block[..64].as_chunks_mut().0.fill([low, 0x3c]);
            }
            for codes in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, 0.0]] {
                let x = Input::new(&codes.repeat(64), scalar());
                assert!(x.codes.iter().zip(codes.iter().cycle()).all(|(&q, c)| f32::from(q) == 127.0 * c));
                check_matvec(&mut report, &w, &x, 0, 147, &format!("bytes {byte:#x} codes {codes:?}"));
            }
            for &fill in Fill::ALL {
                let x = Input::new(&fill.vector(128, &mut rng), scalar());
                check_matvec(&mut report, &w, &x, 0, 147, &format!("bytes {byte:#x} {fill:?}"));
            }
        }
    }
    report.finish();
}

#[test]
fn matvec_of_unaligned_weights() {
    let mut report = Report::default();
    let mut rng = Rng(9);
    for dtype in DType::ALL {
        let (rows, cols) = if cfg!(miri) { (3, 10) } else { (70, 130) };
        let w = TestMatrix::new(dtype, rows, cols, Bytes::Finite, &mut rng);
        let x = Input::new(&rng.normals(cols), scalar());
        let mut wanted = canaries(rows);
        scalar().matvec(&mut wanted, &w.view(), 0, x.view());
        for offset in if cfg!(miri) { &[1][..] } else { &[1, 2, 33] } {
            let mut shifted = vec![0; *offset];
            shifted.extend_from_slice(&w.data);
            let bytes = &shifted[*offset..];
            let view = rwkv_edge_kernels::Matrix::new(dtype, rows, cols, w.view().scale(), bytes);
            for kernels in Part::of(dtype).levels() {
                let mut got = canaries(rows);
                kernels.matvec(&mut got, &view.unwrap(), 0, x.view());
                report.compare("matvec", kernels.isa(), &format!("{dtype} at {offset}"), &wanted, &got);
            }
        }
    }
    report.finish();
}

fn check_matmul(report: &mut Report, w: &TestMatrix, xs: &[Input], first: usize, n: usize) {
    let levels = if w.dtype.is_quantized() { Part::ByteMatrices.levels() } else { Part::Base.levels() };
    let shape = format!("{} {}x{} rows {first}+{n}, {} vectors", w.dtype, w.rows, w.cols, xs.len());
    let views: Vec<_> = xs.iter().map(Input::view).collect();
    let mut wanted = vec![canaries(n); xs.len()];
    wanted.iter_mut().zip(&views).for_each(|(out, x)| scalar().matvec(out, &w.view(), first, *x));
    for kernels in levels.into_iter().chain((!cfg!(miri)).then(scalar)) {
        let mut outs: Vec<_> = xs.iter().map(|_| Output::new(n, f32::CANARY)).collect();
        let mut slices: Vec<_> = outs.iter_mut().map(Output::slice).collect();
        kernels.matmul(&mut slices, &w.view(), first, &views);
        for (wanted, out) in wanted.iter().zip(&mut outs) {
            report.compare("matmul", kernels.isa(), &shape, wanted, out.slice());
            report.contained("matmul", kernels.isa(), &shape, out);
        }
    }
}

#[test]
fn matmul_of_every_number_of_vectors() {
    let mut report = Report::default();
    let mut rng = Rng(21);
    let (rows, cols) = if cfg!(miri) { (3, 33) } else { (147, 200) };
    for dtype in DType::ALL {
        let w = TestMatrix::new(dtype, rows, cols, Bytes::Finite, &mut rng);
        for count in if cfg!(miri) { vec![7] } else { vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15] } {
            let inputs = |_| Input::new(&rng.normals(cols), scalar());
            let xs: Vec<_> = (0..count).map(inputs).collect();
            for first in (0..rows).step_by(64) {
                for n in [0, 1, 15, 16, 17, 63, 83, rows - first] {
                    if n <= rows - first && (!cfg!(miri) || first == 0 && n == rows) {
                        check_matmul(&mut report, &w, &xs, first, n);
                    }
                }
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn matmul_of_every_width_input_and_any_bytes() {
    let mut report = Report::default();
    let mut rng = Rng(22);
    for dtype in DType::ALL {
        for cols in [1, 31, 64, 65, 130, 768, 2048] {
            for &bytes in Bytes::ALL {
                let w = TestMatrix::new(dtype, 50, cols, bytes, &mut rng);
                let xs: Vec<_> =
                    Fill::ALL.iter().map(|fill| Input::new(&fill.vector(cols, &mut rng), scalar())).collect();
                check_matmul(&mut report, &w, &xs, 0, 50);
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "the same code as for fewer vectors")]
fn matmul_of_more_vectors_and_columns_than_go_together() {
    let mut report = Report::default();
    let mut rng = Rng(23);
    for dtype in DType::ALL {
        let w = TestMatrix::new(dtype, 19, 1100, Bytes::Finite, &mut rng);
        let xs: Vec<_> = (0..131).map(|_| Input::new(&rng.normals(1100), scalar())).collect();
        check_matmul(&mut report, &w, &xs, 0, 19);
    }
    report.finish();
}

#[test]
fn nonzero() {
    let mut report = Report::default();
    let mut rng = Rng(10);
    for n in lengths() {
        for &fill in Fill::ALL {
            for active in if cfg!(miri) { vec![30] } else { vec![0, 1, 13, 50, 100] } {
                let mut x = fill.vector(n, &mut rng);
                x.iter_mut()
                    .for_each(|x| *x = if rng.below(100) < active { *x } else { [0.0, -0.0][rng.below(2)] });
                check_nonzero(&mut report, &x, &format!("{n} {fill:?} active {active}"));
            }
        }
    }
    report.finish();
}

fn check_nonzero(report: &mut Report, x: &[f32], shape: &str) {
    let x = Guarded::new(x);
    let n = x.len();
    let (mut indices, mut values) = (vec![0; n], vec![0.0; n]);
    let active = scalar().nonzero(&mut indices, &mut values, &x);
    for kernels in vector_levels() {
        let mut got_indices = Output::new(n, u32::CANARY);
        let mut got_values = Guarded::new(&canaries(n));
        let got = kernels.nonzero(got_indices.slice(), &mut got_values, &x).min(n);
        report.compare(
            "nonzero indices",
            kernels.isa(),
            shape,
            &indices[..active],
            &got_indices.slice()[..got],
        );
        report.compare("nonzero values", kernels.isa(), shape, &values[..active], &got_values[..got]);
        report.contained("nonzero", kernels.isa(), shape, &got_indices);
    }
}

/// All entries at once, and 9 at a time in two partial sums.
fn check_sparse(report: &mut Report, w: &TestRecords, indices: &[u32], values: &[f32], label: &str) {
    let (indices, values) = (Guarded::new(indices), Guarded::new(values));
    let x = Sparse { indices: &indices, values: &values };
    let whole = indices.len().max(1);
    for cut in if cfg!(miri) { vec![5] } else { vec![whole, 9] } {
        let shape = format!("{} {}x{} active {} cut {cut} {label}", w.dtype, w.count, w.len, indices.len());
        check_f32(report, "sparse product", &shape, &canaries(w.len), |kernels, out| {
            sparse_product(kernels, out, w, x, cut);
        });
    }
}

#[test]
fn sparse_product_of_every_length_and_active_count() {
    let mut report = Report::default();
    let mut rng = Rng(11);
    let count = if cfg!(miri) { 9 } else { 19 };
    for dtype in DType::ALL {
        for len in lengths().into_iter().filter(|&n| n > 0) {
            let w = TestRecords::new(dtype, count, len, Bytes::Finite, &mut rng);
            for active in if len < 70 && !cfg!(miri) { vec![0, 1, 7, 8, 9, 19] } else { vec![count] } {
                let indices: Vec<u32> = (0..count as u32).skip(count - active).collect();
                let values = rng.normals(active);
                check_sparse(&mut report, &w, &indices, &values, "");
            }
        }
    }
    report.finish();
}

#[test]
fn sparse_matvec_of_every_output_range() {
    let mut report = Report::default();
    let mut rng = Rng(12);
    let len = if cfg!(miri) { 20 } else { 70 };
    for dtype in [DType::F32, DType::F16] {
        let count = if cfg!(miri) { 3 } else { 11 };
        let w = TestRecords::new(dtype, count, len, Bytes::Finite, &mut rng);
        let values = rng.normals(count);
        let indices: Vec<u32> = (0..count as u32).collect();
        let x = Sparse { indices: &indices, values: &values };
        for first in 0..len {
            for n in 0..=len - first {
                if !cfg!(miri) || n == len - first {
                    let shape = format!("{dtype} {first}+{n} of {len}");
                    check_f32(&mut report, "sparse_matvec", &shape, &canaries(n), |kernels, out| {
                        kernels.sparse_matvec(out, &w.view(), first, x);
                    });
                }
            }
        }
    }
    report.finish();
}

/// More outputs than a level may take at once.
#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn sparse_product_of_long_records() {
    let mut report = Report::default();
    let mut rng = Rng(20);
    for dtype in DType::ALL {
        for len in [2048 + 500, 8192, 8192 + 40] {
            let w = TestRecords::new(dtype, 20, len, Bytes::Finite, &mut rng);
            let indices: Vec<u32> = (0..20).collect();
            check_sparse(&mut report, &w, &indices, &rng.normals(20), "long");
        }
    }
    report.finish();
}

#[test]
fn reaching_of_every_length_and_input() {
    let mut rng = Rng(22);
    for len in lengths() {
        for &fill in Fill::ALL {
            let (x, bounds) = (fill.vector(len, &mut rng), Fill::Normal.vector(len, &mut rng));
            let (x, bounds) = (Guarded::new(&x), Guarded::new(&bounds));
            for least in [-1.0, 0.0, 1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut wanted = vec![0; len];
                let n = scalar().reaching(&mut wanted, &x, &bounds, 0.5, least);
                for kernels in vector_levels() {
                    let mut got = Output::new(len, u32::CANARY);
                    let found = kernels.reaching(got.slice(), &x, &bounds, 0.5, least);
                    assert_eq!(wanted[..n], got.slice()[..found], "{} {len} {fill:?} {least}", kernels.isa());
                    assert!(got.is_contained(), "{} {len}", kernels.isa());
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn largest_magnitude_and_max_of_every_length_and_input() {
    let mut rng = Rng(21);
    for len in lengths() {
        for &fill in Fill::ALL {
            let x = Guarded::new(&fill.vector(len, &mut rng));
            let wanted = scalar().largest_magnitude(&x);
            for kernels in vector_levels() {
                assert!(kernels.largest_magnitude(&x).same(wanted), "{} {len} {fill:?}", kernels.isa());
                // Zeros of both signs are equal.
                let (wanted, max) = (scalar().max(&x) + 0.0, kernels.max(&x) + 0.0);
                assert!(max.same(wanted), "{} {len} {fill:?}", kernels.isa());
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn sparse_product_of_every_input_and_any_bytes() {
    let mut report = Report::default();
    let mut rng = Rng(13);
    let count = 41;
    for dtype in DType::ALL {
        for &bytes in Bytes::ALL {
            let w = TestRecords::new(dtype, count, 100, bytes, &mut rng);
            for &fill in Fill::ALL {
                let values = fill.vector(count, &mut rng);
                let indices: Vec<u32> = (0..count as u32).collect();
                check_sparse(&mut report, &w, &indices, &values, &format!("{bytes:?} {fill:?}"));
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn sparse_product_of_many_records() {
    let mut report = Report::default();
    let mut rng = Rng(14);
    let count = 8192;
    for dtype in DType::ALL {
        let w = TestRecords::new(dtype, count, 96, Bytes::Finite, &mut rng);
        let indices: Vec<u32> = (0..count as u32).collect();
        let values = rng.normals(count);
        check_sparse(&mut report, &w, &indices, &values, "dense");
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn sparse_product_of_largest_sums_wraps_nowhere() {
    let mut report = Report::default();
    let mut rng = Rng(15);
    let count = 5000;
    for (dtype, byte, low) in [
        (DType::Int4, 0xff, 0x00),
        (DType::Int4, 0x00, 0x00),
        (DType::Int4n, 0xff, 0x03),
        (DType::Int4n, 0x00, 0x00),
        (DType::Int8, 0x7f, 0x00),
        (DType::Int8, 0x81, 0x00),
    ] {
        let mut w = TestRecords::new(dtype, count, 64, Bytes::Constant(byte), &mut rng);
        let stride = w.view().stride();
        for record in w.data.chunks_exact_mut(stride) {
            record[..4].copy_from_slice(&[low, 0x3c, low, 0x3c]);
        }
        let indices: Vec<u32> = (0..count as u32).collect();
        for sign in [1.0, -1.0] {
            check_sparse(&mut report, &w, &indices, &vec![sign; count], "extreme");
        }
    }
    report.finish();
}

#[test]
fn record_dots_of_every_length_and_any_bytes() {
    let mut report = Report::default();
    let mut rng = Rng(17);
    for len in lengths().into_iter().filter(|&n| n > 0) {
        for &bytes in Bytes::ALL {
            let w = TestRecords::new(DType::Int4, 5, len, bytes, &mut rng);
            for &fill in Fill::ALL {
                let x = Input::new(&fill.vector(len, &mut rng), scalar());
                for indices in [&[][..], &[4], &[0, 4, 2, 2, 1, 3, 0]] {
                    let indices = Guarded::new(indices);
                    let shape = format!("{len} {bytes:?} {fill:?} {}", indices.len());
                    check_part(
                        Part::ByteProducts,
                        &mut report,
                        "record_dots",
                        &shape,
                        &canaries(indices.len()),
                        |kernels, out| {
                            kernels.record_dots(out, &w.view(), &indices, x.view());
                        },
                    );
                }
            }
        }
    }
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn sparse_product_of_int8_code_minus_128() {
    let mut report = Report::default();
    let mut rng = Rng(19);
    let mut w = TestRecords::new(DType::Int8, 41, 390, Bytes::Constant(0x80), &mut rng);
    let stride = w.view().stride();
    for record in w.data.chunks_exact_mut(stride) {
        record[..64].as_chunks_mut().0.fill([0x00, 0x3c]);
    }
    let indices: Vec<u32> = (0..41).collect();
    for values in [vec![1.0; 41], vec![-1.0; 41], rng.normals(41)] {
        check_sparse(&mut report, &w, &indices, &values, "codes -128");
    }
    report.finish();
}

#[test]
fn read_of_every_length_and_number_of_streams() {
    let mut rng = Rng(18);
    for len in lengths() {
        let bytes = Guarded::new(&rng.bytes(9 * len));
        for streams in 1..=MAX_READ_STREAMS {
            let wanted = scalar().read(&bytes, streams);
            let words = bytes.as_chunks::<64>().0.len() / streams * streams * 8;
            let xored =
                bytes.as_chunks::<8>().0[..words].iter().fold(0, |all, w| all ^ u64::from_le_bytes(*w));
            assert_eq!(wanted, xored, "{len}, {streams} streams");
            for kernels in vector_levels() {
                assert_eq!(
                    kernels.read(&bytes, streams),
                    wanted,
                    "{} {len}, {streams} streams",
                    kernels.isa()
                );
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "assembly")]
fn multiply_accumulates_are_counted_by_the_round() {
    for kernels in vector_levels() {
        let [none, one, many] = [0, 1, 1000].map(|rounds| kernels.multiply_accumulate(rounds));
        assert!(none == 0 && one > 0 && many == 1000 * one, "{}: {one}, {many}", kernels.isa());
    }
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn dequantize_record() {
    let mut report = Report::default();
    let mut rng = Rng(16);
    for dtype in DType::ALL {
        for len in lengths().into_iter().filter(|&n| n > 0) {
            for &bytes in Bytes::ALL {
                let w = TestRecords::new(dtype, 2, len, bytes, &mut rng);
                let shape = format!("{dtype} {len} {bytes:?}");
                check_f32(&mut report, "dequantize_record", &shape, &canaries(len), |kernels, out| {
                    kernels.dequantize_record(out, &w.view(), 1);
                });
            }
        }
    }
    report.finish();
}

/// Calls `check` with three guarded vectors of every length and content.
pub(crate) fn for_vectors(seed: u64, mut check: impl FnMut(&str, usize, [&Guarded<f32>; 3])) {
    let mut rng = Rng(seed);
    for n in lengths() {
        for &fill in Fill::ALL {
            let [a, b, c] = [0; 3].map(|_| Guarded::new(&fill.vector(n, &mut rng)));
            check(&format!("{n} {fill:?}"), n, [&a, &b, &c]);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn layer_norm() {
    let mut report = Report::default();
    for_vectors(17, |shape, n, [x, weight, bias]| {
        check_f32(&mut report, "layer_norm", shape, &canaries(n), |kernels, out| {
            kernels.layer_norm(out, x, weight, bias, 1e-5);
        });
    });
    report.finish();
}

#[test]
fn prefetch_up_to_an_unmapped_page_harms_nothing() {
    for n in lengths() {
        let x = Guarded::new(&vec![1.0f32; n]);
        Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)).for_each(|kernels| kernels.prefetch(&x));
        assert!(x.iter().all(|&x| x == 1.0));
    }
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn lerp() {
    let mut report = Report::default();
    for_vectors(18, |shape, n, [a, b, t]| {
        check_f32(&mut report, "lerp", shape, &canaries(n), |kernels, out| kernels.lerp(out, a, b, t));
    });
    report.finish();
}

/// The results of `norm_shift`, computed by one operation after the other: the normalised vector
/// and the outputs.
fn norm_shift_in_steps(
    x: Normed<'_>,
    h_prev: &[f32],
    shift: Shift,
    mixes: &[&Guarded<f32>],
) -> (Vec<f32>, Vec<Input>) {
    let mut h = vec![0.0; h_prev.len()];
    scalar().layer_norm(&mut h, x.x, x.weight, x.bias, x.eps);
    let (from, to) = match shift {
        Shift::Current => (h_prev, &*h),
        Shift::Previous => (&*h, h_prev),
    };
    let output = |mix: &&Guarded<f32>| {
        let mut mixed = vec![0.0; from.len()];
        scalar().lerp(&mut mixed, from, to, mix);
        Input::new(&mixed, scalar())
    };
    let outputs = mixes.iter().map(output).collect();
    (h, outputs)
}

#[test]
#[cfg_attr(all(miri, not(target_arch = "x86_64")), ignore = "no unsafe code on ARM")]
fn norm_shift() {
    let mut report = Report::default();
    for_vectors(24, |shape, n, [x, weight, mix]| {
        let (bias, h_prev) = (mix, weight);
        let mixes = [mix, x, weight];
        let x = Normed { x, weight, bias, eps: 1e-5 };
        for shift in [Shift::Current, Shift::Previous] {
            for count in if cfg!(miri) { 2..=2 } else { 0..=mixes.len() } {
                let (wanted_h, wanted) = norm_shift_in_steps(x, h_prev, shift, &mixes[..count]);
                for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
                    let mut h = Guarded::new(&canaries(n));
                    let mut outputs: Vec<Input> =
                        (0..count).map(|_| Input::unquantized(&vec![f32::CANARY; n])).collect();
                    let mut parts: Vec<ActivationMut<'_>> = outputs.iter_mut().map(Input::parts).collect();
                    let mut shifted: Vec<Shifted<'_, '_>> =
                        parts.iter_mut().zip(mixes).map(|(out, mix)| Shifted { mix, out }).collect();
                    kernels.norm_shift(&mut h, x, h_prev, shift, &mut shifted);
                    let shape = format!("{shape} {shift:?} {count}");
                    report.compare("norm_shift h", kernels.isa(), &shape, &wanted_h, &h);
                    for (wanted, got) in wanted.iter().zip(&outputs) {
                        report.compare(
                            "norm_shift values",
                            kernels.isa(),
                            &shape,
                            &wanted.values,
                            &got.values,
                        );
                        report.compare("norm_shift codes", kernels.isa(), &shape, &wanted.codes, &got.codes);
                        report.compare(
                            "norm_shift scales",
                            kernels.isa(),
                            &shape,
                            &wanted.scales,
                            &got.scales,
                        );
                        report.compare("norm_shift sums", kernels.isa(), &shape, &wanted.sums, &got.sums);
                    }
                }
            }
        }
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn relu_squared() {
    let mut report = Report::default();
    for_vectors(20, |shape, _, [x, _, _]| {
        check_f32(&mut report, "relu_squared", shape, x, |kernels, out| kernels.relu_squared(out));
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn add() {
    let mut report = Report::default();
    for_vectors(21, |shape, _, [x, y, _]| {
        check_f32(&mut report, "add", shape, x, |kernels, out| kernels.add(out, y));
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn softmax() {
    let mut report = Report::default();
    for_vectors(22, |shape, n, [x, _, _]| {
        check_f32(&mut report, "softmax", shape, &canaries(n), |kernels, out| {
            kernels.softmax(out, x);
        });
        let wanted = scalar().softmax(&mut canaries(n), x);
        for kernels in vector_levels() {
            let got = kernels.softmax(&mut canaries(n), x);
            let [wanted, got] = [wanted, got].map(|stats| [stats.max, stats.sum]);
            report.compare("softmax stats", kernels.isa(), shape, &wanted, &got);
        }
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn wkv4() {
    let mut report = Report::default();
    let mut rng = Rng(23);
    for_vectors(23, |shape, n, [k, v, time_first]| {
        let decay: Vec<f32> = rng.normals(n).iter().map(|w| -w.abs()).collect();
        let decay = Guarded::new(&decay);
        // y, aa, bb and pp one after the other.
        let mut start = canaries(4 * n);
        start[n..3 * n].fill(0.0);
        start[3 * n..].fill(-1e30);
        check_f32(&mut report, "wkv4", shape, &start, |kernels, out| {
            let (y, out) = out.split_at_mut(n);
            let (aa, out) = out.split_at_mut(n);
            let (bb, pp) = out.split_at_mut(n);
            kernels.wkv4(y, k, v, time_first, &decay, aa, bb, pp);
            kernels.wkv4(y, v, k, time_first, &decay, aa, bb, pp);
        });
    });
    report.finish();
}

/// Scales of all finite magnitudes: a share of fp16 subnormals, which tiny vectors turn into fp32
/// subnormals.
fn set_wild_scales(scales: &mut [u8], rng: &mut Rng) {
    for scale in scales.chunks_exact_mut(2) {
        let high = [0x03, 0x03, 0x3f, 0x7b][rng.below(4)];
        scale.copy_from_slice(&[rng.next() as u8, rng.next() as u8 & (0x80 | high)]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn products_of_tiny_vectors_keep_subnormal_numbers() {
    let mut report = Report::default();
    let mut rng = Rng(23);
    let indices = Guarded::new(&(0..9).collect::<Vec<u32>>());
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        let mut w = TestMatrix::new(dtype, 35, 390, Bytes::Hostile, &mut rng);
        for block in w.data.chunks_exact_mut(dtype.block_bytes()) {
            set_wild_scales(&mut block[..64], &mut rng);
        }
        let mut records = TestRecords::new(dtype, 9, 390, Bytes::Hostile, &mut rng);
        let stride = records.view().stride();
        for record in records.data.chunks_exact_mut(stride) {
            set_wild_scales(&mut record[..26], &mut rng);
        }
        for exponent in (-130..=-50).chain([100, 120]) {
            // In two steps, as the whole factor may be subnormal itself.
            let small = |x: f32| (x * 2f32.powi(exponent / 2)) * 2f32.powi(exponent - exponent / 2);
            let label = format!("2^{exponent}");
            let values: Vec<f32> = rng.normals(390).into_iter().map(small).collect();
            let x = Input::new(&values, scalar());
            check_matvec(&mut report, &w, &x, 0, 35, &label);
            check_sparse(&mut report, &records, &indices, &values[..9], &label);
            if dtype == DType::Int4 {
                let part = Part::ByteProducts;
                check_part(part, &mut report, "record_dots", &label, &canaries(9), |kernels, out| {
                    kernels.record_dots(out, &records.view(), &indices, x.view());
                });
            }
        }
    }
    report.finish();
}

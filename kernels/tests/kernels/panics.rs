//! Wrong shapes panic in every safe method, so that no kernel ever sees them.

use rwkv_edge_kernels::quant::{TENSOR_SCALE, decode_matrix_row, decode_record, largest_scales};
use rwkv_edge_kernels::{
    Activation, ActivationMut, DType, GROUP_SIZE, Isa, Kernels, Matrix, Normed, Records, Shift, Shifted,
    Sparse, SparseScale, matrix_bytes, records_bytes, sparse_sums,
};

use crate::support::{Bytes, Input, Rng, TestRecords, scalar};

/// Values in a record: whole groups and a part of one.
const RECORD: usize = 2124;

/// Whether `op` panics on every available level.
pub(crate) fn panics(op: impl Fn(&Kernels)) -> bool {
    let levels = Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa));
    levels.map(|kernels| caught(|| op(kernels))).reduce(|a, b| a && b).unwrap()
}

fn caught(op: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(op)).is_err()
}

/// Values, codes, scales and sums.
type Parts = (Vec<f32>, Vec<i8>, Vec<f32>, Vec<i32>);

/// A vector for 128 columns.
fn activation() -> Parts {
    (vec![0.0; 128], vec![0; 128], vec![0.0; 4], vec![0; 4])
}

fn with_matrix(op: impl Fn(&Kernels, &Matrix<'_>)) -> bool {
    DType::ALL.into_iter().all(|dtype| {
        let data = vec![0; matrix_bytes(dtype, 40, 100).unwrap()];
        let w = Matrix::new(dtype, 40, 100, TENSOR_SCALE, &data).unwrap();
        panics(|kernels| op(kernels, &w))
    })
}

fn with_records(op: impl Fn(&Kernels, &Records<'_>)) -> bool {
    DType::ALL.into_iter().all(|dtype| with_records_of(dtype, &op))
}

fn with_records_of(dtype: DType, op: impl Fn(&Kernels, &Records<'_>)) -> bool {
    let data = vec![0; records_bytes(dtype, 5, RECORD).unwrap()];
    let w = Records::new(dtype, 5, RECORD, TENSOR_SCALE, &data).unwrap();
    panics(|kernels| op(kernels, &w))
}

fn matvec_panics(rows: usize, first: usize, resize: fn(&mut Parts)) -> bool {
    with_matrix(|kernels, w| {
        let mut parts = activation();
        resize(&mut parts);
        let (values, codes, scales, sums) = &parts;
        kernels.matvec(&mut vec![0.0; rows], w, first, Activation { values, codes, scales, sums });
    })
}

#[test]
fn matvec_accepts_the_right_shape() {
    for (rows, first) in [(40, 0), (24, 16), (8, 32), (0, 32)] {
        assert!(!matvec_panics(rows, first, |_| ()));
    }
}

#[test]
fn matvec_rejects_rows_outside_the_matrix() {
    for (rows, first) in [(41, 0), (25, 16), (9, 32), (1, 48), (0, 48), (16, usize::MAX - 15), (48, 0)] {
        assert!(matvec_panics(rows, first, |_| ()), "{rows} from {first}");
    }
}

#[test]
fn matvec_rejects_a_row_inside_a_block() {
    for first in [1, 8, 15, 17] {
        assert!(matvec_panics(1, first, |_| ()), "{first}");
    }
}

#[test]
fn matvec_rejects_inputs_of_another_length() {
    for n in [0, 64, 100, 127, 129, 192] {
        assert!(match n {
            0 => matvec_panics(40, 0, |x| x.0.clear()),
            64 => matvec_panics(40, 0, |x| x.0.truncate(64)),
            100 => matvec_panics(40, 0, |x| x.1.truncate(100)),
            127 => matvec_panics(40, 0, |x| x.1.truncate(127)),
            129 => matvec_panics(40, 0, |x| x.0.push(0.0)),
            _ => matvec_panics(40, 0, |x| x.1.resize(192, 0)),
        });
    }
    assert!(matvec_panics(40, 0, |x| x.2.truncate(3)));
    assert!(matvec_panics(40, 0, |x| x.2.push(0.0)));
    assert!(matvec_panics(40, 0, |x| x.3.truncate(3)));
    assert!(matvec_panics(40, 0, |x| x.3.push(0)));
}

/// Whether the product of the rows from `first` on with vectors of `resize`d parts into outputs of
/// these lengths panics.
fn matmul_panics(rows: &[usize], first: usize, vectors: usize, resize: fn(&mut Parts)) -> bool {
    with_matrix(|kernels, w| {
        let mut parts = activation();
        resize(&mut parts);
        let (values, codes, scales, sums) = &parts;
        let x = Activation { values, codes, scales, sums };
        let mut outs: Vec<_> = rows.iter().map(|&rows| vec![0.0; rows]).collect();
        let mut outs: Vec<_> = outs.iter_mut().map(|out| &mut out[..]).collect();
        kernels.matmul(&mut outs, w, first, &vec![x; vectors]);
    })
}

#[test]
fn matmul_accepts_the_right_shape() {
    assert!(!matmul_panics(&[], 0, 0, |_| ()));
    for (rows, first) in [(40, 0), (24, 16), (8, 32), (0, 32)] {
        assert!(!matmul_panics(&[rows; 3], first, 3, |_| ()));
    }
}

#[test]
fn matmul_rejects_what_matvec_rejects() {
    for (rows, first) in [(41, 0), (25, 16), (9, 32), (1, 48), (0, 48), (16, usize::MAX - 15), (1, 8)] {
        assert!(matmul_panics(&[rows; 2], first, 2, |_| ()), "{rows} from {first}");
    }
    assert!(matmul_panics(&[40; 2], 0, 2, |x| x.0.truncate(64)));
    assert!(matmul_panics(&[40; 2], 0, 2, |x| x.1.truncate(100)));
    assert!(matmul_panics(&[40; 2], 0, 2, |x| x.2.push(0.0)));
    assert!(matmul_panics(&[40; 2], 0, 2, |x| x.3.truncate(3)));
}

#[test]
fn matmul_rejects_outputs_that_do_not_fit_together() {
    assert!(matmul_panics(&[40, 39], 0, 2, |_| ()));
    assert!(matmul_panics(&[40, 40], 0, 1, |_| ()));
    assert!(matmul_panics(&[40, 40], 0, 3, |_| ()));
    assert!(matmul_panics(&[], 0, 1, |_| ()));
}

fn quantize_panics(values: usize, codes: usize, scales: usize, sums: usize) -> bool {
    panics(|kernels| {
        kernels.quantize(&mut ActivationMut {
            values: &mut vec![1.0; values],
            codes: &mut vec![0; codes],
            scales: &mut vec![0.0; scales],
            sums: &mut vec![0; sums],
        });
    })
}

#[test]
fn quantize_rejects_lengths_that_do_not_fit() {
    assert!(!quantize_panics(128, 128, 4, 4));
    assert!(!quantize_panics(0, 0, 0, 0));
    for (values, codes, scales, sums) in [
        (100, 100, 4, 4),
        (32, 32, 1, 1),
        (128, 127, 4, 4),
        (128, 192, 4, 4),
        (128, 128, 3, 4),
        (128, 128, 5, 4),
        (128, 128, 4, 3),
        (128, 128, 4, 5),
        (64, 128, 4, 4),
    ] {
        assert!(quantize_panics(values, codes, scales, sums), "{values} {codes} {scales} {sums}");
    }
}

#[test]
fn nonzero_rejects_short_outputs() {
    let run = |indices, values| {
        panics(|kernels| {
            kernels.nonzero(&mut vec![0; indices], &mut vec![0.0; values], &[0.0; 20]);
        })
    };
    assert!(!run(20, 20) && !run(30, 21));
    assert!(run(19, 20) && run(20, 19) && run(0, 0));
}

fn sparse_panics(n: usize, first: usize, indices: &[u32], values: usize) -> bool {
    with_records_of(DType::F16, |kernels, w| {
        let values = vec![1.0; values];
        kernels.sparse_matvec(&mut vec![0.0; n], w, first, Sparse { indices, values: &values });
    })
}

#[test]
fn sparse_matvec_accepts_the_right_shape() {
    assert!(!sparse_panics(RECORD, 0, &[0, 4], 2));
    assert!(!sparse_panics(1, RECORD - 1, &[], 0));
    assert!(!sparse_panics(0, RECORD, &[1], 1));
}

#[test]
fn sparse_matvec_rejects_outputs_outside() {
    for (n, first) in [(RECORD + 1, 0), (1, RECORD), (RECORD, 1), (0, RECORD + 1), (32, usize::MAX - 31)] {
        assert!(sparse_panics(n, first, &[0], 1), "{n} from {first}");
    }
}

#[test]
fn sparse_matvec_rejects_records_that_are_not_there() {
    assert!(sparse_panics(8, 0, &[5], 1));
    assert!(sparse_panics(8, 0, &[0, u32::MAX], 2));
    assert!(sparse_panics(0, 0, &[5], 1));
    assert!(sparse_panics(8, 0, &[9, 0, 0, 0, 0, 0, 0, 0, 0], 9));
}

#[test]
fn sparse_matvec_rejects_values_without_indices() {
    assert!(sparse_panics(8, 0, &[0], 0) && sparse_panics(8, 0, &[0], 2));
}

#[test]
fn sparse_products_reject_the_other_types() {
    let x = Sparse { indices: &[], values: &[] };
    let bounds = [1.0; RECORD.div_ceil(GROUP_SIZE)];
    let scale = SparseScale { active: 0, largest: 0.0, bounds: &bounds };
    for dtype in DType::ALL {
        let matvec = with_records_of(dtype, |kernels, w| {
            kernels.sparse_matvec(&mut [0.0; RECORD], w, 0, x);
        });
        let accumulate = with_records_of(dtype, |kernels, w| {
            kernels.sparse_accumulate(&mut [0; sparse_sums(RECORD)], w, x, scale);
        });
        let finish = with_records_of(dtype, |kernels, w| {
            kernels.sparse_finish(&mut [0.0; RECORD], w, &[0; sparse_sums(RECORD)], scale);
        });
        let quantized = dtype.is_quantized();
        assert_eq!([matvec, accumulate, finish], [quantized, !quantized, !quantized]);
    }
}

#[test]
fn sparse_accumulate_rejects_wrong_shapes() {
    let panics = |sums: usize, indices: &[u32], values: usize, active: usize, bounds: usize| {
        with_records_of(DType::Int4, |kernels, w| {
            let (values, bounds) = (vec![1.0; values], vec![1.0; bounds]);
            let scale = SparseScale { active, largest: 1.0, bounds: &bounds };
            kernels.sparse_accumulate(&mut vec![0; sums], w, Sparse { indices, values: &values }, scale);
        })
    };
    let (sums, groups) = (sparse_sums(RECORD), RECORD.div_ceil(GROUP_SIZE));
    assert!(!panics(sums, &[0, 4], 2, 2, groups) && !panics(sums, &[], 0, 0, groups));
    assert!(panics(sums - 1, &[0], 1, 1, groups) && panics(2 * sums, &[0], 1, 1, groups));
    assert!(panics(sums, &[5], 1, 1, groups) && panics(sums, &[u32::MAX], 1, 1, groups));
    assert!(panics(sums, &[0], 2, 2, groups) && panics(sums, &[0], 0, 1, groups));
    assert!(panics(sums, &[0, 1], 2, 1, groups), "more entries than the vector has");
    assert!(panics(sums, &[0], 1, 1, groups - 1) && panics(sums, &[0], 1, 1, groups + 1));
}

#[test]
fn sparse_finish_rejects_wrong_shapes() {
    let panics = |out: usize, sums: usize, bounds: usize| {
        with_records_of(DType::Int8, |kernels, w| {
            let scale = SparseScale { active: 1, largest: 1.0, bounds: &vec![1.0; bounds] };
            kernels.sparse_finish(&mut vec![0.0; out], w, &vec![0; sums], scale);
        })
    };
    let (sums, groups) = (sparse_sums(RECORD), RECORD.div_ceil(GROUP_SIZE));
    assert!(!panics(RECORD, sums, groups) && !panics(RECORD, 3 * sums, groups) && !panics(RECORD, 0, groups));
    assert!(panics(RECORD - 1, sums, groups) && panics(RECORD + 1, sums, groups));
    assert!(panics(RECORD, sums - 1, groups) && panics(RECORD, sums + 33, groups));
    assert!(panics(RECORD, sums, groups - 1) && panics(RECORD, sums, groups + 1));
}

#[test]
fn record_dots_reject_wrong_shapes() {
    let int4 = TestRecords::new(DType::Int4, 5, 64, Bytes::Encoded, &mut Rng(1));
    let int8 = TestRecords::new(DType::Int8, 5, 64, Bytes::Encoded, &mut Rng(1));
    let dots = |w: &TestRecords, n: usize, indices: &[u32], len: usize| {
        let x = Input::new(&vec![1.0; len], scalar());
        panics(|kernels| kernels.record_dots(&mut vec![0.0; n], &w.view(), indices, x.view()))
    };
    assert!(!dots(&int4, 2, &[0, 4], 64));
    assert!(dots(&int8, 2, &[0, 4], 64));
    assert!(dots(&int4, 1, &[0, 4], 64) && dots(&int4, 3, &[0, 4], 64));
    assert!(dots(&int4, 2, &[0, 5], 64) && dots(&int4, 2, &[0, u32::MAX], 64));
    assert!(dots(&int4, 2, &[0, 4], 65) && dots(&int4, 2, &[0, 4], 0));
}

#[test]
fn read_rejects_impossible_streams() {
    let read = |streams| panics(|kernels| assert_eq!(kernels.read(&[0; 128], streams), 0));
    assert!(read(0) && read(9) && !read(8));
}

#[test]
fn dequantize_record_rejects_wrong_shapes() {
    let run = |n, i| with_records(|kernels, w| kernels.dequantize_record(&mut vec![0.0; n], w, i));
    assert!(!run(RECORD, 4));
    assert!(run(RECORD - 1, 0) && run(RECORD + 1, 0) && run(RECORD, 5) && run(RECORD, usize::MAX));
}

/// Calls an operation with vectors of 8 elements, one of which has another length.
pub(crate) fn rejects_each_length(n: usize, op: impl Fn(&Kernels, &mut [Vec<f32>])) {
    let run = |lengths: &[usize]| {
        panics(|kernels| {
            let mut vectors: Vec<Vec<f32>> = lengths.iter().map(|&n| vec![1.0; n]).collect();
            op(kernels, &mut vectors);
        })
    };
    assert!(!run(&vec![8; n]));
    for odd in 0..n {
        for length in [0, 7, 9, 16] {
            let mut lengths = vec![8; n];
            lengths[odd] = length;
            assert!(run(&lengths), "argument {odd} of length {length}");
        }
    }
}

#[test]
fn element_wise_operations_reject_differing_lengths() {
    rejects_each_length(4, |kernels, v| {
        let [out, x, weight, bias] = v else { unreachable!() };
        kernels.layer_norm(out, x, weight, bias, 1e-5);
    });
    rejects_each_length(4, |kernels, v| {
        let [out, a, b, t] = v else { unreachable!() };
        kernels.lerp(out, a, b, t);
    });
    rejects_each_length(8, |kernels, v| {
        let [y, k, x, u, w, aa, bb, pp] = v else { unreachable!() };
        kernels.wkv4(y, k, x, u, w, aa, bb, pp);
    });
    rejects_each_length(2, |kernels, v| {
        let [x, y] = v else { unreachable!() };
        kernels.add(x, y);
    });
    rejects_each_length(2, |kernels, v| {
        let [out, x] = v else { unreachable!() };
        kernels.softmax(out, x);
    });
}

#[test]
fn norm_shift_rejects_wrong_shapes() {
    const N: usize = 100;
    let run = |lengths: [usize; 6], padded: usize| {
        panics(|kernels| {
            let [h, x, weight, bias, h_prev, mix] = lengths.map(|n| vec![1.0; n]);
            let mut values = vec![0.0; padded];
            let out = &mut ActivationMut {
                values: &mut values,
                codes: &mut [0; 128],
                scales: &mut [0.0; 4],
                sums: &mut [0; 4],
            };
            let x = Normed { x: &x, weight: &weight, bias: &bias, eps: 1e-5 };
            let outs = &mut [Shifted { mix: &mix, out }];
            kernels.norm_shift(&mut { h }, x, &h_prev, Shift::Current, outs);
        })
    };
    assert!(!run([N; 6], 128));
    assert!(run([N; 6], 192) && run([N; 6], 127));
    for odd in 0..6 {
        for length in [0, N - 1, N + 1] {
            let mut lengths = [N; 6];
            lengths[odd] = length;
            assert!(run(lengths, 128), "argument {odd} of length {length}");
        }
    }
}

#[test]
fn encoders_reject_wrong_shapes() {
    for dtype in DType::ALL {
        let important_row = |importance: Option<&[f32]>, values: usize, cols, bytes: usize, scale| {
            let (rows, mut out) = (vec![0.0; values], vec![0; bytes]);
            caught(|| {
                let _ = Kernels::best().encode_block_row(dtype, &rows, cols, importance, scale, &mut out);
            })
        };
        let block_row = |values: usize, cols: usize, bytes: usize, scale: f32| {
            important_row(None, values, cols, bytes, scale)
        };
        let bytes = matrix_bytes(dtype, 16, 100).unwrap();
        assert!(!block_row(1600, 100, bytes, 1.0) && !block_row(100, 100, bytes, 1.0));
        assert!(block_row(1700, 100, bytes, 1.0) && block_row(0, 100, bytes, 1.0));
        assert!(block_row(150, 100, bytes, 1.0) && block_row(100, 0, bytes, 1.0));
        assert!(block_row(100, 100, bytes - 1, 1.0) && block_row(100, 100, bytes + 64, 1.0));
        assert!(!important_row(Some(&[1.0; 100]), 200, 100, bytes, 1.0));
        assert!(important_row(Some(&[1.0; 99]), 200, 100, bytes, 1.0));
        assert!(important_row(Some(&[1.0; 200]), 200, 100, bytes, 1.0));
        let important = |importance: Option<&[f32]>, values: usize, bytes: usize, scale| {
            let (values, mut out) = (vec![0.0; values], vec![0; bytes]);
            caught(|| {
                let _ = Kernels::best().encode_record(dtype, &values, importance, scale, &mut out);
            })
        };
        let record = |values, bytes, scale: f32| important(None, values, bytes, scale);
        let bytes = records_bytes(dtype, 1, 100).unwrap();
        assert!(!record(100, bytes, 1.0) && !important(Some(&[1.0; 100]), 100, bytes, 1.0));
        assert!(important(Some(&[1.0; 101]), 100, bytes, 1.0));
        assert!(record(0, bytes, 1.0) && record(100, bytes - 1, 1.0) && record(100, 0, 1.0));
        for scale in [0.0, -1.0, 3.0, 1e-40, f32::NAN, f32::INFINITY] {
            assert!(record(100, bytes, scale), "{scale}");
            assert!(block_row(100, 100, matrix_bytes(dtype, 16, 100).unwrap(), scale), "{scale}");
        }
    }
}

#[test]
fn decoders_reject_wrong_shapes() {
    for dtype in DType::ALL {
        let data = vec![0; matrix_bytes(dtype, 40, 100).unwrap()];
        let w = Matrix::new(dtype, 40, 100, 1.0, &data).unwrap();
        let row = |row, n| caught(|| decode_matrix_row(&w, row, &mut vec![0.0; n]));
        assert!(!row(39, 100));
        assert!(row(40, 100) && row(0, 99) && row(0, 128));
        let data = vec![0; records_bytes(dtype, 5, 100).unwrap()];
        let w = Records::new(dtype, 5, 100, 1.0, &data).unwrap();
        let record = |i, n| caught(|| decode_record(&w, i, &mut vec![0.0; n]));
        assert!(!record(4, 100));
        assert!(record(5, 100) && record(0, 99) && record(0, 128));
    }
}

#[test]
fn largest_scales_reject_wrong_shapes() {
    let int4 = TestRecords::new(DType::Int4, 5, 64, Bytes::Encoded, &mut Rng(1));
    let float = TestRecords::new(DType::F16, 5, 64, Bytes::Encoded, &mut Rng(1));
    let run = |w: &TestRecords, n: usize| caught(|| largest_scales(&w.view(), &mut vec![0.0; n]));
    assert!(!run(&int4, 2));
    assert!(run(&int4, 1) && run(&int4, 3) && run(&float, 2));
}

#[test]
fn reaching_rejects_wrong_shapes() {
    let run = |indices, bounds| {
        panics(|kernels| {
            kernels.reaching(&mut vec![0; indices], &[0.0; 20], &vec![0.0; bounds], 1.0, 0.0);
        })
    };
    assert!(!run(20, 20) && !run(30, 20));
    assert!(run(19, 20) && run(20, 19) && run(20, 21));
}

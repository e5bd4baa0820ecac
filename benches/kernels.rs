//! Every kernel at every level, from the cache. Ids are `op/dtype/shape/isa`.
//!
//! The throughput of products with one vector counts the bytes of the weights, that of products
//! with several the multiply-accumulates, that of encoding the fp32 input, and that of the other
//! kernels all slices read and written. For weights that do not fit the cache use `rwkv-edge bench`.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rwkv_edge::kernels::quant::{TENSOR_SCALE, largest_scales};
use rwkv_edge::kernels::{
    ActivationMut, DType, GROUP_SIZE, Isa, Kernels, Matrix, Normed, Records, Shift, Shifted, Sparse,
    SparseScale, matrix_bytes, record_bytes, sparse_sums,
};

/// Widths of small and middling models.
const WIDTHS: [usize; 2] = [768, 2048];

fn group<'a>(c: &'a mut Criterion, op: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(op);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(30);
    group
}

fn levels() -> impl Iterator<Item = &'static Kernels> {
    Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa))
}

fn id(dtype: &str, shape: impl std::fmt::Display, kernels: &Kernels) -> BenchmarkId {
    BenchmarkId::from_parameter(format!("{dtype}/{shape}/{}", kernels.isa()))
}

/// Pseudo-random values in -1..1.
fn values(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(next).collect()
}

/// A vector with its quantized form.
struct Input {
    values: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Input {
    fn new(n: usize) -> Self {
        let (codes, scales, sums) = (vec![0; n], vec![0.0; n / 32], vec![0; n / 32]);
        Self { values: values(n), codes, scales, sums }
    }

    fn parts(&mut self) -> ActivationMut<'_> {
        ActivationMut {
            values: &mut self.values,
            codes: &mut self.codes,
            scales: &mut self.scales,
            sums: &mut self.sums,
        }
    }
}

fn matrix_data(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let mut data = vec![0; matrix_bytes(dtype, rows, cols).expect("a size")];
    let block_row = matrix_bytes(dtype, 16, cols).expect("a size");
    let values = values(16 * cols);
    for out in data.chunks_exact_mut(block_row) {
        Kernels::best()
            .encode_block_row(dtype, &values, cols, None, TENSOR_SCALE, out)
            .expect("small values");
    }
    data
}

fn matvec(c: &mut Criterion) {
    let mut group = group(c, "matvec");
    for dtype in DType::ALL {
        for n in WIDTHS {
            let data = matrix_data(dtype, 256, n);
            let w = Matrix::new(dtype, 256, n, TENSOR_SCALE, &data).expect("a matrix");
            let mut input = Input::new(n);
            let mut out = vec![0.0; 256];
            group.throughput(Throughput::Bytes(data.len() as u64));
            for kernels in levels() {
                kernels.quantize(&mut input.parts());
                let parts = input.parts();
                let x = parts.view();
                group.bench_function(id(dtype.name(), format_args!("256x{n}"), kernels), |b| {
                    b.iter(|| kernels.matvec(&mut out, black_box(&w), 0, x));
                });
            }
        }
    }
}

/// Several vectors at once, as for several texts and in a prompt. The throughput counts
/// multiply-accumulates.
fn matmul(c: &mut Criterion) {
    let mut group = group(c, "matmul");
    for dtype in DType::ALL {
        let (rows, n) = (256, WIDTHS[1]);
        let data = matrix_data(dtype, rows, n);
        let w = Matrix::new(dtype, rows, n, TENSOR_SCALE, &data).expect("a matrix");
        let mut input = Input::new(n);
        for vectors in [2, 8, 32] {
            let mut outs = vec![0.0; vectors * rows];
            let mut outs: Vec<_> = outs.chunks_exact_mut(rows).collect();
            group.throughput(Throughput::Elements((vectors * rows * n) as u64));
            for kernels in levels() {
                kernels.quantize(&mut input.parts());
                let parts = input.parts();
                let xs = vec![parts.view(); vectors];
                group.bench_function(id(dtype.name(), format_args!("{vectors}x{rows}x{n}"), kernels), |b| {
                    b.iter(|| kernels.matmul(&mut outs, black_box(&w), 0, &xs));
                });
            }
        }
    }
}

/// The most that [`matmul`] of quantized weights can reach: multiply-accumulates on registers.
fn multiply_accumulate(c: &mut Criterion) {
    let mut group = group(c, "multiply_accumulate");
    for kernels in levels() {
        group.throughput(Throughput::Elements(kernels.multiply_accumulate(1000)));
        group.bench_function(kernels.isa().name(), |b| b.iter(|| kernels.multiply_accumulate(1000)));
    }
}

/// `ffn.value` with one active column in eight.
fn sparse_product(c: &mut Criterion) {
    let mut group = group(c, "sparse_product");
    let (count, len) = (2048, 2048);
    for dtype in DType::ALL {
        let stride = record_bytes(dtype, len).expect("a size");
        let mut data = vec![0; count * stride];
        let record = values(len);
        for out in data.chunks_exact_mut(stride) {
            Kernels::best().encode_record(dtype, &record, None, TENSOR_SCALE, out).expect("small values");
        }
        let w = Records::new(dtype, count, len, TENSOR_SCALE, &data).expect("records");
        let indices: Vec<u32> = (0..count as u32).step_by(8).collect();
        let active = values(indices.len());
        let x = Sparse { indices: &indices, values: &active };
        let mut bounds = vec![0.0; len / GROUP_SIZE];
        if dtype.is_quantized() {
            largest_scales(&w, &mut bounds);
        }
        let mut out = vec![0.0; len];
        let mut sums = vec![0; sparse_sums(len)];
        group.throughput(Throughput::Bytes((indices.len() * stride) as u64));
        for kernels in levels() {
            let id = id(dtype.name(), format_args!("256of{count}x{len}"), kernels);
            group.bench_function(id, |b| {
                b.iter(|| {
                    let w = black_box(&w);
                    if !dtype.is_quantized() {
                        return kernels.sparse_matvec(&mut out, w, 0, x);
                    }
                    let largest = kernels.largest_magnitude(x.values);
                    let scale = SparseScale { active: indices.len(), largest, bounds: &bounds };
                    sums.fill(0);
                    kernels.sparse_accumulate(&mut sums, w, x, scale);
                    kernels.sparse_finish(&mut out, w, &sums, scale);
                });
            });
        }
    }
}

/// Rows of the head's second plane, one in three.
fn record_dots(c: &mut Criterion) {
    let mut group = group(c, "record_dots");
    for n in WIDTHS {
        let count = 3000;
        let stride = record_bytes(DType::Int4, n).expect("a size");
        let mut data = vec![0; count * stride];
        let record = values(n);
        for out in data.chunks_exact_mut(stride) {
            Kernels::best()
                .encode_record(DType::Int4, &record, None, TENSOR_SCALE, out)
                .expect("small values");
        }
        let w = Records::new(DType::Int4, count, n, TENSOR_SCALE, &data).expect("records");
        let indices: Vec<u32> = (0..count as u32).step_by(3).collect();
        let mut input = Input::new(n);
        let mut out = vec![0.0; indices.len()];
        group.throughput(Throughput::Bytes((indices.len() * stride) as u64));
        for kernels in levels() {
            kernels.quantize(&mut input.parts());
            let id = id("int4", format_args!("1000of{count}x{n}"), kernels);
            group.bench_function(id, |b| {
                b.iter(|| kernels.record_dots(&mut out, black_box(&w), &indices, input.parts().view()));
            });
        }
    }
}

/// Searches of the vocabulary.
fn search(c: &mut Criterion) {
    let n = 65_536;
    let (x, bounds) = (values(n), vec![0.125; n]);
    let mut indices = vec![0; n];
    let mut group = group(c, "reaching");
    group.throughput(Throughput::Bytes(8 * n as u64));
    for kernels in levels() {
        group.bench_function(id("f32", n, kernels), |b| {
            b.iter(|| kernels.reaching(&mut indices, black_box(&x), &bounds, 1.0, 0.9));
        });
    }
    group.finish();
    type Op = fn(&Kernels, &[f32]) -> f32;
    let operations: [(&str, Op); 2] =
        [("max", Kernels::max), ("largest_magnitude", Kernels::largest_magnitude)];
    for (op, run) in operations {
        let mut group = self::group(c, op);
        group.throughput(Throughput::Bytes(4 * n as u64));
        for kernels in levels() {
            group.bench_function(id("f32", n, kernels), |b| b.iter(|| run(kernels, black_box(&x))));
        }
    }
}

/// Reading only: the yardstick of `rwkv-edge bench`.
fn read(c: &mut Criterion) {
    let mut group = group(c, "read");
    let bytes = vec![1; 64 << 20];
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for kernels in levels() {
        for streams in [1, 4, 8] {
            let id = id("64MiB", format_args!("{streams}streams"), kernels);
            group.bench_function(id, |b| b.iter(|| kernels.read(black_box(&bytes), streams)));
        }
    }
}

fn nonzero(c: &mut Criterion) {
    let mut group = group(c, "nonzero");
    let n = 8192;
    let x: Vec<f32> = values(n).into_iter().map(|x| if x > 0.75 { x } else { 0.0 }).collect();
    let (mut indices, mut active) = (vec![0; n], vec![0.0; n]);
    group.throughput(Throughput::Bytes(4 * n as u64));
    for kernels in levels() {
        group.bench_function(id("f32", n, kernels), |b| {
            b.iter(|| kernels.nonzero(&mut indices, &mut active, black_box(&x)));
        });
    }
}

fn quantize(c: &mut Criterion) {
    let mut group = group(c, "quantize");
    for n in WIDTHS {
        let mut input = Input::new(n);
        group.throughput(Throughput::Bytes(5 * n as u64));
        for kernels in levels() {
            let id = id("f32", n, kernels);
            group.bench_function(id, |b| b.iter(|| kernels.quantize(&mut black_box(&mut input).parts())));
        }
    }
}

/// A norm and the six mixes of RWKV-7, by one kernel.
fn norm_shift(c: &mut Criterion) {
    let mut group = group(c, "norm_shift");
    for n in WIDTHS {
        let x = values(n);
        let mut h = vec![0.0; n];
        let mut inputs = [(); 6].map(|()| Input::new(n));
        group.throughput(Throughput::Bytes(4 * 11 * n as u64));
        for kernels in levels() {
            group.bench_function(id("f32", n, kernels), |b| {
                b.iter(|| {
                    let x = Normed { x: black_box(&x), weight: &x, bias: &x, eps: 1e-5 };
                    let mut parts = inputs.each_mut().map(Input::parts);
                    let mut outs = parts.each_mut().map(|out| Shifted { mix: x.x, out });
                    kernels.norm_shift(&mut h, x, x.weight, Shift::Previous, &mut outs);
                });
            });
        }
    }
}

/// The operations on vectors, with the number of slices that each one reads and writes.
fn element_wise(c: &mut Criterion) {
    type Op = fn(&Kernels, &mut [f32], &[f32]);
    let operations: [(&str, u64, Op); 13] = [
        ("layer_norm", 4, |kernels, out, x| kernels.layer_norm(out, x, x, x, 1e-5)),
        ("l2_normalize", 2, |kernels, out, _| kernels.l2_normalize(out)),
        ("dot3", 3, |kernels, out, x| out[0] = kernels.dot3(x, x, x)),
        ("lerp", 4, |kernels, out, x| kernels.lerp(out, x, x, x)),
        ("silu_mul", 3, |kernels, out, x| kernels.silu_mul(out, x, x)),
        ("mul", 3, |kernels, out, x| kernels.mul(out, x, x)),
        ("relu_squared", 2, |kernels, out, _| kernels.relu_squared(out)),
        ("add", 3, |kernels, out, x| kernels.add(out, x)),
        ("tanh", 2, |kernels, out, _| kernels.tanh(out)),
        ("sigmoid", 2, |kernels, out, _| kernels.sigmoid(out)),
        ("decay6", 2, |kernels, out, _| kernels.decay6(out)),
        ("decay7", 2, |kernels, out, _| kernels.decay7(out)),
        ("softmax", 2, |kernels, out, x| {
            kernels.softmax(out, x);
        }),
    ];
    for (op, slices, run) in operations {
        let mut group = group(c, op);
        for n in if op == "softmax" { [4096, 65536] } else { WIDTHS } {
            let x = values(n);
            let mut out = vec![0.0; n];
            group.throughput(Throughput::Bytes(4 * slices * n as u64));
            for kernels in levels() {
                let id = id("f32", n, kernels);
                group.bench_function(id, |b| b.iter(|| run(kernels, black_box(&mut out), black_box(&x))));
            }
        }
    }
}

/// One row of an embedding.
fn dequantize_record(c: &mut Criterion) {
    let mut group = group(c, "dequantize_record");
    for dtype in DType::ALL {
        for n in WIDTHS {
            let mut data = vec![0; record_bytes(dtype, n).expect("a size")];
            Kernels::best()
                .encode_record(dtype, &values(n), None, TENSOR_SCALE, &mut data)
                .expect("small values");
            let w = Records::new(dtype, 1, n, TENSOR_SCALE, &data).expect("a record");
            let mut out = vec![0.0; n];
            group.throughput(Throughput::Bytes(data.len() as u64));
            for kernels in levels() {
                let id = id(dtype.name(), n, kernels);
                group
                    .bench_function(id, |b| b.iter(|| kernels.dequantize_record(&mut out, black_box(&w), 0)));
            }
        }
    }
}

/// One head. Its state is read and written.
fn wkv_heads(c: &mut Criterion) {
    type Op = fn(&Kernels, &mut [f32], &mut [f32], &[f32], &[f32]);
    let operations: [(&str, Op); 2] = [
        ("wkv6", |kernels, y, state, x, decay| kernels.wkv6(y, state, x, x, x, x, decay)),
        ("wkv7", |kernels, y, state, x, decay| kernels.wkv7(y, state, x, decay, x, x, x, decay)),
    ];
    let n = 64;
    // Keys of length 1, as the recurrence of RWKV-7 requires, so the state stays small.
    let x: Vec<f32> = values(n).iter().map(|x| x / 8.0).collect();
    let decay: Vec<f32> = x.iter().map(|x| 0.9 - x.abs()).collect();
    for (op, run) in operations {
        let mut group = group(c, op);
        group.throughput(Throughput::Bytes(8 * (n * n) as u64));
        for kernels in levels() {
            let (mut y, mut state) = (vec![0.0; n], vec![0.0; n * n]);
            let id = id("f32", format_args!("{n}x{n}"), kernels);
            group.bench_function(id, |b| b.iter(|| run(kernels, &mut y, black_box(&mut state), &x, &decay)));
        }
    }
}

fn wkv4(c: &mut Criterion) {
    let mut group = group(c, "wkv4");
    for n in WIDTHS {
        let x = values(n);
        let decay: Vec<f32> = x.iter().map(|x| -x.abs()).collect();
        let mut y = vec![0.0; n];
        let (mut aa, mut bb, mut pp) = (vec![0.0; n], vec![0.0; n], vec![-1e30; n]);
        group.throughput(Throughput::Bytes(4 * 11 * n as u64));
        for kernels in levels() {
            group.bench_function(id("f32", n, kernels), |b| {
                b.iter(|| kernels.wkv4(&mut y, black_box(&x), &x, &x, &decay, &mut aa, &mut bb, &mut pp));
            });
        }
    }
}

/// Conversion, at the best level.
fn encode(c: &mut Criterion) {
    let mut group = group(c, "encode");
    let cols = 512;
    let rows = values(16 * cols);
    for dtype in DType::ALL {
        let mut out = vec![0; matrix_bytes(dtype, 16, cols).expect("a size")];
        group.throughput(Throughput::Bytes(4 * rows.len() as u64));
        group.bench_function(id(dtype.name(), format_args!("16x{cols}"), Kernels::best()), |b| {
            b.iter(|| {
                Kernels::best().encode_block_row(dtype, black_box(&rows), cols, None, TENSOR_SCALE, &mut out)
            });
        });
    }
}

criterion_group!(
    benches,
    matvec,
    matmul,
    multiply_accumulate,
    sparse_product,
    record_dots,
    dequantize_record,
    search,
    read,
    nonzero,
    quantize,
    norm_shift,
    element_wise,
    wkv4,
    wkv_heads,
    encode
);
criterion_main!(benches);

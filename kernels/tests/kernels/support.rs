//! Random numbers, test vectors, and comparison with a report.

use std::fmt::Debug;

use rwkv_edge_kernels::quant::{TENSOR_SCALE, largest_scales};
use rwkv_edge_kernels::{
    Activation, ActivationMut, DType, GROUP_SIZE, Isa, Kernels, Matrix, Records, Sparse, SparseScale,
    matrix_bytes, padded_cols, record_scale_bytes, records_bytes, sparse_sums,
};

use crate::guard::Guarded;

/// splitmix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// About normal, with standard deviation 1. Under Miri, which has to interpret every draw,
    /// uniform.
    pub(crate) fn normal(&mut self) -> f32 {
        if cfg!(miri) { self.uniform() } else { (0..12).map(|_| 0.5 * self.uniform()).sum() }
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        bytes.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]));
        bytes
    }
}

/// FNV-1a, which pins many bytes with one number.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The values of a test vector.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fill {
    Normal,
    Zero,
    /// The largest values, with alternating signs.
    Extremes,
    /// Subnormal numbers and zeros of both signs.
    Denormal,
    /// A single one; the position follows the seed.
    OneHot,
    /// Magnitudes near the ends of the exponent range, mixed with ordinary ones.
    Huge,
    /// Ordinary numbers with infinities and NaNs between them.
    NonFinite,
}

impl Fill {
    /// All of them; under Miri, for which contents matter little, one.
    pub(crate) const ALL: &[Fill] = if cfg!(miri) {
        &[Fill::NonFinite]
    } else {
        &[Fill::Normal, Fill::Zero, Fill::Extremes, Fill::Denormal, Fill::OneHot, Fill::Huge, Fill::NonFinite]
    };

    pub(crate) fn vector(self, n: usize, rng: &mut Rng) -> Vec<f32> {
        let hot = rng.below(n.max(1));
        (0..n)
            .map(|i| match self {
                Fill::Normal => rng.normal(),
                Fill::Zero => 0.0,
                Fill::Extremes => [3.0, -3.0][i % 2],
                Fill::Denormal => f32::from_bits(rng.next() as u32 & 0x8000_ffff),
                Fill::OneHot => f32::from(u8::from(i == hot)),
                Fill::Huge => rng.normal() * [1e38, 1.0, 1e-38, 1e19][rng.below(4)],
                Fill::NonFinite => {
                    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, rng.normal()][rng.below(5)]
                }
            })
            .collect()
    }
}

/// The operations for which some levels have code of their own, and all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Every operation but the ones below.
    Base,
    /// Quantized products with one vector.
    ByteProducts,
    /// Quantized products with several vectors.
    ByteMatrices,
}

impl Part {
    /// The part of the product of a matrix of this type with one vector.
    pub(crate) fn of(dtype: DType) -> Self {
        if dtype.is_quantized() { Part::ByteProducts } else { Part::Base }
    }

    /// Whether a level has code of its own for this part.
    fn is_own(self, isa: Isa) -> bool {
        match isa {
            Isa::AvxVnni | Isa::Dotprod => self != Part::Base,
            Isa::I8mm => self == Part::ByteMatrices,
            _ => true,
        }
    }

    /// The levels to hold against scalar.
    ///
    /// Miri looks for faults of code and not of results, so it interprets the code of each part
    /// once. Where `RWKV_EDGE_EXPECT_ISA` names a level, other machines test the weaker levels:
    /// this one tests the parts that its level adds.
    pub(crate) fn levels(self) -> Vec<&'static Kernels> {
        let wanted = |isa: &Isa| match expected_isa() {
            Some(expected) => isa.name() == expected && self.is_own(*isa),
            None => *isa != Isa::Scalar && (!cfg!(miri) || self.is_own(*isa)),
        };
        Isa::ALL.iter().copied().filter(wanted).filter_map(Kernels::for_isa).collect()
    }
}

/// The level that this machine must have, by `RWKV_EDGE_EXPECT_ISA`.
pub(crate) fn expected_isa() -> Option<String> {
    std::env::var("RWKV_EDGE_EXPECT_ISA").ok()
}

/// Distance of the bits of [`all_floats`]: a prime, so that all low bits occur. A machine of 32 bits
/// is emulated as a rule, and gets a sixteenth.
const FLOAT_STRIDE: usize = if cfg!(target_pointer_width = "32") { 7993 } else { 499 };

/// Floats of every magnitude and sign, infinities and NaNs.
pub(crate) fn all_floats() -> impl Iterator<Item = f32> {
    (0..=u32::MAX).step_by(FLOAT_STRIDE).map(f32::from_bits)
}

/// The levels to hold against scalar in [`Part::Base`].
pub(crate) fn vector_levels() -> Vec<&'static Kernels> {
    Part::Base.levels()
}

pub(crate) fn scalar() -> &'static Kernels {
    Kernels::for_isa(Isa::Scalar).unwrap()
}

/// The vector lengths worth testing: all short ones, one element around whole lanes and groups,
/// real ones.
pub(crate) fn lengths() -> Vec<usize> {
    if cfg!(miri) {
        return vec![0, 1, 8, 17, 67];
    }
    (0..=67).chain([95, 96, 97, 127, 128, 129, 255, 257, 768, 1024, 1025, 2048, 2560]).collect()
}

/// An [`Activation`] in guarded memory.
pub(crate) struct Input {
    pub(crate) values: Guarded<f32>,
    pub(crate) codes: Guarded<i8>,
    pub(crate) scales: Guarded<f32>,
    pub(crate) sums: Guarded<i32>,
}

impl Input {
    pub(crate) fn unquantized(x: &[f32]) -> Self {
        let padded = padded_cols(x.len());
        let mut values = x.to_vec();
        values.resize(padded, 0.0);
        Self {
            values: Guarded::new(&values),
            codes: Guarded::new(&vec![99; padded]),
            scales: Guarded::new(&vec![9.9; padded / GROUP_SIZE]),
            sums: Guarded::new(&vec![99; padded / GROUP_SIZE]),
        }
    }

    pub(crate) fn new(x: &[f32], kernels: &Kernels) -> Self {
        let mut new = Self::unquantized(x);
        new.quantize(kernels);
        new
    }

    pub(crate) fn quantize(&mut self, kernels: &Kernels) {
        kernels.quantize(&mut self.parts());
    }

    pub(crate) fn parts(&mut self) -> ActivationMut<'_> {
        ActivationMut {
            values: &mut self.values,
            codes: &mut self.codes,
            scales: &mut self.scales,
            sums: &mut self.sums,
        }
    }

    pub(crate) fn view(&self) -> Activation<'_> {
        Activation { values: &self.values, codes: &self.codes, scales: &self.scales, sums: &self.sums }
    }
}

/// The bytes of a test tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes {
    /// Encoded normal values.
    Encoded,
    /// Noise: every scale and code there can be. Wide products are mostly NaNs.
    Hostile,
    /// Noise with scales, or float weights, of 0.125 to 2 and both signs, so that every code
    /// counts.
    Finite,
    /// One byte everywhere.
    Constant(u8),
}

impl Bytes {
    /// All of them; under Miri one.
    pub(crate) const ALL: &[Bytes] = if cfg!(miri) {
        &[Bytes::Hostile]
    } else {
        &[
            Bytes::Encoded,
            Bytes::Hostile,
            Bytes::Finite,
            Bytes::Constant(0),
            Bytes::Constant(0xff),
            Bytes::Constant(0x80),
            Bytes::Constant(0x3c),
        ]
    };
}

/// `n` bytes of [`Bytes::Finite`], in which every `period` bytes start with `scales` bytes of
/// scales if quantized.
fn finite_bytes(dtype: DType, n: usize, period: usize, scales: usize, rng: &mut Rng) -> Vec<u8> {
    let mut data = rng.bytes(n);
    for part in data.chunks_exact_mut(period) {
        match dtype {
            DType::F32 => part.chunks_exact_mut(4).for_each(|w| w[3] = w[3] & 0x81 | 0x3e),
            DType::F16 => part.chunks_exact_mut(2).for_each(|w| w[1] = w[1] & 0x8f | 0x30),
            _ => part[..scales].chunks_exact_mut(2).for_each(|s| s[1] = s[1] & 0x8f | 0x30),
        }
    }
    data
}

/// A matrix in guarded memory.
pub(crate) struct TestMatrix {
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Guarded<u8>,
}

impl TestMatrix {
    pub(crate) fn new(dtype: DType, rows: usize, cols: usize, bytes: Bytes, rng: &mut Rng) -> Self {
        let n = matrix_bytes(dtype, rows, cols).unwrap();
        let data = match bytes {
            Bytes::Encoded => encode_matrix(dtype, &rng.normals(rows * cols), cols, TENSOR_SCALE),
            Bytes::Hostile => rng.bytes(n),
            Bytes::Finite => finite_bytes(dtype, n, dtype.block_bytes(), 64, rng),
            Bytes::Constant(byte) => vec![byte; n],
        };
        Self { dtype, rows, cols, data: Guarded::new(&data) }
    }

    pub(crate) fn view(&self) -> Matrix<'_> {
        Matrix::new(self.dtype, self.rows, self.cols, TENSOR_SCALE, &self.data).unwrap()
    }
}

pub(crate) fn encode_matrix(dtype: DType, values: &[f32], cols: usize, tensor_scale: f32) -> Vec<u8> {
    let mut data = vec![0; matrix_bytes(dtype, values.len() / cols, cols).unwrap()];
    let block_row = matrix_bytes(dtype, 16, cols).unwrap();
    for (rows, out) in values.chunks(16 * cols).zip(data.chunks_exact_mut(block_row)) {
        Kernels::best().encode_block_row(dtype, rows, cols, None, tensor_scale, out).unwrap();
    }
    data
}

/// Records in guarded memory.
pub(crate) struct TestRecords {
    pub(crate) dtype: DType,
    pub(crate) count: usize,
    pub(crate) len: usize,
    pub(crate) data: Guarded<u8>,
}

impl TestRecords {
    pub(crate) fn new(dtype: DType, count: usize, len: usize, bytes: Bytes, rng: &mut Rng) -> Self {
        let n = records_bytes(dtype, count, len).unwrap();
        let data = match bytes {
            Bytes::Encoded => encode_records(dtype, &rng.normals(count * len), len, TENSOR_SCALE),
            Bytes::Hostile => rng.bytes(n),
            Bytes::Finite => finite_bytes(dtype, n, n / count, record_scale_bytes(dtype, len), rng),
            Bytes::Constant(byte) => vec![byte; n],
        };
        Self { dtype, count, len, data: Guarded::new(&data) }
    }

    pub(crate) fn view(&self) -> Records<'_> {
        Records::new(self.dtype, self.count, self.len, TENSOR_SCALE, &self.data).unwrap()
    }
}

pub(crate) fn encode_records(dtype: DType, values: &[f32], len: usize, tensor_scale: f32) -> Vec<u8> {
    let mut data = vec![0; records_bytes(dtype, values.len() / len, len).unwrap()];
    let stride = data.len() / (values.len() / len);
    for (values, out) in values.chunks(len).zip(data.chunks_exact_mut(stride)) {
        Kernels::best().encode_record(dtype, values, None, tensor_scale, out).unwrap();
    }
    data
}

/// The product of records with a sparse vector. For quantized records, runs of `cut` entries go to
/// two partial sums in turn.
pub(crate) fn sparse_product(kernels: &Kernels, out: &mut [f32], w: &TestRecords, x: Sparse<'_>, cut: usize) {
    if !w.dtype.is_quantized() {
        return kernels.sparse_matvec(out, &w.view(), 0, x);
    }
    let mut bounds = vec![0.0; w.len.div_ceil(GROUP_SIZE)];
    largest_scales(&w.view(), &mut bounds);
    let (bounds, each) = (Guarded::new(&bounds), sparse_sums(w.len));
    let scale = SparseScale {
        active: x.indices.len(),
        largest: kernels.largest_magnitude(x.values),
        bounds: &bounds,
    };
    let mut sums = [Guarded::new(&vec![0; each]), Guarded::new(&vec![0; each])];
    for (i, (indices, values)) in x.indices.chunks(cut).zip(x.values.chunks(cut)).enumerate() {
        let (indices, values) = (Guarded::new(indices), Guarded::new(values));
        let part = Sparse { indices: &indices, values: &values };
        kernels.sparse_accumulate(&mut sums[i % 2], &w.view(), part, scale);
    }
    let [first, second] = &sums;
    kernels.sparse_finish(out, &w.view(), &Guarded::new(&[&first[..], &second[..]].concat()), scale);
}

/// An output between canaries.
pub(crate) struct Output<T> {
    buffer: Vec<T>,
    len: usize,
    canary: T,
}

const CANARIES: usize = 32;

impl<T: Copy + PartialEq> Output<T> {
    pub(crate) fn new(len: usize, canary: T) -> Self {
        Self { buffer: vec![canary; len + 2 * CANARIES], len, canary }
    }

    pub(crate) fn slice(&mut self) -> &mut [T] {
        &mut self.buffer[CANARIES..][..self.len]
    }

    /// Whether everything outside the output is as it was.
    pub(crate) fn is_contained(&self) -> bool {
        let (before, rest) = self.buffer.split_at(CANARIES);
        before.iter().chain(&rest[self.len..]).all(|&v| v == self.canary)
    }
}

/// Elements that kernels write, with the equality that they promise.
pub(crate) trait Element: Copy + Debug + PartialEq {
    const CANARY: Self;

    /// Equal bits, or both NaNs.
    fn same(self, other: Self) -> bool;
}

impl Element for f32 {
    const CANARY: f32 = 12345.678;

    fn same(self, other: Self) -> bool {
        self.to_bits() == other.to_bits() || self.is_nan() && other.is_nan()
    }
}

impl Element for i8 {
    const CANARY: i8 = 0x5a;

    fn same(self, other: Self) -> bool {
        self == other
    }
}

impl Element for i32 {
    const CANARY: i32 = 0x5a5a_5a5a;

    fn same(self, other: Self) -> bool {
        self == other
    }
}

impl Element for u32 {
    const CANARY: u32 = 0x5a5a_5a5a;

    fn same(self, other: Self) -> bool {
        self == other
    }
}

/// Collects failures, to print them together.
#[derive(Default)]
pub(crate) struct Report {
    failures: Vec<String>,
    compared: usize,
}

impl Report {
    pub(crate) fn compare<T: Element>(&mut self, what: &str, isa: Isa, shape: &str, wanted: &[T], got: &[T]) {
        self.compared += 1;
        if wanted.len() != got.len() {
            self.failures.push(format!("{what} {isa} {shape}: wanted {} got {}", wanted.len(), got.len()));
        } else if let Some(i) = (0..wanted.len()).find(|&i| !wanted[i].same(got[i])) {
            self.failures
                .push(format!("{what} {isa} {shape} [{i}]: wanted {:?} got {:?}", wanted[i], got[i]));
        }
    }

    pub(crate) fn contained<T: Copy + PartialEq>(
        &mut self,
        what: &str,
        isa: Isa,
        shape: &str,
        out: &Output<T>,
    ) {
        if !out.is_contained() {
            self.failures.push(format!("{what} {isa} {shape}: wrote outside the output"));
        }
    }

    /// Fails with the collected differences, or if nothing was compared although there are levels
    /// to compare.
    pub(crate) fn finish(self) {
        let shown = self.failures.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(self.failures.is_empty(), "{} failures, the first ones:\n{shown}", self.failures.len());
        let compares = !cfg!(miri) && expected_isa().is_none() && !vector_levels().is_empty();
        assert!(self.compared > 0 || !compares, "nothing was compared");
    }
}

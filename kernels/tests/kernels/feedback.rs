//! Encoding with error feedback: the same bytes on every level, and pinned.

use rwkv_edge_kernels::quant::{
    FactorView, FedSums, TENSOR_SCALE, Tile, group_start, output_bytes, store_outputs,
};
use rwkv_edge_kernels::{DType, GROUP_SIZE, Isa, Kernels, matrix_bytes, records_bytes};

use crate::support::{Rng, fingerprint};

const COLUMNS: usize = 88;

/// Factors of some columns, in an order that keeps groups together.
struct Factors {
    order: Vec<u32>,
    d: Vec<f32>,
    u: Vec<[f32; GROUP_SIZE]>,
}

impl Factors {
    fn new(rng: &mut Rng) -> Self {
        let positions = COLUMNS.next_multiple_of(GROUP_SIZE);
        let order = (0..positions as u32).map(|i| ((i + 64) % 96) ^ 3).collect::<Vec<_>>();
        let real = |i: usize| (order[i] as usize) < COLUMNS;
        let d = (0..positions).map(|i| if real(i) { 0.1 + rng.normal().abs() } else { 0.0 }).collect();
        let mut u = vec![[0.0; GROUP_SIZE]; group_start(positions, positions / GROUP_SIZE)];
        for g in 0..positions / GROUP_SIZE {
            for i in GROUP_SIZE * g..positions {
                let start = group_start(positions, g) - GROUP_SIZE * g;
                for (j, u) in (GROUP_SIZE * g..i).zip(&mut u[start + i]) {
                    *u = if real(i) && real(j) { 0.2 * rng.normal() } else { 0.0 };
                }
            }
        }
        Self { order, d, u }
    }

    fn view(&self) -> FactorView<'_> {
        FactorView::new(COLUMNS, &self.order, &self.d, &self.u)
    }
}

fn rows(kernels: &Kernels, dtype: DType, values: &[f32], factor: FactorView<'_>) -> (Vec<u8>, FedSums) {
    let mut out = vec![0xaa; matrix_bytes(dtype, 16, COLUMNS).unwrap()];
    let mut scratch = vec![f32::NAN; 32 * factor.positions()];
    let sums = kernels.encode_block_row_fed(dtype, values, factor, TENSOR_SCALE, &mut scratch, &mut out);
    (out, sums.unwrap())
}

fn records(kernels: &Kernels, dtype: DType, values: &[f32], factor: FactorView<'_>) -> (Vec<u8>, FedSums) {
    let mut group = vec![0xaa; COLUMNS * output_bytes(dtype)];
    let mut scratch = vec![f32::NAN; 64 * factor.positions()];
    let sums = kernels.encode_outputs_fed(dtype, values, factor, TENSOR_SCALE, &mut scratch, &mut group);
    let outputs = values.len() / COLUMNS;
    let mut out = vec![0; records_bytes(dtype, COLUMNS, outputs).unwrap()];
    store_outputs(dtype, outputs, 0, &group, &mut out);
    (out, sums.unwrap())
}

/// Fingerprints of the bytes of rows and records.
fn prints(kernels: &Kernels, dtype: DType) -> ([u64; 2], [FedSums; 2]) {
    let mut rng = Rng(90);
    let factors = Factors::new(&mut rng);
    let values: Vec<f32> = rng.normals(13 * COLUMNS).iter().map(|x| 0.05 * x).collect();
    let (rows, row_sums) = rows(kernels, dtype, &values, factors.view());
    let (records, record_sums) = records(kernels, dtype, &values, factors.view());
    ([fingerprint(&rows), fingerprint(&records)], [row_sums, record_sums])
}

#[test]
fn every_level_encodes_alike() {
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        let wanted = prints(Kernels::for_isa(Isa::Scalar).unwrap(), dtype);
        for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
            assert_eq!(prints(kernels, dtype), wanted, "{dtype} {}", kernels.isa());
        }
    }
}

#[test]
fn bytes_are_pinned() {
    let pinned = [
        (DType::Int8, [0x3707_9b82_47ac_cc31, 0x666c_50a7_6e9d_f2f8]),
        (DType::Int4, [0x2ba7_bb49_61cc_6a85, 0x394f_e24e_8ef9_0f07]),
    ];
    for (dtype, wanted) in pinned {
        let (got, _) = prints(Kernels::best(), dtype);
        assert_eq!(got, wanted, "{dtype}: got {got:#018x?}");
    }
}

#[test]
fn products_are_subtracted_in_order() {
    let mut rng = Rng(91);
    let mut factors = |n: usize| -> Vec<[f32; GROUP_SIZE]> {
        (0..n).map(|_| rng.normals(GROUP_SIZE).try_into().unwrap()).collect()
    };
    for n in [0, 1, 63, 64, 130] {
        let (a, b) = (factors(n), factors(n));
        let d: Vec<f32> = (0..n).map(|k| 0.5 + k as f32 / 7.0).collect();
        let mut wanted: Tile = core::array::from_fn(|i| [i as f64; GROUP_SIZE]);
        let start = wanted;
        for (i, row) in wanted.iter_mut().enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                (0..n).for_each(|k| *x -= f64::from(a[k][j]) * (f64::from(b[k][i]) * f64::from(d[k])));
            }
        }
        for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
            let mut tile = start;
            kernels.subtract_products(&mut tile, &a, &b, &d);
            assert!(tile == wanted, "{n} products, {}", kernels.isa());
        }
    }
}

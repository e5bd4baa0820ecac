//! The bytes of every layout, written out by hand, so that the format cannot drift.

use rwkv_edge_kernels::quant::decode_record;
use rwkv_edge_kernels::{
    DType, Kernels, LayoutError, Matrix, Records, matrix_bytes, padded_cols, record_bytes,
    record_scale_bytes, records_bytes,
};

const ONE: [u8; 2] = [0x00, 0x3c];
const TWO: [u8; 2] = [0x00, 0x40];
const HALF: [u8; 2] = [0x00, 0x38];

fn block_row(dtype: DType, rows: &[&[f32]]) -> Vec<u8> {
    let cols = rows[0].len();
    let mut out = vec![0xee; matrix_bytes(dtype, 16, cols).unwrap()];
    Kernels::best().encode_block_row(dtype, &rows.concat(), cols, None, 1.0, &mut out).unwrap();
    out
}

fn record(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xee; record_bytes(dtype, values.len()).unwrap()];
    Kernels::best().encode_record(dtype, values, None, 1.0, &mut out).unwrap();
    out
}

/// `len` bytes that are `fill` except for the given runs.
fn bytes(len: usize, fill: u8, runs: &[(usize, &[u8])]) -> Vec<u8> {
    let mut all = vec![fill; len];
    for (start, run) in runs {
        all[*start..][..run.len()].copy_from_slice(run);
    }
    all
}

/// A row of `n` zeros with the given elements.
fn row(n: usize, elements: &[(usize, f32)]) -> Vec<f32> {
    let mut row = vec![0.0; n];
    elements.iter().for_each(|&(i, value)| row[i] = value);
    row
}

#[test]
fn f32_block_is_column_lines_of_16_rows() {
    let got = block_row(DType::F32, &[&[1.0, -2.0], &[0.5, 0.0]]);
    let wanted =
        bytes(4096, 0, &[(0, &1f32.to_le_bytes()), (4, &0.5f32.to_le_bytes()), (64, &(-2f32).to_le_bytes())]);
    assert_eq!(got, wanted);
}

#[test]
fn f16_block_is_column_lines_of_16_rows() {
    let got = block_row(DType::F16, &[&[1.0, -2.0], &[0.5, 0.0]]);
    assert_eq!(got, bytes(2048, 0, &[(0, &ONE), (2, &HALF), (32, &[0x00, 0xc0])]));
}

#[test]
fn int8_block_is_scales_then_quads_of_columns() {
    // Row 0: group 0 with scale 1, group 1 with scale 2. Row 1: group 0 with scale 1/2.
    let first = row(64, &[(0, 127.0), (1, -127.0), (2, 3.0), (5, -1.0), (32, 254.0), (63, -4.0)]);
    let second = row(64, &[(3, 63.5), (4, 1.0), (31, -63.5)]);
    let wanted = bytes(
        1088,
        0,
        &[
            (0, &ONE),
            (2, &HALF),
            (32, &TWO),
            (64, &[127, 0x81, 3, 0]),
            (64 + 4, &[0, 0, 0, 127]),
            (128, &[0, 0xff, 0, 0]),
            (128 + 4, &[2, 0, 0, 0]),
            (64 + 7 * 64 + 4, &[0, 0, 0, 0x81]),
            (64 + 8 * 64, &[127, 0, 0, 0]),
            (64 + 15 * 64, &[0, 0, 0, 0xfe]),
        ],
    );
    assert_eq!(block_row(DType::Int8, &[&first, &second]), wanted);
}

#[test]
fn int4_block_is_scales_then_lines_of_two_quads() {
    // Row 0: group 0 with scale 1, group 1 with scale 2. Row 1: group 0 with scale 1/2.
    let first = row(64, &[(0, -8.0), (1, 7.0), (4, 1.0), (5, -1.0), (32, -16.0), (33, 14.0), (63, 2.0)]);
    let second = row(64, &[(2, -4.0), (6, 3.5), (31, 0.5)]);
    let wanted = bytes(
        576,
        0x88,
        &[
            (0, &[0; 64]),
            (0, &ONE),
            (2, &HALF),
            (32, &TWO),
            (64, &[0x90, 0x7f, 0x88, 0x88]),
            (64 + 4, &[0x88, 0x88, 0xf0, 0x88]),
            (64 + 3 * 64 + 4, &[0x88, 0x88, 0x88, 0x98]),
            (64 + 4 * 64, &[0x80, 0x8f, 0x88, 0x88]),
            (64 + 7 * 64, &[0x88, 0x88, 0x88, 0x98]),
        ],
    );
    assert_eq!(block_row(DType::Int4, &[&first, &second]), wanted);
}

#[test]
fn column_blocks_run_fastest() {
    let got = block_row(DType::Int8, &[&row(130, &[(0, 127.0), (64, 254.0), (128, 63.5)])]);
    let wanted = bytes(
        3 * 1088,
        0,
        &[
            (0, &ONE),
            (64, &[127]),
            (1088, &TWO),
            (1088 + 64, &[127]),
            (2 * 1088, &HALF),
            (2 * 1088 + 64, &[127]),
        ],
    );
    assert_eq!(got, wanted);
}

#[test]
fn padding_of_a_matrix_weighs_nothing() {
    for (dtype, code) in [(DType::Int8, 0x00), (DType::Int4, 0x88), (DType::Int4n, 0x88)] {
        let got = block_row(dtype, &[&[1.0; 33]]);
        let block = dtype.block_bytes();
        let row_scales = [0, 32];
        for i in (0..64).step_by(2) {
            assert_eq!(got[i..i + 2] != [0, 0], row_scales.contains(&i), "{dtype} scale {i}");
        }
        let real = (64..block).filter(|i| (i - 64) % 64 < 4);
        let real: Vec<usize> = real.filter(|&i| got[i] != code).collect();
        let others = (64..block).filter(|i| (i - 64) % 64 >= 4);
        assert!(others.into_iter().all(|i| got[i] == code), "{dtype}: rows 1 to 15");
        // 33 columns fill 32 quads or 8 lines of one group, and one byte of the next.
        assert_eq!(real.len(), if dtype == DType::Int8 { 33 } else { 17 }, "{dtype}");
    }
}

#[test]
fn float_records_are_plain_and_padded_to_a_line() {
    let values = row(17, &[(0, 1.0), (16, -2.0)]);
    let wanted = bytes(128, 0, &[(0, &1f32.to_le_bytes()), (64, &(-2f32).to_le_bytes())]);
    assert_eq!(record(DType::F32, &values), wanted);
    let wanted = bytes(64, 0, &[(0, &ONE), (32, &[0x00, 0xc0])]);
    assert_eq!(record(DType::F16, &values), wanted);
}

#[test]
fn int8_record_is_scales_then_runs() {
    let values = row(40, &[(0, 127.0), (31, -1.0), (32, -254.0), (39, 4.0)]);
    let wanted = bytes(
        128,
        0,
        &[(0, &ONE), (2, &TWO), (64, &[127]), (64 + 31, &[0xff]), (64 + 32, &[0x81]), (64 + 39, &[2])],
    );
    assert_eq!(record(DType::Int8, &values), wanted);
}

#[test]
fn int4_record_is_scales_then_runs_of_half_groups() {
    let values = row(40, &[(0, -8.0), (15, 7.0), (16, 1.0), (31, -1.0), (32, -16.0), (39, 14.0)]);
    let codes = bytes(32, 0x88, &[(0, &[0x90]), (15, &[0x7f]), (16, &[0x80]), (23, &[0x8f])]);
    assert_eq!(record(DType::Int4, &values), bytes(128, 0, &[(0, &ONE), (2, &TWO), (64, &codes)]));
}

/// Two groups with all 16 codes: of the first the scale is 1 and the shift -3, of the second they are
/// -0.5 and 3.
#[test]
fn int4n_codes_are_those_of_the_table_and_the_shift_of_the_scale() {
    let table = [-32, -26, -21, -16, -12, -9, -6, -3, 0, 3, 6, 10, 13, 17, 22, 28];
    let nibbles: [u8; 16] = core::array::from_fn(|i| (i | (15 - i) << 4) as u8);
    let scales = [0x00, 0x3c, 0x03, 0xb8];
    let data = bytes(128, 0, &[(0, &scales), (64, &nibbles), (80, &nibbles)]);
    let records = Records::new(DType::Int4n, 1, 64, 0.25, &data).unwrap();
    let mut found = [0.0; 64];
    decode_record(&records, 0, &mut found);
    let second = f32::from(half::f16::from_bits(0xb803)) * 0.25;
    for i in 0..16 {
        for (i, code) in [(i, table[i]), (16 + i, table[15 - i])] {
            assert_eq!(found[i], (code - 3) as f32 * 0.25, "{i}");
            assert_eq!(found[32 + i], (code + 3) as f32 * second, "{i}");
        }
    }
    let mut dequantized = [0.0; 64];
    Kernels::best().dequantize_record(&mut dequantized, &records, 0);
    assert_eq!(dequantized, found);
}

#[test]
fn record_scales_fill_whole_lines() {
    for dtype in [DType::Int8, DType::Int4, DType::Int4n] {
        for (len, wanted) in [(1, 64), (32 * 32, 64), (32 * 32 + 1, 128), (2048, 128), (2560, 192)] {
            assert_eq!(record_scale_bytes(dtype, len), wanted, "{dtype} {len}");
        }
    }
    assert_eq!(record_scale_bytes(DType::F32, 2048), 0);
    assert_eq!(record_scale_bytes(DType::F16, 2048), 0);
}

#[test]
fn sizes_are_those_of_the_format() {
    assert_eq!(DType::ALL.map(|dtype| matrix_bytes(dtype, 1, 1)), [4096, 2048, 1088, 576, 576].map(Some));
    assert_eq!(matrix_bytes(DType::Int4, 17, 65), Some(4 * 576));
    assert_eq!(DType::ALL.map(|dtype| record_bytes(dtype, 1)), [64, 64, 128, 128, 128].map(Some));
    assert_eq!(record_bytes(DType::Int4, 2048), Some(128 + 1024));
    assert_eq!(record_bytes(DType::Int8, 2048), Some(128 + 2048));
    assert_eq!(records_bytes(DType::Int4, 3, 2048), Some(3 * 1152));
    assert_eq!([1, 64, 65].map(padded_cols), [64, 64, 128]);
}

#[test]
fn impossible_shapes_have_no_size() {
    for dtype in DType::ALL {
        assert_eq!(matrix_bytes(dtype, 0, 1), None);
        assert_eq!(matrix_bytes(dtype, 1, 0), None);
        assert_eq!(matrix_bytes(dtype, usize::MAX, usize::MAX), None);
        assert_eq!(record_bytes(dtype, 0), None);
        assert_eq!(record_bytes(dtype, usize::MAX), None);
        // The largest record of floats has 2^32 bytes.
        let fits = u32::BITS < usize::BITS || dtype != DType::F32;
        assert_eq!(record_bytes(dtype, 1 << 30).is_some(), fits);
        assert_eq!(record_bytes(dtype, (1 << 30) - 1).is_some(), fits);
        assert_eq!(records_bytes(dtype, 0, 1), None);
        assert_eq!(records_bytes(dtype, usize::MAX, 1 << 20), None);
    }
}

#[test]
fn views_refuse_other_lengths_shapes_and_scales() {
    let data = vec![0; 576];
    assert!(Matrix::new(DType::Int4, 16, 64, 1.0, &data).is_ok());
    let length = LayoutError::Length { expected: 576, found: 575 };
    assert_eq!(Matrix::new(DType::Int4, 16, 64, 1.0, &data[1..]).unwrap_err(), length);
    assert_eq!(Matrix::new(DType::Int4, 0, 64, 1.0, &data).unwrap_err(), LayoutError::Shape);
    assert_eq!(Matrix::new(DType::Int4, 16, usize::MAX, 1.0, &data).unwrap_err(), LayoutError::Shape);
    for scale in [0.0, -1.0, 3.0, f32::NAN, f32::INFINITY, 1e-40] {
        assert_eq!(Matrix::new(DType::Int4, 16, 64, scale, &data).unwrap_err(), LayoutError::Scale);
        assert_eq!(Records::new(DType::F16, 9, 32, scale, &data).unwrap_err(), LayoutError::Scale);
    }
    assert!(Records::new(DType::F16, 9, 32, 0.25, &data).is_ok());
    let length = LayoutError::Length { expected: 512, found: 576 };
    assert_eq!(Records::new(DType::F16, 8, 32, 1.0, &data).unwrap_err(), length);
    assert_eq!(Records::new(DType::F16, 0, 32, 1.0, &data).unwrap_err(), LayoutError::Shape);
}

#[test]
fn block_rows_and_records_are_the_right_bytes() {
    let data: Vec<u8> = (0..4 * 576usize).map(|i| (i / 576) as u8).collect();
    let matrix = Matrix::new(DType::Int4, 20, 100, 1.0, &data).unwrap();
    assert_eq!(matrix.col_blocks(), 2);
    assert_eq!(matrix.block_row(1), &data[2 * 576..]);
    let records = Records::new(DType::F16, 36, 32, 1.0, &data).unwrap();
    assert_eq!(records.stride(), 64);
    assert_eq!(records.record(9), &data[576..][..64]);
}

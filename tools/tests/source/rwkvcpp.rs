//! rwkv.cpp files: good ones, and attacks on headers and records.

use crate::common::{
    assert_every_cut_is_refused, assert_refused, open, read, rwkvcpp_file, rwkvcpp_header, rwkvcpp_record,
};
use rwkv_quantize::source::{Container, SourceDType};

/// A record whose first three fields and dimensions are given as they are.
fn raw_record(fields: [i32; 3], dimensions: &[i32], rest: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = fields.iter().chain(dimensions).flat_map(|n| n.to_le_bytes()).collect();
    [rwkvcpp_header(101, 6, 4, 1, 1), numbers, rest.to_vec()].concat()
}

#[test]
fn shapes_are_turned_to_row_major_and_types_are_per_tensor() {
    let file = open(&rwkvcpp_file()).unwrap();
    assert_eq!(file.container(), Container::RwkvCpp);
    let emb = file.get("emb.weight").unwrap();
    assert_eq!((emb.shape.as_slice(), emb.dtype), ([6, 4].as_slice(), SourceDType::F16));
    assert_eq!(file.get("blocks.0.ln1.weight").unwrap().dtype, SourceDType::F32);
    assert_eq!(read(&file, "emb.weight"), (0..24).map(|n| n as f32).collect::<Vec<_>>());
    assert_eq!(read(&file, "blocks.0.ln1.weight"), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn version_100_is_read_and_others_are_refused() {
    let mut bytes = rwkvcpp_file();
    bytes[4] = 100;
    assert!(open(&bytes).is_ok());
    for version in [0, 99, 102, -1, i32::MAX] {
        bytes[4..8].copy_from_slice(&i32::to_le_bytes(version));
        assert_refused(&bytes, &["version", &version.to_string()]);
    }
}

#[test]
fn quantized_files_are_refused_with_the_advice_to_convert_the_original() {
    for (number, name) in [(2, "Q4_0"), (3, "Q4_1"), (7, "Q5_0"), (8, "Q5_1"), (9, "Q8_0")] {
        assert_refused(&rwkvcpp_header(101, 6, 4, 1, number), &[name, "original"]);
        let record = rwkvcpp_record("emb.weight", &[6, 4], number, &[0; 48]);
        assert_refused(
            &[rwkvcpp_header(101, 6, 4, 1, 1), record].concat(),
            &["tensor emb.weight", name, "original"],
        );
    }
    for number in [10, -1, i32::MIN, i32::MAX] {
        assert_refused(&rwkvcpp_header(101, 6, 4, 1, number), &["element type", &number.to_string()]);
    }
}

#[test]
fn headers_with_impossible_sizes_are_refused() {
    for (vocab, width, layers) in [(0, 4, 1), (6, -4, 1), (6, 4, i32::MIN)] {
        assert_refused(&rwkvcpp_header(101, vocab, width, layers, 1), &["header"]);
    }
}

#[test]
fn negative_and_huge_counts_are_refused() {
    for dimensions in [-1, 5, i32::MAX, i32::MIN] {
        assert_refused(&raw_record([dimensions, 1, 0], &[], &[0; 64]), &["dimensions"]);
    }
    for name in [-1, 0, 513, i32::MAX, i32::MIN] {
        assert_refused(&raw_record([1, name, 0], &[1], &[0; 64]), &["a name of"]);
    }
    for size in [-1, i32::MIN] {
        assert_refused(&raw_record([1, 1, 0], &[size], b"x\0\0\0\0"), &["negative dimension"]);
    }
}

#[test]
fn huge_dimensions_are_refused() {
    for dimensions in [vec![i32::MAX; 4], vec![i32::MAX, i32::MAX], vec![i32::MAX], vec![17]] {
        let record = raw_record([dimensions.len() as i32, 1, 0], &dimensions, &[b'x'; 65]);
        assert_refused(&record, &["tensor x", "64 bytes until"]);
    }
}

#[test]
fn dimensions_whose_product_wraps_to_zero_are_refused() {
    let record = raw_record([4, 1, 0], &[0x1_0000; 4], b"x");
    assert_refused(&record, &["tensor x", "0 bytes until"]);
}

#[test]
fn names_that_are_not_utf8_are_refused() {
    assert_refused(&raw_record([1, 2, 0], &[1], b"\xff\xfe\0\0\0\0"), &["UTF-8"]);
}

#[test]
fn tensors_that_contradict_the_header_are_refused() {
    for (vocab, width, layers) in [(7, 4, 1), (6, 5, 1), (6, 4, 2)] {
        let mut bytes = rwkvcpp_file();
        bytes[..24].copy_from_slice(&rwkvcpp_header(101, vocab, width, layers, 1));
        assert_refused(&bytes, &["header"]);
    }
}

#[test]
fn names_that_occur_twice_are_refused() {
    let bytes = [rwkvcpp_file(), rwkvcpp_record("head.weight", &[6, 4], 1, &[0; 48])].concat();
    assert_refused(&bytes, &["tensor head.weight", "two"]);
}

#[test]
fn file_truncated_at_every_byte_is_refused() {
    let bytes = rwkvcpp_file();
    assert_every_cut_is_refused(&bytes);
}

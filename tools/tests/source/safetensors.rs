//! Safetensors files: good ones, and attacks on the header.

use crate::common::{
    DTYPES, assert_every_cut_is_refused, assert_refused, open, read, refusal, safetensors, safetensors_file,
    spec,
};
use rwkv_quantize::source::{Container, SourceDType};

/// One tensor description.
fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn file(entries: &[String], data: usize) -> Vec<u8> {
    safetensors_file(&format!("{{{}}}", entries.join(",")), &vec![0; data])
}

#[test]
fn written_file_is_read_back_with_names_shapes_and_types() {
    let tensors = DTYPES.map(|dtype| spec(&dtype.to_string(), &[3, 1, 5], dtype));
    let checkpoint = open(&safetensors(&tensors)).unwrap();
    assert_eq!(checkpoint.container(), Container::Safetensors);
    for tensor in &tensors {
        let found = checkpoint.get(&tensor.name).unwrap();
        assert_eq!((&found.shape, found.dtype), (&tensor.shape, tensor.dtype));
        assert_eq!(read(&checkpoint, &tensor.name), (0..15).map(|n| n as f32).collect::<Vec<_>>());
    }
}

#[test]
fn metadata_holes_padding_and_foreign_fields_are_accepted() {
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"shape":[2],"data_offsets":[12,20],"dtype":"F32","extra":[1]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}    "#;
    let data: Vec<u8> = (0..5).flat_map(|n| (n as f32).to_le_bytes()).chain([9; 3]).collect();
    let checkpoint = open(&safetensors_file(header, &data)).unwrap();
    assert_eq!(checkpoint.tensors().len(), 2);
    assert_eq!(read(&checkpoint, "a"), [0.0]);
    assert_eq!(read(&checkpoint, "b"), [3.0, 4.0]);
}

#[test]
fn data_at_any_place_and_names_in_any_order_are_read() {
    for spaces in 0..9 {
        let header = format!(
            r#"{{"b":{{"dtype":"F16","shape":[1],"data_offsets":[3,5]}},"a":{{"dtype":"BF16","shape":[1],"data_offsets":[1,3]}}}}{}"#,
            " ".repeat(spaces)
        );
        let data = [&[7][..], &half::bf16::ONE.to_le_bytes(), &half::f16::ONE.to_le_bytes()].concat();
        let checkpoint = open(&safetensors_file(&header, &data)).unwrap();
        assert_eq!((read(&checkpoint, "a"), read(&checkpoint, "b")), (vec![1.0], vec![1.0]), "{spaces}");
    }
}

#[test]
fn prefixes_are_removed() {
    let checkpoint = open(&file(&[entry("model.module.x", "F32", "[1]", 0, 4)], 4)).unwrap();
    assert_eq!(checkpoint.tensors()[0].name, "x");
}

#[test]
fn empty_tensors_may_lie_anywhere() {
    let entries = [entry("a", "F32", "[2]", 0, 8), entry("e", "F32", "[0,9]", 4, 4)];
    assert!(read(&open(&file(&entries, 8)).unwrap(), "e").is_empty());
}

#[test]
fn other_element_types_are_refused_by_tensor_and_type() {
    for dtype in ["I64", "U8", "F8_E4M3", "BOOL", "bf16", ""] {
        assert_refused(&file(&[entry("ids", dtype, "[4]", 0, 4)], 4), &["tensor ids", "BF16", dtype]);
    }
}

#[test]
fn overlapping_tensors_are_refused() {
    let entries = [entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12)];
    assert_refused(&file(&entries, 12), &["tensor b", "inside the tensor before"]);
    let same = [entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 0, 8)];
    assert_refused(&file(&same, 8), &["inside the tensor before"]);
    let inside =
        [entry("a", "F32", "[4]", 0, 16), entry("b", "F32", "[1]", 4, 8), entry("c", "F32", "[1]", 12, 16)];
    assert_refused(&file(&inside, 16), &["tensor b"]);
}

#[test]
fn tensors_outside_the_file_are_refused() {
    assert_refused(&file(&[entry("a", "F32", "[2]", 4, 12)], 8), &["tensor a", "cut off"]);
    let far = u64::MAX - 8;
    assert_refused(&file(&[entry("a", "F32", "[2]", far, far + 8)], 8), &["tensor a", "cut off"]);
}

#[test]
fn sizes_that_disagree_with_the_shape_are_refused() {
    for (shape, begin, end) in [("[2]", 0, 4), ("[2]", 0, 12), ("[2]", 8, 0), ("[]", 0, 8), ("[3,0]", 0, 4)] {
        assert_refused(&file(&[entry("a", "F32", shape, begin, end)], 16), &["tensor a", "data for shape"]);
    }
}

#[test]
fn overflowing_shapes_are_refused() {
    for shape in [
        "[4294967296,4294967296]",
        "[18446744073709551615]",
        "[4611686018427387905]",
        "[9223372036854775808,2]",
    ] {
        assert_refused(&file(&[entry("a", "F32", shape, 0, 4)], 4), &["tensor a"]);
    }
}

#[test]
fn shape_whose_product_wraps_to_zero_is_refused() {
    let entries = [entry("a", "F32", "[4294967296,4294967296]", 0, 0), entry("b", "F32", "[1]", 0, 4)];
    assert_refused(&file(&entries, 4), &["tensor a"]);
}

#[test]
fn numbers_that_are_no_sizes_are_refused() {
    for shape in ["[-1]", "[1.5]", "[1e3]", "[18446744073709551616]", "[null]", "7", "[[1]]"] {
        assert_refused(&file(&[entry("a", "F32", shape, 0, 4)], 4), &["header"]);
    }
}

#[test]
fn huge_header_is_refused_before_it_is_read() {
    for len in [100_000_001, u64::MAX, u64::MAX - 8, 1 << 40] {
        let bytes = [len.to_le_bytes().as_slice(), b"{}"].concat();
        assert_refused(&bytes, &["limit"]);
    }
    let bytes = [99_999_999u64.to_le_bytes().as_slice(), b"{}"].concat();
    assert_refused(&bytes, &["inside the header"]);
}

#[test]
fn names_that_occur_twice_are_refused() {
    let twice = [entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 4, 8)];
    assert_refused(&file(&twice, 8), &["tensor a", "two"]);
}

#[test]
fn headers_that_are_no_description_are_refused() {
    for header in [
        "{",
        "{]",
        r#"{"a":1}"#,
        r#"{"a":null}"#,
        r#"{"a":{}}"#,
        r#"{"a":{"dtype":"F32","shape":[1]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        "{\"a\u{0}\":{}} x",
    ] {
        assert_refused(&safetensors_file(header, &[0; 8]), &["header"]);
    }
    assert_refused(&safetensors_file("{}", &[]), &["no tensors"]);
    assert_refused(&safetensors_file(r#"{"__metadata__":{}}"#, &[]), &["no tensors"]);
}

#[test]
fn deeply_nested_header_is_refused() {
    let deep = format!(r#"{{"a":{}"#, "[".repeat(1_000_000));
    assert!(refusal(&safetensors_file(&deep, &[])).contains("header"));
    let deep = format!(r#"{{"__metadata__":{}"#, "[".repeat(1_000_000));
    assert!(refusal(&safetensors_file(&deep, &[])).contains("header"));
}

#[test]
fn file_truncated_at_every_byte_is_refused() {
    let bytes = safetensors(&[spec("x", &[3], SourceDType::F32), spec("y", &[2, 2], SourceDType::BF16)]);
    assert_every_cut_is_refused(&bytes);
}

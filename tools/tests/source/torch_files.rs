//! Files that PyTorch wrote: `tests/data/make_pth.py` makes them.

use std::path::{Path, PathBuf};

use crate::common::read;
use rwkv_quantize::source::{Checkpoint, SourceDType, detect};

/// Shapes of the tensors, whose values count up from one to the next.
const TENSORS: [(&str, &[usize]); 4] = [
    ("emb.weight", &[3, 4]),
    ("blocks.0.ln1.weight", &[4]),
    ("blocks.0.att.key.weight", &[2, 3]),
    ("head.weight", &[3, 2]),
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth").join(name).with_extension("pth")
}

#[track_caller]
fn check(name: &str) -> Checkpoint {
    let file = Checkpoint::open(&path(name)).unwrap();
    assert_eq!(file.tensors().len(), TENSORS.len(), "{name}: {:?}", file.tensors());
    let mut next = 0..;
    for (tensor, shape) in TENSORS {
        let found = file.get(tensor).unwrap();
        assert_eq!((&found.shape[..], found.dtype), (shape, SourceDType::BF16), "{name}: {tensor}");
        let expected: Vec<f32> = next.by_ref().take(shape.iter().product()).map(|n: i32| n as f32).collect();
        assert_eq!(read(&file, tensor), expected, "{name}: {tensor}");
    }
    file
}

#[test]
fn values_beside_the_weights_are_skipped_in_every_protocol() {
    for protocol in 2..=5 {
        let file = check(&format!("beside-{protocol}"));
        let others = file.other_entries();
        assert_eq!(others.len(), 24, "{others:?}");
        for name in ["size", "set", "dtype", "counter", "step", "rng", "big", "args", "date", "float8"] {
            assert!(others.iter().any(|other| other == name), "{name} of protocol {protocol}");
        }
    }
}

#[test]
fn a_wrapped_model_is_found_beside_an_optimizer() {
    let file = check("wrapped");
    assert!(file.other_entries().iter().any(|other| other == "optimizer"));
}

#[test]
fn parameters_and_tensors_with_attributes_are_read() {
    for name in ["plain", "parameters", "parameter-attributes", "tensor-attributes"] {
        check(name);
    }
}

#[test]
fn transposed_views_and_slices_of_one_storage_have_the_right_values() {
    check("turned");
    check("shared");
}

#[test]
fn zip64_fields_of_small_files_and_deflated_entries_are_read() {
    check("zip64");
    check("deflated");
}

#[test]
fn weights_of_other_types_are_named_with_a_remedy() {
    for (name, found, remedy) in [
        ("float8", "float8_e4m3fn (fp8)", "original checkpoint"),
        ("int8", "int8", "original checkpoint"),
        ("sparse", "torch._utils._rebuild_sparse_tensor", "save plain tensors"),
    ] {
        let message = detect(&Checkpoint::open(&path(name)).unwrap()).unwrap_err().to_string();
        assert!(message.contains("tensor blocks.0.att.key.weight"), "{message}");
        assert!(message.contains(found) && message.contains(remedy), "{message}");
    }
}

#[test]
fn a_pickled_module_is_refused_by_its_class() {
    let message = Checkpoint::open(&path("module")).unwrap_err().to_string();
    assert!(
        message.contains("torch.nn.modules.linear.Linear") && message.contains("state_dict"),
        "{message}"
    );
}

//! Real files: the fixtures in two containers, models of rwkv.cpp, a trained checkpoint.

use std::path::Path;

use crate::common::{fixture, read, shared};
use rwkv_edge::format::Version;
use rwkv_quantize::source::{Checkpoint, Container, SourceDType, detect};

#[test]
fn pth_and_safetensors_fixtures_hold_the_same_tensors() {
    let pth = Checkpoint::open(&fixture("v4-tiny.pth")).unwrap();
    let safetensors = Checkpoint::open(&fixture("v4-tiny.safetensors")).unwrap();
    assert_eq!(pth.container(), Container::TorchZip);
    assert_eq!(safetensors.container(), Container::Safetensors);
    assert_eq!(pth.file_name(), "v4-tiny.pth");
    assert_eq!(pth.file_len(), std::fs::metadata(fixture("v4-tiny.pth")).unwrap().len());
    assert_eq!(pth.tensors().len(), 4 + 3 * 18 + 2);
    assert_eq!(pth.tensors().len(), safetensors.tensors().len());
    for (a, b) in pth.tensors().iter().zip(safetensors.tensors()) {
        assert_eq!((&a.name, &a.shape, a.dtype), (&b.name, &b.shape, b.dtype));
        assert_eq!(a.dtype, SourceDType::BF16);
        assert_eq!(read(&pth, &a.name), read(&safetensors, &b.name), "{}", a.name);
    }
    assert_eq!(detect(&pth).unwrap(), Version::V4);
    assert_eq!(detect(&safetensors).unwrap(), Version::V4);
}

#[test]
fn fixture_values_are_those_numpy_reads() {
    let pth = Checkpoint::open(&fixture("v4-tiny.pth")).unwrap();
    let values: [(&str, &[usize], f64, f64, f64); 7] = [
        ("emb.weight", &[256, 64], -1.0078125, 0.99609375, 0.8234525918960571),
        ("blocks.0.ln0.bias", &[64], -0.095703125, 0.01361083984375, -0.56610107421875),
        ("blocks.1.att.time_decay", &[64], 1.9609375, 0.83203125, -96.54022216796875),
        ("blocks.1.att.time_mix_k", &[1, 1, 64], 0.65625, 0.25, 30.91424560546875),
        ("blocks.2.ffn.key.weight", &[96, 64], 0.177734375, -0.08837890625, 25.242464303970337),
        ("blocks.2.ffn.value.weight", &[64, 96], -0.09130859375, 0.2373046875, -5.84639285504818),
        ("head.weight", &[256, 64], -0.0849609375, -0.0238037109375, 19.020031929016113),
    ];
    for (name, shape, first, last, sum) in values {
        let tensor = pth.get(name).unwrap();
        let all: Vec<f64> = read(&pth, name).into_iter().map(f64::from).collect();
        assert_eq!(tensor.shape, shape, "{name}");
        assert_eq!((all[0], all[all.len() - 1]), (first, last), "{name}");
        let found: f64 = all.iter().sum();
        assert!((found - sum).abs() < 1e-9, "{name}: {found}");
    }
}

#[test]
fn every_value_of_a_trained_checkpoint_is_finite() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fairy7.pth");
    let fairy = Checkpoint::open(&path).unwrap();
    assert_eq!(detect(&fairy).unwrap(), Version::V7);
    // The first layer has `ln0` too; the others have the value's low-rank factors.
    assert_eq!(fairy.tensors().len(), 4 + 6 * 30 + 2 + 5 * 3);
    assert_eq!(fairy.get("emb.weight").unwrap().shape, [4096, 256]);
    assert_eq!(fairy.get("blocks.5.ffn.value.weight").unwrap().shape, [256, 1024]);
    for tensor in fairy.tensors() {
        assert!(read(&fairy, &tensor.name).iter().all(|x| x.is_finite()), "{}", tensor.name);
    }
}

#[test]
fn golden_models_of_rwkv_cpp_are_read() {
    let Some(golden) = shared("golden") else { return };
    let models = [
        ("tiny-rwkv-4v0-660K-FP32.bin", Version::V4),
        ("tiny-rwkv-4v0-660K-FP16.bin", Version::V4),
        ("tiny-rwkv-5v2-730K-FP32.bin", Version::V5_2),
        ("tiny-rwkv-7v0-834K-FP32.bin", Version::V7),
        ("tiny-rwkv-7v0-834K-FP16.bin", Version::V7),
    ];
    for (name, version) in models {
        let checkpoint = Checkpoint::open(&golden.join(name)).unwrap();
        assert_eq!(checkpoint.container(), Container::RwkvCpp, "{name}");
        assert_eq!(detect(&checkpoint).unwrap(), version, "{name}");
        assert_eq!(checkpoint.get("emb.weight").unwrap().shape[0], 256, "{name}");
        for tensor in checkpoint.tensors() {
            assert!(read(&checkpoint, &tensor.name).iter().all(|x| x.is_finite()), "{name} {}", tensor.name);
        }
    }
}

#[test]
fn golden_fp16_files_are_the_rounded_fp32_files() {
    let Some(golden) = shared("golden") else { return };
    for model in ["4v0-660K", "7v0-834K"] {
        let wide = Checkpoint::open(&golden.join(format!("tiny-rwkv-{model}-FP32.bin"))).unwrap();
        let narrow = Checkpoint::open(&golden.join(format!("tiny-rwkv-{model}-FP16.bin"))).unwrap();
        assert_eq!(wide.tensors().len(), narrow.tensors().len());
        for (a, b) in wide.tensors().iter().zip(narrow.tensors()) {
            assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
            let (x, y) = (read(&wide, &a.name), read(&narrow, &b.name));
            let rounded =
                |x: f32| if b.dtype == SourceDType::F16 { half::f16::from_f32(x).to_f32() } else { x };
            assert!(x.iter().zip(&y).all(|(&x, &y)| rounded(x) == y), "{model} {}", a.name);
        }
    }
}

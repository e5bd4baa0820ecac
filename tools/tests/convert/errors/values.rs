//! Values that cannot be stored, and extreme ones that can.

use rwkv_edge::kernels::DType;
use rwkv_edge::{LoadOptions, self_test};
use rwkv_quantize::source::SourceDType;

use crate::common::{DTYPES, Desk, Parts, VERSIONS, options, relative_error};

#[test]
fn nan_and_infinity_are_refused_in_every_tensor() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate() {
            let at = [0, part.elements() / 2, part.elements() - 1][index % 3];
            let (value, shown) =
                [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")][index % 3];
            let changed = parts.changed(index, |part| part.set(at, value));
            let message = desk.tensor_refusal(&changed, &options(DType::Int8), &part.name);
            let wanted = format!("expected a finite number in element {at}, found {shown}");
            assert!(message.contains(&wanted), "{version} {}: {message}", part.name);
        }
    }
}

#[test]
fn nan_is_refused_whatever_the_types_of_source_and_target() {
    let desk = Desk::new();
    for name in [
        "blocks.1.ln1.weight",
        "blocks.0.ln0.bias",
        "blocks.0.att.w1",
        "blocks.1.att.g2",
        "blocks.1.att.key.weight",
        "blocks.2.ffn.value.weight",
        "head.weight",
        "emb.weight",
    ] {
        let mut parts = Parts::of("v7");
        let values = parts.get(name).values();
        let sources = [SourceDType::F64, SourceDType::F32, SourceDType::F16, SourceDType::BF16];
        for (target, source) in DTYPES.into_iter().zip(sources.into_iter().cycle()) {
            parts.get(name).fill(source, values.iter().copied());
            parts.get(name).set(17, f32::NAN);
            desk.tensor_refusal(&parts, &options(target), name);
        }
    }
}

#[test]
fn a_double_beyond_single_precision_is_refused() {
    let desk = Desk::new();
    let name = "blocks.1.att.key.weight";
    let mut parts = Parts::of("v4");
    let part = parts.get(name);
    part.fill(SourceDType::F64, [0.5; 64 * 64]);
    part.bytes[8 * 70..][..8].copy_from_slice(&1e300f64.to_le_bytes());
    let message = desk.tensor_refusal(&parts, &options(DType::F32), name);
    assert!(message.contains("element 70"), "{message}");
}

#[test]
fn decays_and_bonuses_whose_exponential_overflows_are_refused() {
    let desk = Desk::new();
    for (version, name, value) in [
        ("v4", "blocks.2.att.time_decay", 89.0),
        ("v4", "blocks.0.att.time_decay", 3e38),
        ("v5.0", "blocks.1.att.time_first", 89.0),
        ("v5.1", "blocks.0.att.time_first", 1000.0),
    ] {
        let mut parts = Parts::of(version);
        parts.get(name).set(3, value);
        let message = desk.tensor_refusal(&parts, &options(DType::Int8), name);
        assert!(message.contains("in element 3, "), "{message}");
    }
}

#[test]
fn extreme_decays_that_have_a_limit_are_converted_to_it() {
    let desk = Desk::new();
    for (version, decay, limit) in [
        ("v4", -1e30, 0.0),
        ("v5.0", 1e30, 0.0),
        ("v5.1", 1e30, 0.0),
        ("v5.2", 1e30, 0.0),
        ("v5.2", -1e30, 1.0),
    ] {
        let mut parts = Parts::of(version);
        parts.get("blocks.1.att.time_decay").set(0, decay);
        let model = desk.convert(&parts, &options(DType::Int8));
        assert_eq!(model.get("blocks.1.att.time_decay")[0], limit, "{version} {decay}");
    }
}

/// A matrix of every role, with a version that has it.
const ROLES: [(&str, &str); 6] = [
    ("v4", "blocks.1.att.key.weight"),
    ("v5.2", "blocks.0.ffn.value.weight"),
    ("v6", "blocks.1.att.time_maa_w2"),
    ("v7", "blocks.0.att.w1"),
    ("v7", "blocks.2.att.g2"),
    ("v4", "head.weight"),
];

#[test]
fn weights_too_large_for_f16_are_refused() {
    let desk = Desk::new();
    for (version, name) in ROLES {
        let mut parts = Parts::of(version);
        let values = parts.get(name).values();
        parts.get(name).fill(SourceDType::F32, values);
        parts.get(name).set(5, 65_519.0);
        desk.convert(&parts, &options(DType::F16));
        std::fs::remove_file(desk.output()).unwrap();
        parts.get(name).set(5, -65_520.0);
        let message = desk.tensor_refusal(&parts, &options(DType::F16), name);
        assert!(message.contains("f16") && message.contains("65520"), "{message}");
    }
}

#[test]
fn an_embedding_that_its_norm_makes_too_large_is_refused() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4");
    parts.get("blocks.0.ln0.weight").fill(SourceDType::F32, [1e6; 64]);
    let message = desk.tensor_refusal(&parts, &options(DType::F16), "emb.weight");
    assert!(message.contains("f16"), "{message}");
    parts.get("blocks.0.ln0.weight").fill(SourceDType::F32, [3e38; 64]);
    for dtype in DTYPES {
        desk.tensor_refusal(&parts, &options(dtype), "emb.weight");
    }
}

/// The largest storable number is 2^32 times the largest fp16 number times the largest code.
#[test]
fn weights_that_no_tensor_scale_makes_fit_are_refused() {
    let desk = Desk::new();
    for (version, name) in ROLES {
        let mut parts = Parts::of(version);
        let values = parts.get(name).values();
        parts.get(name).fill(SourceDType::F32, values);
        parts.get(name).set(9, 1e38);
        for dtype in [DType::Int8, DType::Int4] {
            let message = desk.tensor_refusal(&parts, &options(dtype), name);
            assert!(message.contains("int") && message.contains("e38"), "{message}");
        }
    }
}

#[test]
fn the_tensor_scale_grows_until_large_weights_fit() {
    let desk = Desk::new();
    let factors = [(1e3, 1.0 / 1024.0), (1e6, 1.0 / 16.0), (1e10, 256.0), (1e14, 1_048_576.0)];
    for (version, name) in ROLES.into_iter().filter(|(_, name)| !name.ends_with("w2")) {
        for ((factor, least_scale), dtype) in
            factors.into_iter().flat_map(|f| [(f, DType::Int8), (f, DType::Int4)])
        {
            let mut parts = Parts::of(version);
            let large: Vec<f32> = parts.get(name).values().iter().map(|x| x * factor).collect();
            parts.get(name).fill(SourceDType::F32, large);
            let model = desk.convert(&parts, &options(dtype));
            let tensor = model.0.tensor(name).unwrap();
            assert!(tensor.scale >= least_scale, "{name} {factor}: {}", tensor.scale);
            let expected = parts.get(name).as_out_in();
            let error = relative_error(&model.values(tensor), &expected);
            assert!(
                error < if tensor.dtype.weight() == Some(DType::Int8) { 0.01 } else { 0.1 },
                "{name} {factor} {dtype}: {error}"
            );
            assert!((f64::from(tensor.rel_error) / error - 1.0).abs() < 1e-3, "{} {error}", tensor.rel_error);
        }
    }
}

#[test]
fn tensors_of_zeros_stay_zero() {
    let desk = Desk::new();
    for version in VERSIONS {
        let mut parts = Parts::of(version);
        for part in parts.0.iter_mut() {
            part.bytes.fill(0);
        }
        for dtype in DTYPES {
            let model = desk.convert(&parts, &options(dtype));
            for tensor in model.0.tensors() {
                let stored = tensor.name.contains("time_decay") || tensor.name.contains("time_faaaa");
                if !stored && !tensor.name.ends_with(".crc32") {
                    assert!(
                        model.values(tensor).iter().all(|&x| x == 0.0),
                        "{version} {dtype} {}",
                        tensor.name
                    );
                }
                assert_eq!(tensor.rel_error, 0.0);
            }
            assert_eq!(model.0.provenance().rel_error, 0.0);
        }
    }
}

#[test]
fn weights_below_every_scale_become_zero_and_the_error_says_so() {
    let desk = Desk::new();
    for (version, name) in ROLES.into_iter().filter(|(_, name)| !name.ends_with("w2")) {
        let mut parts = Parts::of(version);
        let n = parts.get(name).elements();
        let tiny = (0..n).map(|i| if i % 2 == 0 { 1e-30 } else { -1e-30 });
        parts.get(name).fill(SourceDType::F32, tiny);
        for dtype in DTYPES {
            let model = desk.convert(&parts, &options(dtype));
            let tensor = model.0.tensor(name).unwrap();
            let kept = dtype == DType::F32;
            assert_eq!(tensor.rel_error, if kept { 0.0 } else { 1.0 }, "{name} {dtype}");
            assert!(
                model.values(tensor).iter().all(|x| x.abs() == if kept { 1e-30 } else { 0.0 }),
                "{name} {dtype}"
            );
        }
    }
}

#[test]
fn one_large_weight_does_not_spoil_the_record_of_the_file() {
    let desk = Desk::new();
    for dtype in [DType::Int8, DType::Int4] {
        let mut parts = Parts::of("v4");
        let name = "blocks.2.ffn.value.weight";
        let mut expected = parts.get(name).values();
        expected[64 * 96 - 1] = 1e9;
        parts.get(name).fill(SourceDType::F32, expected.iter().copied());
        let model = desk.convert(&parts, &options(dtype));
        let found = model.get(name);
        assert!((found[64 * 96 - 1] - 1e9).abs() < 1e7);
        // The other columns keep their own scales, coarser by the subnormal numbers of fp16.
        let others = |values: &[f32]| {
            values.iter().enumerate().filter(|(i, _)| i % 96 != 95).map(|(_, &x)| x).collect()
        };
        let (found, expected): (Vec<f32>, Vec<f32>) = (others(&found), others(&expected));
        let error = relative_error(&found, &expected);
        assert!(error < if dtype == DType::Int8 { 0.05 } else { 0.2 }, "{dtype}: {error}");

        let options = LoadOptions::default();
        let model = rwkv_edge::Model::open(desk.output(), &options).unwrap();
        self_test::run(&model, Some(1)).unwrap();
    }
}

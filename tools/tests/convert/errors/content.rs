//! Names, extra tensors and element types.

use rwkv_edge::kernels::DType;
use rwkv_quantize::source::SourceDType;
use rwkv_quantize::source::torch_writer::{ZipWriter, pickle};

use crate::common::{Desk, Part, Parts, VERSIONS, assert_names, options};

#[test]
fn two_tensors_of_one_name_are_refused_in_both_containers() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate() {
            let prefix = ["", "module.", "_orig_mod.", "model._orig_mod.module."][index % 4];
            let mut doubled = parts.clone();
            doubled.0.push(Part { name: format!("{prefix}{}", part.name), ..part.clone() });
            if index % 2 == 0 {
                desk.put(&doubled.safetensors());
            } else {
                desk.put(&doubled.torch());
            }
            assert_names(&desk.refusal_of_input(&options(DType::Int8)), &part.name);
        }
    }
}

#[test]
fn prefixes_of_wrappers_do_not_change_the_model() {
    let desk = Desk::new();
    let mut parts = Parts::of("v7");
    let model = desk.convert(&parts, &options(DType::Int8));
    parts.0.iter_mut().for_each(|part| part.name.insert_str(0, "module._orig_mod."));
    assert_eq!(desk.convert(&parts, &options(DType::Int8)).tensors(), model.tensors());
}

#[test]
fn tensors_that_the_version_does_not_have_are_refused_by_name() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for extra in [
            "extra",
            "emb.bias",
            "head.bias",
            "blocks.1.ln0.weight",
            "blocks.0.ln3.weight",
            "blocks.1.att.extra",
            "blocks.1.att.key.bias",
            "blocks.01.ln1.weight",
            "blocks.-1.ln1.weight",
            "blocks.0.ffn.key.weight.scale",
            "a\nb\u{1b}[2J",
        ] {
            let mut more = parts.clone();
            more.0.push(Part::new(extra, &[64], SourceDType::BF16, &[0.5; 64]));
            let message = desk.refusal(&more, &options(DType::Int8));
            let shown = extra.escape_debug().to_string();
            assert!(message.contains(&format!("tensor {shown} ")), "{version}: {message}");
        }
    }
}

#[test]
fn element_types_may_be_mixed() {
    let desk = Desk::new();
    for version in VERSIONS {
        let mut parts = Parts::of(version);
        // All types represent these values exactly.
        for part in &mut parts.0 {
            let rounded: Vec<f32> = part.values().iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
            part.fill(SourceDType::BF16, rounded);
        }
        let model = desk.convert(&parts, &options(DType::Int8));
        for shift in 0..4 {
            let mut mixed = parts.clone();
            for (index, part) in mixed.0.iter_mut().enumerate() {
                use SourceDType::{BF16, F16, F32, F64};
                part.fill([F32, BF16, F16, F64][(index + shift) % 4], part.values());
            }
            assert_eq!(desk.convert(&mixed, &options(DType::Int8)).tensors(), model.tensors(), "{version}");
        }
    }
}

/// A torch file whose pickle calls the tensor `index` elements of another type.
fn with_wrong_type(parts: &Parts, index: usize, wrong: SourceDType) -> Vec<u8> {
    let mut specs = parts.specs();
    specs[index].dtype = wrong;
    let mut zip = ZipWriter::new(Vec::new());
    zip.entry("archive/data.pkl", &pickle(&specs)).unwrap();
    for (key, part) in parts.0.iter().enumerate() {
        zip.entry(&format!("archive/data/{key}"), &part.bytes).unwrap();
    }
    zip.finish().unwrap()
}

#[test]
fn a_type_larger_than_its_storage_is_refused() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate() {
            let wrong = [SourceDType::F32, SourceDType::F64][index % 2];
            desk.put(&with_wrong_type(&parts, index, wrong));
            assert_names(&desk.refusal_of_input(&options(DType::Int8)), &part.name);
        }
    }
}

#[test]
fn a_type_smaller_than_its_storage_is_refused() {
    let desk = Desk::new();
    let mut parts = Parts::of("v7");
    for part in &mut parts.0 {
        part.fill(SourceDType::F32, part.values());
    }
    for (index, part) in parts.0.iter().enumerate() {
        let wrong = [SourceDType::F16, SourceDType::BF16][index % 2];
        desk.put(&with_wrong_type(&parts, index, wrong));
        assert_names(&desk.refusal_of_input(&options(DType::Int8)), &part.name);
    }
}

#[test]
fn a_type_that_does_not_go_with_its_bytes_is_refused_in_safetensors() {
    let desk = Desk::new();
    let parts = Parts::of("v6");
    let bytes = parts.safetensors();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(header);
    let header = std::str::from_utf8(header).unwrap();
    for part in &parts.0 {
        let (before, after) = header.split_at(header.find(&format!("{:?}", part.name)).unwrap());
        for wrong in ["F32", "F64", "I8", "F8_E4M3"] {
            let header = [before, &after.replacen("BF16", wrong, 1)].concat();
            desk.put(&[&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat());
            assert_names(&desk.refusal_of_input(&options(DType::Int8)), &part.name);
        }
    }
}

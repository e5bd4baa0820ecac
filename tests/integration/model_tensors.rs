//! Files that are intact but lack the right tensors. Each test is named after the fault.

use std::path::Path;

use crate::common::{convert, fixture, options, session};
use rwkv_edge::format::{
    Config, ElementType, FileContents, FileLayout, ModelFile, ModelWriter, Replace, Target, WriteSpec,
};
use rwkv_edge::kernels::DType;
use rwkv_edge::kernels::layout::records_bytes;
use rwkv_edge::{LoadOptions, Model};

/// Rewrites the file at `from`. `edit` changes each tensor and its bytes, and returns false to
/// leave a tensor out.
fn rewrite(from: &Path, to: &Path, edit: impl FnMut(&mut WriteSpec, &mut Vec<u8>) -> bool) {
    rewrite_as(|_| (), from, to, edit);
}

/// As [`rewrite`], and changes the hyperparameters.
pub(crate) fn rewrite_as(
    change: impl FnOnce(&mut Config),
    from: &Path,
    to: &Path,
    mut edit: impl FnMut(&mut WriteSpec, &mut Vec<u8>) -> bool,
) {
    let file = ModelFile::open(from).unwrap();
    let mut config = file.config().clone();
    change(&mut config);
    let listed = file.tensors().iter().filter(|tensor| !tensor.name.ends_with(".crc32"));
    let edited: Vec<_> = listed
        .filter_map(|tensor| {
            let mut spec = WriteSpec {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                layout: tensor.layout,
                shape: tensor.shape,
                checked_by_record: tensor.checked_by_record,
            };
            let mut bytes = file.bytes(tensor).to_vec();
            edit(&mut spec, &mut bytes).then_some((spec, bytes, tensor.scale))
        })
        .collect();
    let layout = FileLayout::new(FileContents {
        config,
        tokenizer: file.tokenizer_bytes().to_vec(),
        chat: file.chat().clone(),
        provenance: file.provenance().clone(),
        self_test: file.self_test().clone(),
        tensors: edited.iter().map(|(spec, ..)| spec.clone()).collect(),
    });
    let mut writer = ModelWriter::create(Target::new(to, Replace::Models).unwrap(), layout.unwrap()).unwrap();
    for (i, (_, bytes, scale)) in edited.iter().enumerate() {
        writer.begin(i, *scale).unwrap();
        writer.write(bytes).unwrap();
        writer.end(0.0).unwrap();
    }
    writer.finish_data().unwrap();
    writer.finish(file.provenance().clone(), file.self_test().clone()).unwrap();
}

/// The error of loading the int4 file of a fixture after `edit`.
fn error(version: &str, edit: impl FnMut(&mut WriteSpec, &mut Vec<u8>) -> bool) -> String {
    let (folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(DType::Int4));
    let edited = folder.path().join("edited.rwkv");
    rewrite(&path, &edited, edit);
    Model::open(&edited, &LoadOptions::default()).unwrap_err().to_string()
}

#[test]
fn any_tensor_left_out() {
    for version in ["v4", "v7", "v7a"] {
        let (folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(DType::Int4));
        let edited = folder.path().join("edited.rwkv");
        let names: Vec<_> =
            ModelFile::open(&path).unwrap().tensors().iter().map(|t| t.name.clone()).collect();
        for left_out in names.iter().filter(|name| !name.ends_with(".crc32")) {
            rewrite(&path, &edited, |spec, _| spec.name != *left_out);
            let loaded = Model::open(&edited, &LoadOptions::default());
            let message = loaded.expect_err(left_out).to_string();
            // Half a nested head is an unknown variant. For any other missing tensor the error
            // names it.
            let named = if left_out == "head.residual" { "head.bound" } else { left_out };
            let variant = left_out.contains("ffn.value.bound");
            assert!(
                message.contains(named) || variant && message.contains(".bound"),
                "{left_out}: {message}"
            );
        }
    }
}

#[test]
fn a_tensor_that_nothing_reads() {
    let message = error("v7", |spec, _| {
        if spec.name == "blocks.0.att.x_r" {
            spec.name = "blocks.0.att.x_q".into();
        }
        true
    });
    assert!(message.contains("x_q") || message.contains("x_r"), "{message}");
}

#[test]
fn a_second_plane_of_eight_bits() {
    let message = error("v7", |spec, bytes| {
        if spec.name == "head.residual" {
            spec.dtype = ElementType::Int8;
            *bytes = vec![0; records_bytes(DType::Int8, spec.shape[0], spec.shape[1]).unwrap()];
        }
        true
    });
    assert!(message.contains("head.residual is int8, not int4"), "{message}");
}

#[test]
fn a_table_of_deep_embed_of_another_type_than_the_first() {
    let message = error("v7a", |spec, bytes| {
        if spec.name == "blocks.1.ffn.s_emb.weight" {
            spec.dtype = ElementType::Int4;
            *bytes = vec![0; records_bytes(DType::Int4, spec.shape[0], spec.shape[1]).unwrap()];
        }
        true
    });
    assert!(message.contains("blocks.1.ffn.s_emb is int4, that of layer 0 int8"), "{message}");
}

/// Wrong bounds give other tokens, and nothing worse.
#[test]
fn bounds_that_do_not_hold() {
    let (folder, path) = convert(&fixture("v7-tiny.pth"), &options(DType::Int4));
    let edited = folder.path().join("edited.rwkv");
    for bound in [0.0, -1.0, 1e-30, f32::MAX, f32::INFINITY, f32::NAN] {
        rewrite(&path, &edited, |spec, bytes| {
            if spec.name.ends_with(".bound") {
                bytes.as_chunks_mut::<4>().0.fill(bound.to_le_bytes());
            }
            true
        });
        let model = Model::open(&edited, &LoadOptions::default());
        let Ok(model) = model else { continue };
        let mut session = session(&model, 2);
        session.feed(&[1, 2, 3]).unwrap();
        // An error if the logits are not finite.
        let tokens: Vec<_> = (0..8).map_while(|_| session.next_token().ok().flatten()).collect();
        assert!(tokens.iter().all(|&token| (token as usize) < model.config().n_vocab));
    }
}

//! GGUF files: good ones, of every element type, in one file and in parts.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::common::models::{HEADS, LAYERS, WIDTH, blinkdl};
use crate::common::{Filled, Folder, open, read};
use crate::gguf_writer::{Gguf, Kind, Style, Tensor, Value, Weights, llama_cpp, part_name, transposed};
use rwkv_edge::format::Version;
use rwkv_quantize::source::torch_writer::TorchWriter;
use rwkv_quantize::source::{BlockType, Checkpoint, Container, Naming, SourceDType, SourceError, detect};

pub(crate) const STYLE: Style = Style { kind: Kind::F32, fused: true, rescale: 0, head_size: WIDTH / HEADS };

pub(crate) fn weights(model: Vec<Filled>) -> Vec<Weights> {
    model.into_iter().map(|Filled { name, shape, values }| Weights { name, shape, values }).collect()
}

fn arch(version: Version) -> &'static str {
    if version == Version::V6 { "rwkv6" } else { "rwkv7" }
}

/// A whole tiny model.
pub(crate) fn model(version: Version, style: Style) -> Gguf {
    llama_cpp(arch(version), &weights(blinkdl(version)), style)
}

/// A file of one layer with one tensor, and an embedding of `rows` by `columns` of the type with
/// the number `kind`.
pub(crate) fn one_layer(rows: u64, columns: u64, kind: u32, data: Vec<u8>) -> Gguf {
    let keys = vec![
        ("general.architecture".to_owned(), Value::text("rwkv7")),
        ("rwkv7.embedding_length".to_owned(), Value::U32(columns as u32)),
        ("rwkv7.block_count".to_owned(), Value::U32(1)),
        ("rwkv7.wkv.head_size".to_owned(), Value::U32(64)),
    ];
    let norm: Vec<f32> = (0..columns).map(|n| n as f32).collect();
    let tensors = vec![
        Tensor::new("blk.0.attn_norm.weight", &[columns], 0, Kind::F32.encode(&norm)),
        Tensor::new("token_embd.weight", &[rows, columns], kind, data),
    ];
    Gguf::new(keys, tensors)
}

/// Fails unless the file holds the tensors of `model`, which is in BlinkDL's form.
#[track_caller]
fn assert_same(checkpoint: &Checkpoint, model: &[Filled]) {
    for expected in weights(model.to_vec()) {
        let tensor = checkpoint.get(&expected.name).unwrap_or_else(|| panic!("no {}", expected.name));
        let found = Weights {
            name: expected.name.clone(),
            shape: tensor.shape.clone(),
            values: read(checkpoint, &expected.name),
        };
        let found = if tensor.transposed { transposed(&found) } else { found };
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        assert_eq!(squeezed(&found.shape), squeezed(&expected.shape), "{}", expected.name);
        assert_eq!(found.values, expected.values, "{}", expected.name);
    }
}

#[test]
fn models_of_llama_cpp_agree_with_blinkdls() {
    for version in [Version::V6, Version::V7] {
        for kind in [Kind::F32, Kind::F16, Kind::Bf16] {
            for fused in [true, false] {
                // Numbers above 256 would be rounded in BF16.
                let mut model = blinkdl(version);
                model.iter_mut().flat_map(|tensor| &mut tensor.values).for_each(|value| *value %= 256.0);
                let style = Style { kind, fused, ..STYLE };
                let file = open(&llama_cpp(arch(version), &weights(model.clone()), style).bytes()).unwrap();
                assert_eq!((file.container(), file.naming()), (Container::Gguf, Naming::LlamaCpp));
                assert_eq!(detect(&file).unwrap(), version);
                assert_same(&file, &model);
                // Layer 0 of RWKV-7 has three tensors more.
                let dummies = if version == Version::V7 { 3 } else { 0 };
                assert_eq!(file.tensors().len(), model.len() + dummies);
                assert_eq!(file.layer_norm_eps(), Some(1e-5));
            }
        }
    }
}

#[test]
fn halved_matrices_of_rwkv_6_are_doubled_as_often() {
    let model = blinkdl(Version::V6);
    for rescale in 1..=LAYERS {
        let style = Style { rescale, ..STYLE };
        let file = llama_cpp("rwkv6", &weights(model.clone()), style);
        let halved = file.tensors.iter().find(|t| t.name == "blk.1.time_mix_output.weight").unwrap();
        let output = model.iter().find(|t| t.name == "blocks.1.att.output.weight").unwrap();
        assert_eq!(halved.data == Kind::F32.encode(&output.values), rescale == 2);
        assert_same(&open(&file.bytes()).unwrap(), &model);
    }
}

#[test]
fn rwkv_7_is_never_rescaled() {
    let model = blinkdl(Version::V7);
    let file = llama_cpp("rwkv7", &weights(model.clone()), STYLE);
    let file = file.with("rwkv7.rescale_every_n_layers", Value::U32(1));
    assert_same(&open(&file.bytes()).unwrap(), &model);
}

#[test]
fn copies_in_layer_0_may_be_missing_or_have_any_rank() {
    let mut file = model(Version::V7, STYLE);
    file.tensor("blk.0.time_mix_v1.weight").shape = vec![1, 3 * WIDTH as u64];
    assert_eq!(detect(&open(&file.bytes()).unwrap()).unwrap(), Version::V7);
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk.0.time_mix_v"));
    // The projection is called so, too.
    let value = Tensor::new("blk.0.time_mix_value.weight", &[8, 8], 0, Kind::F32.encode(&[0.0; 64]));
    file.tensors.push(value);
    assert_eq!(detect(&open(&file.bytes()).unwrap()).unwrap(), Version::V7);
}

#[test]
fn fused_mixes_of_another_number_are_refused() {
    for (version, rows) in [(Version::V7, 5), (Version::V6, 6)] {
        let mut file = model(version, STYLE);
        let mixes = file.tensor("blk.1.time_mix_lerp_fused.weight");
        mixes.shape[0] = rows;
        mixes.data.resize(4 * rows as usize * WIDTH, 0);
        let message = open(&file.bytes()).unwrap_err().to_string();
        assert!(message.contains("lerp_fused") && message.contains("1, 1, width"), "{message}");
    }
}

fn hex(digits: &serde_json::Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap().as_bytes().as_chunks::<2>().0.iter();
    digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// `make_gguf_vectors.py` makes the vectors.
#[test]
fn every_block_type_decodes_to_the_values_of_the_gguf_package() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../data/gguf_vectors.json")).unwrap();
    let vectors = vectors.as_object().unwrap();
    assert_eq!(vectors.len(), 10);
    for (name, vector) in vectors {
        let expected: Vec<f32> =
            hex(&vector["values"]).as_chunks::<4>().0.iter().map(|&raw| f32::from_le_bytes(raw)).collect();
        let kind = vector["type"].as_u64().unwrap() as u32;
        let columns = expected.len() as u64 / 2;
        let file = one_layer(2, columns, kind, hex(&vector["blocks"]));
        let file = open(&file.bytes()).unwrap();
        let emb = file.get("emb.weight").unwrap();
        assert_eq!(emb.dtype.to_string(), *name);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read(&file, "emb.weight")), bits(&expected), "{name}");
        // Any part, wherever it begins and ends in a block.
        for (start, len) in
            [(0, 1), (1, 31), (31, 2), (33, 200), (100, 156), (255, 1), (7, expected.len() - 9)]
        {
            let len = len.min(expected.len() - start);
            let mut out = vec![f32::NAN; len];
            file.read(emb, start, &mut out).unwrap();
            assert_eq!(bits(&out), bits(&expected[start..start + len]), "{name} {start} {len}");
        }
    }
}

#[test]
fn blocks_are_not_written_as_torch_files() {
    let spec = crate::common::spec("x", &[256], SourceDType::Block(BlockType::Q6K));
    let message = TorchWriter::new(Vec::new(), "archive", &[spec]).unwrap_err().to_string();
    assert!(message.contains("tensor x") && message.contains("Q6_K"), "{message}");
}

#[test]
fn a_tensor_larger_than_the_buffer_is_read_as_a_whole() {
    // 60,000 blocks, each of which has a scale and integers of its own.
    let block = |n: u32| {
        let scale = half::f16::from_f32((1 + n % 100) as f32 / 64.0);
        let integers = (0..32).map(move |i| ((n * 7 + i) % 251) as u8);
        (scale, integers)
    };
    let blocks = (0..60_000).map(block);
    let data = blocks.clone().flat_map(|(scale, q)| scale.to_le_bytes().into_iter().chain(q)).collect();
    let values = blocks.flat_map(|(scale, q)| q.map(move |q| scale.to_f32() * f32::from(q as i8)));
    let file = open(&one_layer(600, 3200, 8, data).bytes()).unwrap();
    assert!(read(&file, "emb.weight").into_iter().eq(values));
}

#[test]
fn element_types_are_listed_once_each() {
    let file = model(Version::V7, Style { kind: Kind::F16, ..STYLE });
    let types = open(&file.bytes()).unwrap().dtypes();
    assert_eq!(types, BTreeSet::from([SourceDType::F32, SourceDType::F16]));
}

/// Writes a model in parts; returns their paths.
fn parts(folder: &Folder, file: &Gguf, tensors: usize) -> Vec<PathBuf> {
    let parts = file.parts(tensors);
    let write = |(number, part): (usize, &Gguf)| {
        let path = folder.path(&part_name("model", number, parts.len()));
        std::fs::write(&path, part.bytes()).unwrap();
        path
    };
    (1..).zip(&parts).map(write).collect()
}

#[track_caller]
fn refusal(result: Result<Checkpoint, SourceError>) -> String {
    let message = result.map(drop).expect_err("the file was accepted").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn a_checkpoint_in_parts_is_opened_by_any_of_them() {
    let model = blinkdl(Version::V6);
    let file = llama_cpp("rwkv6", &weights(model.clone()), Style { rescale: 1, ..STYLE });
    let folder = Folder::new();
    let paths = parts(&folder, &file, file.tensors.len().div_ceil(3));
    assert_eq!(paths.len(), 3);
    for path in &paths {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(detect(&checkpoint).unwrap(), Version::V6);
        assert_same(&checkpoint, &model);
        assert!(checkpoint.paths().eq(&paths));
        let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!(checkpoint.file_len(), bytes);
    }
}

#[test]
fn a_missing_part_is_named() {
    let folder = Folder::new();
    let paths = parts(&folder, &model(Version::V7, STYLE), 20);
    std::fs::remove_file(&paths[1]).unwrap();
    for path in [&paths[0], &paths[2]] {
        let message = refusal(Checkpoint::open(path));
        assert!(message.contains("part 2 of 4 is missing"), "{message}");
        assert!(message.contains(&part_name("model", 2, 4)), "{message}");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let folder = Folder::new();
    let file = model(Version::V7, STYLE);
    let paths = parts(&folder, &file, 40);
    // Under another name.
    let renamed = folder.path("renamed.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    assert!(refusal(Checkpoint::open(&renamed)).contains("-00001-of-00002.gguf"));
    // A part in place of another.
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    assert!(refusal(Checkpoint::open(&paths[0])).contains("part 2 of 2"));
    // A part that lacks a tensor.
    let mut second = file.parts(40).remove(1);
    second.tensors.pop();
    std::fs::write(&paths[1], second.bytes()).unwrap();
    let message = refusal(Checkpoint::open(&paths[0]));
    assert!(message.contains(&format!("{} tensors of {}", file.tensors.len() - 1, file.tensors.len())));
    // Something else.
    std::fs::write(&paths[1], b"PK\x03\x04").unwrap();
    assert!(refusal(Checkpoint::open(&paths[0])).contains("no GGUF"));
}

#[test]
fn numbers_of_parts_that_cannot_be_are_refused() {
    let file = model(Version::V7, STYLE);
    for (count, number, word) in [(257, 0, "limit"), (2, 2, "split.no"), (u16::MAX, 0, "limit")] {
        let file = file.with("split.count", Value::U16(count)).with("split.no", Value::U16(number));
        assert!(refusal(open(&file.bytes())).contains(word), "{count} {number}");
    }
    let file = file.with("split.count", Value::U16(3));
    assert!(refusal(open(&file.bytes())).contains("split.no"));
}

#[test]
fn one_part_is_a_whole_checkpoint() {
    let file = model(Version::V7, STYLE).parts(1000).remove(0);
    assert_eq!(detect(&open(&file.bytes()).unwrap()).unwrap(), Version::V7);
}

#[test]
fn the_vocabulary_and_the_template_are_read() {
    let texts = ["<s>", r"\x00", "it's", "[PAD3]"].map(String::from).to_vec();
    let file = model(Version::V7, STYLE)
        .with("tokenizer.ggml.model", Value::text("rwkv"))
        .with("tokenizer.ggml.tokens", Value::Texts(texts.clone()))
        .with("tokenizer.chat_template", Value::text("rwkv-world"));
    let checkpoint = open(&file.bytes()).unwrap();
    assert_eq!(checkpoint.chat_template(), Some("rwkv-world"));
    let vocabulary = checkpoint.vocabulary().unwrap().unwrap();
    assert_eq!(vocabulary.tokenizer, "rwkv");
    assert!(vocabulary.tokens.iter().map(|token| &token.text).eq(&texts));
    assert!(vocabulary.tokens.iter().all(|token| token.kind.is_none()));
    let file = file.with("tokenizer.ggml.token_type", Value::I32s(vec![3, 1, 1, 5]));
    let vocabulary = open(&file.bytes()).unwrap().vocabulary().unwrap().unwrap();
    assert!(vocabulary.tokens.iter().map(|token| token.kind.unwrap()).eq([3, 1, 1, 5]));
    // The stub of models without a tokenizer has no tokens.
    let stub = model(Version::V7, STYLE).with("tokenizer.ggml.model", Value::text("no_vocab"));
    assert_eq!(open(&stub.bytes()).unwrap().vocabulary().unwrap(), None);
}

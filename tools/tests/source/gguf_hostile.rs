//! GGUF files that are refused: other models, and attacks on headers, metadata and tensors.

use crate::common::{Folder, assert_every_cut_is_refused, assert_refused, open};
use crate::gguf::{STYLE, model, one_layer};
use crate::gguf_writer::{Gguf, Kind, Tensor, Value, counted};
use rwkv_edge::format::Version;
use rwkv_quantize::source::{Checkpoint, detect};

fn tiny() -> Gguf {
    one_layer(3, 4, 0, Kind::F32.encode(&[0.5; 12]))
}

/// The fields of the header, as they are.
fn header(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    [
        b"GGUF".to_vec(),
        version.to_le_bytes().to_vec(),
        tensors.to_le_bytes().to_vec(),
        keys.to_le_bytes().to_vec(),
    ]
    .concat()
}

/// A file whose only metadata are one value of the type `kind`.
fn with_value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [header(3, 0, 1), counted("key"), kind.to_le_bytes().to_vec(), bytes.to_vec()].concat()
}

fn list(kind: u32, len: u64) -> Vec<u8> {
    [kind.to_le_bytes().to_vec(), len.to_le_bytes().to_vec()].concat()
}

#[test]
fn other_versions_and_byte_orders_are_refused_with_a_remedy() {
    assert!(open(&tiny().bytes()).is_ok());
    for version in [0, 1, 2, 4, u32::MAX] {
        let file = Gguf { version, ..tiny() };
        assert_refused(&file.bytes(), &[&format!("GGUF version {version}"), "convert the original"]);
    }
    for version in [2, 3] {
        let file = Gguf { version: u32::swap_bytes(version), ..tiny() };
        assert_refused(&file.bytes(), &["big-endian", "little-endian", "original"]);
    }
}

#[test]
fn other_architectures_are_refused_with_a_remedy() {
    for (arch, parts) in [
        ("arwkv7", ["Qwen2", "run it with llama.cpp"]),
        ("rwkv6qwen2", ["Qwen2", "run it with llama.cpp"]),
        ("llama", ["not RWKV", "rwkv6 and rwkv7 are read"]),
        ("rwkv5", ["not RWKV", "rwkv6 and rwkv7 are read"]),
        ("a\nb", ["a\\nb", "not RWKV"]),
    ] {
        assert_refused(&tiny().with("general.architecture", Value::text(arch)).bytes(), &parts);
    }
    assert_refused(&tiny().with("general.architecture", None).bytes(), &["general.architecture"]);
    assert_refused(&tiny().with("general.architecture", Value::U32(7)).bytes(), &["not a text"]);
    assert_refused(&tiny().with("rwkv7.token_shift_count", Value::U32(1)).bytes(), &["hybrid", "llama.cpp"]);
    assert!(open(&tiny().with("rwkv7.token_shift_count", Value::U32(2)).bytes()).is_ok());
}

#[test]
fn files_of_other_types_are_refused() {
    assert!(open(&tiny().with("general.type", Value::text("model")).bytes()).is_ok());
    let of = |kind: &str| tiny().with("general.type", Value::text(kind)).bytes();
    assert_refused(&of("adapter"), &["LoRA adapter", "llama-export-lora"]);
    assert_refused(&of("imatrix"), &["imatrix", "no model"]);
    assert_refused(&Gguf { tensors: vec![], ..tiny() }.bytes(), &["no tensors"]);
}

#[test]
fn element_types_that_are_not_read_are_named_with_a_remedy() {
    for (kind, name) in
        [(10, "Q2_K"), (11, "Q3_K"), (19, "IQ1_S"), (26, "I32"), (35, "TQ2_0"), (99, "type 99")]
    {
        let mut file = tiny();
        file.tensor("token_embd.weight").kind = kind;
        assert_refused(&file.bytes(), &["token_embd.weight", name, "F16, BF16 or Q8_0"]);
    }
}

#[test]
fn every_cut_of_a_model_is_refused() {
    assert_every_cut_is_refused(&tiny().with("list", Value::Texts(vec!["a".into(), "b".into()])).bytes());
}

#[test]
fn a_model_without_some_tensors_is_refused_by_their_name() {
    let whole = model(Version::V7, STYLE);
    for missing in ["blk.1.time_mix_w1.weight", "output.weight", "blk.0.time_mix_lerp_fused.weight"] {
        let mut file = whole.clone();
        file.tensors.retain(|tensor| tensor.name != missing);
        // The name of a part gives no advice about an index.
        let folder = Folder::new();
        let path = folder.path("model-00001-of-00002.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let message = detect(&Checkpoint::open(&path).unwrap()).unwrap_err().to_string();
        assert!(message.contains("incomplete") && message.contains("llama.cpp"), "{message}");
    }
    let mut file = whole.clone();
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk.1."));
    assert_refused(&file.bytes(), &["2 layers", "make 1"]);
}

#[test]
fn tensors_with_names_of_something_else_are_refused() {
    for name in
        ["blk.0.attn_q.weight", "blk.0.attn_norm", "blk.00.attn_norm.bias", "blk.x.y", "emb.weight", "x\ty"]
    {
        let mut file = tiny();
        file.tensors.push(Tensor::new(name, &[4], 0, vec![0; 16]));
        assert_refused(&file.bytes(), &["no place in an rwkv7 model of llama.cpp"]);
    }
}

#[test]
fn metadata_that_contradict_the_tensors_are_refused() {
    for (key, value, part) in [
        ("rwkv7.block_count", 2, "2 layers"),
        ("rwkv7.embedding_length", 5, "rows of 5"),
        ("rwkv7.block_count", 0, "rwkv7.block_count is 0"),
        ("rwkv7.wkv.head_size", 0, "rwkv7.wkv.head_size is 0"),
    ] {
        assert_refused(&tiny().with(key, Value::U32(value)).bytes(), &[part]);
        assert_refused(&tiny().with(key, None).bytes(), &["lack", key]);
        assert_refused(&tiny().with(key, Value::F32(1.0)).bytes(), &["not a whole number"]);
        assert_refused(&tiny().with(key, Value::I32(-1)).bytes(), &["is -1"]);
    }
    let heads = model(Version::V7, STYLE).with("rwkv7.wkv.head_size", Value::U32(3));
    assert_refused(&heads.bytes(), &["time_mix_r_k", "heads of 3"]);
    let heads = model(Version::V6, STYLE).with("rwkv6.wkv.head_size", Value::U32(8));
    assert_refused(&heads.bytes(), &["time_mix_first", "heads of 8"]);
}

#[test]
fn huge_counts_are_refused_before_anything_is_read() {
    for count in [u64::MAX, 1 << 40, 1 << 17] {
        assert_refused(&header(3, 0, count), &["metadata keys"]);
    }
    for count in [u64::MAX, 1 << 40, (1 << 17) + 1] {
        assert_refused(&header(3, count, 0), &["entries"]);
    }
    // As many as there may be, of which there are none.
    assert_refused(&header(3, 1 << 17, 0), &["ends before"]);
    assert_refused(&header(3, 0, 1 << 16), &["ends before"]);
}

#[test]
fn huge_lengths_of_texts_and_lists_are_refused() {
    for len in [u64::MAX, u64::MAX / 8, 1 << 40, 100] {
        let text = [len.to_le_bytes().to_vec(), vec![0; 64]].concat();
        assert_refused(&with_value(8, &text), &["ends before"]);
        for kind in [0, 3, 5, 7, 8, 9, 12] {
            let message = crate::common::refusal(&with_value(9, &[list(kind, len), vec![0; 64]].concat()));
            assert!(["ends before", "without end"].iter().any(|part| message.contains(part)), "{message}");
        }
    }
    let key = [header(3, 0, 1), u64::MAX.to_le_bytes().to_vec()].concat();
    assert_refused(&key, &["a metadata key of"]);
    let name = [header(3, 1, 0), u64::MAX.to_le_bytes().to_vec()].concat();
    assert_refused(&name, &["a tensor name of"]);
}

#[test]
fn lists_in_lists_end_at_a_depth() {
    let nested = |depth: usize| [list(9, 1).repeat(depth - 1), list(0, 1), vec![7]].concat();
    assert!(open(&tiny().with("key", Value::Raw(9, nested(4))).bytes()).is_ok());
    for depth in [5, 100_000] {
        assert_refused(&with_value(9, &nested(depth)), &["lists in each other"]);
    }
    // Many empty lists.
    let wide = [list(9, 1000), list(9, 0).repeat(1000)].concat();
    assert!(open(&tiny().with("key", Value::Raw(9, wide)).bytes()).is_ok());
}

#[test]
fn every_type_of_metadata_is_skipped() {
    for (kind, len) in
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)]
    {
        assert!(open(&tiny().with("key", Value::Raw(kind, vec![0; len])).bytes()).is_ok(), "{kind}");
        let items = [list(kind, 3), vec![0; 3 * len]].concat();
        assert!(open(&tiny().with("key", Value::Raw(9, items)).bytes()).is_ok(), "{kind}");
    }
    for kind in [13, u32::MAX] {
        assert_refused(&with_value(kind, &[0; 8]), &["unknown type"]);
        assert_refused(&with_value(9, &list(kind, 1)), &["unknown type"]);
    }
}

#[test]
fn names_that_occur_twice_are_refused() {
    let mut file = tiny();
    file.keys.push(("rwkv7.block_count".to_owned(), Value::U32(1)));
    assert_refused(&file.bytes(), &["rwkv7.block_count", "twice"]);
    let mut file = tiny();
    file.tensors.push(Tensor::new("token_embd.weight", &[3, 4], 0, vec![0; 48]));
    assert_refused(&file.bytes(), &["emb.weight", "two"]);
    // The mixes of a layer, joined and apart.
    let mut file = model(Version::V7, STYLE);
    file.tensors.push(Tensor::new("blk.0.time_mix_lerp_r.weight", &[8], 0, vec![0; 32]));
    assert_refused(&file.bytes(), &["blocks.0.att.x_r", "two"]);
}

#[test]
fn texts_that_are_not_utf8_are_refused() {
    let mut bytes = tiny().bytes();
    let at = bytes.windows(10).position(|window| window == b"token_embd").unwrap();
    bytes[at] = 0xff;
    assert_refused(&bytes, &["a tensor name", "UTF-8"]);
}

#[test]
fn alignments_that_cannot_be_are_refused_and_others_are_kept() {
    for alignment in [0, 3, 24, u32::MAX] {
        assert_refused(&tiny().with("general.alignment", Value::U32(alignment)).bytes(), &["power of two"]);
    }
    assert_refused(&tiny().with("general.alignment", Value::text("32")).bytes(), &["not a whole number"]);
    for alignment in [1, 8, 64, 4096] {
        let file = Gguf { alignment, ..tiny() };
        let file = file.with("general.alignment", Value::U32(alignment as u32));
        let file = open(&file.bytes()).unwrap();
        assert_eq!(crate::common::read(&file, "emb.weight"), [0.5; 12]);
    }
    // Beyond the file.
    assert_refused(&tiny().with("general.alignment", Value::U32(1 << 31)).bytes(), &["cut off"]);
}

#[test]
fn tensors_outside_the_file_in_each_other_or_misaligned_are_refused() {
    for (offset, part) in [
        (16, "multiple of 32"),
        (0, "inside the tensor before"),
        (64, "cut off"),
        (1 << 40, "cut off"),
        (u64::MAX - 31, "cut off"),
    ] {
        let mut file = tiny();
        file.tensor("token_embd.weight").offset = Some(offset);
        assert_refused(&file.bytes(), &["tensor ", part]);
    }
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    for (shape, part) in [
        (vec![1; 5], "at most 4 dimensions"),
        (vec![u64::MAX, 4], "cut off"),
        (vec![1 << 32, 1 << 32], "cut off"),
        (vec![1 << 16, 1 << 16, 1 << 16, 1 << 16], "cut off"),
        (vec![1 << 62], "cut off"),
        (vec![4, 4], "cut off"),
    ] {
        let mut file = tiny();
        file.tensor("token_embd.weight").shape = shape;
        assert_refused(&file.bytes(), &["token_embd.weight", part]);
    }
    // A row of half a block, and a count of dimensions without dimensions.
    let mut file = one_layer(2, 32, 8, vec![0; 68]);
    file.tensor("token_embd.weight").shape = vec![4, 16];
    assert_refused(&file.bytes(), &["token_embd.weight", "whole blocks of 32"]);
    let many = [header(3, 1, 0), counted("x"), u32::MAX.to_le_bytes().to_vec()].concat();
    assert_refused(&many, &["tensor x", "dimensions"]);
}

#[test]
fn vocabularies_that_cannot_be_are_refused() {
    let of = |tokens: Value, kinds: Value| {
        tiny()
            .with("tokenizer.ggml.model", Value::text("rwkv"))
            .with("tokenizer.ggml.tokens", tokens)
            .with("tokenizer.ggml.token_type", kinds)
    };
    let texts = |texts: &[&str]| Value::Texts(texts.iter().map(|&text| text.to_owned()).collect());
    let good = of(texts(&["<s>", "a"]), Value::I32s(vec![3, 1]));
    assert!(open(&good.bytes()).unwrap().vocabulary().unwrap().is_some());
    assert_refused(&of(texts(&["<s>", "a"]), Value::I32s(vec![3])).bytes(), &["1 kinds of 2 tokens"]);
    assert_refused(&of(Value::I32s(vec![1]), Value::I32s(vec![1])).bytes(), &["not a list of texts"]);
    assert_refused(&of(texts(&["a"]), texts(&["a"])).bytes(), &["not a list of 32-bit"]);
    let long = of(texts(&["<s>", &"a".repeat(5000)]), Value::I32s(vec![3, 1]));
    let message = open(&long.bytes()).unwrap().vocabulary().unwrap_err().to_string();
    assert!(message.contains("a token of 5000 bytes"), "{message}");
}

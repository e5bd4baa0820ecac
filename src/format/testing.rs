//! A small valid model file for tests. `tests/integration/format_corrupt.rs` includes this module
//! too, so it uses only the public interface, through its parent.

use std::path::Path;

use super::{
    Arch, Chat, Config, ElementType, FileContents, FileLayout, ModelWriter, Provenance, Replace, SelfTest,
    Target, TensorLayout, Variant, WriteSpec,
};

pub(crate) const N_VOCAB: usize = 16;
/// Large enough that no two types of records have the same size.
pub(crate) const N_EMBD: usize = 130;
pub(crate) const N_ATT: usize = 20;
pub(crate) const N_FFN: usize = 24;

/// Everything except the tensors' bytes. There is one tensor of each layout and type.
pub(crate) fn contents() -> FileContents {
    let spec = |name: &str, dtype, layout, shape| {
        let checked_by_record = layout == TensorLayout::RowRecords;
        WriteSpec { name: name.into(), dtype, layout, shape, checked_by_record }
    };
    FileContents {
        config: Config {
            n_layer: 1,
            n_embd: N_EMBD,
            n_att: N_ATT,
            n_ffn: N_FFN,
            n_vocab: N_VOCAB,
            layer_norm_eps: 1e-5,
            arch: Arch::V4,
            variant: Variant::Plain,
        },
        tokenizer: b"a tokenizer".to_vec(),
        chat: Chat {
            name: "world".into(),
            user: Some("User: {user}\n\nAssistant:".into()),
            stop_tokens: vec![0],
            stop_texts: vec!["\n\n".into()],
            ..Chat::default()
        },
        provenance: Provenance {
            source_name: "tiny.pth".into(),
            source_format: "pth".into(),
            converter: "test".into(),
            ..Provenance::default()
        },
        self_test: SelfTest { tokens: vec![1, 2, 3], logits_sha256: [0; 32] },
        tensors: vec![
            spec("ln.weight", ElementType::F32, TensorLayout::Vector, [N_EMBD, 1]),
            spec("att.key.weight", ElementType::Int8, TensorLayout::Interleaved, [N_ATT, N_EMBD]),
            spec("ffn.value.weight", ElementType::Int4, TensorLayout::ColumnRecords, [N_EMBD, N_FFN]),
            spec("head.weight", ElementType::F16, TensorLayout::Interleaved, [N_VOCAB, N_EMBD]),
            spec("emb.weight", ElementType::Int8, TensorLayout::RowRecords, [N_VOCAB, N_EMBD]),
        ],
    }
}

/// Arbitrary bytes whose f32 values are small positive numbers.
pub(crate) fn tensor_bytes(index: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| if i % 4 == 3 { 0x3f } else { (i * 7 + index * 31) as u8 }).collect()
}

/// The tensor scale that the test file gives to a tensor.
pub(crate) fn scale(dtype: ElementType) -> f32 {
    if matches!(dtype, ElementType::Int8 | ElementType::Int4) { 0.25 } else { 1.0 }
}

/// A target for a file that may replace any other.
pub(crate) fn target(path: &Path) -> Target {
    Target::new(path, Replace::Any).unwrap()
}

/// A writer for the file at `path`. All tensors have been written, in pieces of `piece` bytes.
pub(crate) fn writer_with_data(path: &Path, piece: usize) -> ModelWriter {
    let mut writer = ModelWriter::create(target(path), FileLayout::new(contents()).unwrap()).unwrap();
    for (i, spec) in contents().tensors.iter().enumerate() {
        let len = writer.layout().tensors().iter().find(|tensor| tensor.name == spec.name).unwrap().len;
        writer.begin(i, scale(spec.dtype)).unwrap();
        tensor_bytes(i, len as usize).chunks(piece).for_each(|bytes| writer.write(bytes).unwrap());
        writer.end(0.001 * i as f32).unwrap();
    }
    writer
}

/// The bytes of the file.
pub(crate) fn model_bytes() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("tiny.rwkv");
    let provenance = Provenance { source_bytes: 99, rel_error: 0.5, ..contents().provenance };
    let self_test = SelfTest { logits_sha256: [9; 32], ..contents().self_test };
    writer_with_data(&target, 1000).finish(provenance, self_test).unwrap();
    std::fs::read(target).unwrap()
}

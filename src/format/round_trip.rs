//! Tests of writer and reader together.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::testing::{
    N_ATT, N_EMBD, N_FFN, N_VOCAB, contents, model_bytes, target as target_of, tensor_bytes, writer_with_data,
};
use super::{FileLayout, ModelFile, ModelWriter, SelfTest, TensorLayout};
use crate::error::{ErrorKind, Result};

fn file_names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn everything_written_is_read_back() {
    let file = ModelFile::from_vec(model_bytes()).unwrap();
    let contents = contents();
    assert_eq!(file.config(), &contents.config);
    assert_eq!(file.chat(), &contents.chat);
    assert_eq!(file.tokenizer_bytes(), contents.tokenizer);
    assert_eq!(file.provenance().source_bytes, 99);
    assert_eq!(file.provenance().source_name, "tiny.pth");
    assert_eq!(file.self_test().logits_sha256, [9; 32]);
    assert_eq!(file.format_version(), (1, 0));
    for (i, spec) in contents.tensors.iter().enumerate() {
        let tensor = file.tensor(&spec.name).unwrap();
        assert_eq!((tensor.dtype, tensor.layout, tensor.shape), (spec.dtype, spec.layout, spec.shape));
        assert_eq!(file.bytes(tensor), tensor_bytes(i, tensor.len as usize), "{}", spec.name);
        assert_eq!(tensor.rel_error, 0.001 * i as f32);
        file.verify(tensor).unwrap();
    }
    file.verify_all().unwrap();
    file.verify_embedding().unwrap();
}

#[test]
fn sizes_add_up_to_the_file() {
    let bytes = model_bytes();
    let file = ModelFile::from_vec(bytes.clone()).unwrap();
    assert_eq!(file.file_len(), bytes.len() as u64);
    assert_eq!(file.file_len(), FileLayout::new(contents()).unwrap().file_len());
    assert_eq!(file.embedding_bytes(), (N_VOCAB * 256) as u64);
    assert_eq!(file.data_bytes(), file.file_len() - file.tensors()[0].offset);
}

#[test]
fn bytes_do_not_depend_on_the_pieces_in_which_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let written = |piece| {
        let target = directory.path().join("m.rwkv");
        writer_with_data(&target, piece).finish(contents().provenance, contents().self_test).unwrap();
        fs::read(target).unwrap()
    };
    let whole = written(usize::MAX);
    let pieces = if cfg!(miri) { &[257] } else { [1, 3, 255, 256, 257, 1000].as_slice() };
    for &piece in pieces {
        assert!(written(piece) == whole, "pieces of {piece} bytes");
    }
}

#[test]
fn typed_lookups_give_views_of_the_right_bytes() {
    let file = ModelFile::from_vec(model_bytes()).unwrap();
    let bytes = |name: &str| file.bytes(file.tensor(name).unwrap());
    let matrix = file.matrix(file.matrix_handle("att.key.weight", N_ATT, N_EMBD).unwrap());
    assert_eq!((matrix.rows(), matrix.cols(), matrix.scale()), (N_ATT, N_EMBD, 0.25));
    assert_eq!(matrix.data(), bytes("att.key.weight"));
    let columns =
        file.records_handle("ffn.value.weight", TensorLayout::ColumnRecords, [N_EMBD, N_FFN]).unwrap();
    let columns = file.records(columns);
    assert_eq!((columns.count(), columns.record_len()), (N_FFN, N_EMBD));
    let rows = file.records_handle("emb.weight", TensorLayout::RowRecords, [N_VOCAB, N_EMBD]).unwrap();
    assert_eq!(file.records(rows).data(), bytes("emb.weight"));
    let mut row = vec![0; rows.stride()];
    for i in 0..N_VOCAB {
        file.read_record(rows, i, &mut row).unwrap();
    }
    assert!(file.read_record(rows, N_VOCAB, &mut row).is_err());
    let vector = file.vector(file.vector_handle("ln.weight", N_EMBD).unwrap());
    let first = tensor_bytes(0, 4);
    assert_eq!(vector[0], f32::from_le_bytes([first[0], first[1], first[2], first[3]]));
    let crcs = file.u32s(file.u32_handle("emb.weight.crc32", N_VOCAB).unwrap());
    assert_eq!(crcs[3], crc32fast::hash(file.records(rows).record(3)));
}

#[test]
fn lookups_name_tensor_expectation_and_finding() {
    let file = ModelFile::from_vec(model_bytes()).unwrap();
    let error = message(file.matrix_handle("att.key.weight", 20, 9));
    assert_eq!(
        error,
        "tensor att.key.weight: expected interleaved [20, 9], found int8 interleaved [20, 130]"
    );
    let error = message(file.vector_handle("ln.weight", 9));
    assert_eq!(error, "tensor ln.weight: expected f32 vector [9, 1], found f32 vector [130, 1]");
    assert!(message(file.u32_handle("ln.weight", N_EMBD)).contains("expected u32"));
    assert!(message(file.matrix_handle("emb.weight", N_VOCAB, N_EMBD)).contains("found int8 row records"));
    assert!(message(file.tensor("emb")).contains("tensor emb is missing"));
    let vector = file.records_handle("ln.weight", TensorLayout::Vector, [N_EMBD, 1]);
    assert!(message(vector).contains("no records"));
}

#[test]
fn a_handle_of_another_file_is_never_followed_outside_of_this_one() {
    let file = ModelFile::from_vec(model_bytes()).unwrap();
    let rows = file.records_handle("emb.weight", TensorLayout::RowRecords, [N_VOCAB, N_EMBD]).unwrap();
    let table = file.u32_handle("emb.weight.crc32", N_VOCAB).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    let mut contents = contents();
    contents.tensors.truncate(1);
    let layout = FileLayout::new(contents.clone()).unwrap();
    let mut writer = ModelWriter::create(target_of(&target), layout).unwrap();
    writer.begin(0, 1.0).unwrap();
    writer.write(&[0; 4 * N_EMBD]).unwrap();
    writer.end(0.0).unwrap();
    writer.finish(contents.provenance, contents.self_test).unwrap();
    let other = ModelFile::open(&target).unwrap();
    let uses: [&dyn Fn(); 3] = [&|| _ = other.records(rows), &|| _ = other.u32s(table), &|| {
        _ = other.read_record(rows, 0, &mut [0; 4 * N_EMBD])
    }];
    for follow in uses {
        let panic = catch_unwind(AssertUnwindSafe(follow)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.starts_with("a tensor handle of another model file was used"), "{message}");
    }
    assert!(other.bytes(file.tensor("emb.weight").unwrap()).is_empty());
}

#[test]
fn the_file_is_a_model_once_the_data_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    let mut writer = writer_with_data(&target, 1000);
    writer.finish_data().unwrap();
    assert!(!target.exists());
    let early = writer.model_file().unwrap();
    assert_eq!(early.path(), Some(target.as_path()));
    early.verify_all().unwrap();
    assert_eq!(early.self_test().logits_sha256, [0; 32]);
    drop(early);
    let self_test = SelfTest { logits_sha256: [5; 32], ..contents().self_test };
    writer.finish(contents().provenance, self_test.clone()).unwrap();
    assert_eq!(ModelFile::open(&target).unwrap().self_test(), &self_test);
    assert_eq!(file_names(directory.path()), ["m.rwkv"]);
}

#[test]
fn files_that_differ_in_one_weight_have_different_ids() {
    let directory = tempfile::tempdir().unwrap();
    let with_first_byte = |byte: u8| {
        let target = directory.path().join("m.rwkv");
        let mut writer =
            ModelWriter::create(target_of(&target), FileLayout::new(contents()).unwrap()).unwrap();
        for i in 0..contents().tensors.len() {
            writer.begin(i, 1.0).unwrap();
            let slot = writer.layout().slots[i];
            let mut bytes = tensor_bytes(i, writer.layout().tensors()[slot].len as usize);
            // The last tensor is the embedding, which has no checksum of its own.
            *bytes.first_mut().unwrap() = if i == 4 { byte } else { 0 };
            writer.write(&bytes).unwrap();
            writer.end(0.0).unwrap();
        }
        writer.finish(contents().provenance, contents().self_test).unwrap();
        ModelFile::open(&target).unwrap().model_id()
    };
    assert_eq!(with_first_byte(1), with_first_byte(1));
    assert_ne!(with_first_byte(1), with_first_byte(2));
}

#[test]
fn a_rewound_tensor_is_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    let mut writer = ModelWriter::create(target_of(&target), FileLayout::new(contents()).unwrap()).unwrap();
    for (i, spec) in contents().tensors.iter().enumerate() {
        let slot = writer.layout().slots[i];
        let bytes = tensor_bytes(i, writer.layout().tensors()[slot].len as usize);
        let quantized = spec.dtype.weight().is_some_and(|dtype| dtype.is_quantized());
        writer.begin(i, if quantized { 4.0 } else { 1.0 }).unwrap();
        writer.write(&vec![0xee; bytes.len() - 1]).unwrap();
        writer.rewind().unwrap();
        writer.begin(i, super::testing::scale(spec.dtype)).unwrap();
        writer.write(&bytes).unwrap();
        writer.end(0.001 * i as f32).unwrap();
    }
    let mut expected = writer_with_data(&directory.path().join("expected.rwkv"), 64);
    expected.finish_data().unwrap();
    writer.finish_data().unwrap();
    let bytes = |writer: &ModelWriter| writer.model_file().unwrap().mapping().to_vec();
    assert!(bytes(&writer) == bytes(&expected));
}

#[test]
fn tensors_out_of_order_too_long_or_too_short_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let create = || {
        let target = directory.path().join("m.rwkv");
        ModelWriter::create(target_of(&target), FileLayout::new(contents()).unwrap()).unwrap()
    };
    let mut writer = create();
    assert!(message(writer.begin(1, 1.0)).contains("tensor 1 instead of 0"));
    assert!(message(writer.begin(5, 1.0)).contains("no such tensor"));
    assert!(message(writer.begin(0, 0.5)).contains("scale 0.5"));
    assert!(message(writer.write(&[0])).contains("no tensor"));
    writer.begin(0, 1.0).unwrap();
    assert!(message(writer.begin(1, 1.0)).contains("has not ended"));
    assert!(message(writer.finish_data()).contains("not all tensors"));
    writer.write(&[0; 4 * N_EMBD - 1]).unwrap();
    assert!(message(writer.write(&[0; 2])).contains("longer"));
    assert!(message(writer.begin(0, 1.0)).contains("earlier error"));
    drop(writer);
    let mut writer = create();
    writer.begin(0, 1.0).unwrap();
    writer.write(&[0; 4 * N_EMBD - 1]).unwrap();
    assert!(message(writer.end(0.0)).contains("519 of 520"));
    assert!(message(writer.finish(contents().provenance, contents().self_test)).contains("not all tensors"));
    assert!(file_names(directory.path()).is_empty());
}

#[test]
fn texts_that_change_after_planning_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    let mut provenance = contents().provenance;
    provenance.settings.push_str("longer than planned");
    let error = writer_with_data(&target, 999).finish(provenance, contents().self_test);
    assert!(message(error).contains("planned"));
    assert!(file_names(directory.path()).is_empty());
}

#[test]
fn interrupted_writer_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    drop(writer_with_data(&target, 1000));
    assert!(file_names(directory.path()).is_empty());
}

#[test]
fn a_folder_that_takes_the_targets_place_stays() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    let writer = writer_with_data(&target, 1000);
    fs::create_dir(&target).unwrap();
    fs::write(target.join("keep"), b"x").unwrap();
    let error = writer.finish(contents().provenance, contents().self_test).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Invalid(_)), "{error}");
    assert_eq!(error.path(), Some(target.as_path()));
    assert_eq!(file_names(directory.path()), ["m.rwkv"]);
    assert!(target.join("keep").exists());
}

#[test]
fn an_existing_file_stays_until_the_new_one_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.rwkv");
    fs::write(&target, b"old").unwrap();
    let (first, second) = (writer_with_data(&target, 1000), writer_with_data(&target, 1000));
    assert_eq!(fs::read(&target).unwrap(), b"old");
    drop(first);
    second.finish(contents().provenance, contents().self_test).unwrap();
    ModelFile::open(&target).unwrap().verify_all().unwrap();
    assert_eq!(file_names(directory.path()), ["m.rwkv"]);
}

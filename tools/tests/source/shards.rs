//! Checkpoints in several files: the index that names them, and attacks on it.

use std::path::PathBuf;

use crate::common::models::{blinkdl, hugging_face};
use crate::common::{Filled, Folder, deflated_file, pickle, read, rwkvcpp_file, safetensors_of, torch_of};
use rwkv_edge::format::Version;
use rwkv_quantize::source::{Checkpoint, Container, Naming, SourceDType, SourceError, detect};

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn json(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn index_of(entries: &[(&str, &str)]) -> String {
    let entries: Vec<_> =
        entries.iter().map(|(name, file)| format!("{}: {}", json(name), json(file))).collect();
    format!("{{\n  \"metadata\": {{\"total_size\": 1}},\n  \"weight_map\": {{{}}}\n}}\n", entries.join(", "))
}

/// Writes a model in two files with an index, which may be changed; returns the index's path.
fn sharded(folder: &Folder, model: &[Filled], write: fn(&[Filled], SourceDType) -> Vec<u8>) -> PathBuf {
    let (first, second) = model.split_at(model.len() / 2);
    std::fs::write(folder.path(FIRST), write(first, SourceDType::F32)).unwrap();
    std::fs::write(folder.path(SECOND), write(second, SourceDType::F32)).unwrap();
    let first = first.iter().map(|tensor| (tensor.name.as_str(), FIRST));
    let entries: Vec<_> = first.chain(second.iter().map(|tensor| (tensor.name.as_str(), SECOND))).collect();
    let path = folder.path("model.safetensors.index.json");
    std::fs::write(&path, index_of(&entries)).unwrap();
    path
}

fn write_index(folder: &Folder, text: &[u8]) -> Result<Checkpoint, SourceError> {
    let path = folder.path("model.safetensors.index.json");
    std::fs::write(&path, text).unwrap();
    Checkpoint::open(&path)
}

#[track_caller]
fn index_refusal(folder: &Folder, text: impl AsRef<[u8]>) -> String {
    write_index(folder, text.as_ref()).expect_err("the index was accepted").to_string()
}

#[test]
fn an_index_opens_all_its_files() {
    let model = blinkdl(Version::V6);
    let whole = |checkpoint: &Checkpoint| {
        assert_eq!(detect(checkpoint).unwrap(), Version::V6);
        assert_eq!(checkpoint.tensors().len(), model.len());
        for tensor in &model {
            assert_eq!(checkpoint.get(&tensor.name).unwrap().shape, tensor.shape);
            assert_eq!(read(checkpoint, &tensor.name), tensor.values, "{}", tensor.name);
        }
    };
    let folder = Folder::new();
    for (write, container) in [
        (safetensors_of as fn(&[Filled], SourceDType) -> Vec<u8>, Container::Safetensors),
        (torch_of, Container::TorchZip),
    ] {
        let checkpoint = Checkpoint::open(&sharded(&folder, &model, write)).unwrap();
        assert_eq!((checkpoint.container(), checkpoint.naming()), (container, Naming::BlinkDl));
        assert_eq!(checkpoint.file_name(), "model.safetensors.index.json");
        let files = [folder.path(FIRST), folder.path(SECOND)];
        assert!(checkpoint.paths().eq(files.iter()));
        let bytes: u64 = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
        assert_eq!(checkpoint.file_len(), bytes);
        whole(&checkpoint);
        let checkpoint = Checkpoint::open(&sharded(&folder, &hugging_face(model.clone()), write)).unwrap();
        assert_eq!(checkpoint.naming(), Naming::HuggingFace);
        whole(&checkpoint);
    }
}

#[test]
fn a_single_file_is_its_own_only_path() {
    let folder = Folder::new();
    let path = folder.path("model-00001-of-00001.safetensors");
    std::fs::write(&path, safetensors_of(&blinkdl(Version::V4), SourceDType::F16)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.paths().eq([&path]));
    assert_eq!(detect(&checkpoint).unwrap(), Version::V4);
}

#[test]
fn one_of_several_files_is_refused_with_the_advice_to_name_the_index() {
    for model in [blinkdl(Version::V4), hugging_face(blinkdl(Version::V4))] {
        let folder = Folder::new();
        sharded(&folder, &model, safetensors_of);
        for shard in [FIRST, SECOND] {
            let checkpoint = Checkpoint::open(&folder.path(shard)).unwrap();
            let message = detect(&checkpoint).unwrap_err().to_string();
            assert!(message.contains(shard) && message.contains(".index.json"), "{message}");
        }
    }
}

#[test]
fn a_whole_model_with_the_name_of_a_part_is_read() {
    let folder = Folder::new();
    std::fs::write(folder.path(FIRST), safetensors_of(&blinkdl(Version::V7), SourceDType::F16)).unwrap();
    assert_eq!(detect(&Checkpoint::open(&folder.path(FIRST)).unwrap()).unwrap(), Version::V7);
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    std::fs::write(folder.path("sub/x"), safetensors_of(&blinkdl(Version::V4), SourceDType::F16)).unwrap();
    let absolute = folder.path("sub/x").display().to_string();
    for name in
        ["../x", "sub/x", "./x", "x/", ".", "..", "", "/etc/passwd", "C:x", "sub\\x", "a\0b", &absolute]
    {
        let message = index_refusal(&folder, index_of(&[("emb.weight", name)]));
        assert!(message.contains("is no name of a file beside the index"), "{name:?}: {message}");
    }
}

#[test]
fn files_that_are_missing_or_not_what_the_index_says_are_refused() {
    let folder = Folder::new();
    sharded(&folder, &blinkdl(Version::V4), safetensors_of);
    std::fs::write(folder.path("model.bin"), rwkvcpp_file()).unwrap();
    std::fs::write(folder.path("other.json"), index_of(&[("emb.weight", FIRST)])).unwrap();
    std::fs::write(folder.path("page.html"), "<html>").unwrap();
    std::fs::create_dir(folder.path("folder")).unwrap();
    for (entries, parts) in [
        (&[("emb.weight", "gone.safetensors")][..], &["gone.safetensors"][..]),
        (&[("head.weight", FIRST)], &[FIRST, "tensor head.weight", "as the index says"]),
        (&[("emb.weight", FIRST), ("x", SECOND)], &[SECOND, "tensor x", "as the index says"]),
        (&[("emb.weight", "model.bin")], &["model.bin", "rwkv.cpp"]),
        (&[("emb.weight", "other.json")], &["other.json", "JSON"]),
        (&[("emb.weight", "model.safetensors.index.json")], &["JSON"]),
        (&[("emb.weight", "page.html")], &["page.html", "HTML"]),
        (&[("emb.weight", "folder")], &["folder"]),
        (&[], &["no tensors"]),
    ] {
        let message = index_refusal(&folder, index_of(entries));
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
    }
}

#[test]
fn files_of_different_formats_or_with_the_same_tensor_are_refused() {
    let folder = Folder::new();
    let model = blinkdl(Version::V4);
    let path = sharded(&folder, &model, safetensors_of);
    std::fs::write(folder.path(SECOND), torch_of(&model[model.len() / 2..], SourceDType::F32)).unwrap();
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(message.contains(SECOND) && message.contains("different formats"), "{message}");
    std::fs::write(folder.path(SECOND), safetensors_of(&model, SourceDType::F32)).unwrap();
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(message.contains("two"), "{message}");
}

#[test]
fn too_many_files_are_refused_before_any_is_opened() {
    let names: Vec<_> = (0..300).map(|n| (format!("t{n}"), format!("f{n}"))).collect();
    let entries: Vec<_> = names.iter().map(|(name, file)| (name.as_str(), file.as_str())).collect();
    let message = index_refusal(&Folder::new(), index_of(&entries));
    assert!(message.contains("300 files"), "{message}");
}

#[test]
fn json_that_is_no_index_is_named() {
    let folder = Folder::new();
    for text in [
        "{}",
        "{\"weight_map\": 3}",
        "{\"weight_map\": {\"a\": 3}}",
        "{\"weight_map\": [\"a\"]}",
        "{\"hidden_size\": 768}",
        "{",
        "{\"weight_map\": {\"a\": \"b\"}",
        "{\"weight_map\": {\"a\": \"b\"}} x",
    ] {
        assert!(index_refusal(&folder, text).contains("JSON text"), "{text}");
    }
    let deep = format!("{{\"weight_map\": {}", "[".repeat(1_000_000));
    assert!(index_refusal(&folder, deep).contains("JSON text"));
    assert!(index_refusal(&folder, b"{\"weight_map\": {\"a\": \"\xff\"}}").contains("JSON text"));
}

#[test]
fn an_index_may_begin_with_a_mark_and_spaces() {
    let folder = Folder::new();
    let path = sharded(&folder, &blinkdl(Version::V4), safetensors_of);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(write_index(&folder, format!("\u{feff} \n{text}").as_bytes()).is_ok());
}

#[test]
fn a_file_that_shrinks_after_opening_is_named() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(&sharded(&folder, &blinkdl(Version::V4), safetensors_of)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(folder.path(SECOND)).unwrap();
    file.set_len(100).unwrap();
    let tensor = checkpoint.get("head.weight").unwrap();
    let message = checkpoint.read(tensor, 0, &mut vec![0.0; tensor.elements()]).unwrap_err().to_string();
    assert!(message.contains(SECOND), "{message}");
}

#[test]
fn transposed_views_of_several_files_keep_their_places() {
    let folder = Folder::new();
    let view = |values: [f32; 6], name: &str| {
        let body = pickle::whole(&pickle::dict(&[(name, pickle::view("0", 6, 0, &[2, 3], &[1, 2]))]));
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        deflated_file(&body, &[("0", &bytes)])
    };
    std::fs::write(folder.path(FIRST), view([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "a")).unwrap();
    std::fs::write(folder.path(SECOND), view([6.0, 7.0, 8.0, 9.0, 10.0, 11.0], "b")).unwrap();
    let checkpoint = write_index(&folder, index_of(&[("a", FIRST), ("b", SECOND)]).as_bytes()).unwrap();
    assert_eq!(read(&checkpoint, "a"), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(read(&checkpoint, "b"), [6.0, 8.0, 10.0, 7.0, 9.0, 11.0]);
}

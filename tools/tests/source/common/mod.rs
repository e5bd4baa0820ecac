//! Small writers for checkpoints, good and hostile ones, and a way to open them.

pub(crate) mod models;

use std::path::{Path, PathBuf};

pub(crate) use crate::random::Random;
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter, ZipWriter};
use rwkv_quantize::source::{Checkpoint, SourceDType, SourceError};
use tempfile::TempDir;

/// A folder for the files of one test.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn open(&self, bytes: &[u8]) -> Result<Checkpoint, SourceError> {
        let path = self.path("checkpoint");
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path)
    }

    /// The refusal of a file: a message of one line that names the file.
    #[track_caller]
    pub(crate) fn refusal(&self, bytes: &[u8]) -> String {
        let message = self.open(bytes).map(|_| ()).expect_err("the file was accepted").to_string();
        let path = self.path("checkpoint").display().to_string();
        assert!(message.starts_with(&path) && !message.contains('\n'), "{message}");
        message[path.len()..].to_owned()
    }
}

/// Opens bytes once.
pub(crate) fn open(bytes: &[u8]) -> Result<Checkpoint, SourceError> {
    Folder::new().open(bytes)
}

#[track_caller]
pub(crate) fn refusal(bytes: &[u8]) -> String {
    Folder::new().refusal(bytes)
}

/// Fails unless the message of a refused file contains every given part.
#[track_caller]
pub(crate) fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let message = refusal(bytes);
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Fails unless a file is accepted, and refused when it is cut at any byte.
#[track_caller]
pub(crate) fn assert_every_cut_is_refused(bytes: &[u8]) {
    let folder = Folder::new();
    assert!(folder.open(bytes).is_ok());
    let path = folder.path("checkpoint");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for len in (0..bytes.len()).rev() {
        file.set_len(len as u64).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "{len} of {} bytes", bytes.len());
    }
}

/// A whole tensor.
#[track_caller]
pub(crate) fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let mut out = vec![f32::NAN; tensor.elements()];
    checkpoint.read(tensor, 0, &mut out).unwrap();
    out
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A folder of data that is not part of the repository; tests that need it are skipped without it.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(name);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

/// Values 0, 1, 2, ... as little-endian elements. Every element type represents the first 256
/// exactly.
pub(crate) fn counting(dtype: SourceDType, count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| encode(dtype, n as f32)).collect()
}

pub(crate) fn encode(dtype: SourceDType, value: f32) -> Vec<u8> {
    match dtype {
        SourceDType::F64 => f64::from(value).to_le_bytes().to_vec(),
        SourceDType::F32 => value.to_le_bytes().to_vec(),
        SourceDType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        SourceDType::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        SourceDType::Block(block) => panic!("{block}"),
    }
}

pub(crate) const DTYPES: [SourceDType; 4] =
    [SourceDType::F64, SourceDType::F32, SourceDType::F16, SourceDType::BF16];

pub(crate) fn spec(name: &str, shape: &[usize], dtype: SourceDType) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype }
}

/// A torch file of tensors that count up from zero.
pub(crate) fn torch_file(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut writer = TorchWriter::new(Vec::new(), "archive", tensors).unwrap();
    for tensor in tensors {
        writer.write(&counting(tensor.dtype, tensor.elements() as usize)).unwrap();
    }
    writer.finish().unwrap()
}

/// A torch file with a pickle of its own and storages of given bytes.
pub(crate) fn torch_file_of(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new());
    zip.entry("archive/data.pkl", pickle).unwrap();
    for (key, bytes) in storages {
        zip.entry(&format!("archive/data/{key}"), bytes).unwrap();
    }
    zip.entry("archive/version", b"3\n").unwrap();
    zip.finish().unwrap()
}

/// The same with deflated entries.
pub(crate) fn deflated_file(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let storages = storages.iter().map(|(key, bytes)| (format!("archive/data/{key}"), *bytes));
    let entries: Vec<_> = [("archive/data.pkl".to_owned(), pickle)].into_iter().chain(storages).collect();
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in &entries {
        let packed = miniz_oxide::deflate::compress_to_vec(bytes, 1);
        let mut fields = b"\x14\0\0\0\x08\0\0\0\0\0".to_vec();
        fields.extend(crc32fast::hash(bytes).to_le_bytes());
        fields.extend((packed.len() as u32).to_le_bytes());
        fields.extend((bytes.len() as u32).to_le_bytes());
        fields.extend((name.len() as u32).to_le_bytes());
        directory.extend([b"PK\x01\x02\x14\0", &*fields, &[0; 10]].concat());
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend([b"PK\x03\x04", &*fields, name.as_bytes(), &packed].concat());
    }
    let (count, at, len) = (entries.len() as u16, out.len() as u32, directory.len() as u32);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([len.to_le_bytes(), at.to_le_bytes()].concat());
    out.extend([0; 2]);
    out
}

/// A zip file of the given entries.
pub(crate) fn zip_file(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Vec::new());
    for (name, bytes) in entries {
        zip.entry(name, bytes).unwrap();
    }
    zip.finish().unwrap()
}

/// Pieces of pickles.
pub(crate) mod pickle {
    /// A whole pickle around its body.
    pub(crate) fn whole(body: &[u8]) -> Vec<u8> {
        [b"\x80\x02", body, b"."].concat()
    }

    pub(crate) fn text(text: &str) -> Vec<u8> {
        [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
    }

    pub(crate) fn int(value: i64) -> Vec<u8> {
        [b"\x8a\x08", value.to_le_bytes().as_slice()].concat()
    }

    pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
        format!("c{module}\n{name}\n").into_bytes()
    }

    pub(crate) fn tuple(items: &[i64]) -> Vec<u8> {
        let items: Vec<u8> = items.iter().flat_map(|&item| int(item)).collect();
        [b"(", items.as_slice(), b"t"].concat()
    }

    /// A dict; values are given as pickles.
    pub(crate) fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<u8> =
            items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(", items.as_slice(), b"u"].concat()
    }

    pub(crate) fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
        [b"(", &*text("storage"), &global("torch", class), &text(key), &text("cpu"), &int(elements), b"tQ"]
            .concat()
    }

    pub(crate) fn hooks() -> Vec<u8> {
        [&*global("collections", "OrderedDict"), b")R"].concat()
    }

    /// A view of a float storage.
    pub(crate) fn view(key: &str, elements: i64, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
        let storage = storage("FloatStorage", key, elements);
        [
            &*global("torch._utils", "_rebuild_tensor_v2"),
            b"(",
            &storage,
            &int(offset),
            &tuple(size),
            &tuple(stride),
            b"\x89",
            &hooks(),
            b"tR",
        ]
        .concat()
    }

    /// A contiguous float vector that is all of its storage.
    pub(crate) fn vector(key: &str, elements: i64) -> Vec<u8> {
        view(key, elements, 0, &[elements], &[1])
    }
}

/// A safetensors file from its header and data.
pub(crate) fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

/// A safetensors file of tensors that count up from zero.
pub(crate) fn safetensors(tensors: &[TensorSpec]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend(counting(tensor.dtype, tensor.elements() as usize));
        let range = [begin, data.len()];
        entries.push(format!(
            r#""{}":{{"dtype":"{}","shape":{:?},"data_offsets":{range:?}}}"#,
            tensor.name, tensor.dtype, tensor.shape
        ));
    }
    safetensors_file(&format!("{{{}}}", entries.join(",")), &data)
}

/// A tensor with values. They are small integers, so every element type represents them exactly.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Filled {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl Filled {
    pub(crate) fn bytes(&self, dtype: SourceDType) -> Vec<u8> {
        self.values.iter().flat_map(|&value| encode(dtype, value)).collect()
    }

    /// The last two dimensions swapped.
    pub(crate) fn swapped(&self) -> Self {
        let [batch @ .., rows, columns] = &self.shape[..] else { panic!("{self:?}") };
        let size = rows * columns;
        let at = |i: usize| i / size * size + i % size % rows * columns + i % size / rows;
        let values = (0..self.values.len()).map(|i| self.values[at(i)]).collect();
        Self { name: self.name.clone(), shape: [batch, &[*columns, *rows]].concat(), values }
    }
}

/// A safetensors file of given values.
pub(crate) fn safetensors_of(tensors: &[Filled], dtype: SourceDType) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let begin = data.len();
        data.extend(tensor.bytes(dtype));
        let range = [begin, data.len()];
        entries.push(format!(
            r#""{}":{{"dtype":"{dtype}","shape":{:?},"data_offsets":{range:?}}}"#,
            tensor.name, tensor.shape
        ));
    }
    safetensors_file(&format!("{{{}}}", entries.join(",")), &data)
}

/// A torch file of given values.
pub(crate) fn torch_of(tensors: &[Filled], dtype: SourceDType) -> Vec<u8> {
    let specs: Vec<_> = tensors.iter().map(|tensor| spec(&tensor.name, &tensor.shape, dtype)).collect();
    let mut writer = TorchWriter::new(Vec::new(), "archive", &specs).unwrap();
    tensors.iter().for_each(|tensor| writer.write(&tensor.bytes(dtype)).unwrap());
    writer.finish().unwrap()
}

/// An rwkv.cpp file of given values, in FP32.
pub(crate) fn rwkvcpp_of(tensors: &[Filled]) -> Vec<u8> {
    let emb = tensors.iter().find(|tensor| tensor.name == "emb.weight").unwrap();
    let layers = tensors.iter().filter(|tensor| tensor.name.ends_with(".ln1.weight")).count();
    let mut bytes = rwkvcpp_header(101, emb.shape[0] as i32, emb.shape[1] as i32, layers as i32, 0);
    for tensor in tensors {
        let shape: Vec<i32> = tensor.shape.iter().map(|&n| n as i32).collect();
        bytes.extend(rwkvcpp_record(&tensor.name, &shape, 0, &tensor.bytes(SourceDType::F32)));
    }
    bytes
}

/// The header of an rwkv.cpp file.
pub(crate) fn rwkvcpp_header(version: i32, vocab: i32, width: i32, layers: i32, data_type: i32) -> Vec<u8> {
    let fields = [version, vocab, width, layers, data_type];
    [b"fmgg".as_slice(), &fields.map(i32::to_le_bytes).concat()].concat()
}

/// A record of an rwkv.cpp file; the shape is row-major, as tests think of it.
pub(crate) fn rwkvcpp_record(name: &str, shape: &[i32], data_type: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [shape.len() as i32, name.len() as i32, data_type].into_iter().flat_map(i32::to_le_bytes).collect();
    bytes.extend(shape.iter().rev().flat_map(|n| n.to_le_bytes()));
    bytes.extend(name.bytes());
    bytes.extend(data);
    bytes
}

/// An rwkv.cpp file with one layer; the layer has one tensor.
pub(crate) fn rwkvcpp_file() -> Vec<u8> {
    let f16 = |count| counting(SourceDType::F16, count);
    [
        rwkvcpp_header(101, 6, 4, 1, 1),
        rwkvcpp_record("emb.weight", &[6, 4], 1, &f16(24)),
        rwkvcpp_record("blocks.0.ln1.weight", &[4], 0, &counting(SourceDType::F32, 4)),
        rwkvcpp_record("head.weight", &[6, 4], 1, &f16(24)),
    ]
    .concat()
}

//! Checkpoints taken apart: read a fixture, damage it, write it again, convert it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rwkv_edge::format::{ModelFile, Replace, Target, TensorInfo, TensorLayout};
use rwkv_edge::kernels::DType;
use rwkv_edge::kernels::quant::{decode_matrix_row, decode_record};
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::job::{Job, Progress};
use rwkv_quantize::report::Report;
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter};
use rwkv_quantize::source::{Checkpoint, SourceDType};
use tempfile::TempDir;

/// Versions that have a fixture `<version>-tiny.pth`.
pub(crate) const VERSIONS: [&str; 7] = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"];

pub(crate) const DTYPES: [DType; 5] = DType::ALL;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A tensor of a checkpoint to be written.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: SourceDType,
    pub(crate) bytes: Vec<u8>,
}

impl Part {
    pub(crate) fn new(name: &str, shape: &[usize], dtype: SourceDType, values: &[f32]) -> Self {
        Self { name: name.into(), shape: shape.into(), dtype, bytes: encode(dtype, values) }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Another shape; bytes are cut off or filled up with zeros.
    pub(crate) fn reshape(&mut self, shape: &[usize]) {
        self.shape = shape.into();
        self.bytes.resize(self.elements() * self.dtype.size(), 0);
    }

    pub(crate) fn set(&mut self, index: usize, value: f32) {
        let size = self.dtype.size();
        self.bytes[index * size..][..size].copy_from_slice(&encode(self.dtype, &[value]));
    }

    pub(crate) fn fill(&mut self, dtype: SourceDType, values: impl IntoIterator<Item = f32>) {
        let values: Vec<f32> = values.into_iter().collect();
        assert_eq!(values.len(), self.elements());
        (self.dtype, self.bytes) = (dtype, encode(dtype, &values));
    }

    /// The values, of a BF16 or F32 tensor.
    pub(crate) fn values(&self) -> Vec<f32> {
        match self.dtype {
            SourceDType::BF16 => self
                .bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&raw| half::bf16::from_le_bytes(raw).to_f32())
                .collect(),
            SourceDType::F32 => {
                self.bytes.as_chunks::<4>().0.iter().map(|&raw| f32::from_le_bytes(raw)).collect()
            }
            other => panic!("{}: {other}", self.name),
        }
    }

    /// Whether this is a low-rank factor, which checkpoints have as `[in, out]`.
    pub(crate) fn is_factor(&self) -> bool {
        (self.name.contains(".att.") || self.name.contains(".ffn.s")) && self.name.ends_with(['1', '2'])
    }

    /// The values as `[out, in]`.
    pub(crate) fn as_out_in(&self) -> Vec<f32> {
        let mut part = self.clone();
        if part.is_factor() {
            part.transpose();
        }
        part.values()
    }

    /// Swaps the last two dimensions, with the values.
    pub(crate) fn transpose(&mut self) {
        let [.., rows, cols] = self.shape[..] else { panic!("{} is no matrix", self.name) };
        let size = self.dtype.size();
        let old = self.bytes.chunks_exact(size).collect::<Vec<_>>();
        let turned = |i: usize| {
            let (slice, i) = (i / (rows * cols), i % (rows * cols));
            slice * rows * cols + i % rows * cols + i / rows
        };
        self.bytes = (0..old.len()).flat_map(|i| old[turned(i)]).copied().collect();
        let rank = self.shape.len();
        self.shape.swap(rank - 2, rank - 1);
    }

    /// Whether only the number of elements counts, not the shape.
    pub(crate) fn is_vector(&self) -> bool {
        self.shape.iter().filter(|&&n| n != 1).count() <= 1 || self.is_by_head()
    }

    /// Whether the tensor has a value for each channel as `[heads, head size]`.
    pub(crate) fn is_by_head(&self) -> bool {
        ["time_decay", "time_faaaa", "r_k"].iter().any(|end| self.name.ends_with(end))
            && self.shape.len() == 2
    }
}

pub(crate) fn encode(dtype: SourceDType, values: &[f32]) -> Vec<u8> {
    let values = values.iter().copied();
    match dtype {
        SourceDType::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
        SourceDType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        SourceDType::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        SourceDType::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        SourceDType::Block(block) => panic!("{block}"),
    }
}

/// A checkpoint in parts.
#[derive(Clone, Debug)]
pub(crate) struct Parts(pub(crate) Vec<Part>);

impl Parts {
    /// The fixture `<version>-tiny.pth`.
    pub(crate) fn of(version: &str) -> Self {
        Self::read(&fixture(&format!("{version}-tiny.pth")))
    }

    pub(crate) fn read(path: &Path) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let part = |tensor: &rwkv_quantize::source::SourceTensor| {
            let mut values = vec![0.0; tensor.elements()];
            checkpoint.read(tensor, 0, &mut values).unwrap();
            assert!(!tensor.transposed);
            Part::new(&tensor.name, &tensor.shape, tensor.dtype, &values)
        };
        Self(checkpoint.tensors().iter().map(part).collect())
    }

    #[track_caller]
    pub(crate) fn get(&mut self, name: &str) -> &mut Part {
        self.0.iter_mut().find(|part| part.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// The same without some tensors.
    pub(crate) fn without(&self, drop: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|part| !drop(&part.name)).cloned().collect())
    }

    /// The same with tensor `index` changed.
    pub(crate) fn changed(&self, index: usize, change: impl FnOnce(&mut Part)) -> Self {
        let mut changed = self.clone();
        change(&mut changed.0[index]);
        changed
    }

    pub(crate) fn specs(&self) -> Vec<TensorSpec> {
        let spec = |part: &Part| TensorSpec {
            name: part.name.clone(),
            shape: part.shape.clone(),
            dtype: part.dtype,
        };
        self.0.iter().map(spec).collect()
    }

    /// The bytes of a torch file.
    pub(crate) fn torch(&self) -> Vec<u8> {
        let mut writer = TorchWriter::new(Vec::new(), "archive", &self.specs()).unwrap();
        let full = self.0.iter().filter(|part| !part.bytes.is_empty());
        full.for_each(|part| writer.write(&part.bytes).unwrap());
        writer.finish().unwrap()
    }

    /// The bytes of a safetensors file.
    pub(crate) fn safetensors(&self) -> Vec<u8> {
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for Part { name, shape, dtype, bytes } in &self.0 {
            let range = [data.len(), data.len() + bytes.len()];
            entries.push(format!(
                r#"{name:?}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{range:?}}}"#
            ));
            data.extend(bytes);
        }
        let header = format!("{{{}}}", entries.join(","));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }
}

pub(crate) fn options(dtype: DType) -> Options {
    Options { threads: 2, ..Options::new(dtype) }
}

#[track_caller]
pub(crate) fn target(path: &Path) -> Target {
    Target::new(path, Replace::Models).unwrap()
}

/// A progress that shows nothing.
pub(crate) struct Quiet;

impl Progress for Quiet {
    fn update(&mut self, _done: u64, _total: u64, _tensor: &str) {}
}

/// A folder in which one checkpoint after the other is converted.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One on each kind of file system: a disk, and memory where there is a place for that.
    pub(crate) fn everywhere() -> Vec<Self> {
        let memory = Path::new("/dev/shm");
        let in_memory = memory.is_dir().then(|| Self(tempfile::tempdir_in(memory).unwrap()));
        [Self::new()].into_iter().chain(in_memory).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn input(&self) -> PathBuf {
        self.path("input.pth")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.path("output.rwkv")
    }

    /// The output, which may be replaced if it is a model.
    pub(crate) fn target(&self) -> Target {
        target(&self.output())
    }

    /// Writes the checkpoint.
    pub(crate) fn put(&self, bytes: &[u8]) {
        fs::write(self.input(), bytes).unwrap();
    }

    /// Names of the files in the folder, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let name = |entry: Result<fs::DirEntry, _>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// Converts the checkpoint that [`put`](Self::put) wrote.
    pub(crate) fn try_convert(&self, options: &Options) -> anyhow::Result<Report> {
        let conversion = Conversion::prepare(&self.input(), options)?;
        Ok(conversion.run(self.target(), Job::new(&mut Quiet, &AtomicBool::new(false)))?.0)
    }

    /// Converts a checkpoint and opens the result.
    #[track_caller]
    pub(crate) fn convert(&self, parts: &Parts, options: &Options) -> Model {
        self.put(&parts.torch());
        if let Err(error) = self.try_convert(options) {
            panic!("{error:#}");
        }
        Model::open(&self.output())
    }

    /// The refusal of a checkpoint: a message of one line, and the folder is as it was before.
    #[track_caller]
    pub(crate) fn refusal(&self, parts: &Parts, options: &Options) -> String {
        self.put(&parts.torch());
        self.refusal_of_input(options)
    }

    #[track_caller]
    pub(crate) fn refusal_of_input(&self, options: &Options) -> String {
        let before = self.files();
        let message = match self.try_convert(options) {
            Ok(_) => panic!("the checkpoint was accepted"),
            Err(error) => format!("{error:#}"),
        };
        assert!(!message.chars().any(char::is_control), "{message}");
        assert_eq!(self.files(), before, "{message}");
        message
    }

    /// As [`refusal`](Self::refusal), of one tensor. The message names file, tensor, expected and
    /// found.
    #[track_caller]
    pub(crate) fn tensor_refusal(&self, parts: &Parts, options: &Options, tensor: &str) -> String {
        let message = self.refusal(parts, options);
        let path = format!("{}: ", self.input().display());
        assert!(message.starts_with(&path), "{message}");
        assert_eq!(message.matches(&path).count(), 1, "{message}");
        assert_names(&message, tensor);
        message
    }
}

/// Fails unless `message` says what was expected of `tensor` and what was found.
#[track_caller]
pub(crate) fn assert_names(message: &str, tensor: &str) {
    let named = message
        .match_indices(tensor)
        .any(|(at, _)| !message[at + tensor.len()..].starts_with(|c: char| c == '.' || c.is_alphanumeric()));
    assert!(named && message.contains("tensor "), "{tensor} is not named in {message:?}");
    let (expected, found) = (message.find("expected "), message.find("found "));
    assert!(expected.is_some() && expected < found, "{tensor}: {message:?}");
}

/// A converted model.
pub(crate) struct Model(pub(crate) ModelFile);

impl Model {
    #[track_caller]
    pub(crate) fn open(path: &Path) -> Self {
        let file = ModelFile::open(path).unwrap();
        file.verify_all().unwrap();
        file.verify_embedding().unwrap();
        Self(file)
    }

    /// Weights that the file stands for, row-major `[out, in]`.
    pub(crate) fn values(&self, tensor: &TensorInfo) -> Vec<f32> {
        let (file, [rows, cols]) = (&self.0, tensor.shape);
        let mut out = vec![f32::NAN; rows * cols];
        match tensor.layout {
            TensorLayout::Vector => {
                out.copy_from_slice(file.vector(file.vector_handle(&tensor.name, rows).unwrap()));
            }
            TensorLayout::Interleaved => {
                let matrix = file.matrix(file.matrix_handle(&tensor.name, rows, cols).unwrap());
                out.chunks_exact_mut(cols)
                    .enumerate()
                    .for_each(|(i, row)| decode_matrix_row(&matrix, i, row));
            }
            TensorLayout::RowRecords | TensorLayout::ColumnRecords => {
                let by_column = tensor.layout == TensorLayout::ColumnRecords;
                let reference = file.records_handle(&tensor.name, tensor.layout, tensor.shape).unwrap();
                let records = file.records(reference);
                let mut record = vec![f32::NAN; if by_column { rows } else { cols }];
                for i in 0..records.count() {
                    decode_record(&records, i, &mut record);
                    for (j, &value) in record.iter().enumerate() {
                        out[if by_column { j * cols + i } else { i * cols + j }] = value;
                    }
                }
            }
        }
        out
    }

    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Vec<f32> {
        self.values(self.0.tensor(name).unwrap())
    }

    /// Name, scale and bytes of every tensor. Two conversions of the same weights have these in
    /// common.
    pub(crate) fn tensors(&self) -> Vec<(&str, f32, &[u8])> {
        self.0.tensors().iter().map(|t| (t.name.as_str(), t.scale, self.0.bytes(t))).collect()
    }
}

/// `|a - b| / |b|`.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

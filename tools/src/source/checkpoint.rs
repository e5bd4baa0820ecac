//! An opened checkpoint: its tensors under BlinkDL's names, and their values.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::aliases::Naming;
use super::config_json::{self, Beside, ConfigJson};
use super::error::SourceError;
use super::file::{ReadAt, Source};
use super::gguf::{self, About, Vocabulary};
use super::inventory::LN0;
use super::location::{Location, VIEWS};
use super::merge::Merging;
use super::records::Record;
use super::shards::Shards;
use super::sniff::Kind;
use super::tensor::{Container, SourceDType, SourceTensor, Unreadable};
use super::zero_runs::ZeroRun;
use super::{canonical, decode, folder, index, names, records, shards, sniff, zero_runs};

/// Bytes of one scratch buffer: it stays in the second-level cache between reading and decoding.
const SCRATCH: usize = 256 * 1024;

/// Scratch buffers kept for reuse, at most 4 MiB together; one per thread that reads at the same
/// time.
const KEPT_SCRATCH: usize = 16;

/// An opened checkpoint: the file and the index of its tensors.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that was opened: the checkpoint, or the index of several files.
    pub(super) source: Source,
    /// The files that such an index names.
    shards: Vec<Source>,
    container: Container,
    naming: Naming,
    /// The folder that was opened.
    folder: Option<PathBuf>,
    config: Option<ConfigJson>,
    notes: Vec<String>,
    tensors: Vec<SourceTensor>,
    /// Bytes that are computed from those of the files.
    views: Vec<Source>,
    unreadable: Vec<Unreadable>,
    /// The adapters that are merged into the tensors.
    merging: Option<Arc<Merging>>,
    other_entries: Vec<String>,
    /// By file and place.
    records: Vec<Record>,
    about: About,
    scratch: Mutex<Vec<Vec<u8>>>,
}

impl Checkpoint {
    /// Opens a checkpoint and reads its index.
    ///
    /// `path` is the file with the tensors or, where several files hold them, the `.index.json`
    /// beside these, or the folder of either. A `config.json` beside the file is read too.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is no checkpoint, or breaks a rule of its container. When a
    /// folder has no checkpoint or several, or the `config.json` of another model.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        Self::open_as(path, None)
    }

    /// As [`open`](Self::open), where `naming` decides between BlinkDL and web-rwkv if the tensors
    /// do not.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and when the tensors contradict `naming`.
    pub fn open_as(path: &Path, naming: Option<Naming>) -> Result<Self, SourceError> {
        if !path.is_dir() {
            let checkpoint = Self::of(Source::open(path)?, naming)?;
            return checkpoint.with_config();
        }
        let checkpoint = Self::of(Source::open(&folder::weights(path)?)?, naming)?.with_config()?;
        match checkpoint.notes.first() {
            None => Ok(Self { folder: Some(path.to_owned()), ..checkpoint }),
            Some(note) => Err(checkpoint.source.unsupported(format!("not the model of this folder: {note}"))),
        }
    }

    /// Reads the `config.json` beside the file. A GGUF file says everything itself.
    fn with_config(mut self) -> Result<Self, SourceError> {
        if self.container == Container::Gguf {
            return Ok(self);
        }
        match config_json::beside(self.path(), &self.tensors)? {
            Beside::Nothing => {}
            Beside::Config(config) => {
                config.check_ln0(self.get(LN0[0]).is_some())?;
                self.config = Some(config);
            }
            Beside::Other(note) => self.notes.push(note),
        }
        Ok(self)
    }

    /// A checkpoint whose bytes are computed when read. `description` takes the place of its path.
    pub(crate) fn computed(description: PathBuf, bytes: Box<dyn ReadAt>) -> Result<Self, SourceError> {
        Self::of(Source::computed(description, bytes), None)
    }

    fn of(source: Source, wanted: Option<Naming>) -> Result<Self, SourceError> {
        let (shards, container, mut index) = match sniff::kind(&source)? {
            Kind::Container(Container::Gguf) => {
                let gguf::Opened { files, index } = gguf::open(&source)?;
                (files, Container::Gguf, index)
            }
            Kind::Container(container) => (Vec::new(), container, index::read(&source, container)?),
            Kind::Json => {
                let Shards { files, container, index } = shards::open(&source)?;
                (files, container, index)
            }
        };
        names::clean(&source, &mut index)?;
        let naming = canonical::canonicalize(&source, container, &mut index.tensors, wanted)?;
        Ok(Self {
            source,
            shards,
            container,
            naming,
            folder: None,
            config: None,
            notes: Vec::new(),
            tensors: index.tensors,
            views: index.views,
            unreadable: index.unreadable,
            merging: None,
            other_entries: index.other_entries,
            records: index.records,
            about: index.about,
            scratch: Mutex::default(),
        })
    }

    /// The same files with other tensors. `views` follow those that the checkpoint has.
    pub(super) fn with_tensors(
        &self,
        tensors: Vec<SourceTensor>,
        views: Vec<Source>,
        merging: Arc<Merging>,
    ) -> Self {
        Self {
            source: self.source.clone(),
            shards: self.shards.clone(),
            container: self.container,
            naming: self.naming,
            folder: self.folder.clone(),
            config: self.config.clone(),
            notes: self.notes.clone(),
            tensors,
            views: self.views.iter().cloned().chain(views).collect(),
            unreadable: self.unreadable.clone(),
            merging: Some(merging),
            other_entries: self.other_entries.clone(),
            records: self.records.clone(),
            about: self.about.clone(),
            scratch: Mutex::default(),
        }
    }

    /// Shard number of the first view that [`with_tensors`](Self::with_tensors) adds.
    pub(super) fn next_view(&self) -> usize {
        VIEWS + self.views.len()
    }

    /// The adapters that are merged into the tensors.
    pub(crate) fn adapters(&self) -> impl Iterator<Item = &Checkpoint> {
        self.merging.iter().flat_map(|merging| merging.adapters())
    }

    /// Format of the file, or of each of several files.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The element types of the tensors, each once.
    pub fn dtypes(&self) -> BTreeSet<SourceDType> {
        self.tensors.iter().map(|tensor| tensor.dtype).collect()
    }

    /// Epsilon of the layer norms, if the checkpoint or the `config.json` beside it names it.
    pub fn layer_norm_eps(&self) -> Option<f32> {
        self.about.layer_norm_eps.or(self.config.as_ref().and_then(ConfigJson::layer_norm_eps))
    }

    /// Reads the vocabulary, if the checkpoint has one.
    ///
    /// # Errors
    ///
    /// When the file cannot be read any more, or a token is too long or no text.
    pub fn vocabulary(&self) -> Result<Option<Vocabulary>, SourceError> {
        let place = self.about.vocabulary.as_ref().zip(self.files().first());
        place.map(|(place, file)| place.read(file)).transpose()
    }

    /// The chat template, if the checkpoint has one: a Jinja text, or a name.
    pub fn chat_template(&self) -> Option<&str> {
        self.about.chat_template.as_deref()
    }

    /// Naming scheme of the tensors in the file.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// What the `config.json` beside the file says, if there is one of this model.
    pub fn config_json(&self) -> Option<&ConfigJson> {
        self.config.as_ref()
    }

    /// The folder, if the checkpoint was opened by it.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What was found and not used; a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the embedding is normalised already, and `ln0` left out.
    pub fn has_normed_embedding(&self) -> bool {
        self.config.as_ref().is_some_and(ConfigJson::has_normed_embedding)
    }

    /// All tensors, in natural order of their names (`blocks.2` before `blocks.10`), each name
    /// once.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&SourceTensor> {
        names::find(&self.tensors, name)
    }

    /// Names of the entries beside the tensors, such as a trainer's step count. They are not read.
    pub fn other_entries(&self) -> &[String] {
        &self.other_entries
    }

    /// Entries under tensors' names that are not read.
    pub(super) fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Refuses an entry that must be a tensor, and is not read.
    pub(crate) fn check_readable(&self) -> Result<(), SourceError> {
        match self.unreadable.first() {
            None => Ok(()),
            Some(Unreadable { name, found }) => {
                Err(self.source.tensor(name, "a tensor of bfloat16, half, float or double", found.as_str()))
            }
        }
    }

    /// Whether the checkpoint has random weights that are computed, and is no file.
    pub fn is_synthetic(&self) -> bool {
        self.source.is_computed()
    }

    /// The path of the file that was opened; a description of a checkpoint that is no file.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The files with the tensors, in the order of their names.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files().iter().filter(|file| !file.is_computed()).map(Source::path)
    }

    /// Passes all bytes of the files with the tensors to `take`, in order, until it fails. On the
    /// way, compares the checksums that the files have. Returns the places in matrices without a
    /// checksum that look as if a piece were missing.
    pub(crate) fn read_through<E: From<SourceError>>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Vec<ZeroRun>, E> {
        const BLOCK: u64 = 1 << 20;
        let mut buffer = vec![0; BLOCK as usize];
        let mut zero_runs = Vec::new();
        for (shard, file) in self.files().iter().enumerate() {
            let records = self.records.partition_point(|record| record.shard < shard)
                ..self.records.partition_point(|record| record.shard <= shard);
            let mut check = records::Check::new(file, &self.records[records]);
            let has_checksums = self.container == Container::TorchZip || file.is_computed();
            let unchecked =
                self.tensors.iter().filter(|tensor| !has_checksums && tensor.location.shard == shard);
            let mut scan = zero_runs::Scan::new(unchecked);
            for offset in (0..file.len()).step_by(BLOCK as usize) {
                let block = &mut buffer[..BLOCK.min(file.len() - offset) as usize];
                file.read_at(block, offset)?;
                check.take(offset, block)?;
                scan.take(offset, block);
                take(block)?;
            }
            zero_runs.append(&mut scan.finish(file.len()));
        }
        Ok(zero_runs)
    }

    fn files(&self) -> &[Source] {
        if self.shards.is_empty() { std::slice::from_ref(&self.source) } else { &self.shards }
    }

    /// Length in bytes of the files with the tensors together.
    pub fn file_len(&self) -> u64 {
        self.files().iter().map(Source::len).sum()
    }

    /// Name of the file that was opened, without its folder.
    pub fn file_name(&self) -> String {
        let path = self.source.path();
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Decodes elements `start .. start + out.len()` of `tensor`, counted in row-major order.
    ///
    /// # Errors
    ///
    /// When the range is not inside the tensor, or the file cannot be read any more.
    pub fn read(&self, tensor: &SourceTensor, start: usize, out: &mut [f32]) -> Result<(), SourceError> {
        let elements = tensor.elements();
        if start.checked_add(out.len()).is_none_or(|end| end > elements) {
            return Err(self.source.tensor(
                &tensor.name,
                format!("a range inside its {elements} elements"),
                format!("{} elements from {start}", out.len()),
            ));
        }
        let mut scratch = self.take_scratch();
        let result = self.read_rows(tensor, start, out, &mut scratch);
        self.keep_scratch(scratch);
        result
    }

    fn read_rows(
        &self,
        tensor: &SourceTensor,
        mut start: usize,
        mut out: &mut [f32],
        scratch: &mut [u8],
    ) -> Result<(), SourceError> {
        let Location { shard, offset, row_len, row_stride } = tensor.location;
        let file = self.shard(shard);
        let (size, block_len) = (tensor.dtype.size(), tensor.dtype.block_len());
        let factor = self.about.factor(&tensor.name);
        while !out.is_empty() {
            let (row, column) = (start / row_len, start % row_len);
            let (block, skip) = (column / block_len, column % block_len);
            let count = out.len().min(row_len - column).min(scratch.len() / size * block_len - skip);
            let (values, rest) = out.split_at_mut(count);
            let bytes = &mut scratch[..(skip + count).div_ceil(block_len) * size];
            file.read_at(bytes, offset + row as u64 * row_stride + (block * size) as u64)?;
            decode::decode(tensor.dtype, bytes, skip, values);
            if factor != 1.0 {
                values.iter_mut().for_each(|value| *value *= factor);
            }
            start += count;
            out = rest;
        }
        Ok(())
    }

    /// The file or the view of this number.
    pub(super) fn shard(&self, shard: usize) -> &Source {
        let view = shard.checked_sub(VIEWS).and_then(|view| self.views.get(view));
        view.or_else(|| self.shards.get(shard)).unwrap_or(&self.source)
    }

    fn take_scratch(&self) -> Vec<u8> {
        let kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; SCRATCH])
    }

    fn keep_scratch(&self, buffer: Vec<u8>) {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_SCRATCH {
            kept.push(buffer);
        }
    }
}

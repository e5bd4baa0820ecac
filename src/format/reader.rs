//! A checked model file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{Header, MOST_HEADER_BYTES, MUST_UNDERSTAND};
use super::sniff::FileKind;
use super::{Chat, Config, Load, Mapping, Provenance, Section, SectionKind, SelfTest, TensorInfo, Verifier};
use super::{model_id, tensor_table};
use crate::error::{Error, ErrorKind, Result};

/// A model file. Everything but the tensors' bytes has been checked.
#[derive(Debug)]
pub struct ModelFile {
    mapping: Mapping,
    path: Option<PathBuf>,
    front: ModelHeader,
    /// Indices into `front.tensors`, by ascending name.
    by_name: Vec<usize>,
}

/// Everything in a model file but the bytes of the tokenizer and of the tensors.
#[derive(Debug)]
pub struct ModelHeader {
    header: Header,
    config: Config,
    chat: Chat,
    provenance: Provenance,
    self_test: SelfTest,
    tensors: Vec<TensorInfo>,
    tokenizer: Range<usize>,
    /// Bounds of section DATA.
    data: Range<u64>,
    model_id: u64,
}

impl ModelFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// If the file cannot be opened, is no model file, was written for a newer reader, is cut
    /// short, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, Load::default())
    }

    /// Maps a file or reads it into memory, and checks it.
    ///
    /// # Errors
    /// As for [`open`](Self::open). If `load` is [`Load::Map`], also if it cannot be mapped.
    pub fn open_as(path: &Path, load: Load) -> Result<Self> {
        Self::from_mapping(Mapping::open_as(path, load)?, Some(path.to_owned()))
    }

    /// Checks a file that is part of the program.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and if the bytes do not start on a 64-byte line.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        Self::from_mapping(Mapping::from_static(bytes)?, None)
    }

    /// Checks a file in memory.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self> {
        Self::from_mapping(Mapping::from_vec(bytes)?, None)
    }

    /// Checks the bytes of a file. `path` is its path, if it has one.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn from_mapping(mapping: Mapping, path: Option<PathBuf>) -> Result<Self> {
        match ModelHeader::parse(&mapping, mapping.len() as u64) {
            Ok(front) => {
                let mut by_name: Vec<usize> = (0..front.tensors.len()).collect();
                by_name.sort_unstable_by_key(|&i| front.tensors[i].name.as_str());
                Ok(Self { mapping, path, front, by_name })
            }
            Err(error) => Err(with_path(error, path)),
        }
    }

    /// The path of the file; `None` if it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Everything but the bytes of the tokenizer and of the tensors.
    pub fn header(&self) -> &ModelHeader {
        &self.front
    }

    /// Hyperparameters.
    pub fn config(&self) -> &Config {
        self.front.config()
    }

    /// Chat template, stop rules and sampling defaults.
    pub fn chat(&self) -> &Chat {
        &self.front.chat
    }

    /// Origin of the weights.
    pub fn provenance(&self) -> &Provenance {
        &self.front.provenance
    }

    /// Tokens, and the digest of the logits after them.
    pub fn self_test(&self) -> &SelfTest {
        &self.front.self_test
    }

    /// The tokenizer section; `docs/TOKENIZER.md` describes it.
    pub fn tokenizer_bytes(&self) -> &[u8] {
        self.mapping.get(self.front.tokenizer.clone()).unwrap_or_default()
    }

    /// Major and minor format version of the file.
    pub fn format_version(&self) -> (u16, u16) {
        (super::MAJOR_VERSION, self.front.header.minor)
    }

    /// The section table.
    pub fn sections(&self) -> &[Section] {
        &self.front.header.sections
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.front.file_len()
    }

    /// A number for hyperparameters, weights and tokenizer. Models that differ in one of them have
    /// different numbers, except by chance. Chat settings and provenance do not count. The number
    /// is made of checksums, so it recognises models and does not authenticate them.
    pub fn model_id(&self) -> u64 {
        self.front.model_id
    }

    /// The bytes of the file.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// All tensors, in their order in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.front.tensors
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let tensors = &self.front.tensors;
        match self.by_name.binary_search_by_key(&name, |&i| tensors[i].name.as_str()) {
            Ok(at) => Ok(&tensors[self.by_name[at]]),
            Err(_) => Err(self.annotate(Error::malformed(format!("tensor {name} is missing")))),
        }
    }

    /// The range of a tensor of this file in [`mapping`](Self::mapping).
    pub fn range(&self, tensor: &TensorInfo) -> Range<usize> {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(self.mapping.len());
        at(tensor.offset)..at(tensor.end())
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.mapping.get(self.range(tensor)).unwrap_or_default()
    }

    /// Start of the tensors.
    pub(super) fn data_start(&self) -> usize {
        self.front.data.start as usize
    }

    /// Bytes of all tensors together, padding included.
    pub fn data_bytes(&self) -> u64 {
        self.front.data_bytes()
    }

    /// Bytes of the tensors that are checked by record: the embedding, and in RWKV-7a the tables of
    /// DeepEmbed. Only single records of them are read.
    pub fn embedding_bytes(&self) -> u64 {
        self.front.embedding_bytes()
    }

    /// Gives the pages of a view into this file back to the system; see [`Mapping::release`].
    pub fn release(&self, view: &[u8]) {
        let start = view.as_ptr().addr().wrapping_sub(self.mapping.as_ptr().addr());
        self.mapping.release(start..start.saturating_add(view.len()));
    }

    /// Checks the bytes of a tensor against its checksum or against those of its records.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] naming the tensor, or the first damaged record.
    pub fn verify(&self, tensor: &TensorInfo) -> Result<()> {
        if tensor.checked_by_record {
            self.verify(self.tensor(&tensor.record_crc_name())?)?;
            let records = self.records_handle(&tensor.name, tensor.layout, tensor.shape)?;
            let mut record = vec![0; records.stride()];
            return (0..tensor.shape[0])
                .try_for_each(|index| self.read_record(records, index, &mut record).map(drop));
        }
        if crc32fast::hash(self.bytes(tensor)) == tensor.crc32 {
            return Ok(());
        }
        let what = format!("tensor {}", tensor.name);
        Err(self.annotate(ErrorKind::Checksum { what }.into()))
    }

    /// Checks every tensor that has a checksum of its own, and that only zeros lie between tensors.
    /// [`verify_embedding`](Self::verify_embedding) checks the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] naming the first damaged tensor.
    pub fn verify_all(&self) -> Result<()> {
        Verifier::new(self)?.advance(self, usize::MAX).map(drop)
    }

    /// Checks every record of the tensors that are checked by record: the embedding, and in RWKV-7a
    /// the tables of DeepEmbed.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] naming the first damaged record.
    pub fn verify_embedding(&self) -> Result<()> {
        self.tensors().iter().filter(|tensor| tensor.checked_by_record).try_for_each(|t| self.verify(t))
    }

    /// Adds the path of the file to an error.
    pub(super) fn annotate(&self, error: Error) -> Error {
        with_path(error, self.path.clone())
    }
}

fn with_path(error: Error, path: Option<PathBuf>) -> Error {
    match path {
        Some(path) => error.with_path(path),
        None => error,
    }
}

impl ModelHeader {
    /// Reads everything of the file at `path` but the tensors. They are neither mapped nor read, so
    /// this takes a few megabytes of memory, however large the file is.
    ///
    /// # Errors
    /// As for [`ModelFile::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let (start, file_len) = Mapping::open_start(path, MOST_HEADER_BYTES as u64)?;
            check_kind(&start)?;
            let header = Header::parse_tables(&start, file_len)?;
            let (front, file_len) = Mapping::open_start(path, header.section(SectionKind::DATA)?.offset)?;
            Self::parse(&front, file_len)
        };
        open().map_err(|error| error.with_path(path))
    }

    /// As [`open`](Self::open), from the bytes of a whole file.
    ///
    /// # Errors
    /// As for [`ModelFile::open`].
    pub fn of_bytes(file: &[u8]) -> Result<Self> {
        Self::parse(file, file.len() as u64)
    }

    /// Hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All tensors, in their order in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.header.file_len
    }

    /// Bytes of all tensors together, padding included.
    pub fn data_bytes(&self) -> u64 {
        self.data.end - self.data.start
    }

    /// Bytes of the tensors that are checked by record: the embedding, and in RWKV-7a the tables of
    /// DeepEmbed. Only single records of them are read.
    pub fn embedding_bytes(&self) -> u64 {
        self.tensors.iter().filter(|tensor| tensor.checked_by_record).map(|tensor| tensor.len).sum()
    }

    /// Reads the first bytes of a file of `file_len` bytes: all before section DATA, or more.
    fn parse(file: &[u8], file_len: u64) -> Result<Self> {
        check_kind(file)?;
        let header = Header::parse(file, file_len)?;
        header.sections.iter().try_for_each(|section| check_section(file, section))?;
        let read = |kind| header.section(kind).map(|section| section_bytes(file, section));
        let data = header.section(SectionKind::DATA)?;
        let data = data.offset..data.offset.saturating_add(data.len);
        let tokenizer = header.section(SectionKind::TOKN)?;
        let conf = read(SectionKind::CONF)?;
        let config = Config::parse(conf)?;
        let n_vocab = config.n_vocab;
        let tensors = tensor_table::parse(read(SectionKind::TENS)?, data.clone())?;
        check_types(&tensors, header.minor)?;
        Ok(Self {
            chat: Chat::parse(read(SectionKind::CHAT)?, n_vocab)?,
            provenance: Provenance::parse(read(SectionKind::PROV)?)?,
            self_test: SelfTest::parse(read(SectionKind::TEST)?, n_vocab)?,
            model_id: model_id::of(conf, tokenizer, &tensors),
            tokenizer: section_range(tokenizer),
            tensors,
            data,
            config,
            header,
        })
    }
}

/// Refuses element types that the file's minor version does not have.
fn check_types(tensors: &[TensorInfo], minor: u16) -> Result<()> {
    let newer = tensors.iter().find(|tensor| tensor.dtype.minor_version() > minor);
    newer.map_or(Ok(()), |TensorInfo { name, dtype, .. }| {
        Err(Error::malformed(format!("tensor {name} is {dtype:?}, which format 1.{minor} does not have")))
    })
}

/// Refuses a file that begins like one of another kind.
fn check_kind(file: &[u8]) -> Result<()> {
    match FileKind::of(file).and_then(FileKind::advice) {
        Some(what) => Err(ErrorKind::NotAModel(what.into()).into()),
        None => Ok(()),
    }
}

/// Checks a section's own checksum, and that its kind is known or may be skipped.
fn check_section(file: &[u8], section: &Section) -> Result<()> {
    let kind = section.kind;
    if kind != SectionKind::DATA && crc32fast::hash(section_bytes(file, section)) != section.crc32 {
        return Err(ErrorKind::Checksum { what: format!("section {kind}") }.into());
    }
    if section.flags & MUST_UNDERSTAND != 0 && !SectionKind::ALL.contains(&kind) {
        return Err(ErrorKind::Unsupported(format!("section {kind} is not known here")).into());
    }
    Ok(())
}

/// The range of a section. The header has checked that sections lie inside the file, so the
/// conversion loses nothing.
fn section_range(section: &Section) -> Range<usize> {
    section.offset as usize..section.offset.saturating_add(section.len) as usize
}

fn section_bytes<'a>(file: &'a [u8], section: &Section) -> &'a [u8] {
    file.get(section_range(section)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::format::testing::contents;
    use crate::format::{ElementType, FileLayout, TensorLayout};

    /// A model file whose tensors are a hole.
    fn hole(side: usize) -> (tempfile::NamedTempFile, FileLayout) {
        let mut contents = contents();
        contents.tensors[1].dtype = ElementType::F32;
        contents.tensors[1].layout = TensorLayout::Interleaved;
        contents.tensors[1].shape = [side, side];
        let layout = FileLayout::new(contents).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&layout.emit_front().unwrap()).unwrap();
        file.as_file().set_len(layout.file_len()).unwrap();
        (file, layout)
    }

    #[test]
    fn the_header_of_a_file_larger_than_any_memory_is_read() {
        let (file, layout) = hole(1 << 19);
        let header = ModelHeader::open(file.path()).unwrap();
        assert!(header.file_len() > 1 << 40);
        assert_eq!(header.file_len(), layout.file_len());
        assert_eq!(header.tensors(), layout.tensors());
        assert_eq!(header.config(), &layout.contents().config);
    }

    #[test]
    fn a_header_is_that_of_the_whole_file_and_a_cut_file_is_refused() {
        let (file, layout) = hole(64);
        let whole = ModelFile::open(file.path()).unwrap();
        let header = ModelHeader::open(file.path()).unwrap();
        assert_eq!(header.tensors(), whole.tensors());
        assert_eq!((header.model_id, header.data_bytes()), (whole.model_id(), whole.data_bytes()));
        let handle = File::options().write(true).open(file.path()).unwrap();
        for len in [layout.file_len() - 1, header.data.start, header.data.start - 1, 100, 63, 5, 0] {
            handle.set_len(len).unwrap();
            let cut = ModelHeader::open(file.path()).unwrap_err();
            assert_eq!(cut.path(), Some(file.path()));
            assert_eq!(cut.to_string(), ModelFile::open(file.path()).unwrap_err().to_string());
        }
    }
}

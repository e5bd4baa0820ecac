//! The layout of a file before it is written.

use rwkv_edge_kernels::layout::DType;

use super::bytes::align_up;
use super::header::{HEADER_BYTES, Header, SECTION_BYTES, Section};
use super::tensor::{byte_len, describe};
use super::tensor_table::{self, check_tensors};
use super::{
    Chat, Config, ElementType, LINE_ALIGN, PAGE_ALIGN, Provenance, SectionKind, SelfTest, TensorInfo,
    TensorLayout,
};
use crate::error::{Error, Result};
use crate::tokenizer;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteSpec {
    /// Name, unique in the file.
    pub name: String,
    /// Type of the elements.
    pub dtype: ElementType,
    /// Arrangement of the bytes.
    pub layout: TensorLayout,
    /// Logical shape `[out, in]`; `[n, 1]` for vectors.
    pub shape: [usize; 2],
    /// Whether each record has a checksum of its own, which is checked when the record is used.
    /// Otherwise the tensor has one checksum.
    pub checked_by_record: bool,
}

impl WriteSpec {
    /// An f32 vector of `len` elements.
    pub fn vector(name: impl Into<String>, len: usize) -> Self {
        Self {
            name: name.into(),
            dtype: ElementType::F32,
            layout: TensorLayout::Vector,
            shape: [len, 1],
            checked_by_record: false,
        }
    }

    /// A weight matrix or records of logical shape `[out, in]`.
    pub fn weight(name: impl Into<String>, dtype: DType, layout: TensorLayout, shape: [usize; 2]) -> Self {
        Self { name: name.into(), dtype: dtype.into(), layout, shape, checked_by_record: false }
    }
}

/// Everything in a file except the tensors' bytes.
#[derive(Clone, Debug)]
pub struct FileContents {
    /// Hyperparameters.
    pub config: Config,
    /// The tokenizer section.
    pub tokenizer: Vec<u8>,
    /// Chat settings.
    pub chat: Chat,
    /// Origin. The writer can set digest, size and error at the end; the texts are final.
    pub provenance: Provenance,
    /// Self-test. The writer can set the digest at the end; the tokens are final.
    pub self_test: SelfTest,
    /// Tensors in the order in which they are written. A tensor that is checked by record is
    /// followed by a vector with a checksum for each record. That vector is not listed here.
    pub tensors: Vec<WriteSpec>,
}

/// The layout of a file: every offset and length. Computing it does not touch the disk.
#[derive(Clone, Debug)]
pub struct FileLayout {
    pub(super) contents: FileContents,
    pub(super) tensors: Vec<TensorInfo>,
    /// For each spec, its index in `tensors`.
    pub(super) slots: Vec<usize>,
    pub(super) data_start: u64,
    file_len: u64,
}

impl FileLayout {
    /// Lays out a file.
    ///
    /// # Errors
    /// If a value is out of range, a tensor cannot be stored as asked, or a name occurs twice.
    pub fn new(contents: FileContents) -> Result<Self> {
        contents.config.validate()?;
        contents.chat.validate(contents.config.n_vocab)?;
        contents.provenance.validate()?;
        contents.self_test.validate(contents.config.n_vocab)?;
        let mut layout =
            Self { contents, tensors: Vec::new(), slots: Vec::new(), data_start: 0, file_len: 0 };
        for i in 0..layout.contents.tensors.len() {
            layout.slots.push(layout.tensors.len());
            let tensor = lay_out_tensor(&layout.contents.tensors[i])?;
            let table = tensor.checked_by_record.then(|| lay_out_record_table(&tensor)).transpose()?;
            layout.tensors.push(tensor);
            layout.tensors.extend(table);
        }
        layout.place().ok_or_else(|| Error::invalid("the file would be too large"))?;
        check_tensors(&layout.tensors, layout.data_start..layout.file_len)
            .map_err(|error| Error::invalid(format!("cannot lay out the file: {error}")))?;
        Ok(layout)
    }

    /// Hyperparameters, tokenizer and settings as given.
    pub fn contents(&self) -> &FileContents {
        &self.contents
    }

    /// All tensors with their places. Scales, errors and checksums are not known yet.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Gives every tensor its offset, and finds the start of DATA and the end of the file.
    fn place(&mut self) -> Option<()> {
        let sections = self.place_sections(&self.emit_sections())?;
        let mut end = sections.last()?.end()?;
        end = align_up(end, PAGE_ALIGN)?;
        self.data_start = end;
        for tensor in &mut self.tensors {
            tensor.offset = align_up(end, tensor.align())?;
            end = tensor.offset.checked_add(tensor.len)?;
        }
        self.file_len = end;
        Some(())
    }

    /// The bytes of every section before DATA.
    fn emit_sections(&self) -> [(SectionKind, Vec<u8>); 6] {
        let contents = &self.contents;
        [
            (SectionKind::CONF, contents.config.emit()),
            (SectionKind::TENS, tensor_table::emit(&self.tensors)),
            (SectionKind::TOKN, contents.tokenizer.clone()),
            (SectionKind::CHAT, contents.chat.emit()),
            (SectionKind::PROV, contents.provenance.emit()),
            (SectionKind::TEST, contents.self_test.emit()),
        ]
    }

    fn place_sections(&self, bodies: &[(SectionKind, Vec<u8>)]) -> Option<Vec<Section>> {
        let mut end = (HEADER_BYTES + SECTION_BYTES * SectionKind::ALL.len()) as u64;
        let mut sections = Vec::with_capacity(SectionKind::ALL.len());
        for (kind, body) in bodies {
            let (offset, len) = (align_up(end, LINE_ALIGN)?, body.len() as u64);
            let crc32 = crc32fast::hash(body);
            sections.push(Section { kind: *kind, flags: kind.flags(), offset, len, crc32 });
            end = offset.checked_add(len)?;
        }
        Some(sections)
    }

    /// Everything before DATA, padded up to its start.
    pub(super) fn emit_front(&self) -> Result<Vec<u8>> {
        let bodies = self.emit_sections();
        let changed = || Error::invalid("the length of the metadata changed after the file was laid out");
        let mut sections = self.place_sections(&bodies).ok_or_else(changed)?;
        let places: Vec<u64> = sections.iter().map(|section| section.offset).collect();
        let kind = SectionKind::DATA;
        let len = self.file_len - self.data_start;
        sections.push(Section { kind, flags: kind.flags(), offset: self.data_start, len, crc32: 0 });
        let FileContents { config, chat, tokenizer, provenance, .. } = &self.contents;
        let types = self.tensors.iter().map(|tensor| tensor.dtype.minor_version()).max().unwrap_or(0);
        let minor = config.minor_version().max(chat.minor_version()).max(tokenizer::minor_version(tokenizer));
        let minor = minor.max(types).max(provenance.minor_version());
        let mut out = Header::new(minor, self.file_len, sections).emit();
        for (place, (_, body)) in places.into_iter().zip(&bodies) {
            out.resize(place as usize, 0);
            out.extend(body);
        }
        if align_up(out.len() as u64, PAGE_ALIGN) != Some(self.data_start) {
            return Err(changed());
        }
        out.resize(self.data_start as usize, 0);
        Ok(out)
    }
}

fn lay_out_tensor(spec: &WriteSpec) -> Result<TensorInfo> {
    let WriteSpec { name, dtype, layout, shape, checked_by_record } = spec;
    let len = byte_len(*dtype, *layout, *shape).ok_or_else(|| {
        Error::invalid(format!("tensor {name}: {} cannot be stored", describe(*dtype, *layout, *shape)))
    })?;
    Ok(TensorInfo {
        name: name.clone(),
        dtype: *dtype,
        layout: *layout,
        shape: *shape,
        scale: 1.0,
        rel_error: 0.0,
        offset: 0,
        len,
        crc32: 0,
        checked_by_record: *checked_by_record,
    })
}

/// The vector of record checksums that follows a tensor checked by record.
fn lay_out_record_table(tensor: &TensorInfo) -> Result<TensorInfo> {
    lay_out_tensor(&WriteSpec {
        name: tensor.record_crc_name(),
        dtype: ElementType::U32,
        layout: TensorLayout::Vector,
        shape: [tensor.shape[0], 1],
        checked_by_record: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::contents;
    use super::*;

    #[test]
    fn tensors_keep_their_order_and_lie_where_their_alignment_asks() {
        let layout = FileLayout::new(contents()).unwrap();
        let names: Vec<_> = layout.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        let mut wanted: Vec<_> = layout.contents().tensors.iter().map(|spec| spec.name.as_str()).collect();
        wanted.push("emb.weight.crc32");
        assert_eq!(names, wanted);
        assert_eq!(layout.data_start % PAGE_ALIGN, 0);
        assert_eq!(layout.tensors()[0].offset, layout.data_start);
        let mut end = layout.data_start;
        for tensor in layout.tensors() {
            assert_eq!(tensor.offset, end.next_multiple_of(tensor.align()), "{}", tensor.name);
            end = tensor.end();
        }
        assert_eq!(layout.file_len(), end);
    }

    #[test]
    fn the_front_fills_the_file_up_to_the_data() {
        let layout = FileLayout::new(contents()).unwrap();
        assert_eq!(layout.emit_front().unwrap().len() as u64, layout.data_start);
    }

    #[test]
    fn impossible_contents_are_refused() {
        type Edit = (&'static str, fn(&mut FileContents));
        let edits: [Edit; 8] = [
            ("n_embd", |c| c.config.n_embd = 0),
            ("user", |c| c.chat.user = Some("x".into())),
            ("source_name", |c| c.provenance.source_name = "a/b".into()),
            ("self-test", |c| c.self_test.tokens.clear()),
            ("no tensors", |c| c.tensors.clear()),
            ("twice", |c| c.tensors[1].name = c.tensors[0].name.clone()),
            ("cannot be stored", |c| c.tensors[0].shape = [8, 2]),
            ("twice", |c| c.tensors[0].name = "emb.weight.crc32".into()),
        ];
        for (word, edit) in edits {
            let mut contents = contents();
            edit(&mut contents);
            let error = FileLayout::new(contents).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_file_beyond_64_bits_is_refused() {
        let mut contents = contents();
        let huge = WriteSpec {
            name: String::new(),
            dtype: ElementType::F32,
            layout: TensorLayout::Interleaved,
            shape: [1 << 30, (1 << 30) - 64],
            checked_by_record: false,
        };
        contents.tensors = (0..8).map(|i| WriteSpec { name: format!("t{i}"), ..huge.clone() }).collect();
        let error = FileLayout::new(contents).unwrap_err().to_string();
        let word = if cfg!(target_pointer_width = "64") { "too large" } else { "cannot be stored" };
        assert!(error.contains(word), "{error}");
    }
}

//! Streams a model file to disk.

use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::mem;

use super::metadata::check_rel_error;
use super::tensor::scale_fits;
use super::{FileLayout, Mapping, ModelFile, Output, Provenance, Published, SelfTest, Target, TensorInfo};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// Writes a planned file, tensors strictly in order, into an [`Output`]. The output replaces its
/// target at the end. Nobody sees a half-written target, and an abandoned writer leaves nothing
/// behind.
///
/// For each tensor, call [`begin`](Self::begin), any number of [`write`](Self::write), and
/// [`end`](Self::end). After the last tensor, call [`finish_data`](Self::finish_data).
/// [`model_file`](Self::model_file) is then a complete model with the digests of the layout, and
/// [`finish`](Self::finish) writes the final ones.
#[derive(Debug)]
pub struct ModelWriter {
    layout: FileLayout,
    file: BufWriter<Output>,
    /// Offset of the next byte written, from the start of the file.
    position: u64,
    /// Index of the next spec.
    next: usize,
    current: Option<Current>,
    data_complete: bool,
}

/// The tensor being written.
#[derive(Debug)]
struct Current {
    /// Index in the layout's tensors.
    slot: usize,
    written: u64,
    hasher: crc32fast::Hasher,
    /// Bytes of one record, for a tensor checked by record; else 0.
    record_bytes: u64,
    record_crcs: Vec<u32>,
}

impl ModelWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// If no file can be created in the target's folder, or if the disk or the address space has no
    /// room for it.
    pub fn create(target: Target, layout: FileLayout) -> Result<Self> {
        let output = Output::create(target, layout.file_len())?;
        let mut writer = Self {
            position: layout.data_start,
            layout,
            file: BufWriter::with_capacity(BUFFER_BYTES, output),
            next: 0,
            current: None,
            data_complete: false,
        };
        Mapping::check_room(writer.file.get_ref().file(), writer.layout.file_len())
            .and_then(|()| writer.seek(writer.position))
            .map_err(|error| writer.annotate(error))?;
        Ok(writer)
    }

    /// The layout of the file. Scales, errors and checksums are known for the tensors already
    /// written.
    pub fn layout(&self) -> &FileLayout {
        &self.layout
    }

    /// The model in its present form. It is complete after [`finish_data`](Self::finish_data).
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn model_file(&self) -> Result<ModelFile> {
        let output = self.file.get_ref();
        let mapping = Mapping::open_file(output.file()).map_err(|error| self.annotate(error))?;
        ModelFile::from_mapping(mapping, Some(output.target().path().to_owned()))
    }

    /// Starts tensor `index` of [`FileContents::tensors`](super::FileContents::tensors), which must
    /// be the next one. `scale` is its tensor scale, 1 for types without group scales.
    ///
    /// # Errors
    /// If another tensor is next, the scale does not fit the type, or on a write error.
    pub fn begin(&mut self, index: usize, scale: f32) -> Result<()> {
        if self.current.is_some() || self.data_complete {
            return Err(self.misuse("begin: the tensor before has not ended, or the data is complete"));
        }
        let slot =
            *self.layout.slots.get(index).ok_or_else(|| self.misuse("begin: there is no such tensor"))?;
        if index != self.next {
            return Err(self.misuse(&format!("begin: tensor {index} instead of {}", self.next)));
        }
        self.begin_slot(slot, scale)
    }

    /// Appends bytes to the current tensor.
    ///
    /// # Errors
    /// If there is no current tensor, the tensor would become longer than planned, or on a write
    /// error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Err(self.misuse("write: no tensor")) };
        let planned = self.layout.tensors[current.slot].len;
        if planned - current.written < bytes.len() as u64 {
            let name = &self.layout.tensors[current.slot].name;
            return Err(self.misuse(&format!("tensor {name} is longer than the planned {planned} bytes")));
        }
        self.file.write_all(bytes).map_err(|error| self.io(error))?;
        self.position += bytes.len() as u64;
        current.update(bytes);
        self.current = Some(current);
        Ok(())
    }

    /// Discards the written bytes of the current tensor. [`begin`](Self::begin) must start it
    /// again.
    ///
    /// # Errors
    /// If there is no current tensor, or on a write error.
    pub fn rewind(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Err(self.misuse("rewind: no tensor")) };
        let offset = self.layout.tensors[current.slot].offset;
        self.position = offset;
        self.seek(offset).map_err(|error| self.annotate(error))
    }

    /// Ends the current tensor. `rel_error` is the relative error of its weights against the
    /// checkpoint's.
    ///
    /// # Errors
    /// If the tensor is shorter than planned, or on a write error.
    pub fn end(&mut self, rel_error: f32) -> Result<()> {
        let Some(current) = self.current.take() else { return Err(self.misuse("end: no tensor")) };
        let crcs = self.end_slot(current, rel_error)?;
        if let Some((slot, crcs)) = crcs {
            self.begin_slot(slot, 1.0)?;
            self.write(bytemuck::cast_slice(&crcs))?;
            let Some(current) = self.current.take() else { return Err(self.misuse("end: no table")) };
            self.end_slot(current, 0.0)?;
        }
        self.next += 1;
        Ok(())
    }

    /// Completes the data and makes the file a readable model, with provenance and self-test as
    /// planned. A [`model_file`](Self::model_file) must be closed before [`finish`](Self::finish).
    ///
    /// # Errors
    /// If a tensor has not been written, or on a write error.
    pub fn finish_data(&mut self) -> Result<()> {
        if self.current.is_some() || self.next != self.layout.slots.len() {
            return Err(self.misuse("finish_data: not all tensors have been written"));
        }
        self.data_complete = true;
        self.write_front()
    }

    /// Writes the final provenance and self-test, makes the file durable, and moves it to the
    /// target.
    ///
    /// # Errors
    /// If the data is not complete, a text or the number of tokens is not as planned, or on a write
    /// error. No file is left then.
    pub fn finish(mut self, provenance: Provenance, self_test: SelfTest) -> Result<Published> {
        if !self.data_complete {
            self.finish_data()?;
        }
        provenance.validate()?;
        self_test.validate(self.layout.contents.config.n_vocab)?;
        let old = &self.layout.contents;
        if provenance.emit().len() != old.provenance.emit().len()
            || self_test.emit().len() != old.self_test.emit().len()
        {
            return Err(self.misuse("finish: texts or tokens differ from the planned ones"));
        }
        self.layout.contents.provenance = provenance;
        self.layout.contents.self_test = self_test;
        self.write_front()?;
        let target = self.file.get_ref().target().path().to_owned();
        let output =
            self.file.into_inner().map_err(|error| Error::from(error.into_error()).with_path(target))?;
        output.publish()
    }

    fn begin_slot(&mut self, slot: usize, scale: f32) -> Result<()> {
        let tensor = &self.layout.tensors[slot];
        if !scale_fits(tensor.dtype, scale) {
            let what = format!("tensor {}: scale {scale} does not go with {}", tensor.name, tensor.dtype);
            return Err(self.misuse(&what));
        }
        let Some(padding) = tensor.offset.checked_sub(self.position) else {
            return Err(self.misuse("an earlier error left a tensor incomplete"));
        };
        let current = Current::new(slot, tensor);
        self.layout.tensors[slot].scale = scale;
        io::copy(&mut io::repeat(0).take(padding), &mut self.file).map_err(|error| self.io(error))?;
        self.position += padding;
        self.current = Some(current);
        Ok(())
    }

    /// Records checksum and error. Returns the slot and contents of the table of record checksums,
    /// if there is one.
    fn end_slot(&mut self, current: Current, rel_error: f32) -> Result<Option<(usize, Vec<u32>)>> {
        let tensor = &mut self.layout.tensors[current.slot];
        if current.written != tensor.len {
            let what = format!("tensor {}: {} of {} bytes written", tensor.name, current.written, tensor.len);
            return Err(self.misuse(&what));
        }
        check_rel_error(rel_error)?;
        tensor.rel_error = rel_error;
        if tensor.checked_by_record {
            return Ok(Some((current.slot + 1, current.record_crcs)));
        }
        tensor.crc32 = current.hasher.finalize();
        Ok(None)
    }

    fn write_front(&mut self) -> Result<()> {
        let front = self.layout.emit_front().map_err(|error| self.annotate(error))?;
        self.seek(0).map_err(|error| self.annotate(error))?;
        self.file.write_all(&front).and_then(|()| self.file.flush()).map_err(|error| self.io(error))
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        Ok(())
    }

    fn misuse(&self, what: &str) -> Error {
        self.annotate(Error::invalid(format!("writing the model: {what}")))
    }

    fn io(&self, error: io::Error) -> Error {
        self.annotate(error.into())
    }

    /// Adds the target to an error about the file.
    fn annotate(&self, error: Error) -> Error {
        error.with_path(self.file.get_ref().target().path())
    }
}

impl Current {
    fn new(slot: usize, tensor: &TensorInfo) -> Self {
        let records = if tensor.checked_by_record { tensor.shape[0] } else { 0 };
        Self {
            slot,
            written: 0,
            hasher: crc32fast::Hasher::new(),
            record_bytes: tensor.len.checked_div(records as u64).unwrap_or(0),
            record_crcs: Vec::with_capacity(records),
        }
    }

    /// Adds bytes to the checksum of the tensor, or to those of its records.
    fn update(&mut self, mut bytes: &[u8]) {
        if self.record_bytes == 0 {
            self.written += bytes.len() as u64;
            self.hasher.update(bytes);
            return;
        }
        while !bytes.is_empty() {
            let left = self.record_bytes - self.written % self.record_bytes;
            let take = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (head, rest) = bytes.split_at(take);
            self.hasher.update(head);
            self.written += take as u64;
            bytes = rest;
            if take as u64 == left {
                self.record_crcs.push(mem::take(&mut self.hasher).finalize());
            }
        }
    }
}

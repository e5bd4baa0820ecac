//! Handles of checked tensors.
//!
//! A handle is made once, when type, layout and shape are checked. It is small and borrows nothing.
//! A model file turns its own handles into matrices, records and vectors.

use rwkv_edge_kernels::layout::{DType, Matrix, Records};

use super::reader::ModelFile;
use super::tensor::{ElementType, TensorInfo, TensorLayout, describe};
use crate::error::{Error, ErrorKind, Result};

/// Only the file that made a handle accepts it.
const WRONG_FILE: &str = "a tensor handle of another model file was used";

/// The bytes of a tensor in its own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    len: usize,
}

/// A matrix whose type, layout and shape have been checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixHandle {
    span: Span,
    dtype: DType,
    rows: usize,
    cols: usize,
    scale: f32,
}

/// Records whose type, layout and shape have been checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordsHandle {
    span: Span,
    dtype: DType,
    count: usize,
    value_count: usize,
    scale: f32,
    checksums: Option<U32Handle>,
}

/// A vector of f32 whose length has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorHandle {
    span: Span,
}

/// A vector of u32 whose length has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct U32Handle {
    span: Span,
}

impl RecordsHandle {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of a record.
    pub fn stride(&self) -> usize {
        self.span.len / self.count
    }

    /// The only record in the bytes of one.
    ///
    /// # Panics
    /// If there are not [`stride`](Self::stride) bytes.
    pub fn record<'b>(&self, bytes: &'b [u8]) -> Records<'b> {
        Records::new(self.dtype, 1, self.value_count, self.scale, bytes).expect("the bytes of a record")
    }
}

impl ModelFile {
    /// The interleaved matrix `name` of any weight type.
    ///
    /// # Errors
    /// If there is none or it is not `[rows, cols]`.
    pub fn matrix_handle(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixHandle> {
        let (tensor, dtype) = self.weight(name, TensorLayout::Interleaved, [rows, cols])?;
        Ok(MatrixHandle { span: self.span(tensor), dtype, rows, cols, scale: tensor.scale })
    }

    /// The records `name` of any weight type and the logical shape `[out, in]`.
    ///
    /// # Errors
    /// If there are none or they have another layout or shape.
    pub fn records_handle(
        &self,
        name: &str,
        layout: TensorLayout,
        shape: [usize; 2],
    ) -> Result<RecordsHandle> {
        let (tensor, dtype) = self.weight(name, layout, shape)?;
        let (count, value_count) =
            layout.records(shape).ok_or_else(|| Error::invalid(format!("layout {layout} has no records")))?;
        let checksums = match tensor.checked_by_record {
            true => Some(self.u32_handle(&tensor.record_crc_name(), count)?),
            false => None,
        };
        Ok(RecordsHandle {
            span: self.span(tensor),
            dtype,
            count,
            value_count,
            scale: tensor.scale,
            checksums,
        })
    }

    /// The f32 vector `name`.
    ///
    /// # Errors
    /// If there is none or it does not have `len` elements.
    pub fn vector_handle(&self, name: &str, len: usize) -> Result<VectorHandle> {
        let tensor = self.typed(name, Some(ElementType::F32), TensorLayout::Vector, [len, 1])?;
        Ok(VectorHandle { span: self.span(tensor) })
    }

    /// The u32 vector `name`.
    ///
    /// # Errors
    /// If there is none or it does not have `len` elements.
    pub fn u32_handle(&self, name: &str, len: usize) -> Result<U32Handle> {
        let tensor = self.typed(name, Some(ElementType::U32), TensorLayout::Vector, [len, 1])?;
        Ok(U32Handle { span: self.span(tensor) })
    }

    /// The matrix of a handle of this file.
    ///
    /// # Panics
    /// If the handle is of another file.
    pub fn matrix(&self, r: MatrixHandle) -> Matrix<'_> {
        Matrix::new(r.dtype, r.rows, r.cols, r.scale, self.at(r.span)).expect(WRONG_FILE)
    }

    /// The records of a handle of this file.
    ///
    /// # Panics
    /// If the handle is of another file.
    pub fn records(&self, r: RecordsHandle) -> Records<'_> {
        Records::new(r.dtype, r.count, r.value_count, r.scale, self.at(r.span)).expect(WRONG_FILE)
    }

    /// The f32 vector of a handle of this file.
    ///
    /// # Panics
    /// If the handle is of another file.
    pub fn vector(&self, r: VectorHandle) -> &[f32] {
        bytemuck::try_cast_slice(self.at(r.span)).expect(WRONG_FILE)
    }

    /// The u32 vector of a handle of this file.
    ///
    /// # Panics
    /// If the handle is of another file.
    pub fn u32s(&self, r: U32Handle) -> &[u32] {
        bytemuck::try_cast_slice(self.at(r.span)).expect(WRONG_FILE)
    }

    /// Copies one record to the start of `out` and checks it against its checksum. A record without
    /// one of its own passes, because its tensor has one. Pages of a mapped file do not become
    /// resident. Allocates only for an error.
    ///
    /// # Errors
    /// [`ErrorKind::Checksum`] if the checksum does not match. Or if there is no such record, or it
    /// cannot be read.
    ///
    /// # Panics
    /// If the handle is of another file, or `out` is shorter than a record.
    pub fn read_record<'b>(&self, r: RecordsHandle, index: usize, out: &'b mut [u8]) -> Result<Records<'b>> {
        if index >= r.count {
            let count = r.count;
            return Err(self.annotate(Error::invalid(format!("there is no record {index} in {count}"))));
        }
        let expected = r.checksums.map(|checksums| self.u32s(checksums)[index]);
        assert!(self.mapping().len() >= r.span.start + r.span.len, "{WRONG_FILE}");
        let out = &mut out[..r.stride()];
        let read = self.mapping().read_at(r.span.start + index * out.len(), out);
        read.map_err(|error| self.annotate(error.into()))?;
        if expected.is_some_and(|expected| crc32fast::hash(out) != expected) {
            return Err(self.annotate(ErrorKind::Checksum { what: self.record_name(r, index) }.into()));
        }
        Ok(r.record(out))
    }

    /// Name of the matrix of a handle of this file.
    pub fn matrix_name(&self, r: MatrixHandle) -> &str {
        self.name_at(r.span)
    }

    /// Name of the tensor that has the records of a handle of this file.
    pub fn records_name(&self, r: RecordsHandle) -> &str {
        self.name_at(r.span)
    }

    /// A record, for errors.
    fn record_name(&self, r: RecordsHandle, index: usize) -> String {
        format!("record {index} of tensor {}", self.records_name(r))
    }

    fn name_at(&self, span: Span) -> &str {
        let tensor = self.tensors().iter().find(|tensor| self.range(tensor).start == span.start);
        tensor.map_or("?", |tensor| tensor.name.as_str())
    }

    fn weight(&self, name: &str, layout: TensorLayout, shape: [usize; 2]) -> Result<(&TensorInfo, DType)> {
        let tensor = self.typed(name, None, layout, shape)?;
        match tensor.dtype.weight() {
            Some(dtype) => Ok((tensor, dtype)),
            None => Err(self.mismatch(tensor, "weights".into())),
        }
    }

    fn typed(
        &self,
        name: &str,
        dtype: Option<ElementType>,
        layout: TensorLayout,
        shape: [usize; 2],
    ) -> Result<&TensorInfo> {
        let tensor = self.tensor(name)?;
        let dtype_fits = dtype.is_none_or(|dtype| dtype == tensor.dtype);
        if dtype_fits && tensor.layout == layout && tensor.shape == shape {
            return Ok(tensor);
        }
        let expected = match dtype {
            Some(dtype) => describe(dtype, layout, shape),
            None => format!("{layout} [{}, {}]", shape[0], shape[1]),
        };
        Err(self.mismatch(tensor, expected))
    }

    fn mismatch(&self, tensor: &TensorInfo, expected: String) -> Error {
        let found = tensor.describe();
        self.annotate(ErrorKind::Tensor { name: tensor.name.clone(), expected, found }.into())
    }

    fn span(&self, tensor: &TensorInfo) -> Span {
        let range = self.range(tensor);
        Span { start: range.start, len: range.len() }
    }

    fn at(&self, span: Span) -> &[u8] {
        self.mapping().get(span.start..).and_then(|bytes| bytes.get(..span.len)).expect(WRONG_FILE)
    }
}

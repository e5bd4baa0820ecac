//! Streams one tensor from the checkpoint into the file: read a slice, transform, quantize, write.
//!
//! The slice bounds the memory, whatever the tensor's size. Several threads encode a slice. Every
//! chunk (a block of 16 rows, a row, or a column) is encoded on its own, so bytes and error sums do
//! not depend on the number of threads.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rwkv_edge::format::{ModelWriter, TensorLayout, WriteSpec};
use rwkv_edge::kernels::layout::{GROUP_SIZE, ROW_INTERLEAVE, Records, matrix_bytes, record_bytes};
use rwkv_edge::kernels::quant::{self, ErrorSums, ScaleOverflow, TENSOR_SCALE};
use rwkv_edge::kernels::{DType, Kernels};
use rwkv_edge::model::names;

use crate::calibration::{DAMPING, Inputs, Moments};
use crate::deep_embed::{self, Fold};
use crate::feedback::{self, Factor, Gram, Order, RowEncoder};
use crate::job::{self, Stop};
use crate::origin::{Input, Stored};
use crate::residual::BlockRows;
use crate::source::{LN0, SourceError, SourceTensor, folded_into};

/// Floats of a slice that one thread holds: 16 MiB. A slice of columns of a large matrix then still
/// reads a few hundred neighbouring values of each row.
const SLICE_FLOATS: usize = 4 << 20;

/// Factor on the tensor scale after a group scale did not fit fp16, and how often to try.
const SCALE_STEP: f32 = 64.0;
const SCALE_TRIES: usize = 8;

/// Called with the number of elements of the tensor encoded so far. The number falls when a tensor
/// is encoded again.
pub(crate) type Advance<'a> = dyn FnMut(usize) + 'a;

/// Encodes the tensors of a file.
pub(crate) struct Encoder<'a> {
    stop: Stop<'a>,
    kernels: &'static Kernels,
    layer_norm_eps: f32,
    /// Weight and bias of `ln0`, folded into the embedding; nothing if the checkpoint has done so.
    ln0: Option<[Vec<f32>; 2]>,
    /// One slice of floats per thread.
    slices: Vec<Vec<f32>>,
}

/// A tensor that was encoded.
#[derive(Default)]
pub(crate) struct Encoded {
    /// Its error against the checkpoint. The residual of a nested head has the error of both planes
    /// together.
    pub(crate) sums: ErrorSums,
    /// Bounds of a quantized `ffn.value` or of a residual; empty for other tensors.
    pub(crate) bounds: Vec<f32>,
}

/// A chunk could not be encoded.
enum ChunkError {
    /// A weight of this magnitude, or the scale of its group, does not fit fp16 at this tensor
    /// scale.
    Overflow(f32),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for ChunkError {
    fn from(error: anyhow::Error) -> Self {
        ChunkError::Other(error)
    }
}

impl From<rwkv_edge::Error> for ChunkError {
    fn from(error: rwkv_edge::Error) -> Self {
        ChunkError::Other(error.into())
    }
}

impl From<SourceError> for ChunkError {
    fn from(error: SourceError) -> Self {
        ChunkError::Other(error.into())
    }
}

/// A matrix's values, row-major `[out, in]`.
enum Values<'a> {
    /// In the checkpoint, already `[out, in]`.
    Checkpoint(Input<'a>, &'a Stored),
    /// The same, and a product is added to each row.
    Folded(Input<'a>, &'a Stored, Fold<'a>),
    /// In memory, transposed from `[in, out]`.
    Memory(Vec<f32>),
}

/// Partition of a tensor: `count` chunks that are encoded independently.
struct Chunks {
    count: usize,
    /// Source elements of each; the last block of rows may have fewer.
    floats: usize,
    /// Encoded bytes of each.
    bytes: usize,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(input: Input<'_>, layer_norm_eps: f32, threads: usize, stop: Stop<'a>) -> Result<Self> {
        let vector = |name: &str| {
            let tensor = input.get(name)?;
            let mut values = vec![0.0; tensor.elements()];
            read_finite(input, tensor, 0, &mut values)?;
            anyhow::Ok(values)
        };
        let is_normed = input.checkpoint.has_normed_embedding();
        let ln0 = || anyhow::Ok([vector(LN0[0])?, vector(LN0[1])?]);
        Ok(Self {
            stop,
            kernels: Kernels::best(),
            layer_norm_eps,
            ln0: (!is_normed).then(ln0).transpose()?,
            slices: vec![Vec::new(); threads.max(1)],
        })
    }

    /// Writes tensor number `index` of the file. `inputs` tell how weights are rounded.
    pub(crate) fn tensor(
        &mut self,
        writer: &mut ModelWriter,
        index: usize,
        (spec, inputs): (&WriteSpec, Option<Inputs>),
        (input, stored): (Input<'_>, &Stored),
        advance: &mut Advance<'_>,
    ) -> Result<Encoded> {
        let name = &spec.name;
        if spec.layout == TensorLayout::Vector {
            writer.begin(index, 1.0)?;
            self.vector(writer, input, stored)?;
            writer.end(0.0)?;
            advance(spec.shape[0]);
            return Ok(Encoded::default());
        }
        let dtype =
            spec.dtype.weight().with_context(|| format!("tensor {name}: {} is no weight", spec.dtype))?;
        let is_residual = name == names::HEAD_RESIDUAL;
        let first_plane = is_residual.then(|| scale_of(writer, names::HEAD)).transpose()?;
        let values = if stored.transposed {
            Values::Memory(self.transposed(input, stored, spec.shape)?)
        } else if folded_into(name).is_some() {
            Values::Folded(input, stored, Fold::new(self.kernels, input, name)?)
        } else {
            Values::Checkpoint(input, stored)
        };
        let mut scale = if dtype.is_quantized() { TENSOR_SCALE } else { 1.0 };
        let mut rounding = Rounding::by(inputs, self.kernels, self.slices.len());
        let mut tries = if dtype.is_quantized() { SCALE_TRIES } else { 1 };
        loop {
            writer.begin(index, scale)?;
            let target = Target { spec, dtype, scale, first_plane };
            match self.rounded(writer, &values, (target, &mut rounding), advance) {
                Ok(encoded) => {
                    writer.end(encoded.sums.relative() as f32)?;
                    return Ok(encoded);
                }
                Err(ChunkError::Other(error)) => return Err(error),
                Err(ChunkError::Overflow(largest)) => {
                    tries -= 1;
                    if tries == 0 {
                        let normed = if spec.layout == TensorLayout::RowRecords { " after ln0" } else { "" };
                        let expected = format!("weights that {dtype} can hold{normed}");
                        let found = format!("one of {largest:?}");
                        return Err(input.error(&stored.tensor.name, expected, found).into());
                    }
                    writer.rewind()?;
                    scale *= SCALE_STEP;
                }
            }
        }
    }

    /// Writes a vector as it is stored, a slice at a time: a tuned state can be large.
    fn vector(&self, writer: &mut ModelWriter, input: Input<'_>, stored: &Stored) -> Result<()> {
        let Stored { tensor, transform, .. } = stored;
        let (elements, unit) = (tensor.elements(), transform.unit());
        let per_slice = (SLICE_FLOATS / unit / transform.repeat()).max(1) * unit;
        for first in (0..elements).step_by(per_slice) {
            let mut values = vec![0.0; per_slice.min(elements - first)];
            read_finite(input, tensor, first, &mut values)?;
            let transformed = transform.apply(&values);
            if let Some(i) = transformed.iter().position(|x| !x.is_finite()) {
                let i = i / transform.repeat();
                let expected = format!("a number with a finite exponential in element {}", first + i);
                return Err(input.error(&tensor.name, expected, values[i].to_string()).into());
            }
            writer.write(&bytes_of(&transformed))?;
        }
        Ok(())
    }

    /// Reads a small matrix that the checkpoint has as `[in, out]`, and transposes it to
    /// `[out, in]`.
    fn transposed(&self, input: Input<'_>, origin: &Stored, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        let mut turned = vec![0.0; rows * cols];
        let per_slice = (SLICE_FLOATS / rows).max(1);
        for first in (0..cols).step_by(per_slice) {
            let mut stored = vec![0.0; per_slice.min(cols - first) * rows];
            read_finite(input, &origin.tensor, origin.start + first * rows, &mut stored)?;
            for (row, turned) in turned.chunks_exact_mut(cols).enumerate() {
                let column = stored.iter().skip(row).step_by(rows);
                turned[first..].iter_mut().zip(column).for_each(|(to, &from)| *to = from);
            }
        }
        Ok(turned)
    }

    /// Encodes a tensor.
    fn rounded(
        &mut self,
        writer: &mut ModelWriter,
        values: &Values<'_>,
        (target, rounding): (Target<'_>, &mut Rounding),
        advance: &mut Advance<'_>,
    ) -> Result<Encoded, ChunkError> {
        match rounding {
            Rounding::Columns(blocks) => self.fed_columns(writer, values, (target, blocks), advance),
            Rounding::Nearest => self.chunks(writer, values, (target, RowRounding::Nearest), advance),
            Rounding::Weighted(importance) => {
                self.chunks(writer, values, (target, RowRounding::Weighted(importance)), advance)
            }
            Rounding::Fed(factor) => self.chunks(writer, values, (target, RowRounding::Fed(factor)), advance),
        }
    }

    /// Encodes a matrix by columns with error feedback in blocks of them, one block at a time.
    fn fed_columns(
        &mut self,
        writer: &mut ModelWriter,
        values: &Values<'_>,
        (target, blocks): (Target<'_>, &mut [Gram]),
        advance: &mut Advance<'_>,
    ) -> Result<Encoded, ChunkError> {
        let [rows, _] = target.spec.shape;
        let chunks = Chunks::of(target)?;
        let rounding = RowRounding::Nearest;
        let encoding = Encoding { encoder: self, values, target, rounding, chunks: &chunks };
        let threads = self.slices.len();
        let mut encoded = Encoded { bounds: vec![0.0; rows.div_ceil(GROUP_SIZE)], ..Encoded::default() };
        let (mut panel, mut first) = (Vec::new(), 0);
        for gram in blocks {
            job::check(&self.stop)?;
            let width = gram.channels();
            encoding.read_columns(first, width, &mut panel)?;
            let factor = Factor::new(self.kernels, threads, gram, Order::Columns, DAMPING);
            let mut records = vec![0; width * chunks.bytes];
            let sums = feedback::encode_columns(
                self.kernels,
                threads,
                target.dtype,
                &panel,
                &factor,
                target.scale,
                &mut records,
            );
            encoded.sums += sums.map_err(|error| encoding.overflow(error))?.weights;
            writer.write(&records)?;
            let columns = Records::new(target.dtype, width, rows, target.scale, &records);
            quant::largest_scales(&columns.expect("as many columns"), &mut encoded.bounds);
            first += width;
            advance(first * rows);
        }
        Ok(encoded)
    }

    /// Encodes all chunks of a tensor in order, a slice at a time.
    fn chunks(
        &mut self,
        writer: &mut ModelWriter,
        values: &Values<'_>,
        (target, rounding): (Target<'_>, RowRounding<'_>),
        advance: &mut Advance<'_>,
    ) -> Result<Encoded, ChunkError> {
        let [rows, cols] = target.spec.shape;
        let chunks = Chunks::of(target)?;
        let per_thread = (SLICE_FLOATS / chunks.floats).clamp(1, chunks.count.div_ceil(self.slices.len()));
        let per_slice = per_thread * self.slices.len();
        let mut bytes = vec![0; per_slice * chunks.bytes];
        let mut outcomes = vec![Outcome::default(); per_slice];
        let mut slices = std::mem::take(&mut self.slices);
        let mut sums = ErrorSums::default();
        let mut bounds = Vec::new();
        let bounds_scales = target.spec.layout == TensorLayout::ColumnRecords && target.dtype.is_quantized();
        let mut scales = bounds_scales.then(|| vec![0.0; rows.div_ceil(GROUP_SIZE)]);
        let mut first = 0;
        let mut result = Ok(());
        while first < chunks.count && result.is_ok() {
            if let Err(stopped) = job::check(&self.stop) {
                result = Err(stopped.into());
                break;
            }
            let count = per_slice.min(chunks.count - first);
            let bytes = &mut bytes[..count * chunks.bytes];
            let outcomes = &mut outcomes[..count];
            let encoding = Encoding { encoder: self, values, target, rounding, chunks: &chunks };
            result = encoding.slice(first, per_thread, bytes, outcomes, &mut slices);
            if result.is_ok() {
                let done = ((first + count) * chunks.floats).min(rows * cols);
                writer.write(&bytes[..chunks.bytes_of(target, first, count)])?;
                if let Some(scales) = &mut scales {
                    let columns = Records::new(target.dtype, count, rows, target.scale, bytes);
                    quant::largest_scales(&columns.expect("as many columns"), scales);
                }
                for outcome in outcomes {
                    sums += outcome.sums;
                    bounds.extend(outcome.bounds);
                }
                advance(done);
            }
            first += count;
        }
        self.slices = slices;
        bounds.truncate(if target.first_plane.is_some() { rows } else { 0 });
        result.map(|()| Encoded { sums, bounds: scales.unwrap_or(bounds) })
    }

    /// Writes tensor number `index` of the file: the bounds of another tensor.
    pub(crate) fn bounds(writer: &mut ModelWriter, index: usize, bounds: &[f32]) -> Result<()> {
        writer.begin(index, 1.0)?;
        writer.write(&bytes_of(bounds))?;
        Ok(writer.end(0.0)?)
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The scale of a tensor that is written already.
fn scale_of(writer: &ModelWriter, name: &str) -> Result<f32> {
    let tensor = writer.layout().tensors().iter().find(|tensor| tensor.name == name);
    Ok(tensor.with_context(|| format!("there is no tensor {name} in the file"))?.scale)
}

/// Encoding of a matrix.
#[derive(Clone, Copy)]
struct Target<'a> {
    spec: &'a WriteSpec,
    dtype: DType,
    /// Tensor scale.
    scale: f32,
    /// The tensor scale of the first plane, for the residual of a nested head.
    first_plane: Option<f32>,
}

/// How the weights of a tensor are rounded.
enum Rounding {
    /// Each alone.
    Nearest,
    /// Each alone; errors in a column count by its importance.
    Weighted(Vec<f32>),
    /// By rows, with error feedback.
    Fed(Factor),
    /// By columns, with error feedback in blocks of them.
    Columns(Vec<Gram>),
}

impl Rounding {
    fn by(inputs: Option<Inputs>, kernels: &'static Kernels, threads: usize) -> Self {
        match inputs {
            None => Self::Nearest,
            Some(Inputs::Importance(importance)) => Self::Weighted(importance),
            Some(Inputs::Moments(Moments::Columns(blocks))) => Self::Columns(blocks),
            Some(Inputs::Moments(Moments::Rows(mut gram))) => {
                Self::Fed(Factor::new(kernels, threads, &mut gram, Order::Groups, DAMPING))
            }
        }
    }
}

/// [`Rounding`] of a tensor whose chunks are independent.
#[derive(Clone, Copy)]
enum RowRounding<'a> {
    Nearest,
    Weighted(&'a [f32]),
    Fed(&'a Factor),
}

/// Result of encoding a chunk.
#[derive(Clone, Copy, Default)]
struct Outcome {
    sums: ErrorSums,
    /// Bounds of the rows of a residual.
    bounds: [f32; ROW_INTERLEAVE],
}

impl Chunks {
    fn of(target: Target<'_>) -> Result<Self> {
        let Target { spec, dtype, .. } = target;
        let [rows, cols] = spec.shape;
        let too_large = || format!("tensor {}: the shape {:?} is too large", spec.name, spec.shape);
        let record = |count, len| {
            let bytes = record_bytes(dtype, len).with_context(too_large)?;
            anyhow::Ok(Self { count, floats: len, bytes })
        };
        match spec.layout {
            TensorLayout::RowRecords if target.first_plane.is_some() => Ok(Self {
                count: rows.div_ceil(ROW_INTERLEAVE),
                floats: ROW_INTERLEAVE * cols,
                bytes: ROW_INTERLEAVE * record_bytes(dtype, cols).with_context(too_large)?,
            }),
            TensorLayout::Interleaved => Ok(Self {
                count: rows.div_ceil(ROW_INTERLEAVE),
                floats: ROW_INTERLEAVE * cols,
                bytes: matrix_bytes(dtype, ROW_INTERLEAVE, cols).with_context(too_large)?,
            }),
            TensorLayout::RowRecords => record(rows, cols),
            TensorLayout::ColumnRecords => record(cols, rows),
            TensorLayout::Vector => bail!("tensor {}: a vector has no chunks", spec.name),
        }
    }

    /// Bytes of `count` chunks from `first` on. The last of a residual may have fewer rows than the
    /// others; the blocks of a matrix are whole.
    fn bytes_of(&self, target: Target<'_>, first: usize, count: usize) -> usize {
        let rows = target.spec.shape[0];
        match target.first_plane {
            Some(_) => {
                self.bytes / ROW_INTERLEAVE * (rows - first * ROW_INTERLEAVE).min(count * ROW_INTERLEAVE)
            }
            None => count * self.bytes,
        }
    }
}

/// One tensor being encoded.
#[derive(Clone, Copy)]
struct Encoding<'a> {
    encoder: &'a Encoder<'a>,
    values: &'a Values<'a>,
    target: Target<'a>,
    rounding: RowRounding<'a>,
    chunks: &'a Chunks,
}

impl Encoding<'_> {
    /// Encodes the chunks from `first` on that fill `bytes`, in parts of `per_thread`. The calling
    /// thread and one more thread for every further part take the parts in turn. If threads cannot
    /// start, fewer do the same work.
    fn slice(
        self,
        first: usize,
        per_thread: usize,
        bytes: &mut [u8],
        outcomes: &mut [Outcome],
        slices: &mut [Vec<f32>],
    ) -> Result<(), ChunkError> {
        let bytes = bytes.chunks_mut(per_thread * self.chunks.bytes);
        let mut results: Vec<Result<(), ChunkError>> = Vec::new();
        results.resize_with(bytes.len(), || Ok(()));
        let more_threads = bytes.len().saturating_sub(1);
        let parts = bytes.zip(outcomes.chunks_mut(per_thread)).zip(slices).zip(&mut results).enumerate();
        let parts = Mutex::new(parts);
        let take = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((i, (((bytes, outcomes), floats), result))) = take() {
                *result = self.part(first + i * per_thread, bytes, outcomes, floats);
            }
        };
        thread::scope(|scope| {
            for _ in 0..more_threads {
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        // The first error in the order of the parts counts, whichever thread met it.
        results.into_iter().collect()
    }

    /// Encodes consecutive chunks on the calling thread.
    fn part(
        self,
        first: usize,
        bytes: &mut [u8],
        outcomes: &mut [Outcome],
        floats: &mut Vec<f32>,
    ) -> Result<(), ChunkError> {
        let outs = bytes.chunks_mut(self.chunks.bytes).zip(outcomes.iter_mut());
        if let Some(first_plane) = self.target.first_plane {
            return self.residual(first, first_plane, outs, floats);
        }
        if let Values::Folded(_, _, fold) = self.values {
            return self.folded(first, fold, outs.collect(), floats);
        }
        match self.target.spec.layout {
            TensorLayout::ColumnRecords => self.columns(first, outs.collect(), floats),
            TensorLayout::RowRecords => self.rows(first, 1, outs, floats),
            _ => self.rows(first, ROW_INTERLEAVE, outs, floats),
        }
    }

    /// Chunks of `chunk_rows` consecutive rows.
    fn rows<'b>(
        self,
        first: usize,
        chunk_rows: usize,
        outs: impl Iterator<Item = (&'b mut [u8], &'b mut Outcome)>,
        floats: &mut Vec<f32>,
    ) -> Result<(), ChunkError> {
        let Target { spec, dtype, scale, .. } = self.target;
        let kernels = self.encoder.kernels;
        let (mut fed, importance) = match self.rounding {
            RowRounding::Nearest => (None, None),
            RowRounding::Weighted(importance) => (None, Some(importance)),
            RowRounding::Fed(factor) => (Some(RowEncoder::new(kernels, factor)), None),
        };
        for (chunk, (out, outcome)) in (first..).zip(outs) {
            self.read_rows(chunk * chunk_rows, chunk_rows, floats)?;
            outcome.sums = if spec.layout == TensorLayout::RowRecords {
                let row = self.normalized_row(floats);
                kernels.encode_record(dtype, &row, None, scale, out)
            } else if let Some(fed) = &mut fed {
                fed.encode(dtype, floats, scale, out).map(|sums| sums.weights)
            } else {
                kernels.encode_block_row(dtype, floats, spec.shape[1], importance, scale, out)
            }
            .map_err(|error| self.overflow(error))?;
        }
        Ok(())
    }

    /// Chunks of one block of rows each: the rounding errors of the first plane.
    fn residual<'b>(
        self,
        first: usize,
        first_plane: f32,
        outs: impl Iterator<Item = (&'b mut [u8], &'b mut Outcome)>,
        floats: &mut Vec<f32>,
    ) -> Result<(), ChunkError> {
        let cols = self.target.spec.shape[1];
        let mut block = BlockRows::new(self.encoder.kernels, cols, first_plane)?;
        for (chunk, (out, outcome)) in (first..).zip(outs) {
            self.read_rows(chunk * ROW_INTERLEAVE, ROW_INTERLEAVE, floats)?;
            let rows = floats.len() / cols;
            let records = out.chunks_exact_mut(out.len() / ROW_INTERLEAVE).take(rows);
            outcome.sums = block
                .encode(floats, self.target.scale, records, &mut outcome.bounds)
                .map_err(|error| self.overflow(error))?;
        }
        Ok(())
    }

    /// Chunks of one row each: a table of DeepEmbed.
    fn folded(
        self,
        first: usize,
        fold: &Fold<'_>,
        mut outs: Vec<(&mut [u8], &mut Outcome)>,
        floats: &mut Vec<f32>,
    ) -> Result<(), ChunkError> {
        let Target { spec, dtype, scale, .. } = self.target;
        let kernels = self.encoder.kernels;
        for (first, outs) in (first..).step_by(deep_embed::ROWS).zip(outs.chunks_mut(deep_embed::ROWS)) {
            self.read_rows(first, outs.len(), floats)?;
            fold.add(first, floats, |out, row| self.normalize(out, row))?;
            for ((out, outcome), row) in outs.iter_mut().zip(floats.chunks_exact(spec.shape[1])) {
                outcome.sums = kernels
                    .encode_record(dtype, row, None, scale, out)
                    .map_err(|error| self.overflow(error))?;
            }
        }
        Ok(())
    }

    /// Reads up to `count` rows from `row` on, as many as there are.
    fn read_rows(self, row: usize, count: usize, floats: &mut Vec<f32>) -> Result<(), ChunkError> {
        let [rows, cols] = self.target.spec.shape;
        floats.resize(count.min(rows - row) * cols, 0.0);
        Ok(self.read(row * cols, floats)?)
    }

    /// Reads `width` columns from `first` on, `[rows, width]`.
    fn read_columns(self, first: usize, width: usize, panel: &mut Vec<f32>) -> Result<(), ChunkError> {
        let [rows, cols] = self.target.spec.shape;
        panel.resize(rows * width, 0.0);
        for (row, values) in panel.chunks_exact_mut(width).enumerate() {
            self.read(row * cols + first, values)?;
        }
        Ok(())
    }

    fn overflow(self, error: ScaleOverflow) -> ChunkError {
        ChunkError::Overflow(error.largest * self.target.scale)
    }

    /// The matrix's values from `start` on.
    fn read(self, start: usize, out: &mut [f32]) -> Result<(), SourceError> {
        match self.values {
            Values::Checkpoint(input, stored) | Values::Folded(input, stored, _) => {
                read_finite(*input, &stored.tensor, stored.start + start, out)
            }
            Values::Memory(values) => {
                out.copy_from_slice(&values[start..start + out.len()]);
                Ok(())
            }
        }
    }

    /// An embedding row after `ln0`, which is the same for every occurrence of the token.
    fn normalized_row(self, row: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; row.len()];
        self.normalize(&mut out, row);
        out
    }

    /// `ln0` of an embedding row, unless the checkpoint has folded it into the embedding.
    fn normalize(self, out: &mut [f32], row: &[f32]) {
        match &self.encoder.ln0 {
            Some([weight, bias]) => {
                self.encoder.kernels.layer_norm(out, row, weight, bias, self.encoder.layer_norm_eps);
            }
            None => out.copy_from_slice(row),
        }
    }

    /// Chunks of one column each: reads the panel of all their columns, then transposes 16 at a
    /// time.
    fn columns(
        self,
        first: usize,
        mut outs: Vec<(&mut [u8], &mut Outcome)>,
        panel: &mut Vec<f32>,
    ) -> Result<(), ChunkError> {
        let kernels = self.encoder.kernels;
        let Target { spec, dtype, scale, .. } = self.target;
        let rows = spec.shape[0];
        let width = outs.len();
        self.read_columns(first, width, panel)?;
        let mut column = vec![0.0; 16 * rows];
        for (group, outs) in outs.chunks_mut(16).enumerate() {
            for (i, row) in panel.chunks_exact(width).enumerate() {
                for (j, value) in row[16 * group..].iter().take(outs.len()).enumerate() {
                    column[j * rows + i] = *value;
                }
            }
            for ((out, outcome), column) in outs.iter_mut().zip(column.chunks_exact(rows)) {
                outcome.sums = kernels
                    .encode_record(dtype, column, None, scale, out)
                    .map_err(|error| self.overflow(error))?;
            }
        }
        Ok(())
    }
}

/// Reads a range of a tensor and refuses NaN and infinity.
pub(crate) fn read_finite(
    input: Input<'_>,
    tensor: &SourceTensor,
    start: usize,
    out: &mut [f32],
) -> Result<(), SourceError> {
    input.checkpoint.read(tensor, start, out)?;
    let finite = out.iter().fold(true, |all, x| all & x.is_finite());
    if finite {
        return Ok(());
    }
    let i = out.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let expected = format!("a finite number in element {}", start + i);
    Err(input.error(&tensor.name, expected, out[i].to_string()))
}

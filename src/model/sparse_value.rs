//! `ffn.value`. Only its active columns are read: those whose input is not zero.

use rwkv_edge_kernels::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};

use crate::error::Result;
use crate::format::{ModelFile, RecordsHandle, TensorLayout, VectorHandle};
use crate::memory::Buffers;

use super::ops::Ops;

/// Fewest columns that a thread takes at a time.
const COLUMN_GRAIN: usize = 32;

/// Fewest outputs that a thread takes at a time for float columns: whole cache lines.
const OUTPUT_GRAIN: usize = 64;

/// The columns, `[n_embd, n_ffn]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseValue {
    columns: RecordsHandle,
    /// The largest scale of each group of rows, `[ceil(n_embd / 32)]`, if the columns are
    /// quantized.
    bound: Option<VectorHandle>,
}

/// The active columns of a token: their indices and inputs, `[n_ffn]` each, and the partial sums of
/// each thread.
pub(crate) struct ActiveColumns<'a> {
    indices: &'a mut [u32],
    values: &'a mut [f32],
    sums: &'a mut [i32],
}

impl<'a> ActiveColumns<'a> {
    pub(crate) fn take(buffers: &mut impl Buffers<'a>, n_ffn: usize, n_embd: usize, threads: usize) -> Self {
        let name = "active ffn columns";
        Self {
            indices: buffers.u32s(name, n_ffn),
            values: buffers.f32s(name, n_ffn),
            sums: buffers.i32s("partial sums of ffn.value", threads.saturating_mul(sparse_sums(n_embd))),
        }
    }

    /// Takes every element of `x` and returns their number.
    fn all(&mut self, x: &[f32]) -> usize {
        self.indices.iter_mut().zip(0..).for_each(|(index, i)| *index = i);
        self.values.copy_from_slice(x);
        x.len()
    }
}

impl SparseValue {
    pub(crate) fn load(file: &ModelFile, name: &str, shape: [usize; 2]) -> Result<Self> {
        let columns = file.records_handle(&format!("{name}.weight"), TensorLayout::ColumnRecords, shape)?;
        let bound = || file.vector_handle(&format!("{name}.bound"), shape[0].div_ceil(GROUP_SIZE));
        Ok(Self { columns, bound: columns.dtype().is_quantized().then(bound).transpose()? })
    }

    /// `out = columns @ x`, reading only active columns.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        out: &mut [f32],
        x: &[f32],
        active: &mut ActiveColumns<'_>,
    ) {
        let columns = ops.file.records(self.columns);
        let kernels = ops.kernels;
        let count = match ops.sparse_ffn {
            true => kernels.nonzero(active.indices, active.values, x),
            false => active.all(x),
        };
        ops.meter.traffic.weight_bytes += (count * columns.stride()) as u64;
        ops.meter.traffic.active_columns += count as u64;
        ops.meter.traffic.columns += x.len() as u64;
        let x = Sparse { indices: &active.indices[..count], values: &active.values[..count] };
        match self.bound {
            Some(bound) => quantized(ops, out, &columns, x, ops.vector(bound), active.sums),
            None => ops.pool.for_each_range([out], OUTPUT_GRAIN, &|_, first, out| {
                kernels.sparse_matvec(out, &columns, first, x);
            }),
        }
        ops.release(columns.data());
    }
}

/// Each thread sums whole columns into a vector of its own. The sums are integers, so the result
/// does not depend on which thread took which column.
fn quantized(
    ops: &mut Ops<'_>,
    out: &mut [f32],
    columns: &Records<'_>,
    x: Sparse<'_>,
    bounds: &[f32],
    sums: &mut [i32],
) {
    let kernels = ops.kernels;
    let scale = SparseScale { active: x.indices.len(), largest: kernels.largest_magnitude(x.values), bounds };
    sums.fill(0);
    ops.pool.for_each_share(x.indices.len(), COLUMN_GRAIN, sums, &|entries, sums| {
        let x = Sparse { indices: &x.indices[entries.clone()], values: &x.values[entries] };
        kernels.sparse_accumulate(sums, columns, x, scale);
    });
    kernels.sparse_finish(out, columns, sums, scale);
}

//! `ffn.value`. Only its active columns are read: those whose input is not zero.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use rwkv_edge_kernels::Kernels;
use rwkv_edge_kernels::layout::{GROUP_SIZE, Records, Sparse, SparseScale, sparse_sums};

use crate::error::Result;
use crate::format::{ModelFile, RecordsHandle, TensorLayout, VectorHandle};
use crate::memory::Buffers;
use crate::threads::{Columns, Cut, RowsMut};

use super::ops::Ops;
use super::vectors::Vectors;

/// Fewest columns that a thread takes at a time for one token.
const COLUMN_GRAIN: usize = 32;

/// Columns that a thread multiplies with all tokens before it reads the next ones. They stay in the
/// cache next to a core meanwhile, with the tokens' partial sums.
const COLUMN_BLOCK: usize = 256;

/// Most tokens that go through quantized columns together. Each takes partial sums per thread.
const SUMS_TOKENS: usize = 32;

/// Fewest outputs that a thread takes at a time for float columns: whole cache lines.
const OUTPUT_GRAIN: usize = 64;

/// Outputs that a thread computes for all tokens before the next ones, for float columns.
const OUTPUT_BLOCK: usize = 256;

/// Most tokens that go through float columns together. Each takes a list of its active columns.
const LIST_TOKENS: usize = 8;

/// The columns, `[n_embd, n_ffn]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseValue {
    columns: RecordsHandle,
    /// The largest scale of each group of rows, `[ceil(n_embd / 32)]`, if the columns are
    /// quantized.
    bound: Option<VectorHandle>,
}

/// What is known of the active columns of some tokens.
pub(crate) struct ActiveColumns<'a> {
    /// Number of active columns of each token.
    counts: &'a mut [u32],
    /// The largest magnitude of each token's inputs.
    largest: &'a mut [f32],
    /// Active columns and their inputs, `[tokens, n_ffn]` each.
    indices: &'a mut [u32],
    values: &'a mut [f32],
    /// Partial sums of each token and thread, `[tokens, threads, sparse_sums(n_embd)]`.
    sums: &'a mut [i32],
}

impl<'a> ActiveColumns<'a> {
    pub(crate) fn take(
        buffers: &mut impl Buffers<'a>,
        [n_embd, n_ffn]: [usize; 2],
        threads: usize,
        tokens: usize,
    ) -> Self {
        let (name, summed) = ("active ffn columns", tokens.min(SUMS_TOKENS));
        let listed = tokens.min(LIST_TOKENS).saturating_mul(n_ffn);
        let sums = summed.saturating_mul(threads).saturating_mul(sparse_sums(n_embd));
        Self {
            counts: buffers.u32s(name, summed),
            largest: buffers.f32s(name, summed),
            indices: buffers.u32s(name, listed),
            values: buffers.f32s(name, listed),
            sums: buffers.i32s("partial sums of ffn.value", sums),
        }
    }
}

/// How the active columns of a token are found.
#[derive(Clone, Copy)]
struct Selection {
    kernels: &'static Kernels,
    /// Takes only elements that are not zero.
    nonzero: bool,
}

impl Selection {
    /// Writes the active elements of `x`, their positions counted from `first`, and returns their
    /// number.
    fn list(self, x: &[f32], first: usize, indices: &mut [u32], values: &mut [f32]) -> usize {
        if self.nonzero {
            let count = self.kernels.nonzero(indices, values, x);
            indices[..count].iter_mut().for_each(|index| *index += first as u32);
            return count;
        }
        indices.iter_mut().zip(first as u32..).for_each(|(index, i)| *index = i);
        values[..x.len()].copy_from_slice(x);
        x.len()
    }

    /// Number of active elements of `x`.
    fn count(self, x: &[f32]) -> usize {
        if self.nonzero { x.iter().filter(|x| **x != 0.0).count() } else { x.len() }
    }

    /// Number of the columns `block`, at most [`COLUMN_BLOCK`], that are active for any of the
    /// tokens `rows`.
    fn count_any(self, hidden: &Vectors<'_>, rows: Range<usize>, block: Range<usize>) -> usize {
        let mut any = [!self.nonzero; COLUMN_BLOCK];
        for t in rows {
            let x = &hidden.row(t)[block.clone()];
            any.iter_mut().zip(x).for_each(|(any, x)| *any |= *x != 0.0);
        }
        any[..block.len()].iter().filter(|any| **any).count()
    }
}

/// Consecutive blocks of at most [`COLUMN_BLOCK`] columns.
fn blocks(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns.step_by(COLUMN_BLOCK).map(move |start| start..end.min(start + COLUMN_BLOCK))
}

impl SparseValue {
    pub(crate) fn load(file: &ModelFile, name: &str, shape: [usize; 2]) -> Result<Self> {
        let columns = file.records_handle(&format!("{name}.weight"), TensorLayout::ColumnRecords, shape)?;
        let bound = || file.vector_handle(&format!("{name}.bound"), shape[0].div_ceil(GROUP_SIZE));
        Ok(Self { columns, bound: columns.dtype().is_quantized().then(bound).transpose()? })
    }

    /// `out = columns @ hidden`, reading only active columns, for each of `tokens` tokens. `hidden`
    /// is `[tokens, n_ffn]`, `out` is `[tokens, n_embd]`.
    ///
    /// Each column is read once for the tokens that go through the columns together.
    pub(crate) fn forward(
        &self,
        ops: &mut Ops<'_>,
        mut out: RowsMut<'_>,
        (tokens, hidden): (usize, &Vectors<'_>),
        active: &mut ActiveColumns<'_>,
    ) {
        ops.show(ops.file.records_name(self.columns), hidden, tokens);
        let columns = ops.file.records(self.columns);
        let bounds = self.bound.map(|bound| ops.vector(bound));
        let together = if bounds.is_some() { SUMS_TOKENS } else { LIST_TOKENS };
        for first in (0..tokens).step_by(together) {
            let rows = first..tokens.min(first + together);
            let (out, count) = (out.part(rows.clone()), rows.len());
            let read = match bounds {
                Some(bounds) if count == 1 => {
                    one_quantized(ops, out, (&columns, bounds), hidden.row(first), active)
                }
                Some(bounds) => quantized(ops, out, (&columns, bounds), (rows, hidden), active),
                None => float(ops, out, &columns, (rows, hidden), active),
            };
            let traffic = &mut ops.meter.traffic;
            traffic.weight_bytes += (read * columns.stride()) as u64;
            traffic.active_columns += active.counts[..count].iter().map(|&n| u64::from(n)).sum::<u64>();
            traffic.columns += (count * hidden.len()) as u64;
        }
        ops.release(columns.data());
    }
}

/// Each thread sums whole columns into a vector of its own. The sums are integers, so the result
/// does not depend on which thread took which column. Returns the number of columns read.
fn one_quantized(
    ops: &mut Ops<'_>,
    out: RowsMut<'_>,
    (columns, bounds): (&Records<'_>, &[f32]),
    x: &[f32],
    active: &mut ActiveColumns<'_>,
) -> usize {
    let (kernels, selection, threads) = (ops.kernels, ops.selection(), ops.pool.threads());
    let ActiveColumns { counts, indices, values, sums, .. } = active;
    let count = selection.list(x, 0, indices, values);
    counts[0] = count as u32;
    let (indices, values) = (&indices[..count], &values[..count]);
    let scale = SparseScale { active: count, largest: kernels.largest_magnitude(values), bounds };
    let each = sparse_sums(columns.record_len());
    let sums = &mut sums[..threads * each];
    sums.fill(0);
    ops.pool.for_each_share(count, COLUMN_GRAIN, Cut::new(sums, each), &|entries, sums| {
        let x = Sparse { indices: &indices[entries.clone()], values: &values[entries] };
        kernels.sparse_accumulate(sums, columns, x, scale);
    });
    ops.pool.for_each_piece(out.rows(), &|_, out| kernels.sparse_finish(out, columns, sums, scale));
    count
}

/// As [`one_quantized`], for several tokens. A thread multiplies a block of columns with all tokens
/// and sums up each token apart.
fn quantized(
    ops: &mut Ops<'_>,
    out: RowsMut<'_>,
    (columns, bounds): (&Records<'_>, &[f32]),
    (rows, hidden): (Range<usize>, &Vectors<'_>),
    active: &mut ActiveColumns<'_>,
) -> usize {
    let (kernels, selection, threads) = (ops.kernels, ops.selection(), ops.pool.threads());
    let (tokens, each) = (rows.len(), sparse_sums(columns.record_len()));
    let (first, stride) = (rows.start, threads * each);
    let ActiveColumns { counts, largest, sums, .. } = active;
    let sums = &mut sums[..tokens * stride];

    let counted = (Cut::new(&mut counts[..tokens], 1), Cut::new(&mut largest[..tokens], 1));
    ops.pool.for_each_piece((counted, Cut::new(sums, stride)), &|t, ((count, largest), sums)| {
        let x = hidden.row(first + t);
        count[0] = selection.count(x) as u32;
        largest[0] = kernels.largest_magnitude(x);
        sums.fill(0);
    });
    let (counts, largest) = (&*counts, &*largest);
    let scale = |t: usize| SparseScale { active: counts[t] as usize, largest: largest[t], bounds };

    let read = AtomicUsize::new(0);
    let own = Columns::new(sums, [tokens, stride], stride, each);
    ops.pool.for_each_share(hidden.len(), COLUMN_BLOCK, own, &|share, sums| {
        let (mut indices, mut values) = ([0; COLUMN_BLOCK], [0.0; COLUMN_BLOCK]);
        for block in blocks(share) {
            for t in 0..tokens {
                let x = &hidden.row(first + t)[block.clone()];
                let count = selection.list(x, block.start, &mut indices, &mut values);
                let x = Sparse { indices: &indices[..count], values: &values[..count] };
                kernels.sparse_accumulate(sums.row(t), columns, x, scale(t));
            }
            read.fetch_add(selection.count_any(hidden, rows.clone(), block), Ordering::Relaxed);
        }
    });
    ops.pool.for_each_piece((out.rows(), Cut::new(sums, stride)), &|t, (out, sums)| {
        kernels.sparse_finish(out, columns, sums, scale(t));
    });
    read.into_inner()
}

/// The product with float columns. Each thread computes whole outputs, from all active columns in
/// their order. Returns the number of columns read.
fn float(
    ops: &mut Ops<'_>,
    out: RowsMut<'_>,
    columns: &Records<'_>,
    (rows, hidden): (Range<usize>, &Vectors<'_>),
    active: &mut ActiveColumns<'_>,
) -> usize {
    let (kernels, selection) = (ops.kernels, ops.selection());
    let (tokens, n) = (rows.len(), hidden.len());
    let ActiveColumns { counts, indices, values, .. } = active;
    let pieces = (
        Cut::new(&mut counts[..tokens], 1),
        Cut::new(&mut indices[..tokens * n], n),
        Cut::new(&mut values[..tokens * n], n),
    );
    ops.pool.for_each_piece(pieces, &|t, (count, indices, values)| {
        count[0] = selection.list(hidden.row(rows.start + t), 0, indices, values) as u32;
    });
    let (counts, indices, values) = (&*counts, &*indices, &*values);
    let list = |t: usize| {
        let list = t * n..t * n + counts[t] as usize;
        Sparse { indices: &indices[list.clone()], values: &values[list] }
    };
    ops.pool.for_each_range_of_rows([out], OUTPUT_GRAIN, &|_, first, outs| {
        let mut outs: ArrayVec<_, LIST_TOKENS> = outs.collect();
        let len = outs.first().map_or(0, |out| out.len());
        for start in (0..len).step_by(OUTPUT_BLOCK) {
            let block = start..len.min(start + OUTPUT_BLOCK);
            for (t, out) in outs.iter_mut().enumerate() {
                kernels.sparse_matvec(&mut out[block.clone()], columns, first + start, list(t));
            }
        }
    });
    blocks(0..n).map(|block| selection.count_any(hidden, rows.clone(), block)).sum()
}

impl Ops<'_> {
    /// How the active columns of `ffn.value` are found.
    fn selection(&self) -> Selection {
        Selection { kernels: self.kernels, nonzero: self.sparse_ffn }
    }
}

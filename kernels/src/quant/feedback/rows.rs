//! A block row with error feedback.

use super::{FINE_TRIALS, FactorGroup, FactorView, FedSums, Feedback, GroupRows, Rounded, Rows, TRIALS};
use crate::fp16;
use crate::layout::{DType, GROUP_SIZE, INT4N_TABLE, K_BLOCK, ROW_INTERLEAVE, int4n_shift, matrix_bytes};
use crate::quant::int4n::nearest_scale;
use crate::quant::{Group, ScaleOverflow, check_scale, clear_block, relative, store_group};

/// As [`Kernels::encode_block_row_fed`](crate::Kernels::encode_block_row_fed).
pub(crate) fn encode_rows(
    feedback: Feedback,
    dtype: DType,
    rows: &[f32],
    factor: FactorView<'_>,
    tensor_scale: f32,
    scratch: &mut [f32],
    out: &mut [u8],
) -> Result<FedSums, ScaleOverflow> {
    assert!(dtype.is_quantized(), "feedback for {dtype}");
    let (cols, positions) = (factor.columns(), factor.positions());
    assert!(cols > 0 && rows.len().is_multiple_of(cols), "{} values are not rows of {cols}", rows.len());
    let n_rows = rows.len() / cols;
    assert!((1..=ROW_INTERLEAVE).contains(&n_rows), "{n_rows} rows do not make a block row");
    let expected = matrix_bytes(dtype, ROW_INTERLEAVE, cols);
    assert!(expected == Some(out.len()), "{} bytes of output, expected {expected:?}", out.len());
    let floats = 2 * ROW_INTERLEAVE * positions;
    assert!(scratch.len() >= floats, "{} floats of scratch, expected {floats}", scratch.len());
    check_scale(tensor_scale);
    let (weights, targets) = scratch[..floats].as_chunks_mut().0.split_at_mut(positions);
    factor.load(rows, 1.0 / tensor_scale, weights);
    targets.copy_from_slice(weights);
    out.chunks_exact_mut(dtype.block_bytes()).for_each(|block| clear_block(dtype, block));
    let mut block_row = BlockRow { feedback, dtype, n_rows, cols, out, sums: FedSums::default() };
    let mut rounded = Rounded {
        codes: [[0.0; ROW_INTERLEAVE]; GROUP_SIZE],
        errors: [[0.0; ROW_INTERLEAVE]; GROUP_SIZE],
        losses: [0.0; ROW_INTERLEAVE],
    };
    for g in 0..positions / GROUP_SIZE {
        let group = factor.group(g);
        let (targets, later) = targets[GROUP_SIZE * g..].split_first_chunk_mut().expect("a whole group");
        let weights = weights[GROUP_SIZE * g..].first_chunk().expect("a whole group");
        block_row.group(group, weights, targets, &mut rounded)?;
        (feedback.table.carry_rows)(later, &rounded.errors, group.later);
    }
    Ok(block_row.sums.scaled(tensor_scale))
}

/// A block row that is being encoded.
struct BlockRow<'a> {
    feedback: Feedback,
    dtype: DType,
    n_rows: usize,
    cols: usize,
    out: &'a mut [u8],
    sums: FedSums,
}

impl BlockRow<'_> {
    /// Encodes a group and stores it.
    fn group(
        &mut self,
        factor: FactorGroup<'_>,
        weights: &[Rows; GROUP_SIZE],
        targets: &[Rows; GROUP_SIZE],
        rounded: &mut Rounded,
    ) -> Result<(), ScaleOverflow> {
        let first = factor.order[0] as usize / GROUP_SIZE * GROUP_SIZE;
        let place =
            Place { first, len: GROUP_SIZE.min(self.cols.saturating_sub(first)), order: factor.order };
        let largest = factor.d.iter().fold(0.0f32, |m, &d| m.max(d));
        let d = relative(Some(factor.d), GROUP_SIZE);
        let group = GroupRows { weights, targets, factors: factor.own, d: &d };
        let mut scales = [0; ROW_INTERLEAVE];
        for (r, scale) in scales[..self.n_rows].iter_mut().enumerate() {
            *scale = self.searched_scale(&place, factor.d, targets, r)?;
        }
        let round = match self.dtype {
            DType::Int8 => self.feedback.table.round_int8,
            DType::Int4n => self.feedback.table.round_int4n,
            _ => self.feedback.table.round_int4,
        };
        if self.dtype != DType::Int8 && factor.own.as_flattened().iter().any(|&u| u != 0.0) {
            scales = best_scales(self.dtype, scales, |scales| {
                round(&group, scales, rounded);
                rounded.losses
            });
        }
        round(&group, &scales, rounded);
        let loss: f64 = rounded.losses[..self.n_rows].iter().map(|&loss| f64::from(loss)).sum();
        self.sums.outputs += f64::from(largest) * loss;
        self.store(&place, weights, &scales, rounded);
        Ok(())
    }

    /// The scale that the search gives row `r`, for its targets in the order of the columns.
    fn searched_scale(
        &self,
        place: &Place<'_>,
        d: &[f32; GROUP_SIZE],
        targets: &[Rows; GROUP_SIZE],
        r: usize,
    ) -> Result<u16, ScaleOverflow> {
        let (mut values, mut importance) = ([0.0; GROUP_SIZE], [0.0; GROUP_SIZE]);
        for (i, column) in place.columns() {
            values[column] = targets[i][r];
            importance[column] = d[i];
        }
        let importance = relative(Some(&importance), place.len);
        let encoders = self.feedback.encoders;
        let group = match self.dtype {
            DType::Int4n => (encoders.int4n)(&values, &importance, place.len),
            DType::Int8 => (encoders.int8)(&values),
            _ => (encoders.int4)(&values),
        };
        Ok(group?.scale)
    }

    fn store(
        &mut self,
        place: &Place<'_>,
        weights: &[Rows; GROUP_SIZE],
        scales: &[u16; ROW_INTERLEAVE],
        rounded: &Rounded,
    ) {
        let bytes = self.dtype.block_bytes();
        let block = &mut self.out[place.first / K_BLOCK * bytes..][..bytes];
        let g = place.first % K_BLOCK / GROUP_SIZE;
        for (r, &scale) in scales[..self.n_rows].iter().enumerate() {
            let mut group = Group { scale, codes: [0; GROUP_SIZE], sums: Default::default() };
            for (i, column) in place.columns() {
                group.codes[column] = stored_code(self.dtype, rounded.codes[i][r], scale);
                self.sums.add_weight(weights[i][r], rounded.errors[i][r]);
            }
            store_group(self.dtype, block, g, r, &group);
        }
    }
}

/// The columns of a group.
struct Place<'a> {
    /// The first of them.
    first: usize,
    /// Columns before the padding.
    len: usize,
    order: &'a [u32; GROUP_SIZE],
}

impl Place<'_> {
    /// The numbers in the order and in the group of all columns but padding.
    fn columns(&self) -> impl Iterator<Item = (usize, usize)> {
        let within = self.order.iter().map(|&column| {
            let column = (column as usize).wrapping_sub(self.first);
            assert!(column < GROUP_SIZE, "a group of positions is not one of columns");
            column
        });
        within.enumerate().filter(|&(_, column)| column < self.len)
    }
}

/// The best scale of each row: of those near the one that the search chose, for both signs and all
/// shifts, and then of those nearer to the best of these.
fn best_scales(
    dtype: DType,
    searched: [u16; ROW_INTERLEAVE],
    mut losses: impl FnMut(&[u16; ROW_INTERLEAVE]) -> Rows,
) -> [u16; ROW_INTERLEAVE] {
    let (mut best, mut least) = (searched, losses(&searched));
    let mut consider = |near: [u16; ROW_INTERLEAVE], factor: f32, more: u16| {
        let tried = near.map(|scale| {
            let wanted = fp16::to_f32(scale) * factor;
            match dtype {
                DType::Int4n => nearest_scale(wanted, (scale + more) & 3),
                _ => fp16::from_f32(wanted),
            }
        });
        for (r, loss) in losses(&tried).into_iter().enumerate() {
            if loss < least[r] {
                (best[r], least[r]) = (tried[r], loss);
            }
        }
        best
    };
    for sign in [1.0, -1.0] {
        for more in 0..if dtype == DType::Int4n { 4 } else { 1 } {
            for factor in TRIALS {
                consider(searched, sign * factor, more);
            }
        }
    }
    let coarse = consider(searched, 1.0, 0);
    for factor in FINE_TRIALS {
        consider(coarse, factor, 0);
    }
    best
}

/// A code as it is stored: of 4 bits, the nibble less 8.
fn stored_code(dtype: DType, code: f32, scale: u16) -> i8 {
    let code = code as i8;
    if dtype != DType::Int4n {
        return code;
    }
    let in_table = code - int4n_shift(scale) as i8;
    // Scale 0 gives every value the same code, and is stored with that of padding.
    let nibble = if scale & 0x7fff == 0 { None } else { INT4N_TABLE.iter().position(|&t| t == in_table) };
    nibble.unwrap_or(8) as i8 - 8
}

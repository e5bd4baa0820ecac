//! Error feedback: weights that are rounded later make up for the errors of those before.
//!
//! With `x` the inputs of a matrix and `H` the mean of `x x^T`, a row of weights `w` that is rounded
//! to `q` makes the mean squared error `(w - q) H (w - q)^T` in its output. `H` is factored into
//! `U D U^T`, with ones on the diagonal of `U` and zeros below. For the weights in order, as LDLQ
//! (QuIP, arXiv 2307.13304) and, in another form, GPTQ (arXiv 2210.17323) do:
//!
//! ```text
//! target_i = w_i + sum((w_j - q_j) * U_ji for j < i)          q_i = the code nearest to target_i
//! (w - q) H (w - q)^T = sum(D_i * (target_i - q_i)^2)
//! ```
//!
//! So `D` are the factors of squared errors, and rounding to nearest is best for each of them, given
//! the ones before.
//!
//! # Rows
//! A group keeps its 32 consecutive columns. The order of groups is free, and so is that of columns
//! in a group. Targets first get the errors of all groups before. Then the scale search of
//! [`quant`](super) chooses each row's scale for these targets, with the importance `D` in Int4n. If
//! columns of the group feed each other, Int4 and Int4n try more scales: this one times [`TRIALS`]
//! for both signs and, in Int4n, for each value of the low bits from those of the scale on; then the
//! best of them times [`FINE_TRIALS`]. The group is rounded with each, column by column. The scale
//! with the least sum of `D_i * (target_i - q_i)^2` stays, the first one in a tie. Scales are fp16
//! numbers, rounded as in the search.
//!
//! # Outputs
//! The weights of a column record share one `D`. Its groups are encoded as
//! [`quant`](super) describes, without importance, one record after the other.
//!
//! # Arithmetic
//! All in single precision and in units of the tensor scale, rounded after each operation. Errors
//! are added to a target in the order in which they were made.

mod arithmetic;
mod outputs;
mod rows;

#[cfg(doc)]
use super::TENSOR_SCALE;
use super::{ErrorSums, GroupEncoders};
use crate::isa::Isa;
use crate::layout::{GROUP_SIZE, ROW_INTERLEAVE};

pub(crate) use arithmetic::{
    carry_outputs, carry_rows, round_int4, round_int4n, round_int8, subtract_products,
};
pub(crate) use outputs::encode_outputs;
pub use outputs::{output_bytes, store_outputs};
pub(crate) use rows::encode_rows;

/// Multiples of the scale that the search chose, with which a group of rows is rounded.
pub const TRIALS: [f32; 5] = [0.92, 0.96, 1.0, 1.04, 1.08];

/// The same for the best of these.
pub const FINE_TRIALS: [f32; 2] = [0.985, 1.015];

/// Rows and columns of a tile of [`Kernels::subtract_products`](crate::Kernels::subtract_products).
pub type Tile = [[f64; GROUP_SIZE]; GROUP_SIZE];

/// A value for each of the rows of a block row.
pub(crate) type Rows = [f32; ROW_INTERLEAVE];

/// A value for each of the outputs of a group.
pub(crate) type Outputs = [f32; GROUP_SIZE];

/// `H = U D U^T` in a given order of columns, padded to whole groups of positions.
///
/// Positions are the columns in this order. Those from `columns` on are padding: their factors and
/// `D` are 0.
#[derive(Clone, Copy, Debug)]
pub struct FactorView<'a> {
    columns: usize,
    order: &'a [u32],
    d: &'a [f32],
    u: &'a [[f32; GROUP_SIZE]],
}

impl<'a> FactorView<'a> {
    /// - `columns`: the number of columns.
    /// - `order`: the column at each position; a permutation of all positions.
    /// - `d`: `D` at each position, not negative.
    /// - `u`: for each group of 32 positions, for each position `i` from its first one on, `U_ji` for
    ///   the positions `j` of the group; 0 unless `j < i`.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn new(columns: usize, order: &'a [u32], d: &'a [f32], u: &'a [[f32; GROUP_SIZE]]) -> Self {
        let positions = order.len();
        let expected = columns.next_multiple_of(GROUP_SIZE);
        assert!(positions == expected, "{positions} positions of {columns} columns, expected {expected}");
        assert!(d.len() == positions, "{} of {positions} variances", d.len());
        let expected = group_start(positions, positions / GROUP_SIZE);
        assert!(u.len() == expected, "{} columns of factors, expected {expected}", u.len());
        Self { columns, order, d, u }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of positions.
    pub fn positions(&self) -> usize {
        self.order.len()
    }

    /// Rows of columns in the order of their positions, in units of the tensor scale; 0 for padding.
    fn load<const ROWS: usize>(&self, rows: &[f32], inverse_scale: f32, out: &mut [[f32; ROWS]]) {
        for (out, &column) in out.iter_mut().zip(self.order) {
            *out = [0.0; ROWS];
            if (column as usize) < self.columns {
                for (out, row) in out.iter_mut().zip(rows.chunks_exact(self.columns)) {
                    *out = row[column as usize] * inverse_scale;
                }
            }
        }
    }

    fn group(&self, g: usize) -> FactorGroup<'a> {
        let [positions, first] = [self.order.len(), GROUP_SIZE * g];
        let u = &self.u[group_start(positions, g)..][..positions - first];
        let (own, later) = u.split_first_chunk().expect("a group of positions");
        let take = |all: &'a [f32]| all[first..].first_chunk().expect("a group of positions");
        let order = self.order[first..].first_chunk().expect("a group of positions");
        FactorGroup { order, d: take(self.d), own, later }
    }
}

/// The place of the factors of group `g` among those of `positions` positions, in columns.
pub const fn group_start(positions: usize, g: usize) -> usize {
    g * positions - GROUP_SIZE * (g * g.saturating_sub(1) / 2)
}

/// What a group of positions does to itself and to later ones.
#[derive(Clone, Copy)]
struct FactorGroup<'a> {
    order: &'a [u32; GROUP_SIZE],
    d: &'a [f32; GROUP_SIZE],
    /// Factors between positions of the group.
    own: &'a [[f32; GROUP_SIZE]; GROUP_SIZE],
    /// Factors of later positions.
    later: &'a [[f32; GROUP_SIZE]],
}

/// The errors of encoding with feedback, as sums that add up over a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FedSums {
    /// Errors of the weights; larger than without feedback.
    pub weights: ErrorSums,
    /// The mean squared error of all outputs together, `tr(E H E^T)`, with the damping in `H`.
    pub outputs: f64,
}

impl core::ops::AddAssign for FedSums {
    fn add_assign(&mut self, other: Self) {
        self.weights += other.weights;
        self.outputs += other.outputs;
    }
}

impl FedSums {
    /// Sums over values in units of the tensor scale, as sums over the values.
    fn scaled(self, tensor_scale: f32) -> Self {
        let square = f64::from(tensor_scale) * f64::from(tensor_scale);
        Self { weights: self.weights.scaled(tensor_scale), outputs: self.outputs * square }
    }

    fn add_weight(&mut self, weight: f32, error: f32) {
        let (norm, error) = (f64::from(weight), f64::from(error));
        self.weights += ErrorSums { squared_error: error * error, squared_norm: norm * norm };
    }
}

/// 32 columns of a block row, in the order of their positions.
pub(crate) struct GroupRows<'a> {
    /// The weights.
    pub(crate) weights: &'a [Rows; GROUP_SIZE],
    /// The same after the feedback of all groups before.
    pub(crate) targets: &'a [Rows; GROUP_SIZE],
    /// `U_ji` for each column `i`.
    pub(crate) factors: &'a [[f32; GROUP_SIZE]; GROUP_SIZE],
    /// Factors of the squared errors in each column.
    pub(crate) d: &'a [f32; GROUP_SIZE],
}

/// The columns of a [`GroupRows`] after rounding.
pub(crate) struct Rounded {
    /// Codes, with the shift of Int4n.
    pub(crate) codes: [Rows; GROUP_SIZE],
    /// Weights minus rounded weights.
    pub(crate) errors: [Rows; GROUP_SIZE],
    /// The sum of `D_i * (target_i - q_i)^2` of each row.
    pub(crate) losses: Rows,
}

/// The arithmetic of one level of instructions. It is no part of [`Kernels`](crate::Kernels), so
/// that programs that do not encode do not carry it.
#[derive(Clone, Copy)]
pub(crate) struct FeedbackTable {
    pub(crate) carry_rows: fn(&mut [Rows], &[Rows; GROUP_SIZE], &[[f32; GROUP_SIZE]]),
    pub(crate) carry_outputs: fn(&mut [Outputs], &[Outputs; GROUP_SIZE], &[[f32; GROUP_SIZE]]),
    pub(crate) round_int8: RoundFn,
    pub(crate) round_int4: RoundFn,
    pub(crate) round_int4n: RoundFn,
    pub(crate) subtract_products: ProductsFn,
}

pub(crate) type ProductsFn = fn(&mut Tile, &[[f32; GROUP_SIZE]], &[[f32; GROUP_SIZE]], &[f32]);

/// Rounds a group with a given scale for each row.
pub(crate) type RoundFn = fn(&GroupRows<'_>, &[u16; ROW_INTERLEAVE], &mut Rounded);

impl FeedbackTable {
    /// The arithmetic for kernels of `isa`, which the processor has.
    pub(crate) fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => crate::x86_64::FEEDBACK,
            _ => Self { carry_rows, carry_outputs, round_int8, round_int4, round_int4n, subtract_products },
        }
    }
}

/// What encoding with feedback computes with.
#[derive(Clone, Copy)]
pub(crate) struct Feedback {
    pub(crate) table: FeedbackTable,
    pub(crate) encoders: GroupEncoders,
}

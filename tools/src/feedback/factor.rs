//! The factors of second moments.

use rwkv_edge::kernels::Kernels;
use rwkv_edge::kernels::layout::GROUP_SIZE;
use rwkv_edge::kernels::quant::{FactorView, Tile, group_start};

use super::{Gram, each};

/// The least damping: with less, feedback grows without bounds where tokens are few.
const LEAST_DAMPING: f64 = 0.001;

/// The order in which columns are rounded. Those with the largest inputs come first: later ones make
/// up for their errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// For rows: 32 consecutive columns, which share a scale in each row, stay together. Groups come
    /// by falling sum of the diagonal of `H`, columns in a group by falling diagonal.
    Groups,
    /// For columns: by falling diagonal.
    Columns,
}

impl Order {
    /// The column at each position; equal columns stay in their order, and padding comes last.
    fn of(self, diagonal: &[f64]) -> Vec<u32> {
        let energy = |&i: &u32| diagonal.get(i as usize).copied().unwrap_or(-1.0);
        let falling = |columns: &mut [u32]| columns.sort_by(|a, b| energy(b).total_cmp(&energy(a)));
        let mut order: Vec<u32> = (0..diagonal.len().next_multiple_of(GROUP_SIZE) as u32).collect();
        if self == Order::Columns {
            falling(&mut order);
            return order;
        }
        let sum = |group: &[u32]| group.iter().map(|i| energy(i).max(0.0)).sum::<f64>();
        let mut groups: Vec<(f64, &mut [u32])> =
            order.chunks_mut(GROUP_SIZE).map(|group| (sum(group), group)).collect();
        groups.sort_by(|a, b| b.0.total_cmp(&a.0));
        groups.iter_mut().for_each(|(_, group)| falling(group));
        groups.iter().flat_map(|(_, group)| group.iter().copied()).collect()
    }
}

/// `H + lambda = U D U^T` in an order of columns.
pub struct Factor {
    columns: usize,
    order: Vec<u32>,
    d: Vec<f32>,
    u: Vec<[f32; GROUP_SIZE]>,
}

impl Factor {
    /// Factors the moments of a [`Gram`] after `damping` times the mean of its diagonal was added to
    /// the diagonal, on up to `threads` threads.
    ///
    /// Damping keeps feedback from relying on what a few tokens have in common. 0.1 is a good value:
    /// with 0.01, feedback made large models worse on texts unlike those that were counted.
    ///
    /// # Panics
    /// If `damping` is below 0.001 or not finite.
    pub fn new(kernels: &Kernels, threads: usize, gram: &mut Gram, order: Order, damping: f64) -> Self {
        assert!((LEAST_DAMPING..f64::INFINITY).contains(&damping), "damping {damping}");
        let columns = gram.channels();
        let moments = gram.moments();
        let diagonal: Vec<f64> = (0..columns).map(|i| moments(i, i)).collect();
        let lambda = damping * (diagonal.iter().sum::<f64>() / columns as f64);
        let order = order.of(&diagonal);
        let real: Vec<bool> = order.iter().map(|&column| (column as usize) < columns).collect();
        let n = order.len();
        let mut u = vec![[0.0; GROUP_SIZE]; group_start(n, n / GROUP_SIZE)];
        let mut d = vec![0.0; n];
        let mut groups = split(&mut u, n);
        for g in (0..groups.len()).rev() {
            let (before, from) = groups.split_at_mut(g);
            let (first, after) = (GROUP_SIZE * g, GROUP_SIZE * (g + 1));
            let remainder = |i: usize, group: &[[f32; GROUP_SIZE]]| {
                let mut tile = tile(&order[GROUP_SIZE * i..], &order[first..], &moments);
                if i == g {
                    (0..GROUP_SIZE).for_each(|c| tile[c][c] += lambda);
                }
                let later = &group[after - GROUP_SIZE * i..];
                kernels.subtract_products(&mut tile, later, &from[0][GROUP_SIZE..], &d[after..]);
                tile
            };
            let (own, own_d) = factor_tile(remainder(g, from[0]), &real[first..after], lambda);
            let solved = |(i, group): (usize, &mut &mut [[f32; GROUP_SIZE]])| {
                let tile = remainder(i, group);
                let out = group[first - GROUP_SIZE * i..].first_chunk_mut().expect("a group of positions");
                solve_tile(tile, &own, &own_d, out);
            };
            each(threads, before.iter_mut().enumerate(), solved);
            from[0][..GROUP_SIZE].copy_from_slice(&own);
            d[first..after].copy_from_slice(&own_d);
        }
        Self { columns, order, d, u }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// `D` of each column: the mean square of its input that inputs rounded later do not explain,
    /// with the damping.
    pub fn own_energy(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.order.len()];
        self.order.iter().zip(&self.d).for_each(|(&column, &d)| out[column as usize] = d);
        out.truncate(self.columns);
        out
    }

    /// The factors, as encoding takes them.
    pub(super) fn view(&self) -> FactorView<'_> {
        FactorView::new(self.columns, &self.order, &self.d, &self.u)
    }
}

/// The factors of each group of positions.
fn split(mut u: &mut [[f32; GROUP_SIZE]], positions: usize) -> Vec<&mut [[f32; GROUP_SIZE]]> {
    let mut groups = Vec::new();
    for first in (0..positions).step_by(GROUP_SIZE) {
        let (group, rest) = u.split_at_mut(positions - first);
        groups.push(group);
        u = rest;
    }
    groups
}

/// Moments of 32 rows, inside, with 32 columns, outside.
fn tile(rows: &[u32], columns: &[u32], moments: &impl Fn(usize, usize) -> f64) -> Box<Tile> {
    let mut tile = Box::new([[0.0; GROUP_SIZE]; GROUP_SIZE]);
    for (tile, &column) in tile.iter_mut().zip(columns) {
        for (moment, &row) in tile.iter_mut().zip(rows) {
            *moment = moments(row as usize, column as usize);
        }
    }
    tile
}

/// The factors between positions of a group, and their `D`, of what is left of its moments after
/// the products of later positions were subtracted. Damping is the least `D`; that of padding is 0.
fn factor_tile(
    mut tile: Box<Tile>,
    real: &[bool],
    lambda: f64,
) -> ([[f32; GROUP_SIZE]; GROUP_SIZE], [f32; GROUP_SIZE]) {
    let (mut u, mut d) = ([[0.0; GROUP_SIZE]; GROUP_SIZE], [0.0; GROUP_SIZE]);
    for c in (0..GROUP_SIZE).rev().filter(|&c| real[c]) {
        d[c] = tile[c][c].max(lambda) as f32;
        if d[c].is_normal() {
            for r in 0..c {
                u[c][r] = (tile[c][r] / f64::from(d[c])) as f32;
            }
        }
        for column in 0..c {
            let factor = f64::from(u[c][column]) * f64::from(d[c]);
            for r in 0..=column {
                tile[column][r] -= f64::from(u[c][r]) * factor;
            }
        }
    }
    (u, d)
}

/// The factors between 32 earlier positions and those of a group, from what is left of their
/// moments: `tile = out D U^T` with the group's own `U` and `D`.
fn solve_tile(
    mut tile: Box<Tile>,
    own: &[[f32; GROUP_SIZE]; GROUP_SIZE],
    d: &[f32; GROUP_SIZE],
    out: &mut [[f32; GROUP_SIZE]; GROUP_SIZE],
) {
    for c in (0..GROUP_SIZE).rev() {
        if d[c].is_normal() {
            for (out, moment) in out[c].iter_mut().zip(&tile[c]) {
                *out = (moment / f64::from(d[c])) as f32;
            }
        }
        let (earlier, _) = tile.split_at_mut(c);
        for (column, tile) in earlier.iter_mut().enumerate() {
            let factor = f64::from(own[c][column]) * f64::from(d[c]);
            for (moment, &out) in tile.iter_mut().zip(&out[c]) {
                *moment -= f64::from(out) * factor;
            }
        }
    }
}

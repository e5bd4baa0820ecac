//! The arithmetic of adapters.

use std::borrow::Cow;

use half::bf16;

/// Values of an adapter's tensors for one matrix.
#[derive(Debug)]
pub(super) enum Factors {
    LowRank { ab: [Vec<f32>; 2], rank: usize, scale: f64, init: Option<([Vec<f32>; 2], usize)> },
    Shards { d: Vec<f32>, rank: usize },
    Blocks { d: Vec<f32>, rank: usize, by_input: bool },
}

/// Adds row `row` of `B A` to `sums`, in the columns from `first` on.
fn add_product(
    sums: &mut [f64],
    [a, b]: &[Vec<f32>; 2],
    rank: usize,
    row: usize,
    first: usize,
    columns: usize,
) {
    for k in 0..rank {
        let factor = f64::from(b[row * rank + k]);
        let a = &a[k * columns + first..][..sums.len()];
        sums.iter_mut().zip(a).for_each(|(sum, &a)| *sum += factor * f64::from(a));
    }
}

impl Factors {
    /// The merged values of row `row` of a matrix, where `weights` has the columns from `first` on.
    pub(super) fn merge(
        &self,
        weights: &[f32],
        row: usize,
        first: usize,
        [out, columns]: [usize; 2],
    ) -> Vec<f32> {
        let mut sums = vec![0.0; weights.len()];
        let mut weights = Cow::Borrowed(weights);
        let mut scale = 1.0;
        match self {
            Self::LowRank { ab, rank, scale: by, init } => {
                if let Some((init, rank)) = init {
                    add_product(&mut sums, init, *rank, row, first, columns);
                    for (weight, sum) in weights.to_mut().iter_mut().zip(&mut sums) {
                        let rest = (f64::from(*weight) - std::mem::take(sum)) as f32;
                        *weight = bf16::from_f32(rest).to_f32();
                    }
                }
                scale = *by;
                add_product(&mut sums, ab, *rank, row, first, columns);
            }
            Self::Shards { d, rank } => {
                // In PEFT's mode mini, the columns repeat.
                let width = d.len() / rank;
                debug_assert!(out.is_multiple_of(width));
                let column = |i: usize| d[(first + i) % rank * width + row % width];
                sums.iter_mut().enumerate().for_each(|(i, sum)| *sum = f64::from(column(i)));
            }
            Self::Blocks { d, rank, by_input } => {
                for (block, sums) in sums.chunks_exact_mut(*rank).enumerate() {
                    let number = if *by_input { first / rank + block } else { row / rank };
                    let d = &d[number * rank * rank..][..rank * rank];
                    let line = |t: usize| &d[t * rank..][..*rank];
                    let factors = weights[block * rank..][..*rank].iter().map(|&weight| f64::from(weight));
                    // The identity beside the weights adds D itself.
                    for (factor, t) in factors.zip(0..).chain([(1.0, row % rank)]) {
                        sums.iter_mut().zip(line(t)).for_each(|(sum, &d)| *sum += factor * f64::from(d));
                    }
                }
            }
        }
        let add = |(&weight, &sum): (&f32, &f64)| (f64::from(weight) + scale * sum) as f32;
        weights.iter().zip(&sums).map(add).collect()
    }
}

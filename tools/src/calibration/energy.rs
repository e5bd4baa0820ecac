//! Mean squares of the inputs of matrices.

use std::collections::HashMap;

use rwkv_edge::{MatrixInputs, Observer};

/// Smallest importance of a column, as a part of the mean. A channel that is silent in the text may
/// speak in another, so the weights of its column must not become arbitrary.
const FLOOR: f64 = 1e-4;

/// Sums of squares for each matrix that a layer has multiplied.
#[derive(Debug, Default)]
pub(super) struct Energies(HashMap<String, Vec<f64>>);

impl Observer for Energies {
    fn inputs(&mut self, inputs: MatrixInputs<'_>) {
        if !self.0.contains_key(inputs.name()) {
            self.0.insert(inputs.name().to_owned(), vec![0.0; inputs.len()]);
        }
        let Some(sums) = self.0.get_mut(inputs.name()) else { return };
        for row in inputs.rows() {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
    }
}

impl Energies {
    /// The importance of each column of a matrix: the mean square of its inputs over their mean, but
    /// at least [`FLOOR`]. `None` if the matrix was not multiplied, or if its inputs were all zero or
    /// not finite.
    pub(super) fn importance(&self, name: &str) -> Option<Vec<f32>> {
        let sums = self.0.get(name)?;
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        let is_usable = mean.is_finite() && mean > 0.0;
        is_usable.then(|| sums.iter().map(|sum| (sum / mean).max(FLOOR) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energies(rows: &[[f32; 4]]) -> Energies {
        let sums = (0..4).map(|i| rows.iter().map(|row| f64::from(row[i]).powi(2)).sum()).collect();
        Energies(HashMap::from([("m".to_owned(), sums)]))
    }

    #[test]
    fn importance_is_relative_to_the_mean_and_a_silent_column_keeps_some() {
        let found = energies(&[[1.0, 2.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 1.0]]).importance("m").unwrap();
        let mean = (2.0 + 4.0 + 1.0) / 4.0;
        assert_eq!(found, [2.0 / mean, 4.0 / mean, 1e-4, 1.0 / mean].map(|x| x as f32));
    }

    #[test]
    fn unknown_matrices_and_inputs_of_zeros_or_nan_have_no_importance() {
        assert_eq!(energies(&[[1.0; 4]]).importance("other"), None);
        assert_eq!(energies(&[[0.0; 4]]).importance("m"), None);
        assert_eq!(energies(&[[f32::NAN, 0.0, 0.0, 0.0]]).importance("m"), None);
        assert_eq!(energies(&[[f32::INFINITY, 0.0, 0.0, 0.0]]).importance("m"), None);
    }
}

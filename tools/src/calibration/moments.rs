//! Second moments of the inputs of matrices, for error feedback.

use std::collections::HashMap;

use rwkv_edge::kernels::Kernels;
use rwkv_edge::{MatrixInputs, Observer};

use super::Target;
use crate::feedback::{BlockGram, Gram, Ranges};

/// Columns of `ffn.value` that feed each other. A block of them takes 8 MB, whatever the model.
pub(crate) const VALUE_BLOCK: usize = 2048;

/// Damping of the moments, as a part of the mean of their diagonal. Less than a tenth as much made
/// large models worse on English, as a few thousand tokens say little about rare directions.
pub(crate) const DAMPING: f64 = 0.1;

/// The moments of a matrix.
pub(crate) enum Moments {
    /// Of all inputs.
    Rows(Gram),
    /// Of [`VALUE_BLOCK`] inputs each.
    Columns(Vec<Gram>),
}

/// Moments that are being counted.
enum Counter {
    Rows(Gram),
    Columns(BlockGram),
}

/// The largest magnitudes of some matrices' inputs, and then their moments.
#[derive(Default)]
pub(super) struct Counters<'t> {
    targets: &'t [Target],
    /// Of each matrix; its scales follow from them.
    ranges: HashMap<String, Ranges>,
    counters: HashMap<String, Counter>,
    threads: usize,
    is_counting: bool,
}

impl<'t> Counters<'t> {
    /// For the matrices `targets`, on up to `threads` threads.
    pub(super) fn new(targets: &'t [Target], threads: usize) -> Self {
        Self { targets, threads, ..Self::default() }
    }

    /// Ends the search for magnitudes.
    pub(super) fn begin(&mut self) {
        self.is_counting = true;
        let kernels = Kernels::best();
        for target in self.targets {
            let Some(ranges) = self.ranges.remove(&target.name) else { continue };
            let scales = ranges.scales();
            let counter = match target.by_columns {
                true => Counter::Columns(BlockGram::new(kernels, self.threads, &scales, VALUE_BLOCK)),
                false => Counter::Rows(Gram::new(kernels, self.threads, scales)),
            };
            self.counters.insert(target.name.clone(), counter);
        }
    }

    /// The moments of each matrix.
    pub(super) fn finish(self) -> HashMap<String, Moments> {
        let moments = |counter| match counter {
            Counter::Rows(gram) => Moments::Rows(gram),
            Counter::Columns(blocks) => Moments::Columns(blocks.into_blocks()),
        };
        self.counters.into_iter().map(|(name, counter)| (name, moments(counter))).collect()
    }
}

impl Observer for Counters<'_> {
    fn inputs(&mut self, inputs: MatrixInputs<'_>) {
        let name = inputs.name();
        if !self.targets.iter().any(|target| target.name == name) {
            return;
        }
        let tokens: Vec<&[f32]> = inputs.rows().collect();
        if !self.is_counting {
            let ranges = self.ranges.entry(name.to_owned()).or_insert_with(|| Ranges::new(inputs.len()));
            return ranges.add(&tokens);
        }
        let Some(counter) = self.counters.get_mut(name) else { return };
        match counter {
            Counter::Rows(gram) => gram.add(&tokens),
            Counter::Columns(blocks) => blocks.add(&tokens),
        }
    }
}

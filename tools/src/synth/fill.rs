//! How the elements of a tensor are made: drawn from a distribution, then changed by where they
//! are.

use std::sync::Arc;

use half::bf16;

use super::random::{Levels, Sequence, Table, representable};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Distribution {
    Normal {
        mean: f64,
        std: f64,
    },
    Uniform {
        from: f64,
        to: f64,
    },
    /// Half of the values evenly spread from 0 to `width`, half from `1 - width` to 1.
    NearZeroOrOne {
        width: f64,
    },
}

impl Distribution {
    /// The value below which a share of all values lies. `normal` is that value of the standard
    /// normal distribution.
    fn quantile(self, share: f64, normal: f64) -> f64 {
        match self {
            Self::Normal { mean, std } => mean + std * normal,
            Self::Uniform { from, to } => from + share * (to - from),
            Self::NearZeroOrOne { width } if share < 0.5 => 2.0 * share * width,
            Self::NearZeroOrOne { width } => 1.0 - 2.0 * (1.0 - share) * width,
        }
    }
}

/// Effect of an element's place on its value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Nothing.
    Any,
    /// It is added to a ramp from `from` to `to` over each `period` elements, and kept between
    /// these two.
    Ramp { from: f64, to: f64, period: usize },
    /// It is multiplied by the sign of its column in the layer's pattern.
    Signs { layer: usize, columns: usize },
    /// The first `len` elements of each `period` are multiplied by `factor`.
    Scaled { len: usize, period: usize, factor: f64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub(super) distribution: Distribution,
    pub(super) place: Place,
}

/// The tables of the distributions in use: tensors that are alike share theirs.
pub(super) struct Tables {
    levels: Levels,
    made: Vec<(Distribution, Arc<Table>)>,
}

impl Tables {
    pub(super) fn new() -> Self {
        Self { levels: Levels::new(), made: Vec::new() }
    }

    fn of(&mut self, wanted: Distribution) -> Arc<Table> {
        if let Some((_, table)) = self.made.iter().find(|(made, _)| *made == wanted) {
            return Arc::clone(table);
        }
        let table = Arc::new(self.levels.table(|share, normal| wanted.quantile(share, normal)));
        self.made.push((wanted, Arc::clone(&table)));
        table
    }
}

/// The elements of one tensor.
#[derive(Debug)]
pub(super) struct Elements {
    sequence: Sequence,
    table: Arc<Table>,
    place: Place,
    /// Signs of the layer's pattern, 64 to a number.
    signs: Sequence,
}

impl Elements {
    /// The elements depend on the seed, the tensor's name and the fill.
    pub(super) fn new(tables: &mut Tables, seed: u64, name: &str, fill: Fill) -> Self {
        let pattern = match fill.place {
            Place::Signs { layer, .. } => format!("pattern of layer {layer}"),
            _ => String::new(),
        };
        Self {
            sequence: Sequence::new(seed, name),
            table: tables.of(fill.distribution),
            place: fill.place,
            signs: Sequence::new(seed, &pattern),
        }
    }

    /// The bits of the BF16 elements from `start` on.
    pub(super) fn fill(&self, start: u64, out: &mut [u16]) {
        self.sequence.draw(&self.table, start, out);
        match self.place {
            Place::Any => {}
            Place::Ramp { from, to, period } => {
                let step = (to - from) / period.max(2).saturating_sub(1) as f64;
                for (index, bits) in (start..).zip(out) {
                    let noise = f64::from(bf16::from_bits(*bits));
                    let x = from + step * (index % period as u64) as f64 + noise;
                    *bits = representable(x.clamp(from.min(to), from.max(to))).to_bits();
                }
            }
            Place::Signs { columns, .. } => self.apply_signs(columns as u64, start, out),
            Place::Scaled { len, period, factor } => {
                for (index, bits) in (start..).zip(out) {
                    if index % (period as u64) < len as u64 {
                        let x = f64::from(bf16::from_bits(*bits));
                        *bits = representable(factor * x).to_bits();
                    }
                }
            }
        }
    }

    fn apply_signs(&self, columns: u64, start: u64, mut out: &mut [u16]) {
        let mut column = start % columns;
        while !out.is_empty() {
            let run = (64 - column % 64).min(columns - column).min(out.len() as u64);
            let (now, rest) = out.split_at_mut(run as usize);
            let signs = self.signs.at(column / 64) >> (column % 64);
            for (i, bits) in now.iter_mut().enumerate() {
                *bits ^= ((signs >> i & 1) << 15) as u16;
            }
            column = (column + run) % columns;
            out = rest;
        }
    }
}

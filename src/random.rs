//! Pseudo-random numbers that a seed repeats on every machine.

/// The generator SplitMix64: the state grows by a constant, its mixed value is the output.
#[derive(Clone, Debug)]
pub struct Rng {
    pub(crate) state: u64,
}

impl Rng {
    /// The generator whose first state is `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The upper 53 bits of an output as a fraction in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// An index below `len`, each equally likely but for one part in 2^64 / `len`.
    pub fn index(&mut self, len: usize) -> usize {
        ((u128::from(self.next()) * len as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_drawn_about_equally_often() {
        let (mut rng, mut drawn) = (Rng::new(0), [0; 7]);
        (0..7000).for_each(|_| drawn[rng.index(7)] += 1);
        assert!(drawn.iter().all(|n| (850..1150).contains(n)), "{drawn:?}");
    }
}

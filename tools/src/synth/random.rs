//! Random numbers by place: each is computed without those before it.

use std::f64::consts::SQRT_2;

use half::{bf16, f16};

/// Equally likely values of a distribution: their table stays in the first-level cache.
const LEVELS: usize = 1 << 12;

/// Values that one hash gives.
const LANES: u64 = 4;

/// A sequence of 64-bit numbers: those of the generator SplitMix64 seeded with the key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence(u64);

impl Sequence {
    /// The sequence that belongs to a name.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        Self(name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)).wrapping_add(GOLDEN)))
    }

    /// The number at a place.
    pub(super) fn at(self, place: u64) -> u64 {
        mix(self.0.wrapping_add(place.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Draws the values at the places from `start` on.
    pub(super) fn draw(self, table: &Table, start: u64, out: &mut [u16]) {
        let first = (LANES - start % LANES) % LANES;
        let (head, rest) = out.split_at_mut(out.len().min(first as usize));
        let draw = |place: u64| table.at(self.at(place / LANES) >> (16 * (place % LANES)));
        (start..).zip(head).for_each(|(place, out)| *out = draw(place));
        let (quads, tail) = rest.as_chunks_mut::<{ LANES as usize }>();
        let block = (start + first) / LANES;
        for (place, quad) in (block..).zip(&mut *quads) {
            let bits = self.at(place);
            *quad = [bits, bits >> 16, bits >> 32, bits >> 48].map(|bits| table.at(bits));
        }
        let start = (block + quads.len() as u64) * LANES;
        (start..).zip(tail).for_each(|(place, out)| *out = draw(place));
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the quantiles of a [`Table`] are: the middles of [`LEVELS`] equal shares of 0 to 1.
pub(super) struct Levels {
    /// The standard normal quantiles.
    normal: Vec<f64>,
}

impl Levels {
    pub(super) fn new() -> Self {
        Self { normal: (0..LEVELS).map(|level| normal_quantile(share(level))).collect() }
    }

    /// A distribution by its quantile function. The function gets a share and the standard normal
    /// quantile there.
    pub(super) fn table(&self, quantile: impl Fn(f64, f64) -> f64) -> Table {
        let mut table = Box::new([0; LEVELS]);
        for (level, (value, &normal)) in table.iter_mut().zip(&self.normal).enumerate() {
            *value = representable(quantile(share(level), normal)).to_bits();
        }
        Table(table)
    }
}

fn share(level: usize) -> f64 {
    (level as f64 + 0.5) / LEVELS as f64
}

/// A distribution: its values are its quantiles, all equally likely.
#[derive(Debug)]
pub(super) struct Table(Box<[u16; LEVELS]>);

impl Table {
    fn at(&self, bits: u64) -> u16 {
        self.0[bits as usize % LEVELS]
    }
}

/// A value nearby that both BF16 and F16 represent, so that a checkpoint or model of either type is
/// exact.
pub(super) fn representable(x: f64) -> bf16 {
    bf16::from_f32(f16::from_f32(bf16::from_f64(x).to_f32()).to_f32())
}

/// `P(z > t)` for a standard normal `z`.
pub(super) fn normal_tail(t: f64) -> f64 {
    0.5 * libm::erfc(t / SQRT_2)
}

/// The value below which a standard normal is with probability `p`.
pub(super) fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        *(if normal_tail(-middle) < p { &mut low } else { &mut high }) = middle;
    }
    0.5 * (low + high)
}

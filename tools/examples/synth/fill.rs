//! Seeded random elements, a block at a time.

use rwkv_quantize::source::torch_writer::TensorSpec;

/// Elements generated at once.
const BLOCK: usize = 1 << 15;

/// How the elements of a tensor are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    /// Normal values.
    Normal { mean: f32, std: f32 },
    /// Evenly spread values.
    Uniform { from: f32, to: f32 },
    /// From `from` to `to` over each `period` elements, with noise.
    Ramp { from: f32, to: f32, noise: f32, period: usize },
    /// Signs of a layer's pattern times a constant.
    Pattern { layer: usize, scale: f32 },
    /// Rows of normal values minus the layer's pattern.
    AgainstPattern { layer: usize, std: f32, scale: f32 },
}

/// A tensor and its elements.
pub(crate) struct Plan {
    /// Name, shape and element type.
    pub(crate) spec: TensorSpec,
    /// How the elements are made.
    pub(crate) fill: Fill,
}

/// SplitMix64: a step and three mixing rounds per number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal, unit variance: the sum of four uniform numbers, so never beyond 3.5.
    fn normal(&mut self) -> f32 {
        let x = self.next();
        let sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
        (sum as i32 - 2 * 0xffff) as f32 * (1.732_050_8 / 65536.0)
    }
}

/// Produces the elements of one tensor in order.
pub(crate) struct Elements {
    fill: Fill,
    random: Random,
    /// Signs of the layer's pattern, one per column.
    signs: Vec<f32>,
    at: u64,
}

impl Elements {
    /// The elements of a tensor depend on the seed, its name and its fill. A pattern has `width` columns.
    pub(crate) fn new(plan: &Plan, seed: u64, width: usize) -> Self {
        let name_hash = plan.spec.name.bytes().fold(seed, |hash, byte| Random(hash ^ u64::from(byte)).next());
        let signs = match plan.fill {
            Fill::Pattern { layer, .. } | Fill::AgainstPattern { layer, .. } => {
                let mut random = Random(seed ^ (layer as u64 + 1) << 32);
                (0..width).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect()
            }
            _ => Vec::new(),
        };
        Self { fill: plan.fill, random: Random(name_hash), signs, at: 0 }
    }

    /// Fills a block. Blocks of tensors with a pattern hold whole rows.
    pub(crate) fn fill(&mut self, out: &mut [f32]) {
        let random = &mut self.random;
        match self.fill {
            Fill::Normal { mean, std } => out.iter_mut().for_each(|x| *x = random.normal() * std + mean),
            Fill::Uniform { from, to } => {
                out.iter_mut().for_each(|x| *x = random.uniform() * (to - from) + from)
            }
            Fill::Ramp { from, to, noise, period } => {
                let step = (to - from) / period.max(2).saturating_sub(1) as f32;
                for (index, x) in (self.at..).zip(&mut *out) {
                    let index = index % period as u64;
                    *x = (from + step * index as f32 + noise * random.normal()).clamp(from, to);
                }
            }
            Fill::Pattern { scale, .. } => {
                out.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x = scale * sign)
            }
            Fill::AgainstPattern { std, scale, .. } => {
                for row in out.chunks_mut(self.signs.len()) {
                    for (x, sign) in row.iter_mut().zip(&self.signs) {
                        *x = random.normal() * std - scale * sign;
                    }
                }
            }
        }
        self.at += out.len() as u64;
    }

    /// Elements per block.
    pub(crate) fn block(&self) -> usize {
        match self.signs.len() {
            0 => BLOCK,
            row => row * (BLOCK / row).max(1),
        }
    }
}

//! The shapes of the released models.

use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7, Variant, Version};

/// Epsilon of every layer norm of every released model.
pub(crate) const LAYER_NORM_EPS: f32 = 1e-5;

/// Epsilon of the group norm of RWKV-5 to 7 as BlinkDL trains and runs them: 1e-5 times 8 squared.
pub const GROUP_NORM_EPS: f32 = 64e-5;

/// Channels of a head in every released model that has heads.
const HEAD_SIZE: usize = 64;

/// Inner size of DeepEmbed in every released RWKV-7a.
const DEEP_RANK: usize = 32;

/// A released model: the properties that tell it from the others of its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Short name, unique among [`RELEASED`].
    pub name: &'static str,
    /// Names of the released models of this shape.
    pub models: &'static str,
    /// Architecture.
    pub version: Version,
    /// Layers.
    pub n_layer: usize,
    /// Width.
    pub n_embd: usize,
    /// Tokens.
    pub n_vocab: usize,
}

const fn shape(
    name: &'static str,
    models: &'static str,
    version: Version,
    [n_layer, n_embd, n_vocab]: [usize; 3],
) -> Shape {
    Shape { name, models, version, n_layer, n_embd, n_vocab }
}

/// Every released shape, by version and size.
pub const RELEASED: [Shape; 28] = [
    shape("rwkv4-169m", "Pile 169M", Version::V4, [12, 768, 50277]),
    shape("rwkv4-430m", "Pile 430M", Version::V4, [24, 1024, 50277]),
    shape("rwkv4-1.5b", "Pile, Raven 1.5B", Version::V4, [24, 2048, 50277]),
    shape("rwkv4-3b", "Pile, Raven 3B", Version::V4, [32, 2560, 50277]),
    shape("rwkv4-7b", "Pile, Raven 7B", Version::V4, [32, 4096, 50277]),
    shape("rwkv4-14b", "Pile, Raven 14B", Version::V4, [40, 5120, 50277]),
    shape("rwkv4-world-0.1b", "World 0.1B", Version::V4, [12, 768, 65536]),
    shape("rwkv4-world-0.4b", "World 0.4B", Version::V4, [24, 1024, 65536]),
    shape("rwkv4-world-1.5b", "World 1.5B", Version::V4, [24, 2048, 65536]),
    shape("rwkv4-world-3b", "World 3B", Version::V4, [32, 2560, 65536]),
    shape("rwkv4-world-7b", "World 7B", Version::V4, [32, 4096, 65536]),
    shape("rwkv5.0-0.1b", "World 0.1B", Version::V5_0, [12, 768, 65536]),
    shape("rwkv5.1-0.4b", "Music", Version::V5_1, [24, 1024, 65536]),
    shape("rwkv5.2-0.4b", "World 0.4B", Version::V5_2, [24, 1024, 65536]),
    shape("rwkv5.2-1.5b", "World 1.5B", Version::V5_2, [24, 2048, 65536]),
    shape("rwkv5.2-3b", "World 3B", Version::V5_2, [32, 2560, 65536]),
    shape("rwkv5.2-7b", "World 7B", Version::V5_2, [32, 4096, 65536]),
    shape("rwkv6-1.6b", "World 1.6B", Version::V6, [24, 2048, 65536]),
    shape("rwkv6-3b", "World 3B", Version::V6, [32, 2560, 65536]),
    shape("rwkv6-7b", "World 7B", Version::V6, [32, 4096, 65536]),
    shape("rwkv6-14b", "World 14B", Version::V6, [61, 4096, 65536]),
    shape("rwkv7-0.1b", "World, G1 0.1B", Version::V7, [12, 768, 65536]),
    shape("rwkv7-0.4b", "World, G1 0.4B", Version::V7, [24, 1024, 65536]),
    shape("rwkv7-1.5b", "World, G1 1.5B", Version::V7, [24, 2048, 65536]),
    shape("rwkv7-2.9b", "World, G1 2.9B", Version::V7, [32, 2560, 65536]),
    shape("rwkv7-7.2b", "World, G1 7.2B", Version::V7, [32, 4096, 65536]),
    shape("rwkv7-13.3b", "World, G1 13.3B", Version::V7, [61, 4096, 65536]),
    shape("rwkv7a-0.1b", "G1 0.1B with DeepEmbed", Version::V7a, [12, 768, 65536]),
];

impl Shape {
    /// The released shape of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        RELEASED.iter().find(|shape| shape.name == name)
    }

    /// All hyperparameters.
    pub fn config(&self) -> Config {
        config(self.version, [self.n_layer, self.n_embd, self.n_vocab])
    }
}

/// The hyperparameters of a released model of this version with these numbers of layers, channels
/// and tokens.
pub fn config(version: Version, [n_layer, n_embd, n_vocab]: [usize; 3]) -> Config {
    let heads = Heads { n_head: n_embd / HEAD_SIZE, head_size: HEAD_SIZE, group_norm_eps: GROUP_NORM_EPS };
    let v5 = |variant| Arch::V5(Rwkv5 { variant, heads });
    let arch = match version {
        Version::V4 => Arch::V4,
        Version::V5_0 => v5(Rwkv5Variant::V5_0),
        Version::V5_1 => v5(Rwkv5Variant::V5_1),
        Version::V5_2 => v5(Rwkv5Variant::V5_2),
        Version::V6 => {
            let (mix_rank, decay_rank) = if n_embd < 4096 { (32, 64) } else { (64, 128) };
            Arch::V6(Rwkv6 { heads, mix_rank, decay_rank })
        }
        Version::V7 | Version::V7a => {
            let [decay_rank, iclr_rank, value_rank, gate_rank] = ranks_v7(n_embd);
            let (value_rank, deep_rank) = (Some(value_rank), (version == Version::V7a).then_some(DEEP_RANK));
            Arch::V7(Rwkv7 { heads, decay_rank, iclr_rank, value_rank, gate_rank, deep_rank })
        }
    };
    let short_ffn = matches!(version, Version::V5_1 | Version::V5_2 | Version::V6);
    let n_ffn = if short_ffn { n_embd * 7 / 2 / 32 * 32 } else { 4 * n_embd };
    let (n_att, layer_norm_eps, variant) = (n_embd, LAYER_NORM_EPS, Variant::Plain);
    Config { n_layer, n_embd, n_att, n_ffn, n_vocab, layer_norm_eps, arch, variant }
}

/// Inner sizes of decay, in-context learning rate, value residual and gate of an RWKV-7.
fn ranks_v7(n_embd: usize) -> [usize; 4] {
    match n_embd {
        0..=1024 => [64, 64, 32, 128],
        1025..=2048 => [96, 96, 64, 256],
        2049..=2560 => [96, 96, 64, 320],
        _ => [128, 128, 96, 480],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_shape_is_a_valid_model() {
        for (i, shape) in RELEASED.iter().enumerate() {
            shape.config().validate().unwrap();
            assert_eq!(Shape::find(shape.name), Some(shape));
            assert!(RELEASED[..i].iter().all(|other| other.name != shape.name), "{}", shape.name);
        }
        assert_eq!(Shape::find("rwkv7-1.6b"), None);
    }
}

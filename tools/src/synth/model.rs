//! The tensors of a synthetic model, and how each is filled.

use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7};
use rwkv_edge::model::names::V6_MIXES;

use super::fill::{Distribution, Fill, Place};
use super::random::{normal_quantile, normal_tail};

/// Magnitude of `ln2.bias`, which carries the shift of `ffn.key`.
const PATTERN: f64 = 0.5;

/// Root mean square of an outlier's part of a product, relative to the part of all other channels.
const OUTLIER_SHARE: f64 = 0.85;

/// Mixes of time mixing.
const MIX: Distribution = Distribution::Uniform { from: 0.0, to: 1.0 };

/// Spread of the mixes of channel mixing around 0 and 1.
const MIX_WIDTH: f64 = 0.1;

/// Variance of such a mix of two tokens that have unit variance and a correlation of one third.
const MIXED_VARIANCE: f64 = 0.938;

/// Root mean square of channel mixing's addition to the residual stream.
const FFN_RMS: f64 = 0.35;

/// Standard deviation of the product in the factors of DeepEmbed.
const DEEP_STD: f64 = 0.3;

/// Standard deviation of the logits: a few tokens then share most of the probability, as in a
/// trained model.
const LOGITS_STD: f64 = 3.0;

/// A tensor and how its elements are made.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
}

/// A list of tensors in the making, with BlinkDL's names and shapes.
struct Model<'a> {
    config: &'a Config,
    tensors: Vec<Planned>,
}

impl Model<'_> {
    fn add(&mut self, name: String, shape: &[usize], distribution: Distribution, place: Place) {
        self.tensors.push(Planned { name, shape: shape.to_vec(), fill: Fill { distribution, place } });
    }

    fn normal(&mut self, name: String, shape: &[usize], mean: f64, std: f64) {
        self.add(name, shape, Distribution::Normal { mean, std }, Place::Any);
    }

    /// Decays from slow to fast within each `period`.
    fn decays(&mut self, name: String, shape: &[usize], from: f64, to: f64, period: usize) {
        let noise = Distribution::Normal { mean: 0.0, std: 0.3 };
        self.add(name, shape, noise, Place::Ramp { from, to, period });
    }

    /// A matrix whose product with inputs of unit variance has standard deviation `gain`.
    fn matrix(&mut self, name: String, rows: usize, columns: usize, gain: f64) {
        self.factor(name, &[rows, columns], columns, gain);
    }

    /// The same for a low-rank factor `[in, out]`, or several.
    fn factor(&mut self, name: String, shape: &[usize], inputs: usize, gain: f64) {
        self.normal(name, shape, 0.0, gain / (inputs as f64).sqrt());
    }

    fn layer_norm(&mut self, name: &str) {
        let n_embd = self.config.n_embd;
        self.normal(format!("{name}.weight"), &[n_embd], 1.0, 0.05);
        self.normal(format!("{name}.bias"), &[n_embd], 0.0, 0.02);
    }

    fn mixes(&mut self, prefix: &str, letters: &str, distribution: Distribution) {
        for letter in letters.chars() {
            let shape = [1, 1, self.config.n_embd];
            self.add(format!("{prefix}{letter}"), &shape, distribution, Place::Any);
        }
    }

    /// Makes channel 0 of the input of `att.output` in layer 0 `outlier` times as large as the
    /// others.
    ///
    /// In RWKV-4, a row of the value makes the outlier. The group norm of RWKV-5 to 7 would level
    /// such a row, so there the norm's weight makes it. The column that reads the channel is
    /// correspondingly smaller, so that its products are of the size of all others together.
    fn add_outlier(&mut self, outlier: f64) {
        let Config { n_embd, n_att, arch, .. } = *self.config;
        let (source, len) = match arch {
            Arch::V4 => ("blocks.0.att.value.weight", n_embd),
            Arch::V5(_) | Arch::V6(_) | Arch::V7(_) => ("blocks.0.att.ln_x.weight", 1),
        };
        let column = OUTLIER_SHARE * (n_att as f64).sqrt() / outlier;
        for tensor in &mut self.tensors {
            tensor.fill.place = match tensor.name.as_str() {
                "blocks.0.att.output.weight" => Place::Scaled { len: 1, period: n_att, factor: column },
                name if name == source => Place::Scaled { len, period: n_att * len, factor: outlier },
                _ => continue,
            };
        }
    }

    /// `ln2`. Its bias has the same magnitude everywhere, and the layer's pattern of signs.
    fn ln2(&mut self, layer: usize) {
        let columns = self.config.n_embd;
        self.normal(format!("blocks.{layer}.ln2.weight"), &[columns], 1.0, 0.05);
        let bias = Distribution::Normal { mean: PATTERN, std: 0.0 };
        self.add(format!("blocks.{layer}.ln2.bias"), &[columns], bias, Place::Signs { layer, columns });
    }

    fn channel_mix(&mut self, layer: usize, sparsity: f64) {
        let prefix = format!("blocks.{layer}.ffn");
        let (mixes, letters) = match self.config.arch {
            Arch::V4 | Arch::V5(_) => ("time_mix_", "kr"),
            Arch::V6(_) => ("time_maa_", "kr"),
            Arch::V7(_) => ("x_", "k"),
        };
        // With mixes near 0 and 1, the size of the result hardly depends on how alike two tokens
        // are.
        self.mixes(&format!("{prefix}.{mixes}"), letters, Distribution::NearZeroOrOne { width: MIX_WIDTH });
        let gated = letters.contains('r');
        self.squared_relu(layer, sparsity, gated);
        if gated {
            let n_embd = self.config.n_embd;
            self.matrix(format!("{prefix}.receptance.weight"), n_embd, n_embd, 1.0);
        }
        if let Arch::V7(Rwkv7 { deep_rank: Some(rank), .. }) = self.config.arch {
            self.deep_embed(&prefix, rank);
        }
    }

    /// DeepEmbed. The factors of the hidden units are about 1, with a standard deviation of
    /// [`DEEP_STD`].
    fn deep_embed(&mut self, prefix: &str, rank: usize) {
        let Config { n_embd, n_ffn, n_vocab, .. } = *self.config;
        let width = rank * rank;
        // Rows and what is folded into them are alike in size.
        let std = (0.5 / rank as f64).sqrt();
        self.normal(format!("{prefix}.s_emb.weight"), &[n_vocab, width], 0.0, std);
        self.matrix(format!("{prefix}.s_emb_x.weight"), width, n_embd, std);
        self.factor(format!("{prefix}.s1"), &[n_embd, rank], n_embd, 1.0);
        self.factor(format!("{prefix}.s2"), &[rank, n_ffn], rank, DEEP_STD);
        self.normal(format!("{prefix}.s0"), &[1, 1, n_ffn], 1.0, 0.1);
    }

    /// `ffn.key` and `ffn.value` of a network. `sparsity` is the share of zeros behind its squared
    /// relu.
    ///
    /// Each row of the key has a component against the pattern of `ln2.bias`, which token shift
    /// leaves alone. It shifts every input of the relu by the same amount. The value is scaled so
    /// that its output keeps its size.
    fn squared_relu(&mut self, layer: usize, sparsity: f64, gated: bool) {
        let Config { n_embd, n_ffn, .. } = *self.config;
        let width = n_embd as f64;
        let input_std = (MIXED_VARIANCE + PATTERN * PATTERN).sqrt();
        let threshold = normal_quantile(sparsity);
        let key = Distribution::Normal {
            mean: -threshold * input_std / (PATTERN * width),
            std: 1.0 / width.sqrt(),
        };
        let signs = Place::Signs { layer, columns: n_embd };
        self.add(format!("blocks.{layer}.ffn.key.weight"), &[n_ffn, n_embd], key, signs);
        let rms = input_std.powi(2) * relu_fourth_moment(threshold).sqrt();
        // A receptance halves the output on average.
        let gain = if gated { 2.0 * FFN_RMS } else { FFN_RMS } / rms;
        self.matrix(format!("blocks.{layer}.ffn.value.weight"), n_embd, n_ffn, gain);
    }
}

/// The tensors of a model; `sparsity` is the share of zeros behind the squared relu.
///
/// With an outlier, one channel of the input of `att.output` in layer 0 is `outlier` times as large
/// as the others.
pub(super) fn tensors(config: &Config, sparsity: f64, outlier: Option<f64>) -> Vec<Planned> {
    let Config { n_embd, n_vocab, n_layer, .. } = *config;
    let mut model = Model { config, tensors: Vec::new() };
    model.normal("emb.weight".into(), &[n_vocab, n_embd], 0.0, 0.5);
    for layer in 0..n_layer {
        if layer == 0 {
            model.layer_norm("blocks.0.ln0");
        }
        model.layer_norm(&format!("blocks.{layer}.ln1"));
        model.ln2(layer);
        time_mix(&mut model, layer);
        model.channel_mix(layer, sparsity);
    }
    model.layer_norm("ln_out");
    model.matrix("head.weight".into(), n_vocab, n_embd, LOGITS_STD);
    if let Some(outlier) = outlier {
        model.add_outlier(outlier);
    }
    model.tensors
}

/// Adds the tensors of a layer's time mixing.
///
/// Gains are such that a layer adds about a third of a unit to the residual stream, as channel
/// mixing does, and that every gate, decay and low-rank part is in its working range.
fn time_mix(model: &mut Model<'_>, layer: usize) {
    let att = format!("blocks.{layer}.att");
    match &model.config.arch {
        Arch::V4 => rwkv4(model, &att),
        Arch::V5(arch) => rwkv5(model, arch, &att),
        Arch::V6(arch) => rwkv6(model, arch, &att),
        Arch::V7(arch) => rwkv7(model, arch, &att, layer),
    }
}

/// The matrices into the channels of time mixing, and the one out of them.
fn projections(model: &mut Model<'_>, att: &str, gains: &[(&str, f64)], output: f64) {
    let Config { n_embd, n_att, .. } = *model.config;
    for (name, gain) in gains {
        model.matrix(format!("{att}.{name}.weight"), n_att, n_embd, *gain);
    }
    model.matrix(format!("{att}.output.weight"), n_embd, n_att, output);
}

fn group_norm(model: &mut Model<'_>, att: &str) {
    let n_att = model.config.n_att;
    model.normal(format!("{att}.ln_x.weight"), &[n_att], 0.6, 0.1);
    model.normal(format!("{att}.ln_x.bias"), &[n_att], 0.0, 0.05);
}

fn rwkv4(model: &mut Model<'_>, att: &str) {
    let n_att = model.config.n_att;
    model.decays(format!("{att}.time_decay"), &[n_att], -6.0, 3.0, n_att);
    model.normal(format!("{att}.time_first"), &[n_att], 0.0, 0.5);
    model.mixes(&format!("{att}.time_mix_"), "kvr", MIX);
    projections(model, att, &[("key", 1.0), ("value", 1.0), ("receptance", 1.0)], 1.5);
}

fn rwkv5(model: &mut Model<'_>, arch: &Rwkv5, att: &str) {
    let Heads { n_head, head_size: size, .. } = arch.heads;
    let gated = arch.variant != Rwkv5Variant::V5_0;
    model.mixes(&format!("{att}.time_mix_"), if gated { "kvrg" } else { "kvr" }, MIX);
    if arch.variant == Rwkv5Variant::V5_2 {
        model.decays(format!("{att}.time_decay"), &[n_head, size], -6.5, 2.0, size);
        model.normal(format!("{att}.time_faaaa"), &[n_head, size], 0.0, 0.5);
    } else {
        model.decays(format!("{att}.time_decay"), &[n_head], -6.5, 1.0, n_head);
        model.normal(format!("{att}.time_first"), &[n_head], 0.0, 0.5);
    }
    let gains = [("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("gate", 1.0)];
    // The gate halves the values that pass it.
    let (gains, output) = if gated { (&gains[..], 1.0) } else { (&gains[..3], 0.6) };
    projections(model, att, gains, output);
    group_norm(model, att);
}

fn rwkv6(model: &mut Model<'_>, arch: &Rwkv6, att: &str) {
    let Config { n_embd, n_att, .. } = *model.config;
    let Rwkv6 { heads: Heads { n_head, head_size: size, .. }, mix_rank: mix, decay_rank: decay } = *arch;
    model.mixes(&format!("{att}.time_maa_"), "xwkvrg", MIX);
    model.factor(format!("{att}.time_maa_w1"), &[n_embd, V6_MIXES.len() * mix], n_embd, 0.6);
    model.factor(format!("{att}.time_maa_w2"), &[V6_MIXES.len(), mix, n_embd], mix, 0.3);
    model.decays(format!("{att}.time_decay"), &[1, 1, n_att], -6.5, 2.0, size);
    model.factor(format!("{att}.time_decay_w1"), &[n_embd, decay], n_embd, 0.6);
    model.factor(format!("{att}.time_decay_w2"), &[decay, n_att], decay, 1.0);
    model.normal(format!("{att}.time_faaaa"), &[n_head, size], 0.0, 0.5);
    let gains = [("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("gate", 1.0)];
    projections(model, att, &gains, 1.0);
    group_norm(model, att);
}

fn rwkv7(model: &mut Model<'_>, arch: &Rwkv7, att: &str, layer: usize) {
    let n_att = model.config.n_att;
    let Rwkv7 { heads, decay_rank, iclr_rank, value_rank, gate_rank, .. } = *arch;
    let Heads { n_head, head_size: size, .. } = heads;
    let vector = [1, 1, n_att];
    model.mixes(&format!("{att}.x_"), "rwkvag", MIX);
    model.decays(format!("{att}.w0"), &vector, -6.5, 2.0, size);
    low_rank(model, att, 'w', decay_rank, 1.0);
    model.normal(format!("{att}.a0"), &vector, 0.0, 0.5);
    low_rank(model, att, 'a', iclr_rank, 0.5);
    if let (1.., Some(value_rank)) = (layer, value_rank) {
        model.normal(format!("{att}.v0"), &vector, 0.5, 0.3);
        low_rank(model, att, 'v', value_rank, 0.5);
    }
    low_rank(model, att, 'g', gate_rank, 1.2);
    model.normal(format!("{att}.k_k"), &vector, 0.85, 0.1);
    model.normal(format!("{att}.k_a"), &vector, 1.0, 0.1);
    model.normal(format!("{att}.r_k"), &[n_head, size], 0.0, 0.1);
    projections(model, att, &[("receptance", 0.5), ("key", 0.5), ("value", 1.0)], 0.8);
    group_norm(model, att);
}

/// The two factors that bring a token's values to `rank` and on to the channels.
fn low_rank(model: &mut Model<'_>, att: &str, letter: char, rank: usize, gain: f64) {
    let Config { n_embd, n_att, .. } = *model.config;
    model.factor(format!("{att}.{letter}1"), &[n_embd, rank], n_embd, 1.0);
    model.factor(format!("{att}.{letter}2"), &[rank, n_att], rank, gain);
}

/// `E[max(z - t, 0)^4]` for a standard normal `z`.
fn relu_fourth_moment(t: f64) -> f64 {
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    (t.powi(4) + 6.0 * t * t + 3.0) * normal_tail(t) - (t.powi(3) + 5.0 * t) * density
}

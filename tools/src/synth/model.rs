//! The tensors of a synthetic model: what the versions share.

use rwkv_edge::format::{Arch, Config};

use super::fill::{Distribution, Fill, Place};
use super::random::{normal_quantile, normal_tail};
use super::time_mix;

/// Magnitude of `ln2.bias`, which carries the shift of `ffn.key`.
const PATTERN: f64 = 0.5;

/// Spread of the mixes of channel mixing around 0 and 1.
const MIX_WIDTH: f64 = 0.1;

/// Variance of an element that such a mix makes of two tokens of unit variance, of which a third is alike.
const MIXED_VARIANCE: f64 = 0.938;

/// Root mean square of what channel mixing adds to the residual stream.
const FFN_RMS: f64 = 0.35;

/// Standard deviation of the logits: a few tokens then share most of the probability, as in a trained model.
const LOGITS_STD: f64 = 3.0;

/// A tensor and how its elements are made.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
}

/// A list of tensors in the making, with BlinkDL's names and shapes.
pub(super) struct Model<'a> {
    pub(super) config: &'a Config,
    tensors: Vec<Planned>,
}

impl Model<'_> {
    fn add(&mut self, name: String, shape: &[usize], distribution: Distribution, place: Place) {
        self.tensors.push(Planned { name, shape: shape.to_vec(), fill: Fill { distribution, place } });
    }

    pub(super) fn normal(&mut self, name: String, shape: &[usize], mean: f64, std: f64) {
        self.add(name, shape, Distribution::Normal { mean, std }, Place::Any);
    }

    /// Decays from slow to fast within each `period`.
    pub(super) fn decays(&mut self, name: String, shape: &[usize], from: f64, to: f64, period: usize) {
        let noise = Distribution::Normal { mean: 0.0, std: 0.3 };
        self.add(name, shape, noise, Place::Ramp { from, to, period });
    }

    /// A matrix whose product with inputs of unit variance has standard deviation `gain`.
    pub(super) fn matrix(&mut self, name: String, rows: usize, columns: usize, gain: f64) {
        self.factor(name, &[rows, columns], columns, gain);
    }

    /// The same for a low-rank factor `[in, out]`, or several.
    pub(super) fn factor(&mut self, name: String, shape: &[usize], inputs: usize, gain: f64) {
        self.normal(name, shape, 0.0, gain / (inputs as f64).sqrt());
    }

    fn layer_norm(&mut self, name: &str) {
        let n_embd = self.config.n_embd;
        self.normal(format!("{name}.weight"), &[n_embd], 1.0, 0.05);
        self.normal(format!("{name}.bias"), &[n_embd], 0.0, 0.02);
    }

    pub(super) fn mixes(&mut self, prefix: &str, letters: &str, distribution: Distribution) {
        for letter in letters.chars() {
            let shape = [1, 1, self.config.n_embd];
            self.add(format!("{prefix}{letter}"), &shape, distribution, Place::Any);
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
        // Near 0 and 1, the size of what they mix hardly depends on how much two tokens are alike.
        self.mixes(&format!("{prefix}.{mixes}"), letters, Distribution::NearZeroOrOne { width: MIX_WIDTH });
        let gated = letters.contains('r');
        self.squared_relu(layer, sparsity, gated);
        if gated {
            let n_embd = self.config.n_embd;
            self.matrix(format!("{prefix}.receptance.weight"), n_embd, n_embd, 1.0);
        }
    }

    /// `ffn.key` and `ffn.value` of a network with a share of `sparsity` zeros behind its squared relu.
    ///
    /// Each row of the key has a component against the pattern of `ln2.bias`, which token shift leaves alone. It
    /// shifts every input of the relu by the same amount. The value is scaled so that its output keeps its size.
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
pub(super) fn tensors(config: &Config, sparsity: f64) -> Vec<Planned> {
    let Config { n_embd, n_vocab, n_layer, .. } = *config;
    let mut model = Model { config, tensors: Vec::new() };
    model.normal("emb.weight".into(), &[n_vocab, n_embd], 0.0, 0.5);
    for layer in 0..n_layer {
        if layer == 0 {
            model.layer_norm("blocks.0.ln0");
        }
        model.layer_norm(&format!("blocks.{layer}.ln1"));
        model.ln2(layer);
        time_mix::add(&mut model, layer);
        model.channel_mix(layer, sparsity);
    }
    model.layer_norm("ln_out");
    model.matrix("head.weight".into(), n_vocab, n_embd, LOGITS_STD);
    model.tensors
}

/// `E[max(z - t, 0)^4]` for a standard normal `z`.
fn relu_fourth_moment(t: f64) -> f64 {
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    (t.powi(4) + 6.0 * t * t + 3.0) * normal_tail(t) - (t.powi(3) + 5.0 * t) * density
}

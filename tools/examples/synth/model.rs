//! The tensors of a model and the size of their elements: what the versions share.

use rwkv_quantize::source::SourceDType;
use rwkv_quantize::source::torch_writer::TensorSpec;

use crate::fill::{Fill, Plan};
use crate::sizes::{Kind, Sizes};
use crate::time_mix;

/// Largest absolute value in the pattern of `ln2.bias`, which carries the shift of `ffn.key`.
const PATTERN: f32 = 0.5;

/// Root mean square of what channel mixing adds to the residual stream.
const FFN_RMS: f64 = 0.35;

/// A list of tensors in the making, in BlinkDL's naming.
pub(crate) struct Model<'s> {
    pub(crate) sizes: &'s Sizes,
    dtype: SourceDType,
    plans: Vec<Plan>,
}

impl Model<'_> {
    pub(crate) fn add(&mut self, name: String, shape: &[usize], fill: Fill) {
        let spec = TensorSpec { name, shape: shape.to_vec(), dtype: self.dtype };
        self.plans.push(Plan { spec, fill });
    }

    pub(crate) fn normal(&mut self, name: String, shape: &[usize], mean: f32, std: f32) {
        self.add(name, shape, Fill::Normal { mean, std });
    }

    /// A matrix whose product with inputs of unit variance has standard deviation `gain`.
    pub(crate) fn matrix(&mut self, name: String, rows: usize, columns: usize, gain: f64) {
        let std = (gain / (columns as f64).sqrt()) as f32;
        self.normal(name, &[rows, columns], 0.0, std);
    }

    /// A low-rank factor `[in, out]`, or several; gain as for [`matrix`](Self::matrix).
    pub(crate) fn factor(&mut self, name: String, shape: &[usize], inputs: usize, gain: f64) {
        self.normal(name, shape, 0.0, (gain / (inputs as f64).sqrt()) as f32);
    }

    fn layer_norm(&mut self, name: &str) {
        let width = self.sizes.width;
        self.normal(format!("{name}.weight"), &[width], 1.0, 0.05);
        self.normal(format!("{name}.bias"), &[width], 0.0, 0.02);
    }

    pub(crate) fn mixes(&mut self, prefix: &str, letters: &str) {
        for letter in letters.chars() {
            let shape = [1, 1, self.sizes.width];
            self.add(format!("{prefix}{letter}"), &shape, Fill::Uniform { from: 0.0, to: 1.0 });
        }
    }
}

/// The tensors of a model; `sparsity` is the share of zeros behind the squared relu.
pub(crate) fn plans(sizes: &Sizes, dtype: SourceDType, sparsity: f64) -> Vec<Plan> {
    let (width, vocab) = (sizes.width, sizes.vocab);
    let mut model = Model { sizes, dtype, plans: Vec::new() };
    model.normal("emb.weight".into(), &[vocab, width], 0.0, 0.5);
    for layer in 0..sizes.layers {
        let block = format!("blocks.{layer}");
        model.layer_norm(&format!("{block}.ln1"));
        model.normal(format!("{block}.ln2.weight"), &[width], 1.0, 0.05);
        model.add(format!("{block}.ln2.bias"), &[width], Fill::Pattern { layer, scale: PATTERN });
        if layer == 0 {
            model.layer_norm(&format!("{block}.ln0"));
        }
        time_mix::add(&mut model, layer);
        channel_mix(&mut model, layer, sparsity);
    }
    model.layer_norm("ln_out");
    model.matrix("head.weight".into(), vocab, width, 1.5);
    model.plans
}

fn channel_mix(model: &mut Model<'_>, layer: usize, sparsity: f64) {
    let prefix = format!("blocks.{layer}.ffn");
    let (mixes, letters) = match model.sizes.kind {
        Kind::V4 | Kind::V5 { .. } => ("time_mix_", "kr"),
        Kind::V6(_) => ("time_maa_", "kr"),
        Kind::V7(_) => ("x_", "k"),
    };
    model.mixes(&format!("{prefix}.{mixes}"), letters);
    let gated = letters.contains('r');
    relu2_ffn(model, layer, sparsity, gated);
    if gated {
        let width = model.sizes.width;
        model.matrix(format!("{prefix}.receptance.weight"), width, width, 1.0);
    }
}

/// `ffn.key` and `ffn.value` of a squared-relu network with the sparsity that was asked for.
///
/// Each row of the key has a component against the pattern of `ln2.bias`, which token shift leaves alone. It shifts
/// every input of the relu by the same amount; the value is scaled so that its output keeps its size.
fn relu2_ffn(model: &mut Model<'_>, layer: usize, sparsity: f64, gated: bool) {
    let Sizes { width, ffn, .. } = *model.sizes;
    // Variance per element of a mixed input: two tokens of unit variance, partly alike, and the pattern.
    let input_std = (0.78 + f64::from(PATTERN).powi(2)).sqrt();
    let threshold = normal_quantile(sparsity);
    let key_std = 1.0 / (width as f64).sqrt();
    let scale = threshold * input_std / (f64::from(PATTERN) * width as f64);
    let fill = Fill::AgainstPattern { layer, std: key_std as f32, scale: scale as f32 };
    model.add(format!("blocks.{layer}.ffn.key.weight"), &[ffn, width], fill);
    let relu2_rms = input_std.powi(2) * relu_fourth_moment(threshold).sqrt();
    // A receptance halves the output on average.
    let gain = if gated { 2.0 * FFN_RMS } else { FFN_RMS } / relu2_rms;
    model.matrix(format!("blocks.{layer}.ffn.value.weight"), width, ffn, gain);
}

/// `P(z > t)` for a standard normal `z`.
fn normal_tail(t: f64) -> f64 {
    0.5 * libm::erfc(t / std::f64::consts::SQRT_2)
}

/// The value below which a standard normal is with probability `p`.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        *(if 1.0 - normal_tail(middle) < p { &mut low } else { &mut high }) = middle;
    }
    0.5 * (low + high)
}

/// `E[max(z - t, 0)^4]` for a standard normal `z`.
fn relu_fourth_moment(t: f64) -> f64 {
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    (t.powi(4) + 6.0 * t * t + 3.0) * normal_tail(t) - (t.powi(3) + 5.0 * t) * density
}

//! An outlier channel in the input of layer 0's `att.output` costs an int4 file nothing, because
//! that matrix is f16. Released models of RWKV-7 have a channel of thousands of times the usual
//! size.

use crate::common::{all_logits, convert_checkpoint, kl, open, options, session, token_walk};
use rwkv_edge::Version;
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::policy::QuantSpec;
use rwkv_quantize::shapes;
use rwkv_quantize::synth::{self, Recipe};

/// The outlier of RWKV-7 2.9B, relative to the other channels.
const OUTLIER: f64 = 2700.0;

const TOKENS: usize = 48;

/// Logits after each token.
fn logits(recipe: &Recipe, quant: QuantSpec) -> Vec<Vec<f32>> {
    let checkpoint = synth::checkpoint(recipe).unwrap();
    let options = Options { quant, ..options(quant.dtype) };
    let (_folder, path) = convert_checkpoint(checkpoint, &options);
    let mut session = session(&open(&path, None), 2);
    all_logits(&mut session, &token_walk(TOKENS, recipe.config.n_vocab))
}

/// Mean KL of two int4 files against the f32 file. The first file stores `att.output` of layer 0 as
/// the policy does, the second one in int4.
fn costs(version: Version, outlier: Option<f64>) -> [f64; 2] {
    let config = shapes::config(version, [3, 256, 256]);
    let recipe = Recipe { name: "small".into(), config, ffn_sparsity: 0.8, outlier, seed: 4 };
    let exact = logits(&recipe, QuantSpec::new(DType::F32));
    [false, true].map(|quantize_first_output| {
        let quant = QuantSpec { quantize_first_output, ..QuantSpec::new(DType::Int4) };
        let found = logits(&recipe, quant);
        exact.iter().zip(&found).map(|(exact, found)| kl(exact, found)).sum::<f64>() / TOKENS as f64
    })
}

#[test]
fn an_outlier_in_the_input_of_the_first_output_costs_int4_nothing() {
    for version in [Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
        let [without, _] = costs(version, None);
        let [with, quantized] = costs(version, Some(OUTLIER));
        let (kept, lost) = (with / without, quantized / without);
        println!("{version}: KL {without:.4}, with the outlier {kept:.2} times, in int4 {lost:.1} times");
        assert!(kept <= 1.3, "{version}: KL {with} with the outlier, {without} without it");
        assert!(lost > 3.0, "{version}: the outlier does no harm in int4: KL {quantized} and {without}");
    }
}

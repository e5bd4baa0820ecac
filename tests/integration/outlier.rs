//! An outlier channel in the input of layer 0's `att.output` costs an int4 file nothing, because
//! that matrix is f16. Released models of RWKV-7 have a channel of thousands of times the usual
//! size.

use crate::common::{all_logits, convert_checkpoint, kl, open, options, session, token_walk};
use rwkv_edge::Version;
use rwkv_edge::kernels::DType;
use rwkv_quantize::calibration::CalibrationText;
use rwkv_quantize::convert::Options;
use rwkv_quantize::policy::QuantSpec;
use rwkv_quantize::shapes;
use rwkv_quantize::synth::{self, Recipe};

/// The outlier of RWKV-7 2.9B, relative to the other channels.
const OUTLIER: f64 = 2700.0;

const TOKENS: usize = 48;

/// Logits after each token.
fn logits(recipe: &Recipe, quant: QuantSpec, calibration: CalibrationText) -> Vec<Vec<f32>> {
    let checkpoint = synth::checkpoint(recipe).unwrap();
    let options = Options { quant, calibration, ..options(quant.dtype) };
    let (_folder, path) = convert_checkpoint(checkpoint, &options);
    let mut session = session(&open(&path, None), 2);
    all_logits(&mut session, &token_walk(TOKENS, recipe.config.n_vocab))
}

/// Mean KL of two int4 files against the f32 file. The first file stores `att.output` of layer 0 as
/// the policy does, the second one in int4.
fn costs(version: Version, outlier: Option<f64>) -> [f64; 2] {
    let recipe = recipe(version, outlier);
    let exact = logits(&recipe, QuantSpec::new(DType::F32), CalibrationText::None);
    [false, true].map(|quantize_first_output| {
        let quant = QuantSpec { quantize_first_output, ..QuantSpec::new(DType::Int4) };
        mean_kl(&exact, &logits(&recipe, quant, CalibrationText::None))
    })
}

fn recipe(version: Version, outlier: Option<f64>) -> Recipe {
    let config = shapes::config(version, [3, 256, 256]);
    Recipe { name: "small".into(), config, ffn_sparsity: 0.8, outlier, seed: 4 }
}

fn mean_kl(exact: &[Vec<f32>], found: &[Vec<f32>]) -> f64 {
    exact.iter().zip(found).map(|(exact, found)| kl(exact, found)).sum::<f64>() / TOKENS as f64
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

#[test]
fn activations_halve_what_an_outlier_costs_in_int4() {
    for version in [Version::V6, Version::V7] {
        let recipe = recipe(version, Some(OUTLIER));
        let exact = logits(&recipe, QuantSpec::new(DType::F32), CalibrationText::None);
        let quant = QuantSpec { quantize_first_output: true, ..QuantSpec::new(DType::Int4n) };
        let [codes, measured] = [CalibrationText::None, CalibrationText::Own]
            .map(|calibration| mean_kl(&exact, &logits(&recipe, quant, calibration)));
        println!("{version}: KL {codes:.4} of codes alone, {measured:.4} with activations");
        assert!(measured <= 0.5 * codes, "{version}: KL {measured} with activations, {codes} without");
    }
}

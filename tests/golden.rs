//! Logits against independent implementations: the fixtures' float64 script, and the trained tiny models of
//! the reference material where it is present.

mod common;

use common::{all_logits, error_of_range, fixture, kl, model, read_f32, read_u16, session, shared};
use rwkv_edge::kernels::DType;

/// Positions (tokens fed) whose logits a fixture holds.
const POSITIONS: [usize; 4] = [1, 2, 64, 200];

/// Largest error of the f32 path, as a share of the logits' range.
const F32_TOLERANCE: f32 = 1e-4;

fn check_fixture(name: &str, input: &str, dtype: DType, check: impl Fn(usize, &[f32], &[f32])) {
    let tokens = read_u16(&fixture(&format!("{name}.tokens")));
    let expected = read_f32(&fixture(&format!("{name}.logits")));
    let model = model(&fixture(input), dtype, None);
    let found = all_logits(&mut session(&model, 2), &tokens);
    let n_vocab = model.config().n_vocab;
    assert_eq!(expected.len(), POSITIONS.len() * n_vocab);
    for (position, expected) in POSITIONS.into_iter().zip(expected.chunks(n_vocab)) {
        check(position, &found[position - 1], expected);
    }
}

#[test]
fn v4_f32_agrees_with_float64_equations_from_pth() {
    check_fixture("v4-tiny", "v4-tiny.pth", DType::F32, |position, found, expected| {
        let error = error_of_range(found, expected);
        assert!(error < F32_TOLERANCE, "after {position} tokens: {error}");
    });
}

#[test]
fn v4_f32_agrees_with_float64_equations_from_safetensors() {
    check_fixture("v4-tiny", "v4-tiny.safetensors", DType::F32, |position, found, expected| {
        let error = error_of_range(found, expected);
        assert!(error < F32_TOLERANCE, "after {position} tokens: {error}");
    });
}

/// Bounds on `KL(float64 || file)` in nats. Random weights have none of the redundancy of trained ones, so
/// these only catch a broken path; the figures for a trained model are in the README.
#[test]
fn v4_quantized_stays_near_float64_equations() {
    for (dtype, bound) in [(DType::F16, 1e-5), (DType::Int8, 2e-3), (DType::Int4, 0.2)] {
        check_fixture("v4-tiny", "v4-tiny.pth", dtype, |position, found, expected| {
            let kl = kl(expected, found);
            assert!(kl < bound, "{dtype} after {position} tokens: KL {kl}");
        });
    }
}

fn check_shared(file: &str, expected: &str, dtype: DType, tolerance: f32) {
    let (Some(file), Some(expected)) = (shared(file), shared(expected)) else { return };
    let model = model(&file, dtype, None);
    let found = all_logits(&mut session(&model, 1), &[34, 105, 110]);
    let expected = read_f32(&expected);
    let error = error_of_range(&found[2], &expected);
    assert!(error < tolerance, "{}: {error}", file.display());
}

#[test]
fn v4_trained_fp32_file_of_rwkv_cpp_reproduces_its_logits() {
    let (file, expected) = ("golden/tiny-rwkv-4v0-660K-FP32.bin", "golden/expected-logits-4v0-660K.bin");
    check_shared(file, expected, DType::F32, F32_TOLERANCE);
}

/// The FP16 file's weights differ from those that made the logits by half a unit of fp16.
#[test]
fn v4_trained_fp16_file_of_rwkv_cpp_reproduces_its_logits() {
    let (file, expected) = ("golden/tiny-rwkv-4v0-660K-FP16.bin", "golden/expected-logits-4v0-660K.bin");
    check_shared(file, expected, DType::F32, 2e-3);
}

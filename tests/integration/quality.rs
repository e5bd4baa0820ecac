//! The cost of quantization on a trained model: the shipped one, against its own f32 conversion.

use std::fs;
use std::sync::Arc;

use crate::common::{convert, kl, open, options, root, session, shared};
use rwkv_edge::kernels::DType;
use rwkv_edge::{Model, Session, SessionOptions};
use rwkv_quantize::convert::Options;

/// Bounds on the mean of `KL(f32 || file)`, in nats.
const BOUNDS: [(DType, f64); 4] =
    [(DType::F16, 1e-5), (DType::Int8, 0.002), (DType::Int4, 0.05), (DType::Int4n, 0.035)];

fn fairy(dtype: DType) -> Arc<Model> {
    let options = Options {
        tokenizer: Some(root().join("models/fairy_vocab.txt")),
        start_tokens: vec![0],
        ..options(dtype)
    };
    let (_folder, path) = convert(&root().join("models/fairy7.pth"), &options);
    open(&path, None)
}

/// Mean KL over the predictions of `tokens` by the file of each type.
fn check(tokens: &[u32]) {
    let f32 = fairy(DType::F32);
    for (dtype, bound) in BOUNDS {
        let model = fairy(dtype);
        let (mut expected, mut found) = (session(&f32, 2), session(&model, 2));
        let sum: f64 = tokens
            .iter()
            .map(|&token| {
                expected.feed(&[token]).unwrap();
                found.feed(&[token]).unwrap();
                kl(expected.logits().unwrap(), found.logits().unwrap())
            })
            .sum();
        let mean = sum / tokens.len() as f64;
        assert!(mean < bound, "{dtype}: mean KL {mean}");
        assert!(mean >= 0.0, "{dtype}: mean KL {mean}");
    }
}

#[test]
fn quantized_files_stay_near_f32_on_a_story_of_the_model() {
    let model = fairy(DType::F32);
    let options = SessionOptions { seed: 1, ..SessionOptions::with_threads(Some(2)) };
    let mut session = Session::new(model, &options).unwrap();
    session.feed(&[0]).unwrap();
    let mut story = vec![0];
    while let Some(token) = session.next_token().unwrap() {
        story.push(token);
        if story.len() == 600 {
            break;
        }
    }
    assert!(story.len() > 50, "the story ended after {} tokens", story.len());
    check(&story);
}

#[test]
fn quantized_files_stay_near_f32_on_held_out_text() {
    let Some(path) = shared("fairy/valid.txt") else { return };
    let text = fs::read(path).unwrap();
    let mut tokens = vec![0];
    fairy(DType::F32).tokenizer().encode(&text[..4000], &mut tokens).unwrap();
    check(&tokens);
}

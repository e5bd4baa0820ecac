//! A head in two planes: reading only rows that can be sampled changes only the time.

use std::sync::Arc;

use crate::common::{
    PLAIN, VERSIONS, all_logits, convert, fixture, model, open, options, root, session, token_walk,
};
use rwkv_edge::format::SamplingParams;
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names;
use rwkv_edge::{EngineOptions, LoadOptions, Model, Session, SessionOptions, Shortcuts};
use rwkv_quantize::policy::QuantSpec;

/// Greedy, top-k, top-p, all of them, and each with penalties and with rewards for repetition.
fn samplings() -> Vec<SamplingParams> {
    let plain = [
        SamplingParams { temperature: 0.0, ..PLAIN },
        SamplingParams { top_k: 1, ..PLAIN },
        SamplingParams { top_k: 5, temperature: 2.0, ..PLAIN },
        SamplingParams { top_k: 40, top_p: 0.9, ..PLAIN },
        SamplingParams { top_p: 0.5, ..PLAIN },
        PLAIN,
    ];
    let penalties = [(0.0, 0.0), (0.7, 0.4), (-0.5, -0.2)];
    let with = |sampling: SamplingParams, (presence_penalty, frequency_penalty)| SamplingParams {
        presence_penalty,
        frequency_penalty,
        penalty_decay: 0.99,
        ..sampling
    };
    plain.into_iter().flat_map(|sampling| penalties.map(|penalty| with(sampling, penalty))).collect()
}

/// The tokens of two replies, and the share of the residual's rows that were read.
fn sample(model: &Arc<Model>, sampling: SamplingParams, shortlist: bool, threads: usize) -> (Vec<u32>, f64) {
    let shortcuts = Shortcuts { head_shortlist: shortlist, ..Shortcuts::default() };
    let engine = EngineOptions { threads: Some(threads), shortcuts, ..EngineOptions::default() };
    let options = SessionOptions { engine, sampling: Some(sampling), seed: 5 };
    let mut session = Session::new(Arc::clone(model), &options).unwrap();
    let mut tokens = Vec::new();
    for start in [1, 7] {
        session.feed(&[start, 2]).unwrap();
        for _ in 0..40 {
            let Some(token) = session.next_token().unwrap() else { break };
            tokens.push(token);
        }
    }
    let traffic = session.engine().traffic();
    (tokens, traffic.residual_rows as f64 / traffic.head_rows as f64)
}

#[test]
fn a_shortlist_gives_the_tokens_that_all_logits_give() {
    let fairy = Model::open(root().join("models/fairy7-int8.rwkv"), &LoadOptions::default()).unwrap();
    let fixtures = VERSIONS.map(|version| model(&fixture(&format!("{version}-tiny.pth")), DType::Int4, None));
    for model in fixtures.iter().chain([&fairy]) {
        assert!(model.file().tensor(names::HEAD_RESIDUAL).is_ok());
        for sampling in samplings() {
            let (expected, _) = sample(model, sampling, false, 1);
            for threads in [1, 3] {
                let (found, _) = sample(model, sampling, true, threads);
                assert_eq!(found, expected, "{} {sampling:?}", model.config().version());
            }
        }
    }
}

#[test]
fn of_the_shipped_model_few_rows_are_read() {
    let fairy = Model::open(root().join("models/fairy7-int8.rwkv"), &LoadOptions::default()).unwrap();
    let (_, greedy) = sample(&fairy, SamplingParams { temperature: 0.0, ..PLAIN }, true, 1);
    assert!(greedy < 0.1, "{greedy}");
    let (_, top_k) = sample(&fairy, SamplingParams { top_k: 20, ..PLAIN }, true, 1);
    assert!(top_k < 0.2, "{top_k}");
    let (_, all) = sample(&fairy, PLAIN, true, 1);
    assert_eq!(all, 1.0);
}

#[test]
fn no_logit_is_further_from_its_estimate_than_its_bound() {
    for version in VERSIONS {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(DType::Int4));
        let nested = open(&path, None);
        let file = nested.file();
        let n = nested.config().n_vocab;
        let bounds = file.vector(file.vector_handle(names::HEAD_BOUND, n).unwrap());
        let layout = rwkv_edge::format::TensorLayout::RowRecords;
        let shape = [n, nested.config().n_embd];
        let rows = file.records(file.records_handle(names::HEAD_RESIDUAL, layout, shape).unwrap());
        let mut row = vec![0.0; shape[1]];
        for (i, &bound) in bounds.iter().enumerate() {
            rwkv_edge::kernels::quant::decode_record(&rows, i, &mut row);
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!(norm <= f64::from(bound) && f64::from(bound) <= 1.001 * norm + 1e-30, "{norm} {bound}");
        }
    }
}

#[test]
fn a_plain_head_is_there_for_those_who_ask() {
    let quant = QuantSpec { plain_head: true, ..QuantSpec::new(DType::Int4) };
    let options = rwkv_quantize::convert::Options { quant, ..options(DType::Int4) };
    let (_folder, path) = convert(&fixture("v7-tiny.pth"), &options);
    let plain = open(&path, None);
    assert!(plain.file().tensor(names::HEAD_RESIDUAL).is_err());
    assert!(plain.file().provenance().settings.contains("--plain-head"));
    let nested = model(&fixture("v7-tiny.pth"), DType::Int4, None);
    let tokens = token_walk(20, plain.config().n_vocab);
    let [plain, nested] = [plain, nested].map(|model| all_logits(&mut session(&model, 1), &tokens).concat());
    let range = plain.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let apart = plain.iter().zip(&nested).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart < 0.03 * range, "{apart} of {range}");
}

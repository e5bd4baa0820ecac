//! Results have the same bits for every instruction set, thread count and way of feeding a text.

use std::sync::Arc;

use crate::common::checks::{self, CUTS, check_cuts};
use crate::common::{
    VERSIONS, all_logits, convert, fixture, levels, open, options, root, session, token_walk,
};
use rwkv_edge::kernels::{DType, FloatEnvironment, Isa};
use rwkv_edge::{LoadOptions, Model, Session, SessionOptions, self_test};

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| checks::bits(row)).collect()
}

#[test]
fn logits_have_the_same_bits_on_every_isa_and_thread_count() {
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(dtype));
        let scalar = open(&path, Some(Isa::Scalar));
        let tokens = token_walk(50, scalar.config().n_vocab);
        let expected = bits(&all_logits(&mut session(&scalar, 1), &tokens));
        for isa in levels() {
            let model = open(&path, Some(isa));
            for threads in 1..=4 {
                let found = bits(&all_logits(&mut session(&model, threads), &tokens));
                assert!(found == expected, "{version}, {dtype}, {isa}, {threads} threads");
            }
        }
    }
}

#[test]
fn the_shipped_model_has_the_same_bits_on_every_isa_and_thread_count() {
    let path = root().join("models/fairy7-int8.rwkv");
    let model = |isa| open(&path, Some(isa));
    let tokens = token_walk(8, 4096);
    let expected = bits(&all_logits(&mut session(&model(Isa::Scalar), 1), &tokens));
    for isa in levels() {
        for threads in [1, 2, 3] {
            assert!(
                bits(&all_logits(&mut session(&model(isa), threads), &tokens)) == expected,
                "{isa}, {threads} threads"
            );
        }
    }
}

#[test]
fn the_recorded_self_test_passes_on_every_isa() {
    for isa in levels() {
        let options = LoadOptions { isa: Some(isa), ..Default::default() };
        let model = Model::open(root().join("models/fairy7-int8.rwkv"), &options).unwrap();
        self_test::run(&model, Some(2)).unwrap();
    }
}

#[test]
fn conversion_writes_the_same_bytes_with_any_number_of_threads() {
    for dtype in DType::ALL {
        let files: Vec<Vec<u8>> = [1, 3]
            .into_iter()
            .map(|threads| {
                let options = rwkv_quantize::convert::Options { threads, ..options(dtype) };
                let (_folder, path) = convert(&fixture("v4-tiny.pth"), &options);
                std::fs::read(path).unwrap()
            })
            .collect();
        assert!(files[0] == files[1], "{dtype}");
    }
}

#[test]
fn conversion_writes_the_same_bytes_in_any_floating_point_environment() {
    let bytes = || {
        let (_folder, path) = convert(&fixture("v7-tiny.pth"), &options(DType::Int4));
        std::fs::read(path).unwrap()
    };
    let expected = bytes();
    // SAFETY: a conversion changes to the default environment before its arithmetic.
    let environment = unsafe { FloatEnvironment::unusual() };
    let found = bytes();
    drop(environment);
    assert!(found == expected);
}

#[test]
fn a_copied_state_continues_as_the_original_does() {
    let model = crate::common::model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let tokens = token_walk(30, model.config().n_vocab);
    let mut whole = session(&model, 2);
    let expected = all_logits(&mut whole, &tokens);

    let mut first = session(&model, 1);
    all_logits(&mut first, &tokens[..17]);
    let state = first.state().clone();
    all_logits(&mut first, &[1, 2, 3]);
    let mut second = session(&model, 3);
    second.set_state(&state).unwrap();
    let found = all_logits(&mut second, &tokens[17..]);
    assert_eq!(bits(&found), bits(&expected[17..]));
    second.reset();
    assert_eq!(*second.state(), model.initial_state().unwrap());
    assert_eq!(bits(&all_logits(&mut second, &tokens)), bits(&expected));
}

#[test]
fn a_state_of_another_file_is_refused() {
    let int8 = crate::common::model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let int4 = crate::common::model(&fixture("v4-tiny.pth"), DType::Int4, None);
    let error = session(&int4, 1).set_state(&int8.initial_state().unwrap()).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}

#[test]
fn skipping_logits_in_the_prompt_changes_nothing() {
    let model = crate::common::model(&fixture("v4-tiny.pth"), DType::Int4, None);
    let tokens = token_walk(20, model.config().n_vocab);
    let expected = all_logits(&mut session(&model, 2), &tokens);
    let mut skipping = session(&model, 2);
    tokens.iter().for_each(|&token| skipping.feed(&[token]).unwrap());
    assert_eq!(bits(&[skipping.logits().unwrap().to_vec()]), bits(&expected[19..]));
}

#[test]
fn a_prompt_gives_the_same_bits_however_it_is_cut() {
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(dtype));
        check_cuts(&path, levels(), &CUTS, &[1, 3]);
    }
}

#[test]
fn the_same_seed_samples_the_same_tokens() {
    let model = crate::common::model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let sample = |seed, threads| {
        let options = SessionOptions { seed, ..SessionOptions::with_threads(Some(threads)) };
        let mut session = Session::new(Arc::clone(&model), &options).unwrap();
        session.feed(&[1, 2, 3]).unwrap();
        (0..40).map(|_| session.next_token().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sample(7, 1), sample(7, 3));
    assert_ne!(sample(7, 1), sample(8, 1));
}

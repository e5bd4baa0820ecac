//! Saved texts: a file goes on as the text would have, anywhere.

use std::fs;
use std::sync::Arc;

use crate::common::{VERSIONS, convert, fixture, levels, model, open, options};
use rwkv_edge::format::{Published, Replace, SamplingParams, Target, Template};
use rwkv_edge::kernels::DType;
use rwkv_edge::{EngineOptions, ErrorKind, Model, Session, SessionOptions, Snapshot, State, StateNotes};

/// Sampling in which every part of the sampler's state matters.
const LIVELY: SamplingParams = SamplingParams {
    temperature: 1.3,
    top_p: 0.9,
    top_k: 0,
    presence_penalty: 0.4,
    frequency_penalty: 0.3,
    penalty_decay: 0.9,
};

fn engine(threads: usize) -> EngineOptions {
    EngineOptions { threads: Some(threads), ..EngineOptions::default() }
}

/// A session that has read some tokens.
fn begin(model: &Arc<Model>, seed: u64) -> Session {
    let options = SessionOptions { engine: engine(1), sampling: Some(LIVELY), seed };
    let mut session = Session::new(Arc::clone(model), &options).unwrap();
    session.feed(&[1, 2, 3]).unwrap();
    session
}

fn next(session: &mut Session, n: u64) -> Vec<Option<u32>> {
    (0..n).map(|_| session.next_token().unwrap()).collect()
}

fn save(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot.save(&StateNotes::default(), &mut bytes).unwrap();
    bytes
}

fn load(model: &Model, bytes: &[u8]) -> rwkv_edge::Result<(Snapshot, StateNotes)> {
    Snapshot::load(model, crate::common::PLAIN, 99, bytes)
}

/// The length of a text before it is saved, different for each case.
fn split(case: usize, most: u64) -> u64 {
    (case as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (most + 1)
}

#[test]
fn a_text_that_was_saved_goes_on_as_if_it_had_not_been() {
    const TOKENS: u64 = 16;
    let types = [DType::Int8, DType::Int4, DType::F16, DType::F32];
    for (case, version) in VERSIONS.into_iter().enumerate() {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(types[case % 4]));
        let one = open(&path, None);
        let mut whole = begin(&one, case as u64);
        let expected = next(&mut whole, TOKENS);
        let at = split(case, TOKENS);
        let mut first = begin(&one, case as u64);
        next(&mut first, at);
        let bytes = save(first.text());
        for isa in levels() {
            let model = open(&path, Some(isa));
            let (text, _) = load(&model, &bytes).unwrap();
            let mut resumed = Session::resume(model, &engine(1 + case % 3), text).unwrap();
            let what = format!("{version} on {isa}, saved after {at} tokens");
            assert_eq!(save(resumed.text()), bytes, "{what}");
            assert_eq!(next(&mut resumed, TOKENS - at), expected[at as usize..], "{what}");
            assert_eq!(save(resumed.text()), save(whole.text()), "{what}");
        }
    }
}

#[test]
fn notes_come_back_and_other_bytes_of_the_stream_stay_unread() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let notes = StateNotes {
        template: Some("world".into()),
        history: Some("User: Grüß Gott\n\nAssistant: Ja\n".into()),
        unshown: vec![0xf0, 0x9f],
    };
    let (first, second) = (begin(&model, 1), begin(&model, 2));
    let mut stream = Vec::new();
    first.text().save(&notes, &mut stream).unwrap();
    second.text().save(&StateNotes::default(), &mut stream).unwrap();
    let mut rest = &stream[..];
    let mut load = || Snapshot::load(&model, crate::common::PLAIN, 0, &mut rest).unwrap();
    let (text, found) = load();
    assert!(text.state == first.text().state && found == notes);
    let (text, found) = load();
    assert_eq!(text.sampler.seed(), 2);
    assert_eq!(found, StateNotes::default());
    assert!(rest.is_empty());
}

#[test]
fn a_state_without_a_sampler_begins_with_the_callers() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let mut state = model.initial_state().unwrap();
    let mut bytes = Vec::new();
    state.save(&StateNotes::default(), &mut bytes).unwrap();
    assert!(bytes.len() - State::bytes(model.config()) <= 200, "{} bytes", bytes.len());
    let (text, _) = Snapshot::load(&model, LIVELY, 7, &bytes[..]).unwrap();
    assert_eq!((text.sampler.params(), text.sampler.seed(), text.pending), (&LIVELY, 7, None));
    // It has read nothing, so the start tokens still come first.
    assert!(text.state == state && text.state.tokens_read() == 0);
    let mut resumed = Session::resume(Arc::clone(&model), &engine(1), text).unwrap();
    resumed.feed(&[1, 2, 3]).unwrap();
    let mut engine = rwkv_edge::Engine::new(model, &engine(1)).unwrap();
    engine.feed(&mut state, &[1, 2, 3]).unwrap();
    assert!(resumed.state() == &state);
}

#[test]
fn a_seed_that_was_read_from_a_sampler_repeats_its_random_numbers() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let mut session = begin(&model, 5);
    next(&mut session, 5);
    let (mut text, _) = load(&model, &save(session.text())).unwrap();
    let seed = text.sampler.seed();
    assert_eq!(seed, session.text().sampler.seed());
    let expected = next(&mut session, 10);
    text.sampler.set_seed(seed);
    assert_eq!(next(&mut Session::resume(model, &engine(1), text).unwrap(), 10), expected);
}

#[test]
fn a_state_of_another_quantization_is_refused_by_both_ids() {
    let int8 = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let int4 = model(&fixture("v4-tiny.pth"), DType::Int4, None);
    let error = load(&int4, &save(begin(&int8, 1).text())).unwrap_err();
    let [found, expected] = [&int8, &int4].map(|model| model.file().model_id());
    assert!(
        matches!(error.kind(), ErrorKind::OtherModel { found: f, expected: e } if (*f, *e) == (found, expected))
    );
    assert_eq!(
        error.to_string(),
        format!("the state belongs to another model: that has the id {found:016x}, this one {expected:016x}")
    );
}

#[test]
fn a_model_that_differs_in_chat_settings_only_takes_the_state() {
    let input = fixture("v6-tiny.pth");
    let (_plain, plain) = convert(&input, &options(DType::Int8));
    let mut other = options(DType::Int8);
    other.template = Some(Template::World);
    other.sampling = vec!["temperature=0.8".into()];
    // So many start tokens that the weights move to another place.
    other.start_tokens = (0..10_000).map(|token| token % 7).collect();
    let (_other, other) = convert(&input, &other);
    let [plain, other] = [plain, other].map(|path| open(&path, None));
    let place = |model: &Model| model.file().tensors()[0].offset;
    assert_ne!(place(&plain), place(&other));
    assert_eq!(plain.file().model_id(), other.file().model_id());
    load(&other, &save(begin(&plain, 1).text())).unwrap();
}

#[test]
fn a_model_with_another_tokenizer_refuses_the_state() {
    let input = fixture("v6-tiny.pth");
    let folder = tempfile::tempdir().unwrap();
    let with_last_token = |last: &str| {
        let path = folder.path().join("vocab.txt");
        let bytes = (1..255u8).map(|id| format!("{id} b'\\x{id:02x}' 1\n"));
        let lines: String = bytes.chain([format!("255 b'{last}' 2\n")]).collect();
        fs::write(&path, lines).unwrap();
        let mut options = options(DType::Int8);
        options.tokenizer = Some(path);
        let (_folder, path) = convert(&input, &options);
        open(&path, None).file().model_id()
    };
    assert_ne!(with_last_token("ab"), with_last_token("ba"));
}

#[test]
fn a_saved_text_replaces_a_saved_text_and_nothing_else() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.rwstate");
    for seed in [1, 2] {
        let target = Target::new(&path, Replace::States).unwrap();
        let published = begin(&model, seed).text().save_as(&StateNotes::default(), target).unwrap();
        assert!(matches!(published, Published::Durable));
        let (text, _) = Snapshot::open(&model, LIVELY, 0, &path).unwrap();
        assert_eq!(text.sampler.seed(), seed);
    }
    let other = folder.path().join("model.rwkv");
    fs::write(&other, b"\x89RWKV\r\n\x1a and so on").unwrap();
    let error = Target::new(&other, Replace::States).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotReplaced { expected: "state" }), "{error}");
    let error = Target::new(&path, Replace::Models).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotReplaced { expected: "model" }), "{error}");
}

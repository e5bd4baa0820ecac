//! The promises of a session to programs that use the library.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::common::{convert, fixture, model, open, options, session, token_walk};
use rwkv_edge::format::SamplingParams;
use rwkv_edge::kernels::{DType, FloatEnvironment, Isa};
use rwkv_edge::{EngineOptions, ErrorKind, LoadOptions, Model, Session, SessionOptions, State, Verify};
use tempfile::TempDir;

/// A session that takes the likeliest tokens.
fn greedy(model: &Arc<Model>, prompt_chunk: usize) -> Session {
    let sampling = SamplingParams { temperature: 0.0, ..crate::common::PLAIN };
    let engine =
        EngineOptions { threads: Some(2), prompt_chunk: Some(prompt_chunk), ..EngineOptions::default() };
    let options = SessionOptions { engine, sampling: Some(sampling), seed: 0 };
    Session::new(Arc::clone(model), &options).unwrap()
}

/// Each way to feed the tokens 5, 6 and 7.
const WAYS: [fn(&mut Session) -> rwkv_edge::Result<()>; 3] = [
    |session| session.feed(&[5, 6, 7]),
    |session| [5, 6, 7].into_iter().try_for_each(|token| session.feed(&[token])),
    |session| {
        [5, 6, 7].into_iter().try_for_each(|token| {
            session.feed(&[token])?;
            session.logits().map(drop)
        })
    },
];

#[test]
fn the_last_token_of_a_reply_is_fed_before_what_comes_after_the_reply() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    for (prompt_chunk, (way, feed)) in
        [8, 1].into_iter().flat_map(|chunk| WAYS.iter().enumerate().map(move |way| (chunk, way)))
    {
        let mut talking = greedy(&model, prompt_chunk);
        talking.feed(&[1, 2, 3]).unwrap();
        let reply: Vec<u32> = (0..8).map(|_| talking.next_token().unwrap().unwrap()).collect();
        // Feeding nothing leaves the pending token pending.
        talking.feed(&[]).unwrap();
        let mut without_the_last = greedy(&model, prompt_chunk);
        without_the_last.feed(&[&[1, 2, 3], &reply[..7]].concat()).unwrap();
        assert_eq!(talking.state(), without_the_last.state());
        // A token that cannot be fed changes nothing, and the pending token stays pending.
        talking.feed(&[u32::MAX]).unwrap_err();
        feed(&mut talking).unwrap();
        assert_eq!(talking.state().tokens_read(), 3 + 8 + 3, "way {way}");
        let mut fed = greedy(&model, prompt_chunk);
        fed.feed(&[&[1, 2, 3], &reply[..], &[5, 6, 7]].concat()).unwrap();
        assert!(talking.state() == fed.state(), "way {way}");
    }
}

#[test]
fn a_prompt_that_is_interrupted_leaves_the_state_of_the_tokens_read() {
    let model = model(&fixture("v6-tiny.pth"), DType::Int8, None);
    let tokens = token_walk(30, model.config().n_vocab);
    for waits in [false, true] {
        let begin = || {
            let mut session = greedy(&model, 8);
            session.feed(&[1]).unwrap();
            let pending = waits.then(|| session.next_token().unwrap().unwrap());
            (session, pending)
        };
        let (mut session, pending) = begin();
        let mut reports = Vec::new();
        let fed = session.feed_with(&tokens, &mut |fed| {
            reports.push(fed);
            if fed > 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // The pending token goes with the first tokens.
        let expected = if waits { [7, 15] } else { [8, 16] };
        assert_eq!((fed.unwrap(), &reports[..]), (expected[1], &expected[..]));
        let mut fed = greedy(&model, 1);
        fed.feed(&[1]).unwrap();
        fed.feed(&pending.into_iter().chain(tokens[..expected[1]].iter().copied()).collect::<Vec<_>>())
            .unwrap();
        assert!(session.state() == fed.state());
        // The text goes on from there.
        session.feed(&tokens[expected[1]..]).unwrap();
        let (mut whole, _) = begin();
        whole.feed(&tokens).unwrap();
        assert!(session.state() == whole.state());
    }
}

#[test]
fn a_pending_token_is_fed_in_one_pass_with_what_follows() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let mut session = greedy(&model, 8);
    session.feed(&[1, 2, 3]).unwrap();
    session.next_token().unwrap().unwrap();
    let before = session.engine().traffic();
    session.feed(&[4, 5, 6]).unwrap();
    let together = session.engine().traffic() - before;
    let before = session.engine().traffic();
    session.feed(&[7]).unwrap();
    let one = session.engine().traffic() - before;
    assert!(together.weight_bytes < one.weight_bytes * 3 / 2, "{together:?}, {one:?}");
}

#[test]
fn a_token_that_waits_is_forgotten_with_the_text() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let forget: [fn(&mut Session, &State); 2] =
        [|session, _| session.reset(), |session, state| session.set_state(state).unwrap()];
    for forget in forget {
        let mut talking = greedy(&model, 8);
        talking.feed(&[1, 2, 3]).unwrap();
        talking.next_token().unwrap().unwrap();
        forget(&mut talking, &model.initial_state().unwrap());
        talking.feed(&[4, 5]).unwrap();
        let mut fed = greedy(&model, 8);
        fed.feed(&[4, 5]).unwrap();
        assert!(talking.state() == fed.state());
    }
}

/// Penalties that make a token's count visible at once.
fn penalised() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        presence_penalty: 100.0,
        frequency_penalty: 100.0,
        ..crate::common::PLAIN
    }
}

#[test]
fn penalties_of_a_text_end_with_it() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let options = SessionOptions { sampling: Some(penalised()), ..SessionOptions::with_threads(Some(1)) };
    let mut session = Session::new(Arc::clone(&model), &options).unwrap();
    session.feed(&[1, 2, 3]).unwrap();
    let prompt = session.state().clone();
    let first: Vec<_> = (0..5).map(|_| session.next_token().unwrap()).collect();
    let new_reply: [fn(&mut Session, &State); 3] = [
        |session, state| session.set_state(state).unwrap(),
        |session, _| {
            session.reset();
            session.feed(&[1, 2, 3]).unwrap();
        },
        |session, state| {
            let mut snapshot = session.snapshot();
            snapshot.state = state.clone();
            snapshot.pending = None;
            session.restore(&snapshot).unwrap();
            session.begin_reply();
        },
    ];
    for (way, begin) in new_reply.into_iter().enumerate() {
        begin(&mut session, &prompt);
        let again: Vec<_> = (0..5).map(|_| session.next_token().unwrap()).collect();
        assert_eq!(again, first, "way {way}");
    }
}

#[test]
fn a_snapshot_goes_on_exactly_with_its_sampling_and_its_pending_token() {
    let sampling = SamplingParams {
        temperature: 1.3,
        top_p: 0.9,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        penalty_decay: 0.9,
        ..crate::common::PLAIN
    };
    for version in ["v4", "v5.2", "v6", "v7"] {
        let model = model(&fixture(&format!("{version}-tiny.pth")), DType::Int4, None);
        let session = |threads, seed| {
            let engine = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            let options = SessionOptions { engine, sampling: Some(sampling), seed };
            Session::new(Arc::clone(&model), &options).unwrap()
        };
        let next = |session: &mut Session, n: usize| {
            (0..n).map(|_| session.next_token().unwrap()).collect::<Vec<_>>()
        };
        let mut whole = session(1, 5);
        whole.feed(&[1, 2, 3]).unwrap();
        next(&mut whole, 20);
        let snapshot = whole.snapshot();
        assert!(snapshot.pending.is_some());
        let expected = next(&mut whole, 20);
        for threads in [1, 3] {
            // The other session first has a text, counts and random numbers of its own.
            let mut resumed = session(threads, 77);
            resumed.feed(&[9]).unwrap();
            next(&mut resumed, 3);
            resumed.restore(&snapshot).unwrap();
            assert_eq!(next(&mut resumed, 20), expected, "{version}");
            assert!(resumed.state() == whole.state());
        }
    }
}

#[test]
fn a_snapshot_of_another_model_is_refused_and_changes_nothing() {
    let int8 = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let int4 = model(&fixture("v4-tiny.pth"), DType::Int4, None);
    let (mut one, mut other) = (session(&int8, 1), session(&int4, 1));
    one.feed(&[1, 2]).unwrap();
    other.feed(&[1, 2]).unwrap();
    other.next_token().unwrap();
    let before = other.snapshot();
    let error = other.restore(&one.snapshot()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OtherModel { .. }), "{error}");
    assert!(other.snapshot().state == before.state && other.snapshot().pending == before.pending);
}

#[test]
fn the_temperature_can_change_in_the_middle_of_a_text() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let mut session = session(&model, 1);
    session.feed(&[1, 2, 3]).unwrap();
    session.set_sampling(SamplingParams { temperature: 0.0, ..crate::common::PLAIN }).unwrap();
    let best = argmax(session.logits().unwrap());
    assert_eq!(session.next_token().unwrap(), Some(best));
    let error = session.set_sampling(SamplingParams { top_p: 2.0, ..crate::common::PLAIN }).unwrap_err();
    assert!(error.to_string().contains("top_p"), "{error}");
    let best = argmax(session.logits().unwrap());
    assert_eq!(session.next_token().unwrap(), Some(best));
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id)
}

/// A model whose first time mixing overflows, so every later value is NaN.
fn overflowing(version: &str, dtype: DType) -> (TempDir, PathBuf) {
    let (folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(dtype));
    let range = {
        let model = open(&path, None);
        model.file().range(model.file().tensor("blocks.0.ln1.weight").unwrap())
    };
    let mut bytes = fs::read(&path).unwrap();
    for (i, weight) in bytes[range].chunks_exact_mut(4).enumerate() {
        weight.copy_from_slice(&[3e38f32, -3e38][i % 2].to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn logits_that_are_not_numbers_have_the_same_bits_on_every_isa() {
    for (version, dtype) in
        ["v4", "v6", "v7"].into_iter().flat_map(|v| [DType::F32, DType::Int4].map(|d| (v, d)))
    {
        let (_folder, path) = overflowing(version, dtype);
        for isa in Isa::ALL.iter().copied().filter(|isa| isa.is_available()) {
            let options = LoadOptions { isa: Some(isa), verify: Verify::Never, ..Default::default() };
            let mut session = session(&Model::open(&path, &options).unwrap(), 2);
            session.feed(&[1, 2, 3]).unwrap();
            let logits = session.logits().unwrap();
            assert!(logits.iter().all(|x| x.to_bits() == 0x7fc0_0000), "{version} {dtype} {isa}: {logits:?}");
            let state = session.state().to_values();
            let mut nans = state.iter().filter(|x| x.is_nan()).peekable();
            assert!(nans.peek().is_some(), "{version} {dtype}: no state to look at");
            assert!(nans.all(|x| x.to_bits() == 0x7fc0_0000), "{version} {dtype} {isa}");
        }
    }
}

#[test]
fn the_floating_point_environment_of_the_caller_changes_no_bit_and_comes_back() {
    for version in ["v4", "v7"] {
        let model = model(&fixture(&format!("{version}-tiny.pth")), DType::Int8, None);
        let run = || {
            let mut session = greedy(&model, 8);
            session.feed(&token_walk(12, model.config().n_vocab)).unwrap();
            let reply: Vec<_> = (0..8).map(|_| session.next_token().unwrap()).collect();
            let logits: Vec<u32> = session.logits().unwrap().iter().map(|x| x.to_bits()).collect();
            (reply, logits, session.state().clone())
        };
        let expected = run();
        // SAFETY: a session changes to the default environment before its arithmetic.
        let environment = unsafe { FloatEnvironment::unusual() };
        let (before, found, after) = (FloatEnvironment::bits(), run(), FloatEnvironment::bits());
        drop(environment);
        assert!(found == expected, "{version}");
        assert_eq!(after, before);
    }
}

#[test]
fn too_many_threads_are_an_error() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    for threads in [1025, usize::MAX / 2, usize::MAX] {
        let options = SessionOptions::with_threads(Some(threads));
        for error in [Session::new(Arc::clone(&model), &options).err(), Session::plan(&model, &options).err()]
        {
            let error = error.unwrap();
            assert!(matches!(error.kind(), ErrorKind::Invalid(_)));
            assert_eq!(error.to_string(), format!("{threads} threads; an engine has at most 1024"));
        }
    }
}

#[cfg(unix)]
mod forked {
    use super::*;

    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(code: i32) -> !;
        fn alarm(seconds: u32) -> u32;
    }

    /// Runs `work` in a forked process. Returns its result, or the status of a process that did not
    /// end by itself.
    fn in_child(work: impl FnOnce() -> bool) -> Result<bool, i32> {
        // SAFETY: the child computes, frees memory, and ends without running anything of the test.
        let child = unsafe { fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: the argument is a number of seconds, after which a hanging child is killed.
            unsafe { alarm(60) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: the call only ends the process.
            unsafe { _exit(done.map_or(99, i32::from)) };
        }
        let mut status = 0;
        // SAFETY: the call writes the status of the child to `status`.
        let waited = unsafe { waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        match status {
            0x000 => Ok(false),
            0x100 => Ok(true),
            other => Err(other),
        }
    }

    #[test]
    fn a_session_that_was_inherited_over_fork_computes_alone_and_can_be_dropped() {
        let model = model(&fixture("v6-tiny.pth"), DType::Int8, None);
        let tokens = token_walk(20, model.config().n_vocab);
        let expected: Vec<u32> = {
            let mut session = session(&model, 3);
            session.feed(&tokens).unwrap();
            session.logits().unwrap().iter().map(|x| x.to_bits()).collect()
        };
        let mut inherited = session(&model, 3);
        inherited.feed(&tokens[..5]).unwrap();
        let finish = |session: &mut Session| {
            session.feed(&tokens[5..]).unwrap();
            session.logits().unwrap().iter().map(|x| x.to_bits()).eq(expected.iter().copied())
        };
        let mut unused = Some(session(&model, 3));
        let child = in_child(|| {
            drop(unused.take());
            let right = finish(&mut inherited);
            // A second fork, from a session without threads.
            let grandchild =
                in_child(|| finish(&mut inherited) || inherited.engine().options().threads == Some(3));
            right && grandchild == Ok(true)
        });
        assert_eq!(child, Ok(true));
        // The parent still has its threads.
        assert!(finish(&mut inherited));
    }
}

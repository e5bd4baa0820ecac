//! What a session promises to programs that use the library.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::common::{convert, fixture, model, open, options, session, token_walk};
use rwkv_edge::format::SamplingParams;
use rwkv_edge::kernels::{DType, FloatEnvironment, Isa};
use rwkv_edge::{ErrorKind, LoadOptions, Model, Savings, Session, SessionOptions, State, Verify};
use tempfile::TempDir;

/// A session that takes the likeliest tokens.
fn greedy(model: &Arc<Model>, prompt_chunks: bool) -> Session {
    let sampling = SamplingParams { temperature: 0.0, ..crate::common::PLAIN };
    let without = Savings { prompt_chunks: !prompt_chunks, ..Savings::default() };
    let options =
        SessionOptions { threads: Some(2), sampling: Some(sampling), without, ..Default::default() };
    Session::new(Arc::clone(model), &options).unwrap()
}

/// Each way to feed the tokens 5, 6 and 7.
const WAYS: [fn(&mut Session) -> rwkv_edge::Result<()>; 4] = [
    |session| session.prompt(&[5, 6, 7]),
    |session| session.feed_all(&[5, 6, 7]),
    |session| [5, 6, 7].into_iter().try_for_each(|token| session.feed(token)),
    |session| [5, 6, 7].into_iter().try_for_each(|token| session.forward(token).map(drop)),
];

#[test]
fn the_last_token_of_a_reply_is_fed_before_what_comes_after_the_reply() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    for (prompt_chunks, (way, feed)) in
        [true, false].into_iter().flat_map(|chunks| WAYS.iter().enumerate().map(move |way| (chunks, way)))
    {
        let mut talking = greedy(&model, prompt_chunks);
        talking.prompt(&[1, 2, 3]).unwrap();
        let reply: Vec<u32> = (0..8).map(|_| talking.next_token().unwrap().unwrap()).collect();
        // Feeding nothing leaves the token for later.
        talking.prompt(&[]).unwrap();
        talking.feed_all(&[]).unwrap();
        let mut without_the_last = greedy(&model, prompt_chunks);
        without_the_last.feed_all(&[&[1, 2, 3], &reply[..7]].concat()).unwrap();
        assert_eq!(talking.state(), without_the_last.state());
        // What cannot be fed does not take it away.
        talking.feed(u32::MAX).unwrap_err();
        feed(&mut talking).unwrap();
        assert_eq!(talking.tokens_fed(), 3 + 8 + 3, "way {way}");
        let mut fed = greedy(&model, prompt_chunks);
        fed.feed_all(&[&[1, 2, 3], &reply[..], &[5, 6, 7]].concat()).unwrap();
        assert!(talking.state() == fed.state(), "way {way}");
    }
}

#[test]
fn a_token_that_waits_is_forgotten_with_the_text() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let forget: [fn(&mut Session, &State); 2] =
        [|session, _| session.reset().unwrap(), |session, state| session.set_state(state).unwrap()];
    for forget in forget {
        let mut talking = greedy(&model, true);
        talking.prompt(&[1, 2, 3]).unwrap();
        talking.next_token().unwrap().unwrap();
        forget(&mut talking, &State::new(&model).unwrap());
        talking.feed_all(&[4, 5]).unwrap();
        let mut fed = greedy(&model, true);
        fed.feed_all(&[4, 5]).unwrap();
        assert!(talking.state() == fed.state());
    }
}

/// A model whose first time mixing gives numbers so large that all that follows is not a number.
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
            let mut session = session(&Arc::new(Model::open(&path, &options).unwrap()), 2);
            session.feed_all(&[1, 2]).unwrap();
            let logits = session.forward(3).unwrap();
            assert!(logits.iter().all(|x| x.to_bits() == 0x7fc0_0000), "{version} {dtype} {isa}: {logits:?}");
            let state = session.state();
            let mut nans = state.values().iter().filter(|x| x.is_nan()).peekable();
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
            let mut session = greedy(&model, true);
            session.prompt(&token_walk(12, model.config().n_vocab)).unwrap();
            let reply: Vec<_> = (0..8).map(|_| session.next_token().unwrap()).collect();
            let logits: Vec<u32> = session.forward(3).unwrap().iter().map(|x| x.to_bits()).collect();
            (reply, logits, session.state())
        };
        let expected = run();
        // SAFETY: the arithmetic of a session is behind a change to the default environment.
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
        let options = SessionOptions { threads: Some(threads), ..Default::default() };
        for error in [Session::new(Arc::clone(&model), &options).err(), Session::plan(&model, &options).err()]
        {
            let error = error.unwrap();
            assert!(matches!(error.kind(), ErrorKind::Invalid(_)));
            assert_eq!(error.to_string(), format!("{threads} threads; a session has at most 1024"));
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

    /// Runs `work` in a forked process; its result, or the status of a process that did not end by itself.
    fn in_child(work: impl FnOnce() -> bool) -> Result<bool, i32> {
        // SAFETY: the child computes, frees memory, and ends without running anything of the test.
        let child = unsafe { fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: a number of seconds, after which a child that hangs is killed.
            unsafe { alarm(60) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process.
            unsafe { _exit(done.map_or(99, i32::from)) };
        }
        let mut status = 0;
        // SAFETY: writes the status of the child.
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
            session.feed_all(&tokens).unwrap();
            session.forward(1).unwrap().iter().map(|x| x.to_bits()).collect()
        };
        let mut inherited = session(&model, 3);
        inherited.feed_all(&tokens[..5]).unwrap();
        let finish = |session: &mut Session| {
            session.feed_all(&tokens[5..]).unwrap();
            session.forward(1).unwrap().iter().map(|x| x.to_bits()).eq(expected.iter().copied())
        };
        let mut unused = Some(session(&model, 3));
        let child = in_child(|| {
            drop(unused.take());
            let right = finish(&mut inherited);
            // Once more over fork, from a session without threads.
            let grandchild = in_child(|| finish(&mut inherited) || inherited.threads() == 3);
            right && grandchild == Ok(true)
        });
        assert_eq!(child, Ok(true));
        // The parent has its threads still.
        assert!(finish(&mut inherited));
    }
}

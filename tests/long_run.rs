//! A hundred thousand tokens: no drift into NaN, no growth of the state, and no growth of memory.

mod common;

use std::sync::Arc;

use common::{PLAIN, VERSIONS, fixture, model, root, session, token_walk};
use rwkv_edge::format::Load;
use rwkv_edge::kernels::DType;
use rwkv_edge::{
    Engine, EngineOptions, LoadOptions, Model, SamplingParams, Sequence, Session, SessionOptions, host,
};

/// Tokens fed. The norm of the state after a hundredth of them must have the magnitude of the norm
/// after all.
const TOKENS: usize = 100_000;

/// Tokens after which a text of the shipped model begins anew: it was trained on texts of this length,
/// and its state can grow without bounds in what it writes beyond.
const LONGEST_TEXT: u64 = 2048;

/// Root of the sum of squares, without the -1e30 that means "nothing yet" in RWKV-4.
fn norm(values: &[f32]) -> f64 {
    values.iter().filter(|x| x.abs() < 1e20).map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn run(name: &str) {
    for dtype in [DType::F32, DType::Int8] {
        let model = model(&fixture(&format!("{name}-tiny.pth")), dtype, None);
        let mut session = session(&model, 1);
        let tokens = token_walk(TOKENS, model.config().n_vocab);
        let (early, late) = tokens.split_at(TOKENS / 100);
        early.iter().for_each(|&token| session.feed(&[token]).unwrap());
        let early_norm = norm(&session.state().to_values());
        let early_rss = host::peak_rss_bytes();
        late.iter().for_each(|&token| session.feed(&[token]).unwrap());
        let state = session.state().to_values();
        assert!(state.iter().all(|x| !x.is_nan()), "{name}, {dtype}");
        let growth = norm(&state) / early_norm;
        assert!((0.5..2.0).contains(&growth), "{name}, {dtype}: the state's norm changed by {growth}");
        if let (Some(early), Some(late)) = (early_rss, host::peak_rss_bytes()) {
            let grown = late.saturating_sub(early);
            assert!(grown < 1 << 20, "{name}, {dtype}: memory grew by {grown} bytes");
        }
        assert!(session.logits().unwrap().iter().all(|x| x.is_finite()), "{name}, {dtype}");
    }
}

/// Tokens of the shipped model in each mode, of which `tests/scripts/memory.sh` asks for more.
fn shipped_tokens() -> usize {
    std::env::var("RWKV_EDGE_TOKENS").map_or(250, |tokens| tokens.parse().unwrap())
}

/// Calls `step` for the tokens of a mode. The peak of the resident set may not grow after the first
/// tenth of them.
fn check_growth(mode: &str, mut step: impl FnMut(u32)) {
    let tokens = token_walk(shipped_tokens(), 4096);
    let (early, late) = tokens.split_at((tokens.len() / 10).max(200));
    early.iter().copied().for_each(&mut step);
    let before = host::peak_rss_bytes();
    late.iter().copied().for_each(step);
    if let (Some(before), Some(after)) = (before, host::peak_rss_bytes()) {
        let grown = after.saturating_sub(before);
        // The system counts the pages of each core, and adds them up late.
        assert!(grown <= 256 << 10, "{mode}: memory grew by {grown} bytes");
    }
}

/// The shipped model in every mode. Its memory is that of the plan from the first tokens on.
fn run_shipped() {
    let greedy = SamplingParams { temperature: 0.0, ..PLAIN };
    let samplings =
        [greedy, SamplingParams { top_k: 40, ..PLAIN }, SamplingParams { top_p: 0.5, ..PLAIN }, PLAIN];
    // It fills the buffers, which large pages make resident at once or later.
    let prompt = token_walk(256, 4096);
    for (load, lock) in [(Load::Map, false), (Load::Copy, false), (Load::MapOrCopy, true)] {
        let options = LoadOptions { load, lock, ..LoadOptions::default() };
        let path = root().join("models/fairy7-int8.rwkv");
        let model = match Model::open(&path, &options) {
            Err(error) if lock => {
                eprintln!("skipped: {error}");
                continue;
            }
            model => model.unwrap(),
        };
        for threads in [1, 2] {
            let options = SessionOptions::with_threads(Some(threads));
            for sampling in samplings {
                let options = SessionOptions { sampling: Some(sampling), ..options.clone() };
                let mut session = Session::new(Arc::clone(&model), &options).unwrap();
                session.feed(&prompt).unwrap();
                check_growth(&format!("{load:?}, {threads} threads, {sampling:?}"), |token| {
                    // A stop token ends the reply; the text goes on with another token.
                    let is_long = session.state().tokens_read() >= LONGEST_TEXT;
                    if is_long {
                        session.reset();
                    }
                    if is_long || session.next_token().unwrap().is_none() {
                        session.feed(&[token]).unwrap();
                    }
                });
            }
            let options = EngineOptions { head_batch: 2, ..options.engine };
            let mut engine = Engine::new(Arc::clone(&model), &options).unwrap();
            let mut states = [model.initial_state().unwrap(), model.initial_state().unwrap()];
            engine.feed(&mut states[0], &prompt).unwrap();
            check_growth(&format!("{load:?}, {threads} threads, two texts"), |token| {
                let mut sequences =
                    states.each_mut().map(|state| Sequence::new(state, std::slice::from_ref(&token)));
                engine.feed_batch(&mut sequences).unwrap();
                engine.logits(&states[0]).unwrap();
            });
        }
    }
}

/// One test, because memory is measured for the whole process.
#[test]
fn a_hundred_thousand_tokens_leave_state_and_memory_bounded() {
    run_shipped();
    VERSIONS.into_iter().for_each(run);
}

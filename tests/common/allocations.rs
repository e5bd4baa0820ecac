//! A counting allocator, and a generation that it observes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rwkv_edge::format::SamplingParams;
use rwkv_edge::text::TextStream;
use rwkv_edge::{EngineOptions, Model, Sampler, Sequence, Session, SessionOptions, StopRules};

/// Counts the allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are those of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that all threads have allocated so far, those that were freed included.
pub(crate) fn allocated_bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Makes a session and `n` tokens of text. The session allocates almost nothing besides its
/// buffers. These are a mapping of the size that the plan states; `memory::arena` tests that. The
/// tokens allocate nothing.
pub(crate) fn generate_without_allocating(model: &Arc<Model>, n: usize) {
    let sampling = SamplingParams {
        temperature: 1.1,
        top_p: 0.9,
        top_k: 50,
        presence_penalty: 0.3,
        frequency_penalty: 0.3,
        penalty_decay: 0.99,
    };
    let engine = EngineOptions { threads: Some(2), head_batch: 2, ..EngineOptions::default() };
    let options = SessionOptions { engine, sampling: Some(sampling), seed: 3 };
    let before = allocated_bytes();
    let mut session = Session::new(Arc::clone(model), &options).unwrap();
    let allocated = allocated_bytes() - before;
    // Arena and recurrent state are mappings. The plan itself and each thread's handle take some
    // hundred bytes.
    let planned = session.memory_plan().sampler_bytes + size_of::<f32>() * model.config().n_embd;
    assert!(allocated < planned as u64 + 8192, "allocated {allocated}");

    let mut text = TextStream::new(&["a stop text that does not occur"]).unwrap();
    let mut sink = [0u8; 256];
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    session.feed(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).unwrap();
    let tokenizer = model.tokenizer();
    for _ in 0..n {
        match session.next_token().unwrap() {
            Some(token) => {
                text.push(tokenizer.token(token), &mut |piece| (&mut sink[..]).write_all(piece.as_bytes()))
                    .unwrap();
            }
            None => session.feed(&[1]).unwrap(),
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "allocations during {n} tokens");

    let snapshot = session.snapshot();
    let mut story = session.generate(&StopRules::max_tokens(50)).unwrap();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    while story.next_piece().unwrap().is_some() {}
    session.restore(&snapshot).unwrap();
    session.set_sampling(SamplingParams { temperature: 0.5, ..sampling }).unwrap();
    session.begin_reply();
    session.reset();
    assert_eq!(
        ALLOCATIONS.load(Ordering::Relaxed) - before,
        0,
        "allocations for a reply and what comes after it"
    );

    let mut states = [(); 3].map(|()| model.initial_state().unwrap());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut batch = states.each_mut().map(|state| Sequence::new(state, &[1, 2, 3, 4, 5]));
    session.engine_mut().feed_batch(&mut batch).unwrap();
    session.engine_mut().logits(&states[1]).unwrap();
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "allocations for a batch of three texts");

    let mut samplers = [(); 3].map(|()| Sampler::new(sampling, model.config().n_vocab, 1).unwrap());
    let prompt = [1; 70];
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let [first, ..] = &mut states;
    session.engine_mut().feed_all(first, &prompt, |_, _| Ok(())).unwrap();
    session.feed_with(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
    let [a, b, c] = samplers.each_mut();
    let mut texts = [(&states[0], a), (&states[1], b), (&states[2], c)];
    session.engine_mut().sample_batch(&mut texts, &mut [0; 3]).unwrap();
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "allocations for all logits and three draws");
}

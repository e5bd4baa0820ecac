//! Once a session exists, reading and writing text allocates nothing. A conversation allocates its
//! text alone.
//!
//! This test has no test harness. The harness's second thread allocates when a test has run for a
//! minute, which can happen on a board.

#[path = "common/allocations.rs"]
mod allocations;
mod common;

use std::sync::Arc;

use allocations::{allocated_bytes, generate_without_allocating};
use common::{VERSIONS, fixture, model, root};
use rwkv_edge::format::{Chat, Template};
use rwkv_edge::kernels::DType;
use rwkv_edge::{Conversation, ConversationOptions, LoadOptions, Model};

/// Tokens of each model.
const TOKENS: usize = 1000;

/// Sends messages, takes turns back and forks. Only the text may be allocated.
fn converse_allocating_text_alone(model: &Arc<Model>) {
    let chat = Chat { sampling: model.chat().sampling, ..Template::Think.chat() };
    let options =
        ConversationOptions { chat: Some(chat), max_tokens: Some(40), undo: 4, ..Default::default() };
    let mut talk = Conversation::new(Arc::clone(model), &options).unwrap();
    let before = allocated_bytes();
    for name in ["a", "b"] {
        for _ in 0..6 {
            talk.send("Once upon a time there was a king who had three sons.").unwrap();
            while talk.next_piece().unwrap().is_some() {}
        }
        talk.retry().unwrap();
        while talk.next_piece().unwrap().is_some() {}
        talk.undo().unwrap();
        talk.fork(name).unwrap();
        talk.switch("main").unwrap();
    }
    talk.reset().unwrap();
    let allocated = allocated_bytes() - before;
    assert!(allocated < 64 << 10, "{allocated} bytes for 14 replies of 40 tokens");
}

fn main() {
    let path = root().join("models/fairy7-int8.rwkv");
    let shipped = Model::open(&path, &LoadOptions::default()).unwrap();
    generate_without_allocating(&shipped, TOKENS);
    converse_allocating_text_alone(&shipped);
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        generate_without_allocating(&model, TOKENS);
    }
    println!("a session maps its plan and then allocates nothing: ok");
}

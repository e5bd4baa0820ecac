//! Once a session exists, reading and writing text allocates nothing.
//!
//! This test has no test harness. The harness's second thread allocates when a test has run for a
//! minute, which can happen on a board.

#[path = "common/allocations.rs"]
mod allocations;
mod common;

use allocations::generate_without_allocating;
use common::{VERSIONS, fixture, model, root};
use rwkv_edge::kernels::DType;
use rwkv_edge::{LoadOptions, Model};

/// Tokens of each model.
const TOKENS: usize = 1000;

fn main() {
    let path = root().join("models/fairy7-int8.rwkv");
    generate_without_allocating(&Model::open(&path, &LoadOptions::default()).unwrap(), TOKENS);
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        generate_without_allocating(&model, TOKENS);
    }
    println!("a session maps its plan and then allocates nothing: ok");
}

//! Logits have the bits that are stored in the repository, on every architecture.
//!
//! `determinism.rs` compares the levels of one machine with each other. This test compares
//! machines; `cross/test.sh` runs it for ARM. A mismatch on one machine only is a fault of its
//! kernels, its compiler or the converter's arithmetic there. A mismatch on all is a change of the
//! numeric contract.

use crate::common::checks::digest;
use crate::common::{VERSIONS, convert, fixture, levels, options, root};
use rwkv_edge::kernels::DType;

/// Tokens fed before the logits are read.
const TOKENS: usize = 50;

#[test]
fn logits_have_the_stored_bits() {
    let mut found =
        format!("fairy7 int8 {}\n", digest(&root().join("models/fairy7-int8.rwkv"), TOKENS, levels()));
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(dtype));
        found += &format!("{version} {dtype} {}\n", digest(&path, TOKENS, levels()));
    }
    let stored = std::fs::read_to_string(fixture("digests.txt")).unwrap();
    assert!(found == stored, "tests/fixtures/digests.txt differs from what this machine computes:\n{found}");
}

//! Logits have the bits that are stored in the repository, on every architecture.
//!
//! `determinism.rs` compares the levels of one machine with each other; this compares machines. A mismatch on one
//! only is a fault of its kernels, its compiler or the converter's arithmetic there. A mismatch on all is a change of the numeric
//! contract.

use crate::common::{VERSIONS, convert, fixture, open, options, root, token_walk};
use rwkv_edge::kernels::{DType, Isa};
use rwkv_edge::self_test::logits_digest;

/// Tokens fed before the logits are taken.
const TOKENS: usize = 50;

/// The digest that every available level gives, in hexadecimal.
fn digest(path: &std::path::Path) -> String {
    let mut digests = Isa::ALL.iter().filter(|isa| isa.is_available()).map(|&isa| {
        let model = open(path, Some(isa));
        (isa, logits_digest(&model, &token_walk(TOKENS, model.config().n_vocab), Some(2)).unwrap())
    });
    let (_, first) = digests.next().unwrap();
    digests.for_each(|(isa, digest)| assert!(digest == first, "{isa} differs on {}", path.display()));
    first.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn logits_have_the_stored_bits() {
    let mut found = format!("fairy int8 {}\n", digest(&root().join("models/fairy-int8.rwkv")));
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let (_folder, path) = convert(&fixture(&format!("{version}-tiny.pth")), &options(dtype));
        found += &format!("{version} {dtype} {}\n", digest(&path));
    }
    let stored = std::fs::read_to_string(fixture("digests.txt")).unwrap();
    assert!(found == stored, "tests/fixtures/digests.txt differs from what this machine computes:\n{found}");
}

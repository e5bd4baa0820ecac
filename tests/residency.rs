//! The embedding is never resident: its rows are read from the file, not from the mapping.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;

use common::{convert_checkpoint, open, options, session};
use rwkv_edge::format::{Arch, Config, Variant};
use rwkv_edge::kernels::DType;
use rwkv_quantize::synth::{self, Recipe};

/// Most resident bytes of the embedding: the system may map a large page across its ends.
const MOST: u64 = 64 << 10;

/// Bytes of the mapping of `path` that are resident in this process.
fn resident_bytes(path: &Path) -> u64 {
    let name = path.to_str().unwrap();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut in_file = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if !first.ends_with(':') {
            in_file = line.ends_with(name);
        } else if let (true, "Rss:") = (in_file, first) {
            kib += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    1024 * kib
}

/// A model of one layer with a large embedding.
fn large_embedding() -> Recipe {
    let config = Config {
        n_layer: 1,
        n_embd: 256,
        n_att: 256,
        n_ffn: 512,
        n_vocab: 65536,
        layer_norm_eps: 1e-5,
        arch: Arch::V4,
        variant: Variant::Plain,
    };
    Recipe { name: "wide vocabulary".into(), config, ffn_sparsity: 0.5, outlier: None, seed: 1 }
}

#[test]
fn rows_of_the_embedding_leave_no_page_resident() {
    let checkpoint = synth::checkpoint(&large_embedding()).unwrap();
    let (_folder, path) = convert_checkpoint(checkpoint, &options(DType::F32));
    let model = open(&path, None);
    let mut session = session(&model, 1);
    let tokens = (0..64).map(|i| i * 1021);
    tokens.for_each(|token| session.feed(&[token]).unwrap());
    session.logits().unwrap();

    let embedding = model.file().tensor("emb.weight").unwrap().len;
    let rest = model.file().file_len() - embedding;
    let resident = resident_bytes(&path);
    assert!(embedding > 100 * MOST, "the embedding of {embedding} bytes is too small to tell");
    assert!(resident >= rest - rest / 100, "{resident} of {rest} bytes of weights are resident");
    assert!(resident <= rest + MOST, "{} bytes of the embedding are resident", resident - rest);
}

//! Tables that are read row by row are never resident: the embedding, and those of DeepEmbed. Rows
//! are read from the file, not from the mapping.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;

use common::{convert_checkpoint, open, options, session};
use rwkv_edge::format::{Arch, Rwkv7, Version};
use rwkv_edge::kernels::DType;
use rwkv_quantize::shapes;
use rwkv_quantize::synth::{self, Recipe};

/// Most resident bytes of a table: the system may map a large page across its ends.
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

/// A model of one layer with many tokens.
fn wide_vocabulary(version: Version, n_embd: usize) -> Recipe {
    let mut config = shapes::config(version, [1, n_embd, 65536]);
    if let Arch::V7(Rwkv7 { value_rank, deep_rank, .. }) = &mut config.arch {
        (*value_rank, *deep_rank) = (None, Some(16));
    }
    config.n_ffn = 512;
    Recipe { name: "wide vocabulary".into(), config, ffn_sparsity: 0.5, outlier: None, seed: 1 }
}

/// Feeds tokens all over the vocabulary and checks what is resident afterwards.
fn check(recipe: &Recipe) {
    let checkpoint = synth::checkpoint(recipe).unwrap();
    let (_folder, path) = convert_checkpoint(checkpoint, &options(DType::F32));
    let model = open(&path, None);
    let mut session = session(&model, 1);
    let tokens = (0..64).map(|i| i * 1021);
    tokens.for_each(|token| session.feed(&[token]).unwrap());
    session.logits().unwrap();

    let tables: Vec<_> = model.file().tensors().iter().filter(|tensor| tensor.checked_by_record).collect();
    let (bytes, most) = (tables.iter().map(|table| table.len).sum::<u64>(), MOST * tables.len() as u64);
    let rest = model.file().file_len() - bytes;
    let resident = resident_bytes(&path);
    assert!(bytes > 100 * most, "tables of {bytes} bytes are too small to tell");
    assert!(resident >= rest - rest / 100, "{resident} of {rest} bytes of weights are resident");
    assert!(resident <= rest + most, "{} bytes of the tables are resident", resident - rest);
}

#[test]
fn rows_of_the_embedding_leave_no_page_resident() {
    check(&wide_vocabulary(Version::V4, 256));
}

#[test]
fn rows_of_deep_embed_leave_no_page_resident() {
    check(&wide_vocabulary(Version::V7a, 64));
}

//! The embedding is never read whole: only the pages of rows that occur become resident.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{convert, open, options, root, session};
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;

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

/// Drops a file from the page cache, so that what becomes resident is what is read. Pages that are in the cache
/// already may be mapped in pieces of up to 2 MiB, whatever the advice.
fn drop_from_cache(path: &Path) {
    let args = [
        format!("of={}", path.display()),
        "oflag=nocache".into(),
        "conv=notrunc,fdatasync".into(),
        "count=0".into(),
    ];
    let output = Command::new("dd").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn only_rows_that_occur_become_resident() {
    let options = Options { tokenizer: Some(root().join("models/fairy_vocab.txt")), ..options(DType::F32) };
    let (_folder, path) = convert(&root().join("models/fairy.pth"), &options);
    drop_from_cache(&path);
    let model = open(&path, None);
    let mut session = session(&model, 1);
    let tokens = [0, 1000, 2000, 3000, 4000];
    tokens.iter().for_each(|&token| session.feed(token).unwrap());
    session.forward(1).unwrap();

    let embedding = model.file().tensor("emb.weight").unwrap().len;
    let rest = model.file().file_len() - embedding;
    let resident = resident_bytes(&path);
    // The system may map up to 64 KiB around a page that is touched.
    let rows = (tokens.len() as u64 + 1) * (64 << 10);
    assert!(embedding > 4 * rows, "the embedding of {embedding} bytes is too small to tell");
    assert!(resident >= rest - rest / 100, "{resident} of {rest} bytes of weights are resident");
    assert!(resident <= rest + rows + (64 << 10), "{} bytes of the embedding are resident", resident - rest);
}

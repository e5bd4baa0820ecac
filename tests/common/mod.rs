//! Helpers of the integration tests: models converted on the fly.

#![allow(dead_code, unused_imports)] // every test binary uses a part of this

pub(crate) mod checks;
mod random;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rwkv_edge::format::{Replace, SamplingParams, Target};
use rwkv_edge::kernels::{DType, Isa};
use rwkv_edge::{Model, Session};
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::job::{Job, Progress};
use rwkv_quantize::source::Checkpoint;
use tempfile::TempDir;

pub(crate) use checks::{open, session, token_walk};
pub(crate) use random::Random;

/// Versions that have a fixture `<version>-tiny.pth`.
pub(crate) const VERSIONS: [&str; 7] = ["v4", "v5.0", "v5.1", "v5.2", "v6", "v7", "v7a"];

/// Sampling from all tokens by their probability.
pub(crate) const PLAIN: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_p: 1.0,
    top_k: 0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    penalty_decay: 1.0,
};

/// The folder of the workspace, for tests of any of its crates.
pub(crate) fn root() -> &'static Path {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.ancestors().find(|folder| folder.join("Cargo.lock").exists()).unwrap()
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A file of the reference material beside the project. Prints a message and returns `None` if it
/// is missing.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is missing", path.display());
    None
}

struct Quiet;

impl Progress for Quiet {
    fn update(&mut self, _done: u64, _total: u64, _tensor: &str) {}
}

pub(crate) fn options(dtype: DType) -> Options {
    Options { threads: 2, ..Options::new(dtype) }
}

/// Converts `input` into a file in its own folder. The folder lives as long as the returned guard.
pub(crate) fn convert(input: &Path, options: &Options) -> (TempDir, PathBuf) {
    run(Conversion::prepare(input, options).unwrap())
}

/// As [`convert`], for an open checkpoint; the converter has its vocabulary.
pub(crate) fn convert_checkpoint(checkpoint: Checkpoint, options: &Options) -> (TempDir, PathBuf) {
    let (conversion, tokenizer_error) = Conversion::of(checkpoint, options).unwrap();
    assert!(tokenizer_error.is_none());
    run(conversion)
}

fn run(conversion: Conversion) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.rwkv");
    conversion
        .run(Target::new(&output, Replace::Models).unwrap(), Job::new(&mut Quiet, &AtomicBool::new(false)))
        .unwrap();
    (folder, output)
}

/// Converts `input` and loads the result. The file is deleted but stays mapped.
pub(crate) fn model(input: &Path, dtype: DType, isa: Option<Isa>) -> Arc<Model> {
    let (_folder, path) = convert(input, &options(dtype));
    open(&path, isa)
}

/// The levels of this machine.
pub(crate) fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.iter().copied().filter(|isa| isa.is_available())
}

/// Logits after each of `tokens`.
pub(crate) fn all_logits(session: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let logits = |&token: &u32| {
        session.feed(&[token]).unwrap();
        session.logits().unwrap().to_vec()
    };
    tokens.iter().map(logits).collect()
}

pub(crate) fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub(crate) fn read_u16(path: &Path) -> Vec<u32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect()
}

/// Largest difference, in units of the range of `expected`.
pub(crate) fn error_of_range(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let max = expected.iter().copied().fold(f32::MIN, f32::max);
    let min = expected.iter().copied().fold(f32::MAX, f32::min);
    let error =
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if b > a { b } else { a });
    assert!(found.iter().all(|x| x.is_finite()));
    error / (max - min)
}

/// `KL(p || q)` in nats between the distributions of two vectors of logits.
pub(crate) fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |x: &[f32]| {
        let max = f64::from(x.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        x.iter().map(|&x| f64::from(x) - max - sum.ln()).collect::<Vec<_>>()
    };
    log_softmax(p).iter().zip(log_softmax(q)).map(|(&p, q)| p.exp() * (p - q)).sum()
}

#[track_caller]
pub(crate) fn assert_contains(message: &str, word: &str) {
    assert!(message.contains(word), "expected {word:?} in: {message}");
}

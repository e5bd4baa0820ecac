//! Encoding text with the World vocabulary, in bytes per second.
//!
//! The text is this repository's own documentation. Set `RWKV_EDGE_BENCH_TOKENIZER` to a
//! `tokenizer.json` to measure byte-level BPE instead.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rwkv_edge::Tokenizer;
use rwkv_quantize::vocab;

const TEXT: &str = concat!(
    include_str!("../README.md"),
    include_str!("../docs/FORMAT.md"),
    include_str!("../src/session.rs")
);

fn encode(c: &mut Criterion) {
    let section = match std::env::var_os("RWKV_EDGE_BENCH_TOKENIZER") {
        Some(path) => vocab::load(Path::new(&path)).expect("a tokenizer"),
        None => vocab::world_builtin(),
    };
    let tokenizer = Tokenizer::parse(&section).expect("a compiled tokenizer");
    let mut ids = Vec::new();
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(TEXT.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            ids.clear();
            tokenizer.encode(TEXT.as_bytes(), &mut ids).expect("every byte has a token");
            ids.len()
        });
    });
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);

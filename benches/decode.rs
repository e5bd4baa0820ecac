//! Decoding one token of the built-in model, on every instruction set, with one and two threads.
//!
//! For models that do not fit the cache use `rwkv-edge bench`, which relates the speed to the
//! memory's.

use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rwkv_edge::kernels::Isa;
use rwkv_edge::{LoadOptions, Model, Session, SessionOptions};

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fairy7-int8.rwkv");
    for isa in Isa::ALL.iter().copied().filter(|isa| isa.is_available()) {
        let options = LoadOptions { isa: Some(isa), ..LoadOptions::default() };
        let Ok(model) = Model::open(&path, &options) else { continue };
        for threads in [1, 2] {
            let options = SessionOptions::with_threads(Some(threads));
            let mut session = Session::new(Arc::clone(&model), &options).expect("a session");
            let mut token = 0;
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(isa.name(), threads), |b| {
                b.iter(|| {
                    token = (token + 1) % 4096;
                    session.feed(&[token]).expect("a token of the vocabulary");
                    session.logits().expect("a token was fed")[0]
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);

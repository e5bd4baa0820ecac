//! Checks of a model file that need no converter, so `cross/board` can run them on another machine
//! too.

use std::path::Path;
use std::slice;
use std::sync::Arc;

use rwkv_edge::kernels::Isa;
use rwkv_edge::self_test::logits_digest;
use rwkv_edge::{LoadOptions, Model, Session, SessionOptions};

/// Ways to feed [`CUT_TOKENS`] tokens in pieces. The last token is fed alone, because its logits
/// depend on all earlier pieces.
pub(crate) const CUTS: [&[usize]; 5] =
    [&[26], &[1, 2, 3, 4, 5, 6, 5], &[8, 8, 8, 2], &[7, 1, 9, 9], &[13, 13]];
const CUT_TOKENS: usize = 27;

/// `n` tokens below `n_vocab`, the same every time.
pub(crate) fn token_walk(n: usize, n_vocab: usize) -> Vec<u32> {
    let mut x = 12345u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % n_vocab as u32
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn open(path: &Path, isa: Option<Isa>) -> Arc<Model> {
    Model::open(path, &LoadOptions { isa, ..Default::default() }).unwrap()
}

pub(crate) fn session(model: &Arc<Model>, threads: usize) -> Session {
    Session::new(Arc::clone(model), &SessionOptions::with_threads(Some(threads))).unwrap()
}

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The digest, in hexadecimal, of the logits after `n` tokens. Each of the levels must give it.
pub(crate) fn digest(path: &Path, n: usize, levels: impl IntoIterator<Item = Isa>) -> String {
    let mut digests = levels.into_iter().map(|isa| {
        let model = open(path, Some(isa));
        (isa, logits_digest(&model, &token_walk(n, model.config().n_vocab), Some(2)).unwrap())
    });
    let (_, first) = digests.next().unwrap();
    digests.for_each(|(isa, digest)| assert!(digest == first, "{isa} differs on {}", path.display()));
    first.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks a prompt in chunks. The reference feeds its tokens one by one to the scalar kernels.
pub(crate) fn check_cuts(
    path: &Path,
    levels: impl IntoIterator<Item = Isa>,
    cuts: &[&[usize]],
    threads: &[usize],
) {
    let scalar = open(path, Some(Isa::Scalar));
    let tokens = token_walk(CUT_TOKENS, scalar.config().n_vocab);
    let (last, prompt) = tokens.split_last().unwrap();
    let mut one_by_one = session(&scalar, 1);
    tokens.iter().for_each(|token| one_by_one.feed(slice::from_ref(token)).unwrap());
    let expected = bits(one_by_one.logits().unwrap());
    for isa in levels {
        let model = open(path, Some(isa));
        for (cuts, &threads) in cuts.iter().flat_map(|cuts| threads.iter().map(move |n| (cuts, n))) {
            let what = format!("{}, {isa}, {cuts:?}, {threads} threads", path.display());
            let mut whole = session(&model, threads);
            let mut rest = prompt;
            for &cut in *cuts {
                whole.feed(rest.split_off(..cut).unwrap()).unwrap();
            }
            whole.feed(&[*last]).unwrap();
            assert!(bits(whole.logits().unwrap()) == expected, "{what}");
            assert!(whole.state() == one_by_one.state(), "{what}: state");
        }
    }
}

//! A hundred thousand tokens: no drift into NaN, no growth of the state, and no growth of memory.

mod common;

use common::{VERSIONS, fixture, model, session, token_walk};
use rwkv_edge::host;
use rwkv_edge::kernels::DType;

/// Tokens fed. The norm of the state after a hundredth of them must have the magnitude of the norm
/// after all.
const TOKENS: usize = 100_000;

/// Root of the sum of squares, without the -1e30 that means "nothing yet" in RWKV-4.
fn norm(values: &[f32]) -> f64 {
    values.iter().filter(|x| x.abs() < 1e20).map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn run(name: &str) {
    for dtype in [DType::F32, DType::Int8] {
        let model = model(&fixture(&format!("{name}-tiny.pth")), dtype, None);
        let mut session = session(&model, 1);
        let tokens = token_walk(TOKENS, model.config().n_vocab);
        let (early, late) = tokens.split_at(TOKENS / 100);
        early.iter().for_each(|&token| session.feed(&[token]).unwrap());
        let early_norm = norm(&session.state().to_values());
        let early_rss = host::peak_rss_bytes();
        late.iter().for_each(|&token| session.feed(&[token]).unwrap());
        let state = session.state().to_values();
        assert!(state.iter().all(|x| !x.is_nan()), "{name}, {dtype}");
        let growth = norm(&state) / early_norm;
        assert!((0.5..2.0).contains(&growth), "{name}, {dtype}: the state's norm changed by {growth}");
        if let (Some(early), Some(late)) = (early_rss, host::peak_rss_bytes()) {
            let grown = late.saturating_sub(early);
            assert!(grown < 1 << 20, "{name}, {dtype}: memory grew by {grown} bytes");
        }
        assert!(session.logits().unwrap().iter().all(|x| x.is_finite()), "{name}, {dtype}");
    }
}

/// One test, because memory is measured for the whole process.
#[test]
fn a_hundred_thousand_tokens_leave_the_state_bounded() {
    VERSIONS.into_iter().for_each(run);
}

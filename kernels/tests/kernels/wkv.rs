//! The recurrences of RWKV-5, 6 and 7 on every level against scalar, and their checks.

use rwkv_edge_kernels::Kernels;

use crate::compare::{canaries, check_f32};
use crate::guard::Guarded;
use crate::panics::panics;
use crate::support::{Fill, Report, Rng, scalar, vector_levels};

/// Every short head, ones around whole strips of registers, and the usual 64.
fn head_sizes() -> Vec<usize> {
    if cfg!(miri) {
        // Strips of several registers and of one, and values left over.
        return vec![31];
    }
    (1..=67).chain([71, 95, 96, 97, 127, 128, 129]).collect()
}

/// Runs `step` on heads of every size and content, with `N` vectors, from an output and a state
/// that lie one after the other: in both orders, so that each of them once ends at the inaccessible
/// page.
fn check_heads<const N: usize>(
    what: &str,
    seed: u64,
    step: impl Fn(&Kernels, &mut [f32], &mut [f32], [&Guarded<f32>; N]),
) {
    let mut report = Report::default();
    let mut rng = Rng(seed);
    for n in head_sizes() {
        for &fill in Fill::ALL {
            let vectors = [0; N].map(|_| Guarded::new(&fill.vector(n, &mut rng)));
            let state = fill.vector(n * n, &mut rng);
            let shape = format!("{n} {fill:?}");
            check_f32(&mut report, what, &shape, &[canaries(n), state.clone()].concat(), |kernels, out| {
                let (y, state) = out.split_at_mut(n);
                step(kernels, y, state, vectors.each_ref());
            });
            // Miri tells slices of one allocation apart.
            if cfg!(miri) {
                continue;
            }
            check_f32(&mut report, what, &shape, &[state, canaries(n)].concat(), |kernels, out| {
                let (state, y) = out.split_at_mut(n * n);
                // Once more from the state that the first left.
                step(kernels, y, state, vectors.each_ref());
                step(kernels, y, state, vectors.each_ref());
            });
        }
    }
    report.finish();
}

#[test]
fn wkv6() {
    check_heads("wkv6", 50, |kernels, y, state, [r, k, v, u, w]| kernels.wkv6(y, state, r, k, v, u, w));
}

#[test]
fn wkv7() {
    check_heads("wkv7", 51, |kernels, y, state, [r, w, k, v, kk, a]| {
        kernels.wkv7(y, state, r, w, k, v, kk, a);
    });
}

/// Steps after which 2^30 times 0.545^steps, the fastest decay of RWKV-7, would be below the
/// smallest subnormal number.
const DECAYING_STEPS: usize = 210;

/// A step of `kernels` that adds nothing to a state of 23 keys and values, which decays by `w`.
type Decay = fn(&Kernels, &mut [f32], &[f32]);

#[test]
#[cfg_attr(miri, ignore = "about values, not memory")]
fn a_state_that_decays_becomes_zero_without_subnormal_numbers_on_the_way() {
    const N: usize = 23;
    let zeros = [0.0; N];
    let decays: [(&str, Decay); 3] = [
        ("wkv4", |kernels, state, w| {
            let log: Vec<f32> = w.iter().map(|w| w.ln()).collect();
            let (aa, x) = (&mut state[..N], &[0.0; N]);
            kernels.wkv4(&mut [0.0; N], x, x, x, &log, aa, &mut [1.0; N], &mut [0.0; N]);
        }),
        ("wkv6", |kernels, state, w| {
            let x = &[0.0; N];
            kernels.wkv6(&mut [0.0; N], state, x, x, x, x, w);
        }),
        ("wkv7", |kernels, state, w| {
            let x = &[0.0; N];
            kernels.wkv7(&mut [0.0; N], state, x, w, x, x, x, x);
        }),
    ];
    let mut rng = Rng(55);
    let w: Vec<f32> = (0..N).map(|_| 0.4 + 0.145 * rng.uniform().abs()).collect();
    for (what, step) in decays {
        let mut wanted = rng.normals(N * N);
        wanted[..N].iter_mut().zip(-14..).for_each(|(x, exponent)| *x *= 2f32.powi(2 * exponent));
        let levels: Vec<_> = vector_levels().into_iter().chain([scalar()]).collect();
        let mut states = vec![wanted; levels.len()];
        for t in 0..DECAYING_STEPS {
            for (kernels, state) in levels.iter().zip(&mut states) {
                step(kernels, state, &w);
                let subnormal = state.iter().find(|x| x.is_subnormal());
                assert_eq!(subnormal, None, "{what} {} step {t}", kernels.isa());
            }
            let bits = |state: &[f32]| state.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(states.iter().all(|state| bits(state) == bits(&states[0])), "{what} step {t}");
        }
        assert_eq!(states[0][..N], zeros, "{what}");
    }
}

#[test]
fn recurrences_of_no_values_do_nothing() {
    assert!(!panics(|kernels| {
        kernels.wkv6(&mut [], &mut [], &[], &[], &[], &[], &[]);
        kernels.wkv7(&mut [], &mut [], &[], &[], &[], &[], &[], &[]);
    }));
}

/// Calls a recurrence for a head of 8, with a state of `state` elements and vectors of `lengths`,
/// `y` first.
fn head_panics(
    state: usize,
    lengths: &[usize],
    step: impl Fn(&Kernels, &mut [f32], &mut [f32], &[Vec<f32>]),
) -> bool {
    panics(|kernels| {
        let vectors: Vec<Vec<f32>> = lengths[1..].iter().map(|&n| vec![0.5; n]).collect();
        step(kernels, &mut vec![0.0; lengths[0]], &mut vec![0.0; state], &vectors);
    })
}

fn rejects_each_shape(inputs: usize, step: impl Fn(&Kernels, &mut [f32], &mut [f32], &[Vec<f32>])) {
    let right = vec![8; 1 + inputs];
    assert!(!head_panics(64, &right, &step));
    for state in [0, 8, 63, 65, 72, 128] {
        assert!(head_panics(state, &right, &step), "state of {state}");
    }
    for odd in 0..=inputs {
        for length in [0, 7, 9, 16] {
            let mut lengths = right.clone();
            lengths[odd] = length;
            assert!(head_panics(64, &lengths, &step), "argument {odd} of length {length}");
        }
    }
}

#[test]
fn recurrences_reject_wrong_shapes() {
    rejects_each_shape(5, |kernels, y, state, inputs| {
        let [r, k, v, u, w] = inputs else { unreachable!() };
        kernels.wkv6(y, state, r, k, v, u, w);
    });
    rejects_each_shape(6, |kernels, y, state, inputs| {
        let [r, w, k, v, kk, a] = inputs else { unreachable!() };
        kernels.wkv7(y, state, r, w, k, v, kk, a);
    });
}

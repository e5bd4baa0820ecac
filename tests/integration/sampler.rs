//! The sampler against a literal reference in f64, and its edges.

use crate::common::{PLAIN, Random};
use rwkv_edge::kernels::Kernels;
use rwkv_edge::{Sampler, SamplingParams};

/// A sampler and its buffers, filled with rubbish.
struct Bench {
    sampler: Sampler,
    logits: Vec<f32>,
    ids: Vec<u32>,
}

impl Bench {
    fn new(params: SamplingParams, n: usize, seed: u64) -> Self {
        let sampler = Sampler::new(params, n, seed).unwrap();
        Self { sampler, logits: vec![f32::NAN; n], ids: vec![77; n] }
    }

    fn try_draw(&mut self, logits: &[f32]) -> rwkv_edge::Result<u32> {
        self.logits.copy_from_slice(logits);
        self.sampler.draw(Kernels::best(), &mut self.logits, &mut self.ids)
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        self.try_draw(logits).unwrap()
    }
}

fn draws(params: SamplingParams, logits: &[f32], n: usize) -> Vec<usize> {
    let mut bench = Bench::new(params, logits.len(), 1);
    let mut histogram = vec![0; logits.len()];
    (0..n).for_each(|_| histogram[bench.draw(logits) as usize] += 1);
    histogram
}

#[test]
fn counts_that_decay_become_zero_without_subnormal_numbers_on_the_way() {
    let params = SamplingParams { penalty_decay: 0.9, frequency_penalty: 1.0, ..PLAIN };
    let mut sampler = Sampler::new(params, 3, 1).unwrap();
    sampler.accept(0);
    for _ in 0..1000 {
        sampler.accept(1);
        assert!(!sampler.counts()[0].1.is_subnormal());
    }
    assert_eq!(sampler.counts()[0], (0, 0.0));
    assert!((sampler.counts()[1].1 - 10.0).abs() < 1e-3);
}

/// The probabilities after steps 2 to 7 of the reference implementation, and the distance of the
/// running sums from `top_p`.
fn reference(logits: &[f32], counts: &[(u32, f64)], params: &SamplingParams) -> (Vec<f64>, f64) {
    let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    for &(id, count) in counts {
        logits[id as usize] -=
            f64::from(params.presence_penalty) + count * f64::from(params.frequency_penalty);
    }
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let mut p: Vec<f64> = logits.iter().map(|logit| (logit - max).exp() / sum).collect();

    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    let mut distance = f64::INFINITY;
    if params.top_p < 1.0 {
        let top_p = f64::from(params.top_p);
        let (mut running, mut cutoff) = (0.0, None);
        for &id in &order {
            running += p[id];
            distance = distance.min((running - top_p).abs());
            if running >= top_p && cutoff.is_none() {
                cutoff = Some(p[id]);
            }
        }
        p.iter_mut().filter(|p| **p < cutoff.unwrap_or(0.0)).for_each(|p| *p = 0.0);
    }
    if params.top_k > 0 {
        order.iter().skip(params.top_k as usize).for_each(|id| p[*id] = 0.0);
    }
    p.iter_mut().for_each(|p| *p = p.powf(1.0 / f64::from(params.temperature)));
    let sum: f64 = p.iter().sum();
    (p.iter().map(|p| p / sum).collect(), distance)
}

/// The probabilities that the sampler drew by, computed from the weights it left behind. They
/// belong to the candidates, or to all ids if no step removes any.
fn probabilities(bench: &Bench, params: &SamplingParams, n_candidates: usize) -> Vec<f64> {
    let mut p = vec![0.0; bench.logits.len()];
    if params.top_p == 1.0 && params.top_k == 0 {
        p = bench.ids.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
    } else {
        for id in &bench.ids[..n_candidates] {
            p[*id as usize] = f64::from(bench.logits[*id as usize]);
        }
    }
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

#[test]
fn candidates_and_probabilities_are_those_of_the_reference() {
    let mut random = Random(99);
    let mut near = 0;
    for round in 0..1200 {
        let n = random.pick(&[1usize, 2, 3, 10, 100, 1000, 4096]);
        let spread = random.pick(&[0.1, 1.0, 3.0, 10.0]);
        let logits: Vec<f32> = (0..n).map(|_| ((random.uniform() - 0.5) * 2.0 * spread) as f32).collect();
        let params = SamplingParams {
            temperature: random.pick(&[0.3, 0.7, 1.0, 1.5, 2.0]),
            top_p: random.pick(&[0.0, 0.1, 0.3, 0.5, 0.85, 0.95, 0.999, 1.0]),
            top_k: random.pick(&[0, 0, 1, 5, 128, 5000]),
            presence_penalty: random.pick(&[0.0, 0.2, 2.0]),
            frequency_penalty: random.pick(&[0.0, 0.5]),
            penalty_decay: random.pick(&[1.0, 0.9, 0.0]),
        };
        let mut bench = Bench::new(params, n, round);
        let mut counts: Vec<(u32, f64)> = Vec::new();
        for _ in 0..5 {
            let id = (random.uniform() * n as f64) as u32;
            bench.sampler.accept(id);
            counts.iter_mut().for_each(|(_, count)| *count *= f64::from(params.penalty_decay));
            match counts.iter_mut().find(|(seen, _)| *seen == id) {
                Some((_, count)) => *count += 1.0,
                None => counts.push((id, 1.0)),
            }
        }
        let (expected, distance) = reference(&logits, &counts, &params);
        let drawn = bench.draw(&logits);
        if distance < 1e-5 {
            // The sums in f32 and f64 may fall on different sides of top_p.
            near += 1;
            continue;
        }
        assert!(expected[drawn as usize] > 0.0, "round {round}: drew {drawn}, which is not a candidate");
        let found = probabilities(&bench, &params, expected.iter().filter(|p| **p > 0.0).count());
        for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() < 1e-5,
                "round {round}, {params:?}, id {id}: {found} for {expected}"
            );
        }
    }
    assert!(near < 240, "{near} rounds were too near to top_p to compare");
}

#[test]
fn draws_follow_the_probabilities() {
    let logits: Vec<f32> = vec![1.0, 0.0, 2.0, -1.0, 0.5, 2.0, -f32::INFINITY, 1.5];
    for (temperature, top_p, top_k) in [(1.0, 1.0, 0), (2.0, 0.8, 0), (0.5, 1.0, 4), (1.0, 0.9, 5)] {
        let params = SamplingParams { temperature, top_p, top_k, ..PLAIN };
        let (expected, _) = reference(&logits, &[], &params);
        let n = 40_000;
        let histogram = draws(params, &logits, n);
        let mut chi_squared = 0.0;
        for (found, p) in histogram.iter().zip(&expected) {
            if *p == 0.0 {
                assert_eq!(*found, 0);
            } else {
                chi_squared += (*found as f64 - p * n as f64).powi(2) / (p * n as f64);
            }
        }
        // At most 6 degrees of freedom. The stream is fixed, so the statistic is too.
        assert!(chi_squared < 22.5, "chi squared {chi_squared} at {params:?}: {histogram:?}");
    }
}

#[test]
fn the_stream_of_a_seed_is_pinned() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 7) % 11) as f32 * 0.25).collect();
    let stream = |seed| {
        let mut bench = Bench::new(SamplingParams { top_p: 0.9, ..PLAIN }, logits.len(), seed);
        std::iter::repeat_with(|| bench.draw(&logits)).take(12).collect::<Vec<_>>()
    };
    assert_eq!(stream(42), [4, 25, 47, 17, 3, 29, 36, 37, 17, 1, 36, 9]);
    assert_eq!(stream(43), [45, 1, 39, 48, 3, 14, 6, 29, 12, 36, 4, 25]);
}

#[test]
fn uniform_logits_show_the_random_numbers() {
    // SplitMix64 from 1234567. Its published outputs begin with 6457827717110365317,
    // 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821. A draw
    // is the upper bits of an output.
    let logits = vec![0.0; 1024];
    let mut bench = Bench::new(PLAIN, 1024, 1_234_567);
    let outputs: [u64; 5] = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];
    for output in outputs {
        assert_eq!(u64::from(bench.draw(&logits)), output >> 54);
    }
}

#[test]
fn a_clone_goes_on_with_the_same_tokens() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 13) as f32 * 0.1).collect();
    let mut bench = Bench::new(SamplingParams { frequency_penalty: 0.2, ..PLAIN }, 100, 5);
    let mut other = Bench::new(PLAIN, 100, 9);
    for _ in 0..10 {
        let id = bench.draw(&logits);
        bench.sampler.accept(id);
    }
    let mut copy = Bench { sampler: bench.sampler.clone(), ..Bench::new(PLAIN, 100, 0) };
    other.sampler.copy_from(&bench.sampler).unwrap();
    for _ in 0..20 {
        let id = bench.draw(&logits);
        for bench in [&mut copy, &mut other] {
            assert_eq!(bench.draw(&logits), id);
            bench.sampler.accept(id);
        }
        bench.sampler.accept(id);
    }
    let error = other.sampler.copy_from(&Sampler::new(PLAIN, 99, 0).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "a sampler of 99 tokens in the place of one of 100");
}

#[test]
fn temperature_0_takes_the_first_of_the_largest_and_no_random_number() {
    let params = SamplingParams { temperature: 0.0, top_p: 0.5, ..PLAIN };
    for (logits, best) in [(&[1.0, 3.0, 2.0, 3.0][..], 1), (&[-0.0, 0.0], 0), (&[f32::NEG_INFINITY, -9.0], 1)]
    {
        let mut bench = Bench::new(params, logits.len(), 1);
        let before = format!("{:?}", bench.sampler);
        assert_eq!(bench.draw(logits), best);
        assert_eq!(format!("{:?}", bench.sampler), before);
    }
}

#[test]
fn tiny_temperatures_take_the_largest() {
    for temperature in [1e-3, 1e-20, f32::MIN_POSITIVE, 1e-45] {
        let histogram = draws(SamplingParams { temperature, ..PLAIN }, &[0.0, 1.0, 0.9, -5.0], 100);
        assert_eq!(histogram, [0, 100, 0, 0], "temperature {temperature}");
    }
}

#[test]
fn ties_with_the_cutoff_stay() {
    let logits = [2.0, 0.0, 2.0, 1.0, 2.0];
    let top_p_0 = draws(SamplingParams { top_p: 0.0, ..PLAIN }, &logits, 3000);
    assert!(top_p_0[1] == 0 && top_p_0[3] == 0, "{top_p_0:?}");
    assert!([0, 2, 4].iter().all(|id| (900..1100).contains(&top_p_0[*id])), "{top_p_0:?}");
}

#[test]
fn a_running_sum_that_just_reaches_top_p_is_enough() {
    let logits = [0.0, 1.0, -1.0];
    let mut p = [0.0; 3];
    Kernels::best().softmax(&mut p, &logits);
    let exact = draws(SamplingParams { top_p: p[1], ..PLAIN }, &logits, 200);
    assert_eq!(exact, [0, 200, 0]);
    let above = draws(SamplingParams { top_p: p[1].next_up(), ..PLAIN }, &logits, 200);
    assert!(above[0] > 0 && above[2] == 0, "{above:?}");
}

#[test]
fn top_k_cuts_ties_by_the_lowest_id() {
    for top_p in [0.9, 1.0] {
        let logits = [0.0, 2.0, 1.0, 2.0, 2.0];
        assert_eq!(draws(SamplingParams { top_k: 1, top_p, ..PLAIN }, &logits, 50), [0, 50, 0, 0, 0]);
        let two = draws(SamplingParams { top_k: 2, top_p, ..PLAIN }, &logits, 100);
        assert!(two[1] > 0 && two[3] > 0 && two[1] + two[3] == 100, "{two:?}");
    }
}

#[test]
fn a_vocabulary_of_one_token_works() {
    for (temperature, top_p) in [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0), (2.0, 0.3)] {
        assert_eq!(draws(SamplingParams { temperature, top_p, ..PLAIN }, &[-3.0], 5), [5]);
    }
}

#[test]
fn a_flat_vocabulary_keeps_all_tokens_in_the_nucleus() {
    // All tie with the cutoff for any top_p, and p is about the bound of the filter.
    for n in [3, 1000, 50_277, 65_536] {
        for top_p in [0.0, 0.5] {
            let mut bench = Bench::new(SamplingParams { top_p, ..PLAIN }, n, 3);
            bench.draw(&vec![0.1; n]);
            assert!(bench.ids.iter().copied().eq(0..n as u32), "{n} tokens, top_p {top_p}");
        }
    }
}

#[test]
fn banned_ids_are_never_drawn() {
    let mut logits = [f32::NEG_INFINITY; 20];
    logits[7] = -40.0;
    for (top_p, top_k) in [(1.0, 0), (0.999_999_9, 0), (1.0, 3), (0.0, 0)] {
        assert_eq!(draws(SamplingParams { top_p, top_k, ..PLAIN }, &logits, 50)[7], 50);
    }
}

#[test]
fn penalties_worked_by_hand() {
    let params = SamplingParams {
        temperature: 0.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        penalty_decay: 0.5,
        ..PLAIN
    };
    let mut bench = Bench::new(params, 4, 0);
    let logits = [1.0, 1.5, 2.0, 0.0];
    let step = |bench: &mut Bench, accept: u32| {
        let id = bench.draw(&logits);
        bench.sampler.accept(accept);
        (id, bench.logits.clone())
    };
    assert_eq!(step(&mut bench, 2), (2, vec![1.0, 1.5, 2.0, 0.0]));
    // Count of 2 is 1: minus 0.5 + 0.25.
    assert_eq!(step(&mut bench, 2), (1, vec![1.0, 1.5, 1.25, 0.0]));
    // Count of 2 is 0.5 + 1: minus 0.5 + 0.375.
    assert_eq!(step(&mut bench, 1), (1, vec![1.0, 1.5, 1.125, 0.0]));
    // Counts: 2 has 0.75, 1 has 1.
    assert_eq!(step(&mut bench, 9), (2, vec![1.0, 0.75, 1.3125, 0.0]));
    // An id outside the vocabulary is not counted, but the counts decay.
    assert_eq!(step(&mut bench, 0), (2, vec![1.0, 0.875, 1.40625, 0.0]));
    bench.sampler.begin_reply();
    assert_eq!(bench.draw(&logits), 2);
    assert_eq!(bench.logits, logits);
}

#[test]
fn presence_stays_when_the_count_has_decayed_to_nothing() {
    let params = SamplingParams {
        temperature: 0.0,
        presence_penalty: 1.0,
        frequency_penalty: 1.0,
        penalty_decay: 0.0,
        ..PLAIN
    };
    let mut bench = Bench::new(params, 3, 0);
    bench.sampler.accept(0);
    bench.sampler.accept(1);
    bench.draw(&[5.0, 5.0, 1.0]);
    assert_eq!(bench.logits, [4.0, 3.0, 1.0]);
}

#[test]
fn every_token_of_the_vocabulary_can_be_seen() {
    let mut sampler = Sampler::new(PLAIN, 5, 0).unwrap();
    [0, 1, 2, 3, 4, 4, 3, 2, 1, 0].into_iter().for_each(|id| sampler.accept(id));
    assert_eq!(sampler.counts(), [0, 1, 2, 3, 4].map(|id| (id, 2.0)));
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        for logits in [[nan, nan], [1.0, nan], [nan, 1.0], [inf, 0.0], [-inf, -inf]] {
            let mut bench = Bench::new(SamplingParams { temperature, ..PLAIN }, 2, 0);
            let error = bench.try_draw(&logits).unwrap_err();
            assert_eq!(error.to_string(), "logits are not finite", "{logits:?}");
        }
    }
    assert!(Bench::new(PLAIN, 0, 0).try_draw(&[]).is_err());
}

#[test]
fn buffers_of_another_size_are_an_error() {
    let mut sampler = Sampler::new(PLAIN, 4, 0).unwrap();
    let error = sampler.draw(Kernels::best(), &mut [0.0; 4], &mut [0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "buffers of [4, 3] entries for 4 logits");
}

#[test]
fn parameters_out_of_range_are_refused() {
    for params in [
        SamplingParams { temperature: -1.0, ..PLAIN },
        SamplingParams { temperature: f32::NAN, ..PLAIN },
        SamplingParams { top_p: 1.5, ..PLAIN },
        SamplingParams { penalty_decay: 2.0, ..PLAIN },
        SamplingParams { presence_penalty: f32::INFINITY, ..PLAIN },
    ] {
        assert!(Sampler::new(params, 4, 0).is_err(), "{params:?}");
        let mut sampler = Sampler::new(PLAIN, 4, 0).unwrap();
        assert!(sampler.set_params(params).is_err() && *sampler.params() == PLAIN, "{params:?}");
    }
}

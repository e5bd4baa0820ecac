//! The library as another crate uses it: the program of `docs/LIBRARY.md`.

use std::sync::Arc;

use rwkv_edge::kernels::DType;
use rwkv_edge::{
    Engine, EngineOptions, LoadOptions, Model, Result, Sampler, SamplingParams, Sequence, State,
};

use crate::common::{Desk, Parts, options};

/// The tokens that follow in `state` while `sampler` draws them.
fn reply(engine: &mut Engine<'_>, state: &mut State, sampler: &mut Sampler, n: usize) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    for _ in 0..n {
        let token = engine.sample(state, sampler)?;
        sampler.accept(token);
        engine.feed(state, &[token])?;
        tokens.push(token);
    }
    Ok(tokens)
}

/// Two texts in turns on one engine, a fork of one of them, and another temperature for the fork.
fn two_texts(model: &Arc<Model>) -> Result<[Vec<u32>; 3]> {
    let mut engine = Engine::new(Arc::clone(model), &EngineOptions::default())?;
    let mut samplers = [1, 2].map(|seed| Sampler::new(model.chat().sampling, model.config().n_vocab, seed));
    let [Ok(first), Ok(second)] = &mut samplers else { panic!("the model's own sampling is refused") };
    let (mut one, mut two) = (model.initial_state()?, model.initial_state()?);
    engine.feed_batch(&mut [Sequence::new(&mut one, &[1, 2]), Sequence::new(&mut two, &[3, 4, 5])])?;
    let mut told = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        told[0].extend(reply(&mut engine, &mut one, first, 3)?);
        told[1].extend(reply(&mut engine, &mut two, second, 2)?);
    }
    let (mut fork, mut sampler) = (one.clone(), first.clone());
    sampler.set_params(SamplingParams { temperature: 0.0, ..*sampler.params() })?;
    sampler.begin_reply();
    let forked = reply(&mut engine, &mut fork, &mut sampler, 5)?;
    let [one, two] = told;
    Ok([one, two, forked])
}

#[test]
fn two_texts_take_turns_on_one_engine_and_one_is_forked_at_another_temperature() {
    let desk = Desk::new();
    desk.convert(&Parts::of("v7"), &options(DType::Int8));
    let model = Model::open(desk.output(), &LoadOptions::default()).unwrap();
    let together = two_texts(&model).unwrap();
    assert_eq!(two_texts(&model).unwrap(), together);
    // Each text is the one that it is alone.
    let mut engine = Engine::new(Arc::clone(&model), &EngineOptions::default()).unwrap();
    let alone = |engine: &mut Engine<'_>, prompt: &[u32], seed, n| {
        let mut state = model.initial_state().unwrap();
        let mut sampler = Sampler::new(model.chat().sampling, model.config().n_vocab, seed).unwrap();
        engine.feed(&mut state, prompt).unwrap();
        (reply(engine, &mut state, &mut sampler, n).unwrap(), state)
    };
    let (one, mut fork) = alone(&mut engine, &[1, 2], 1, 12);
    assert_eq!((&one, &alone(&mut engine, &[3, 4, 5], 2, 8).0), (&together[0], &together[1]));
    let greedy = SamplingParams { temperature: 0.0, ..model.chat().sampling };
    let mut greedy = Sampler::new(greedy, model.config().n_vocab, 0).unwrap();
    assert_eq!(reply(&mut engine, &mut fork, &mut greedy, 5).unwrap(), together[2]);
}

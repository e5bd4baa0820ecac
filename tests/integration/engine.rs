//! One engine, many texts: batches, forks, and memory of the caller.

use std::sync::Arc;

use crate::common::{PLAIN, Random, VERSIONS, convert, fixture, model, open, options, token_walk};
use rwkv_edge::format::ModelHeader;
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names;
use rwkv_edge::{
    Engine, EngineOptions, LoadOptions, MemoryPlan, Model, PlanOptions, Sampler, SamplingParams, Sequence,
    State, Verify,
};

fn engine(model: &Arc<Model>, threads: usize, prompt_chunk: usize) -> Engine<'static> {
    let prompt_chunk = Some(prompt_chunk);
    let options = EngineOptions { threads: Some(threads), prompt_chunk, ..EngineOptions::default() };
    Engine::new(Arc::clone(model), &options).unwrap()
}

fn bits(engine: &mut Engine<'_>, state: &State) -> Vec<u32> {
    engine.logits(state).unwrap().iter().map(|logit| logit.to_bits()).collect()
}

/// Tokens of texts of different lengths. One text is empty.
fn texts(n_vocab: usize) -> Vec<Vec<u32>> {
    let walk = token_walk(60, n_vocab);
    [(0, 1), (1, 17), (18, 0), (18, 3), (21, 30), (51, 1), (52, 8)]
        .map(|(start, len)| walk[start..start + len].to_vec())
        .into()
}

#[test]
fn a_batch_gives_each_text_the_bits_that_it_gets_alone() {
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        let texts = texts(model.config().n_vocab);
        let begin = &[3, 1, 2][..];
        let mut alone = engine(&model, 1, 1);
        let expected: Vec<State> = texts
            .iter()
            .map(|tokens| {
                let mut state = model.initial_state().unwrap();
                alone.feed(&mut state, begin).unwrap();
                alone.feed(&mut state, tokens).unwrap();
                state
            })
            .collect();
        for (threads, chunk) in [(1, 1), (1, 2), (2, 5), (1, 8), (3, 33), (1, 100)] {
            let mut together = engine(&model, threads, chunk);
            let mut states = vec![model.initial_state().unwrap(); texts.len()];
            let mut feed = |states: &mut [State], texts: &[&[u32]]| {
                let pairs = states.iter_mut().zip(texts);
                let mut batch: Vec<_> = pairs.map(|(state, tokens)| Sequence::new(state, tokens)).collect();
                together.feed_batch(&mut batch).unwrap();
            };
            feed(&mut states, &vec![begin; texts.len()]);
            feed(&mut states, &texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            for (i, (state, expected)) in states.iter().zip(&expected).enumerate() {
                let what = format!("{version}, {dtype}, {threads} threads, chunks of {chunk}, text {i}");
                assert!(state == expected, "{what}");
                assert_eq!(bits(&mut together, state), bits(&mut alone, expected), "{what}");
            }
        }
    }
}

#[test]
fn random_batches_give_each_text_the_bits_that_it_gets_alone() {
    // `tests/scripts/chunks.sh` asks for more.
    let batches = std::env::var("RWKV_EDGE_BATCHES").map_or(12, |batches| batches.parse().unwrap());
    let kinds: Vec<_> =
        VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))).collect();
    let mut random = Random(14);
    for _ in 0..batches {
        let (version, dtype) = random.pick(&kinds);
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        let n_vocab = model.config().n_vocab;
        let texts: Vec<Vec<u32>> = (0..1 + random.below(9))
            .map(|_| (0..random.below(40)).map(|_| random.below(n_vocab) as u32).collect())
            .collect();
        let (threads, chunk) = (1 + random.below(4), 1 + random.below(130));
        let (mut alone, mut together) = (engine(&model, 1, 1), engine(&model, threads, chunk));
        let mut expected = vec![model.initial_state().unwrap(); texts.len()];
        let mut states = expected.clone();
        expected.iter_mut().zip(&texts).for_each(|(state, tokens)| alone.feed(state, tokens).unwrap());
        let pairs = states.iter_mut().zip(&texts);
        let mut batch: Vec<_> = pairs.map(|(state, tokens)| Sequence::new(state, tokens)).collect();
        together.feed_batch(&mut batch).unwrap();
        assert!(states == expected, "{version}, {dtype}, {threads} threads, chunks of {chunk}, {texts:?}");
    }
}

#[test]
fn chunks_of_any_size_and_any_threads_give_the_bits_of_token_by_token() {
    for (version, dtype) in VERSIONS.iter().flat_map(|version| DType::ALL.map(|dtype| (version, dtype))) {
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        let tokens = token_walk(131, model.config().n_vocab);
        let mut alone = engine(&model, 1, 1);
        let mut expected = model.initial_state().unwrap();
        alone.feed(&mut expected, &tokens).unwrap();
        for (threads, chunk) in
            [(2, 2), (1, 3), (4, 7), (3, 15), (2, 16), (4, 17), (1, 32), (3, 33), (2, 64), (4, 65), (2, 130)]
        {
            let mut together = engine(&model, threads, chunk);
            let mut state = model.initial_state().unwrap();
            together.feed(&mut state, &tokens).unwrap();
            let what = format!("{version}, {dtype}, {threads} threads, chunks of {chunk}");
            assert!(state == expected, "{what}");
            assert_eq!(bits(&mut together, &state), bits(&mut alone, &expected), "{what}");
        }
    }
}

#[test]
fn many_texts_of_one_token_each_get_the_bits_that_they_get_alone() {
    for version in VERSIONS {
        let model = model(&fixture(&format!("{version}-tiny.pth")), DType::Int4, None);
        let tokens = token_walk(40, model.config().n_vocab);
        let mut alone = engine(&model, 1, 1);
        let mut expected = vec![model.initial_state().unwrap(); 20];
        for (state, pair) in expected.iter_mut().zip(tokens.chunks(2)) {
            alone.feed(state, pair).unwrap();
        }
        for (threads, chunk) in [(2, 32), (3, 6)] {
            let mut together = engine(&model, threads, chunk);
            let mut states = vec![model.initial_state().unwrap(); 20];
            for place in 0..2 {
                let texts = states.iter_mut().zip(tokens.chunks(2));
                let mut batch: Vec<_> =
                    texts.map(|(state, pair)| Sequence::new(state, &pair[place..place + 1])).collect();
                together.feed_batch(&mut batch).unwrap();
            }
            assert!(states == expected, "{version}, {threads} threads, chunks of {chunk}");
        }
    }
}

/// Engines that differ in threads, chunk and head batch.
fn with_head_batch(model: &Arc<Model>) -> impl Iterator<Item = Engine<'static>> {
    [(1, 1, 1), (2, 8, 3), (3, 16, 16), (2, 5, 64)].into_iter().map(|(threads, chunk, head_batch)| {
        let (threads, prompt_chunk) = (Some(threads), Some(chunk));
        let options = EngineOptions { threads, prompt_chunk, head_batch, ..EngineOptions::default() };
        Engine::new(Arc::clone(model), &options).unwrap()
    })
}

/// Models with plain and with nested heads.
fn heads() -> [Arc<Model>; 3] {
    let models = [("v4", DType::F32), ("v6", DType::Int8), ("v7", DType::Int4)]
        .map(|(version, dtype)| model(&fixture(&format!("{version}-tiny.pth")), dtype, None));
    let nested = models.each_ref().map(|model| model.file().tensor(names::HEAD_RESIDUAL).is_ok());
    assert_eq!(nested, [false, true, true]);
    models
}

#[test]
fn feed_all_gives_the_logits_after_every_token_in_order() {
    for model in heads() {
        let tokens = token_walk(37, model.config().n_vocab);
        let mut alone = engine(&model, 1, 1);
        let mut expected = model.initial_state().unwrap();
        let logits: Vec<Vec<u32>> = tokens
            .iter()
            .map(|&token| {
                alone.feed(&mut expected, &[token]).unwrap();
                bits(&mut alone, &expected)
            })
            .collect();
        for mut together in with_head_batch(&model) {
            let mut state = model.initial_state().unwrap();
            let mut found = Vec::new();
            let each = |i: usize, logits: &mut [f32]| {
                assert_eq!(i, found.len());
                found.push(logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>());
                Ok(())
            };
            together.feed_all(&mut state, &tokens, each).unwrap();
            assert!(found == logits && state == expected, "{:?}", together.options());
        }
    }
}

#[test]
fn logits_of_many_texts_are_those_that_they_get_alone() {
    for model in heads() {
        let tokens = token_walk(20, model.config().n_vocab);
        let mut alone = engine(&model, 1, 1);
        let states: Vec<State> = (0..7)
            .map(|text| {
                let mut state = model.initial_state().unwrap();
                alone.feed(&mut state, &tokens[text..][..1 + text]).unwrap();
                state
            })
            .collect();
        let expected: Vec<_> = states.iter().map(|state| bits(&mut alone, state)).collect();
        for mut together in with_head_batch(&model) {
            let mut found = Vec::new();
            let each = |i: usize, logits: &mut [f32]| {
                assert_eq!(i, found.len());
                found.push(logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>());
                Ok(())
            };
            together.logits_batch(&states.iter().collect::<Vec<_>>(), each).unwrap();
            assert!(found == expected, "{:?}", together.options());
        }
    }
}

#[test]
fn logits_of_many_texts_end_at_an_empty_text_before_the_first_call() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let mut engine = engine(&model, 1, 1);
    let mut state = model.initial_state().unwrap();
    engine.feed(&mut state, &[1]).unwrap();
    let states = [&state, &model.initial_state().unwrap()];
    engine.logits_batch(&states, |_, _| panic!("a text is empty")).unwrap_err();
}

#[test]
fn feed_all_ends_at_the_first_error_with_a_state_of_the_tokens_read() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let tokens = token_walk(20, model.config().n_vocab);
    let mut engine = engine(&model, 1, 8);
    let mut state = model.initial_state().unwrap();
    let outside = [&tokens[..], &[u32::MAX]].concat();
    engine.feed_all(&mut state, &outside, |_, _| panic!("nothing was fed")).unwrap_err();
    assert_eq!(state.tokens_read(), 0);
    let each = |i, _: &mut [f32]| match i {
        10 => Err(rwkv_edge::ErrorKind::Invalid("enough".into()).into()),
        _ => Ok(()),
    };
    assert_eq!(engine.feed_all(&mut state, &tokens, each).unwrap_err().to_string(), "enough");
    let mut expected = model.initial_state().unwrap();
    engine.feed(&mut expected, &tokens[..16]).unwrap();
    assert!(state == expected);
}

#[test]
fn texts_that_are_sampled_together_get_the_tokens_that_they_get_alone() {
    let params = [
        SamplingParams { temperature: 0.0, ..PLAIN },
        PLAIN,
        SamplingParams { top_k: 5, presence_penalty: 0.5, ..PLAIN },
        SamplingParams { top_p: 0.7, frequency_penalty: 0.2, ..PLAIN },
        SamplingParams { top_k: 1, ..PLAIN },
    ];
    for model in heads() {
        let n_vocab = model.config().n_vocab;
        let mut alone = engine(&model, 1, 1);
        let starts = token_walk(params.len(), n_vocab);
        let begin = || -> Vec<(State, Sampler)> {
            let texts = params.iter().zip(0..);
            texts
                .map(|(params, seed)| {
                    (model.initial_state().unwrap(), Sampler::new(*params, n_vocab, seed).unwrap())
                })
                .collect()
        };
        let mut expected = begin();
        let mut drawn = vec![starts.clone()];
        for round in 0..6 {
            let next = expected.iter_mut().zip(&drawn[round]).map(|((state, sampler), &token)| {
                alone.feed(state, &[token]).unwrap();
                let next = alone.sample(state, sampler).unwrap();
                sampler.accept(next);
                next
            });
            let next = next.collect();
            drawn.push(next);
        }
        for mut together in with_head_batch(&model) {
            let mut texts = begin();
            let mut tokens = starts.clone();
            for expected in &drawn[1..] {
                let pairs = texts.iter_mut().zip(&tokens);
                let mut batch: Vec<_> = pairs
                    .map(|((state, _), token)| Sequence::new(state, std::slice::from_ref(token)))
                    .collect();
                together.feed_batch(&mut batch).unwrap();
                let mut pairs: Vec<_> = texts.iter_mut().map(|(state, sampler)| (&*state, sampler)).collect();
                together.sample_batch(&mut pairs, &mut tokens).unwrap();
                assert_eq!(tokens, *expected, "{:?}", together.options());
                texts.iter_mut().zip(&tokens).for_each(|((_, sampler), &token)| sampler.accept(token));
            }
        }
    }
}

#[test]
fn a_head_batch_reads_the_head_once() {
    for model in heads() {
        let bytes = |head_batch: usize, all: bool| {
            let (threads, prompt_chunk) = (Some(1), Some(8));
            let options = EngineOptions { threads, prompt_chunk, head_batch, ..EngineOptions::default() };
            let mut engine = Engine::new(Arc::clone(&model), &options).unwrap();
            let mut state = model.initial_state().unwrap();
            match all {
                true => engine.feed_all(&mut state, &[1; 8], |_, _| Ok(())).unwrap(),
                false => engine.feed(&mut state, &[1; 8]).unwrap(),
            }
            engine.traffic().weight_bytes
        };
        let head = |head_batch| bytes(head_batch, true) - bytes(head_batch, false);
        assert_eq!(head(1), 8 * head(8));
        assert_eq!(head(4), 2 * head(8));
    }
}

#[test]
fn texts_that_need_all_logits_read_the_second_plane_once() {
    let [.., model] = heads();
    let n_vocab = model.config().n_vocab;
    let bytes = |head_batch: usize| {
        let options = EngineOptions { threads: Some(1), head_batch, ..EngineOptions::default() };
        let mut engine = Engine::new(Arc::clone(&model), &options).unwrap();
        let mut state = model.initial_state().unwrap();
        engine.feed(&mut state, &[1]).unwrap();
        let before = engine.traffic().weight_bytes;
        let mut samplers = vec![Sampler::new(PLAIN, n_vocab, 1).unwrap(); 8];
        let mut texts: Vec<_> = samplers.iter_mut().map(|sampler| (&state, sampler)).collect();
        engine.sample_batch(&mut texts, &mut [0; 8]).unwrap();
        engine.traffic().weight_bytes - before
    };
    assert_eq!(bytes(1), 8 * bytes(8));
}

#[test]
fn a_batch_reads_each_matrix_once() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let bytes = |texts: usize| {
        let mut engine = engine(&model, 1, 8);
        let mut states = vec![model.initial_state().unwrap(); texts];
        let mut batch: Vec<_> = states.iter_mut().map(|state| Sequence::new(state, &[1])).collect();
        engine.feed_batch(&mut batch).unwrap();
        engine.traffic().weight_bytes
    };
    // All texts have the same token, so they have the same active columns of `ffn.value`.
    assert_eq!(bytes(8), bytes(1));
    assert!(bytes(9) > bytes(8) + bytes(1) / 2);
}

#[test]
fn two_texts_take_turns_on_one_engine() {
    let model = model(&fixture("v6-tiny.pth"), DType::Int4, None);
    let tokens = token_walk(40, model.config().n_vocab);
    let mut engine = engine(&model, 2, 8);
    let mut states = [(); 2].map(|()| model.initial_state().unwrap());
    for pair in tokens.chunks(2) {
        for (state, token) in states.iter_mut().zip(pair) {
            engine.feed(state, &[*token]).unwrap();
        }
    }
    for (i, state) in states.iter().enumerate() {
        let mut alone = model.initial_state().unwrap();
        let own: Vec<u32> = tokens.iter().copied().skip(i).step_by(2).collect();
        engine.feed(&mut alone, &own).unwrap();
        assert!(*state == alone);
        assert_eq!(state.tokens_read(), 20);
    }
}

#[test]
fn a_fork_goes_on_by_itself_and_logits_follow_from_the_state() {
    let model = model(&fixture("v5.2-tiny.pth"), DType::Int8, None);
    let mut engine = engine(&model, 1, 8);
    let mut state = model.initial_state().unwrap();
    engine.feed(&mut state, &[1, 2, 3]).unwrap();
    let fork = state.clone();
    let before = bits(&mut engine, &fork);
    engine.feed(&mut state, &[4]).unwrap();
    assert_ne!(bits(&mut engine, &state), before);
    assert_eq!(bits(&mut engine, &fork), before);
    // Reading logits changes no state.
    let mut again = fork.clone();
    engine.feed(&mut again, &[4]).unwrap();
    assert!(again == state);
}

#[test]
fn the_hash_of_the_tokens_depends_on_all_of_them_and_on_their_order() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let mut engine = engine(&model, 1, 8);
    let mut hash = |tokens: &[u32]| {
        let mut state = model.initial_state().unwrap();
        engine.feed(&mut state, tokens).unwrap();
        state.tokens_hash()
    };
    assert_eq!(hash(&[]), [0; 32]);
    assert_eq!(hash(&[1, 2, 3]), hash(&[1, 2, 3]));
    assert!(hash(&[1, 2, 3]) != hash(&[1, 3, 2]) && hash(&[1, 2]) != hash(&[1, 2, 2]));
    // SHA-256 of 32 zeros and the token 1 as four bytes, by coreutils' sha256sum.
    let expected = "71c99cc3";
    let found: String = hash(&[1])[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, expected);
}

#[test]
fn an_engine_computes_in_memory_of_the_caller_whatever_it_held() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int4, None);
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    let bytes = Engine::plan(model.config(), &options).unwrap().arena_bytes();
    let mut memory = vec![0xa5; bytes + 64];
    let start = memory.as_ptr().align_offset(64);
    let mut own = Engine::new(Arc::clone(&model), &options).unwrap();
    let mut state = model.initial_state().unwrap();
    {
        let mut engine = Engine::in_memory(Arc::clone(&model), &options, &mut memory[start..]).unwrap();
        engine.feed(&mut state, &[1, 2, 3]).unwrap();
        assert_eq!(bits(&mut engine, &state), bits(&mut own, &state));
    }
    let small = &mut memory[start..start + bytes - 1];
    let error = Engine::in_memory(model, &options, small).err().unwrap();
    let expected = format!("the buffers need {bytes} bytes of memory; they were given {}", bytes - 1);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_any_is_fed() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let mut engine = engine(&model, 1, 2);
    let mut states = [(); 2].map(|()| model.initial_state().unwrap());
    let n_vocab = model.config().n_vocab as u32;
    let [first, second] = &mut states;
    let outside = [1, 2, 3, n_vocab];
    let mut batch = [Sequence::new(first, &[1, 2, 3]), Sequence::new(second, &outside)];
    let error = engine.feed_batch(&mut batch).unwrap_err();
    assert_eq!(error.to_string(), format!("token {n_vocab} is outside 0..{n_vocab}"));
    states.iter().for_each(|state| assert!(*state == model.initial_state().unwrap()));
}

#[test]
fn a_text_without_tokens_has_no_logits() {
    let model = model(&fixture("v4-tiny.pth"), DType::Int8, None);
    let mut engine = engine(&model, 1, 8);
    let state = model.initial_state().unwrap();
    let mut sampler = Sampler::new(PLAIN, model.config().n_vocab, 0).unwrap();
    for error in [engine.logits(&state).err(), engine.sample(&state, &mut sampler).err()] {
        assert_eq!(error.unwrap().to_string(), "there is nothing to continue: the prompt is empty");
    }
}

#[test]
fn two_samplers_of_one_state_differ_by_their_own_parameters() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int4, None);
    let mut engine = engine(&model, 2, 8);
    let mut state = model.initial_state().unwrap();
    engine.feed(&mut state, &[5, 6]).unwrap();
    let n_vocab = model.config().n_vocab;
    let mut greedy = Sampler::new(SamplingParams { temperature: 0.0, ..PLAIN }, n_vocab, 0).unwrap();
    let best = engine.sample(&state, &mut greedy).unwrap();
    // Penalties that are larger than any difference of logits.
    let penalties = SamplingParams { presence_penalty: 100.0, frequency_penalty: 100.0, ..*greedy.params() };
    greedy.set_params(penalties).unwrap();
    greedy.accept(best);
    assert_ne!(engine.sample(&state, &mut greedy).unwrap(), best);
    greedy.begin_reply();
    assert_eq!(engine.sample(&state, &mut greedy).unwrap(), best);
}

#[test]
fn a_damaged_row_of_deep_embed_is_refused_before_any_state_changes() {
    let (_folder, path) = convert(&fixture("v7a-tiny.pth"), &options(DType::Int8));
    let row = {
        let model = open(&path, None);
        let table = model.file().tensor("blocks.1.ffn.s_emb.weight").unwrap();
        model.file().range(table).start + 9 * table.len as usize / table.shape[0]
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[row] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let model = open(&path, None);
    let (mut engine, mut state) = (engine(&model, 1, 8), model.initial_state().unwrap());
    engine.feed(&mut state, &[8, 10]).unwrap();
    let before = state.clone();
    let error = engine.feed(&mut state, &[1, 2, 9]).unwrap_err().to_string();
    assert!(error.contains("record 9 of tensor blocks.1.ffn.s_emb.weight"), "{error}");
    assert!(state == before);
    let error = model.file().verify_embedding().unwrap_err().to_string();
    assert!(error.contains("record 9 of tensor blocks.1.ffn.s_emb.weight"), "{error}");
    model.file().verify_all().unwrap();
}

#[test]
fn tables_of_deep_embed_are_planned_and_counted_row_by_row() {
    let (_folder, path) = convert(&fixture("v7a-tiny.pth"), &options(DType::Int8));
    let plan = MemoryPlan::new(&ModelHeader::open(&path).unwrap(), &PlanOptions::default()).unwrap();
    let model = open(&path, None);
    let tables: Vec<_> = model.file().tensors().iter().filter(|tensor| tensor.checked_by_record).collect();
    assert_eq!(tables.len(), 3);
    let bytes: u64 = tables.iter().map(|table| table.len).sum();
    assert_eq!((plan.embedding_bytes, plan.row_bytes), (bytes, bytes / 256));
    assert_eq!(plan.weights_bytes, model.file().data_bytes() - bytes);
    // The second text reads its own rows, and the matrices together with the first.
    let read = |texts: usize| {
        let mut engine = engine(&model, 1, 8);
        let mut states = vec![model.initial_state().unwrap(); texts];
        let mut batch: Vec<_> = states.iter_mut().map(|state| Sequence::new(state, &[1])).collect();
        engine.feed_batch(&mut batch).unwrap();
        engine.traffic().weight_bytes
    };
    let rows: u64 = tables[1..].iter().map(|table| table.len / 256).sum();
    assert_eq!(read(2), read(1) + rows);
}

/// A model whose file is checked while running and is damaged in the last tensor with a checksum of
/// its own.
fn damaged() -> (tempfile::TempDir, Arc<Model>) {
    let (folder, path) = convert(&fixture("v4-tiny.pth"), &options(DType::Int8));
    let range = {
        let model = open(&path, None);
        let last = model.file().tensors().iter().rfind(|tensor| !tensor.checked_by_record);
        model.file().range(last.unwrap())
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[range.end - 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let options = LoadOptions { verify: Verify::WhileRunning, ..LoadOptions::default() };
    (folder, Model::open(&path, &options).unwrap())
}

#[test]
fn every_engine_of_a_damaged_model_fails_also_after_another_has_gone() {
    let (_folder, model) = damaged();
    let feed = |engine: &mut Engine<'_>, tokens: usize| {
        let mut state = model.initial_state().unwrap();
        (0..tokens).try_for_each(|_| engine.feed(&mut state, &[1]))
    };
    // The first engine ends before it reaches the damage.
    feed(&mut engine(&model, 1, 8), 3).unwrap();
    for _ in 0..2 {
        let error = feed(&mut engine(&model, 1, 8), 64).unwrap_err();
        assert!(error.to_string().contains("checksum mismatch in tensor "), "{error}");
    }
    let error = model.verify_rest().unwrap_err();
    assert!(error.to_string().contains("checksum mismatch"), "{error}");
}

#[test]
fn a_long_first_batch_does_not_put_the_check_off() {
    let (_folder, model) = damaged();
    let mut engine = engine(&model, 1, 8);
    let mut state = model.initial_state().unwrap();
    engine.feed(&mut state, &[1; 64]).unwrap_err();
    assert!((9..=64).contains(&state.tokens_read()), "{}", state.tokens_read());
    engine.feed(&mut state, &[1]).unwrap_err();
}

//! One layer at a time computes what all of them at once do, and shows the inputs of every matrix.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{VERSIONS, fixture, model, token_walk};
use rwkv_edge::format::TensorLayout;
use rwkv_edge::kernels::DType;
use rwkv_edge::{Engine, EngineOptions, LayerText, MatrixInputs, Model, Observer, State};

/// The bits of all inputs of each matrix, in order.
#[derive(Default, PartialEq)]
struct Seen(BTreeMap<String, Vec<u32>>);

impl Observer for Seen {
    fn inputs(&mut self, inputs: MatrixInputs<'_>) {
        let bits = self.0.entry(inputs.name().to_owned()).or_default();
        inputs.rows().for_each(|row| bits.extend(row.iter().map(|x| x.to_bits())));
    }
}

fn engine(model: &Arc<Model>, chunk: usize) -> Engine<'static> {
    let options = EngineOptions { threads: Some(2), prompt_chunk: Some(chunk), ..EngineOptions::default() };
    Engine::new(Arc::clone(model), &options).unwrap()
}

/// Runs all layers on a text. The state then has the residual that the head takes.
fn run(model: &Arc<Model>, tokens: &[u32], chunk: usize) -> (Engine<'static>, State, Seen) {
    let (mut engine, mut state, mut seen) =
        (engine(model, chunk), model.initial_state().unwrap(), Seen::default());
    let mut streams = vec![0.0; tokens.len() * model.config().n_embd];
    let mut first_values = vec![0.0; tokens.len() * model.first_values()];
    engine.embed(tokens, &mut streams).unwrap();
    for layer in 0..model.config().n_layer {
        let text =
            LayerText { state: &mut state, tokens, streams: &mut streams, first_values: &mut first_values };
        engine.run_layer(layer, text, &mut seen).unwrap();
    }
    (engine, state, seen)
}

#[test]
fn layers_one_at_a_time_give_the_logits_of_all_at_once() {
    for (version, dtype) in
        VERSIONS.iter().flat_map(|version| [DType::F32, DType::Int8].map(|t| (version, t)))
    {
        let model = model(&fixture(&format!("{version}-tiny.pth")), dtype, None);
        let tokens = token_walk(40, model.config().n_vocab);
        let mut whole = engine(&model, 7);
        let mut expected = model.initial_state().unwrap();
        whole.feed(&mut expected, &tokens).unwrap();
        let (mut layered, state, _) = run(&model, &tokens, 16);
        let [found, expected] = [(&mut layered, &state), (&mut whole, &expected)].map(|(engine, state)| {
            engine.logits(state).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        assert!(found == expected, "{version} {dtype}");
    }
}

#[test]
fn an_observer_sees_the_inputs_of_every_projection_for_every_token() {
    for version in VERSIONS {
        let model = model(&fixture(&format!("{version}-tiny.pth")), DType::Int8, None);
        let tokens = token_walk(40, model.config().n_vocab);
        let (_, _, seen) = run(&model, &tokens, 16);
        assert!(seen == run(&model, &tokens, 3).2, "{version}: the chunks show");
        let projections = model.file().tensors().iter().filter(|tensor| {
            ["att.", "ffn."].iter().any(|half| tensor.name.contains(half))
                && tensor.name.ends_with(".weight")
                && matches!(tensor.layout, TensorLayout::Interleaved | TensorLayout::ColumnRecords)
        });
        for tensor in projections {
            let len = seen.0.get(&tensor.name).map(Vec::len);
            assert_eq!(len, Some(tokens.len() * tensor.shape[1]), "{version}: {}", tensor.name);
        }
    }
}

#[test]
fn wrong_sizes_and_layers_are_refused() {
    let model = model(&fixture("v7-tiny.pth"), DType::Int8, None);
    let (n, mut state) = (model.config().n_embd, model.initial_state().unwrap());
    let mut engine = engine(&model, 4);
    let mut try_with = |layer, tokens: &[u32], streams: usize, first: usize| {
        let (mut streams, mut first_values) = (vec![0.0; streams], vec![0.0; first]);
        let text =
            LayerText { state: &mut state, tokens, streams: &mut streams, first_values: &mut first_values };
        engine.run_layer(layer, text, &mut Seen::default()).map_err(|error| error.to_string())
    };
    let per_token = model.config().n_att;
    assert_eq!(try_with(0, &[1, 2], 2 * n, 2 * per_token), Ok(()));
    assert!(try_with(99, &[1, 2], 2 * n, 2 * per_token).unwrap_err().contains("layer 99"));
    assert!(try_with(0, &[1, 2], n, 2 * per_token).unwrap_err().contains("streams"));
    assert!(try_with(0, &[1, 2], 2 * n, per_token).unwrap_err().contains("first_values"));
    assert!(try_with(0, &[1, u32::MAX], 2 * n, 2 * per_token).unwrap_err().contains("outside"));
}

//! Tuned states, in the checkpoint or in a file of their own.

use std::path::PathBuf;

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::source::SourceDType;

use crate::common::{Desk, Part, Parts, assert_names, fixture, options};

struct Bench {
    desk: Desk,
    model: Parts,
    state: Parts,
}

impl Bench {
    fn new() -> Self {
        let state = Parts::read(&fixture("v7-tiny-state.pth"));
        Self { desk: Desk::new(), model: Parts::of("v7"), state }
    }

    fn state_path(&self) -> PathBuf {
        self.desk.path("state.pth")
    }

    fn options(&self) -> Options {
        Options { state: Some(self.state_path()), ..options(DType::Int8) }
    }

    /// The message for a state in a file of its own.
    #[track_caller]
    fn refusal(&self, model: &Parts, state: &Parts) -> String {
        std::fs::write(self.state_path(), state.torch()).unwrap();
        self.desk.refusal(model, &self.options())
    }

    /// Refuses a damaged state, whichever file it is in, and names that file and the tensor.
    #[track_caller]
    fn check(&self, state: &Parts, tensor: &str) {
        let message = self.refusal(&self.model, state);
        assert!(message.starts_with(&self.state_path().display().to_string()), "{message}");
        assert_names(&message, tensor);
        let mut joined = self.model.clone();
        joined.0.extend(state.0.iter().cloned());
        self.desk.tensor_refusal(&joined, &options(DType::Int8), tensor);
    }
}

#[test]
fn a_state_is_the_same_in_the_checkpoint_and_beside_it() {
    let Bench { desk, model, state } = Bench::new();
    let path = desk.path("state.pth");
    std::fs::write(&path, state.torch()).unwrap();
    let apart = desk.convert(&model, &Options { state: Some(path), ..options(DType::Int8) });
    let mut joined = model.clone();
    joined.0.extend(state.0);
    assert_eq!(desk.convert(&joined, &options(DType::Int8)).tensors(), apart.tensors());
    assert!(apart.0.tensor("blocks.2.att.time_state").is_ok());
}

#[test]
fn a_state_without_one_of_the_layers_is_refused() {
    let bench = Bench::new();
    for layer in 0..3 {
        let missing = format!("blocks.{layer}.att.time_state");
        bench.check(&bench.state.without(|name| name == missing), &missing);
    }
}

#[test]
fn states_of_a_wrong_shape_are_refused() {
    let bench = Bench::new();
    for shape in [
        &[2, 32, 33][..],
        &[2, 33, 32],
        &[3, 32, 32],
        &[32, 2, 32],
        &[32, 32, 2],
        &[64, 32],
        &[2048],
        &[1, 2048],
        &[8, 16, 16],
        &[2, 1024],
        &[0, 32, 32],
    ] {
        for index in 0..3 {
            let state = bench.state.changed(index, |part| part.reshape(shape));
            bench.check(&state, &bench.state.0[index].name);
        }
    }
}

#[test]
fn nan_and_infinity_in_a_state_are_refused() {
    let bench = Bench::new();
    for (index, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let state = bench.state.changed(index, |part| part.set(77, value));
        bench.check(&state, &bench.state.0[index].name);
    }
}

#[test]
fn other_tensors_in_the_file_of_the_state_are_refused() {
    let bench = Bench::new();
    for extra in ["blocks.3.att.time_state", "blocks.0.att.key.weight", "time_state", "a\nb"] {
        let mut state = bench.state.clone();
        state.0.push(Part::new(extra, &[2, 32, 32], SourceDType::BF16, &[0.5; 2048]));
        let message = bench.refusal(&bench.model, &state);
        assert!(message.starts_with(&bench.state_path().display().to_string()), "{message}");
        assert_names(&message, &extra.escape_debug().to_string());
    }
}

#[test]
fn a_state_for_a_version_without_states_is_refused() {
    let bench = Bench::new();
    let message = bench.refusal(&Parts::of("v4"), &bench.state);
    assert!(message.contains("RWKV-4") && message.contains("state"), "{message}");
}

#[test]
fn a_file_of_the_state_that_is_missing_or_no_checkpoint_is_named() {
    let bench = Bench::new();
    let state = bench.state_path();
    let message = bench.desk.refusal(&bench.model, &bench.options());
    assert!(message.contains("state.pth"), "{message}");
    std::fs::write(&state, "a state of mind").unwrap();
    let message = bench.desk.refusal(&bench.model, &bench.options());
    assert!(message.contains("state.pth"), "{message}");
}

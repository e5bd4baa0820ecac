//! Tuned states as state files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rwkv_edge::format::{Replace, Target};
use rwkv_edge::kernels::DType;
use rwkv_edge::{EngineOptions, LoadOptions, Model, Session, SessionOptions, Snapshot};
use rwkv_quantize::convert::Options;
use rwkv_quantize::source::SourceDType;
use rwkv_quantize::tuned::TunedState;

use crate::common::{Desk, Part, Parts, assert_names, fixture, options};

struct Bench {
    desk: Desk,
    state: Parts,
}

impl Bench {
    /// A desk with the model of a version, and the tuned state of the small RWKV-7 model.
    fn new(version: &str) -> Self {
        let desk = Desk::new();
        desk.convert(&Parts::of(version), &options(DType::F32));
        Self { desk, state: Parts::read(&fixture("v7-tiny-state.pth")) }
    }

    fn tuned(&self) -> PathBuf {
        self.desk.path("tuned.pth")
    }

    fn output(&self) -> PathBuf {
        self.desk.path("tuned.rwstate")
    }

    fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        std::fs::write(self.tuned(), bytes).unwrap();
        let state = TunedState { checkpoint: self.tuned(), model: self.desk.output() };
        let target = Target::new(&self.output(), Replace::States)?;
        state.write(target, &AtomicBool::new(false)).map(drop)
    }

    /// The message that refuses a state.
    #[track_caller]
    fn refusal(&self, state: &Parts) -> String {
        let error = self.write(&state.torch()).expect_err("it was written");
        assert!(!self.output().exists());
        format!("{error:#}")
    }
}

fn open(path: &Path) -> Arc<Model> {
    Model::open(path, &LoadOptions::default()).unwrap()
}

fn logits(mut session: Session) -> Vec<u32> {
    session.feed(&[1, 2, 3]).unwrap();
    session.logits().unwrap().iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn a_tuned_state_file_gives_the_logits_of_a_model_that_has_the_state() {
    let bench = Bench::new("v7");
    let model = open(&bench.desk.output());
    let with_state = Desk::new();
    let tuned = Options { state: Some(fixture("v7-tiny-state.pth")), ..options(DType::F32) };
    with_state.convert(&Parts::of("v7"), &tuned);
    let session = |model: Arc<Model>| Session::new(model, &SessionOptions::default()).unwrap();
    let expected = logits(session(open(&with_state.output())));
    assert_ne!(logits(session(Arc::clone(&model))), expected);
    bench.write(&bench.state.torch()).unwrap();
    let (text, _) = Snapshot::open(&model, model.chat().sampling, 0, bench.output()).unwrap();
    assert_eq!(text.state.tokens_read(), 0);
    let resumed = Session::resume(model, &EngineOptions::default(), text).unwrap();
    assert_eq!(logits(resumed), expected);
}

#[test]
fn states_that_the_model_cannot_have_are_refused_by_name() {
    let bench = Bench::new("v7");
    let name = |layer: usize| format!("blocks.{layer}.att.time_state");
    let missing = bench.state.without(|found| found == name(1));
    assert_names(&bench.refusal(&missing), &name(1));
    let misshapen = bench.state.changed(2, |part| part.reshape(&[8, 16, 16]));
    assert_names(&bench.refusal(&misshapen), &name(2));
    let not_finite = bench.state.changed(0, |part| part.set(77, f32::NAN));
    assert_names(&bench.refusal(&not_finite), &name(0));
    let mut extra = bench.state.clone();
    extra.0.push(Part::new("blocks.0.att.key.weight", &[2, 32, 32], SourceDType::BF16, &[0.5; 2048]));
    assert_names(&bench.refusal(&extra), "blocks.0.att.key.weight");
    let message = Bench::new("v4").refusal(&bench.state);
    assert!(message.contains("RWKV-4"), "{message}");
}

#[test]
fn a_state_whose_bytes_changed_is_refused() {
    let bench = Bench::new("v7");
    let mut bytes = bench.state.torch();
    let value = bench.state.0[1].values()[5].to_le_bytes();
    // The states of the fixture are stored as f32 or shorter; their bytes occur once.
    let half = &value[2..];
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(&value) || bytes[at..].starts_with(half));
    bytes[at.unwrap()] ^= 1;
    let error = bench.write(&bytes).expect_err("it was written");
    assert!(format!("{error:#}").contains("damaged") && !bench.output().exists(), "{error:#}");
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
    command.args(args).stdin(Stdio::null()).env_remove("RWKV_EDGE_ISA").output().unwrap()
}

#[test]
fn the_command_writes_a_state_and_refuses_everything_else() {
    let bench = Bench::new("v7");
    let [model, state] = [bench.desk.output(), bench.output()].map(|path| path.to_str().unwrap().to_owned());
    let tuned = fixture("v7-tiny-state.pth");
    let tuned = tuned.to_str().unwrap();
    let output = run(&["--state-only", tuned, &state, "--for", &model]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert!(bench.output().exists());
    let fails = |args: &[&str], code, words: &str| {
        let output = run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && message.contains(words), "{args:?}: {message}");
    };
    fails(&["--state-only", tuned, &model, "--for", &model], 1, "no rwkv-edge state");
    fails(&["--force", "--state-only", tuned, &model, "--for", &model], 1, "must not be replaced");
    fails(&["--state-only", tuned, &state, "--for", tuned], 1, "not an rwkv-edge model");
    fails(&["--state-only", &model, &state, "--for", &model], 1, "already converted");
    fails(&[tuned, &bench.desk.path("x.rwkv").display().to_string()], 1, "--state-only");
    fails(&["--state-only", tuned, &state], 2, "--for");
    fails(&["--state-only", tuned, &state, "--for", &model, "--type", "int4"], 2, "--type is for models");
    fails(&[tuned, &state, "--for", &model], 2, "--state-only");
}

//! Targets that must not be written, and runs that stop half-way.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rwkv_edge::format::{Replace, Target};
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::job::{Job, Progress};

use crate::common::{Desk, Model, Parts, Quiet, fixture, options};

/// The refusal of `output` as a target. Files and their contents stay as they are.
#[track_caller]
fn refusal(desk: &Desk, output: &Path, options: &Options) -> String {
    let contents =
        || desk.files().into_iter().map(|name| fs::read(desk.path(&name)).ok()).collect::<Vec<_>>();
    let (names, before) = (desk.files(), contents());
    let conversion = Conversion::prepare(&desk.input(), options).unwrap();
    let run = |target| conversion.run(target, Job::new(&mut Quiet, &AtomicBool::new(false)));
    let target = Target::new(output, Replace::Any).map_err(anyhow::Error::from);
    let Err(error) = target.and_then(run) else { panic!("{} was written", output.display()) };
    let message = format!("{error:#}");
    assert!(message.contains(&output.display().to_string()), "{message}");
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(desk.files(), names, "{message}");
    assert!(contents() == before, "a file was changed: {message}");
    message
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.put(&Parts::of("v4").torch());
    desk
}

#[test]
fn an_output_that_is_an_input_is_refused_and_the_input_survives() {
    let desk = desk();
    desk.put(&Parts::of("v7").torch());
    let (state, tokenizer) = (desk.path("state.pth"), desk.path("vocab.txt"));
    fs::copy(fixture("v7-tiny-state.pth"), &state).unwrap();
    let vocabulary: String = (1..256).map(|id| format!("{id} b'\\x{id:02x}' 1\n")).collect();
    fs::write(&tokenizer, vocabulary).unwrap();
    fs::create_dir(desk.path("folder")).unwrap();
    let options =
        Options { state: Some(state.clone()), tokenizer: Some(tokenizer.clone()), ..options(DType::Int8) };
    for output in [desk.input(), desk.path("folder/../input.pth"), state, tokenizer] {
        assert!(refusal(&desk, &output, &options).contains("is read"), "{}", output.display());
    }
    // Another file in place of the input is fine.
    let conversion = Conversion::prepare(&desk.input(), &options).unwrap();
    conversion.run(desk.target(), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
}

#[cfg(unix)]
#[test]
fn links_between_input_and_output_are_refused() {
    let desk = desk();
    let link = desk.path("link.pth");
    std::os::unix::fs::symlink(desk.input(), &link).unwrap();
    assert!(refusal(&desk, &link, &options(DType::Int8)).contains("is read"));
    let options = options(DType::Int8);
    fs::hard_link(desk.input(), desk.path("hard.pth")).unwrap();
    for output in [desk.input(), link.clone(), desk.path("hard.pth")] {
        let conversion = Conversion::prepare(&link, &options).unwrap();
        let target = Target::new(&output, Replace::Any).unwrap();
        assert!(conversion.run(target, Job::new(&mut Quiet, &AtomicBool::new(false))).is_err());
    }
    assert_eq!(fs::read(desk.input()).unwrap(), Parts::of("v4").torch());
    // A hard link of a file that is read counts as that file.
    assert!(refusal(&desk, &desk.path("hard.pth"), &options).contains("is read"));
}

#[test]
fn an_output_that_is_a_shard_is_refused() {
    let desk = Desk::new();
    let parts = Parts::of("v4");
    let (first, second) = parts.0.split_at(20);
    let mut map = Vec::new();
    for (name, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        fs::write(desk.path(name), Parts(part.to_vec()).safetensors()).unwrap();
        map.extend(part.iter().map(|part| format!("{:?}:{name:?}", part.name)));
    }
    desk.put(format!("{{\"weight_map\":{{{}}}}}", map.join(",")).as_bytes());
    for name in ["a.safetensors", "b.safetensors", "input.pth"] {
        assert!(refusal(&desk, &desk.path(name), &options(DType::Int8)).contains("is read"));
    }
    let digest = |desk: &Desk| {
        desk.try_convert(&options(DType::Int8)).unwrap();
        Model::open(&desk.output()).0.provenance().source_sha256
    };
    // The weights decide over the digest, not the index.
    let before = digest(&desk);
    let mut changed = Parts(second.to_vec());
    changed.get("head.weight").set(0, 0.5);
    fs::write(desk.path("b.safetensors"), changed.safetensors()).unwrap();
    assert_ne!(digest(&desk), before);
}

#[test]
fn an_output_that_cannot_be_a_file_is_refused() {
    let desk = desk();
    fs::create_dir(desk.path("folder")).unwrap();
    let options = options(DType::Int8);
    refusal(&desk, &desk.path("missing/model.rwkv"), &options);
    refusal(&desk, &desk.path("input.pth/model.rwkv"), &options);
    assert!(refusal(&desk, &desk.path("folder"), &options).contains("directory"));
    refusal(&desk, &desk.path("folder/.."), &options);
    refusal(&desk, &desk.path("folder/"), &options);
}

#[cfg(unix)]
#[test]
fn an_output_that_is_no_regular_file_is_refused() {
    let desk = desk();
    let socket = desk.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(refusal(&desk, &socket, &options(DType::Int8)).contains("regular file"));
}

#[test]
fn an_older_output_is_replaced_by_a_complete_one_only() {
    let desk = desk();
    let old = b"\x89RWKV\r\n\x1aan older model";
    fs::write(desk.output(), old).unwrap();
    let mut parts = Parts::of("v4");
    parts.get("emb.weight").set(255 * 64, f32::NAN);
    desk.refusal(&parts, &options(DType::Int8));
    assert_eq!(fs::read(desk.output()).unwrap(), old);
    desk.convert(&Parts::of("v4"), &options(DType::Int8));
}

/// Raises the flag after a number of updates.
struct StopAt<'a> {
    updates: usize,
    at: usize,
    flag: &'a AtomicBool,
}

impl Progress for StopAt<'_> {
    fn update(&mut self, done: u64, total: u64, _tensor: &str) {
        assert!(done <= total);
        self.updates += 1;
        if self.updates > self.at {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn an_interruption_at_any_time_leaves_nothing_behind() {
    let desk = desk();
    let run = |at: Option<usize>| {
        let flag = AtomicBool::new(at.is_none());
        let mut progress = StopAt { updates: 0, at: at.unwrap_or(usize::MAX), flag: &flag };
        let conversion = Conversion::prepare(&desk.input(), &options(DType::Int8)).unwrap();
        let result = conversion.run(desk.target(), Job::new(&mut progress, &flag));
        (result, progress.updates)
    };
    let (result, updates) = run(Some(usize::MAX));
    result.unwrap();
    fs::remove_file(desk.output()).unwrap();
    for at in [None].into_iter().chain((0..updates).map(Some)) {
        let (result, _) = run(at);
        let message = format!("{:#}", result.expect_err("it ran to the end"));
        assert_eq!(message, "interrupted", "{at:?}");
        assert_eq!(desk.files(), ["input.pth"], "{at:?}");
    }
}

#[test]
fn a_failed_run_does_not_raise_the_flag_of_the_caller() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4");
    parts.get("head.weight").set(0, f32::NAN);
    desk.put(&parts.torch());
    let flag = AtomicBool::new(false);
    let conversion = Conversion::prepare(&desk.input(), &options(DType::Int8)).unwrap();
    conversion.run(desk.target(), Job::new(&mut Quiet, &flag)).unwrap_err();
    assert!(!flag.load(Ordering::Relaxed));
}

/// Remembers every call.
struct Record(Vec<(u64, u64)>);

impl Progress for Record {
    fn update(&mut self, done: u64, total: u64, _tensor: &str) {
        self.0.push((done, total));
    }
}

#[test]
fn progress_counts_every_weight_once_even_if_a_tensor_is_encoded_twice() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4");
    let name = "blocks.0.att.key.weight";
    let large = parts.get(name).values().iter().map(|x| x * 1e9).collect::<Vec<_>>();
    parts.get(name).fill(rwkv_quantize::source::SourceDType::F32, large);
    desk.put(&parts.torch());
    let conversion = Conversion::prepare(&desk.input(), &options(DType::Int8)).unwrap();
    let mut record = Record(Vec::new());
    conversion.run(desk.target(), Job::new(&mut record, &AtomicBool::new(false))).unwrap();
    let last = record.0.pop().unwrap();
    assert_eq!(last.0, last.1);
    let before_emb = last.1 - 256 * 64;
    assert!(record.0.iter().any(|&(done, _)| done == before_emb), "{:?}", record.0);
}

#[test]
fn an_input_that_shrinks_before_it_is_read_is_refused() {
    let desk = desk();
    let conversion = Conversion::prepare(&desk.input(), &options(DType::Int8)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(desk.input()).unwrap();
    file.set_len(50_000).unwrap();
    let error = conversion.run(desk.target(), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap_err();
    let message = format!("{error:#}");
    assert_eq!(message.matches("input.pth").count(), 1, "{message}");
    assert_eq!(desk.files(), ["input.pth"]);
}

#[test]
fn an_odd_name_of_the_input_is_no_obstacle() {
    let desk = desk();
    let odd = desk.path(if cfg!(windows) { "a b.pth" } else { "a\\b\u{1b}.pth" });
    fs::rename(desk.input(), &odd).unwrap();
    let conversion = Conversion::prepare(&odd, &options(DType::Int8)).unwrap();
    conversion.run(desk.target(), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
    Model::open(&desk.output());
}

//! Runs that are saved and go on.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use crate::common::{convert, fixture, options};
use crate::program::{FAIRY, command, failure, run, tiny};
use rwkv_edge::kernels::DType;
use tempfile::TempDir;

/// Sampling in which every part of the sampler's state matters.
const LIVELY: [&str; 8] =
    ["--temperature", "1.2", "--top-p", "0.9", "--presence-penalty", "0.3", "--penalty-decay", "0.9"];

/// Runs a model. Returns the bytes that it writes, and its summary.
fn run_with(args: &[&[&str]]) -> (Vec<u8>, String) {
    let output = run(&[&["run"], &args.concat()[..]].concat());
    let summary = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {summary}");
    (output.stdout, summary)
}

fn text(args: &[&[&str]]) -> Vec<u8> {
    run_with(args).0
}

fn path_in(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_run_that_was_split_writes_what_the_whole_run_writes() {
    // The text of a model of bytes breaks inside characters and inside the stop text.
    let (folder, bytes) = convert(&fixture("v7-tiny.pth"), &options(DType::Int4));
    let [state, whole] = ["s.rwstate", "whole.rwstate"].map(|name| path_in(&folder, name));
    let stop_text = "\u{fffd}".repeat(20);
    let stop = ["--stop", &stop_text];
    for (model, splits) in
        [(bytes.to_str().unwrap(), [[1, 7], [13, 4], [21, 1]]), (FAIRY, [[3, 3], [11, 2], [20, 9]])]
    {
        let begin = [&["-p", "Once", "--seed", "5"], &LIVELY[..], &stop].concat();
        let expected = text(&[&[model, "-n", "32"], &begin]);
        text(&[&[model, "-n", "32", "--save-state", &whole], &begin]);
        for split in splits {
            let [first, second] = split.map(|n| n.to_string());
            let third = (32 - split[0] - split[1]).to_string();
            let (from, to) = (["--state", &state], ["--save-state", &state]);
            let mut found = text(&[&[model, "-n", &first], &begin, &to]);
            found.extend(text(&[&[model, "-n", &second, "--threads", "3"], &from, &to, &stop]));
            let last = [model, "-n", &third, "--isa", "scalar"];
            found.extend(text(&[&last, &from, &stop]));
            assert_eq!(found, expected, "{model}: {split:?}");
            text(&[&last, &from, &to, &stop]);
            assert!(fs::read(&state).unwrap() == fs::read(&whole).unwrap(), "{model}: {split:?}");
        }
    }
}

#[test]
fn a_saved_text_goes_on_at_once_without_a_prompt_or_standard_input() {
    let (folder, model) = tiny();
    let state = path_in(&folder, "s.rwstate");
    text(&[&[&model, "-p", "Once upon a time", "-n", "3", "--save-state", &state]]);
    // A standard input that never ends.
    let mut child = command()
        .args(["run", &model, "--state", &state, "-n", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut summary = String::new();
    child.stderr.take().unwrap().read_to_string(&mut summary).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        summary.contains("prompt:     0 tokens") && summary.contains("generation: 5 tokens"),
        "{summary}"
    );
}

#[test]
fn a_baked_prompt_is_followed_by_what_follows_the_prompt() {
    let (folder, model) = tiny();
    let [prompt, state] = ["system.txt", "system.rwstate"].map(|name| path_in(&folder, name));
    fs::write(&prompt, "Once upon a time,\r\n\n there ").unwrap();
    let output = run(&["bake", &model, "--prompt-file", &prompt, "-o", &state]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("system.rwstate: 27 tokens"), "{output:?}");
    let sampling = ["-n", "20", "--seed", "4"];
    let expected = text(&[&[&model, "-f", &prompt], &sampling]);
    assert_eq!(text(&[&[&model, "--state", &state], &sampling]), expected);
    // Each text draws random numbers of its own.
    let unseeded = || text(&[&[&model, "--state", &state, "-n", "20", "--temperature", "2", "--top-p", "1"]]);
    assert_ne!(unseeded(), unseeded());
    fs::write(&prompt, "").unwrap();
    let message = failure(&["bake", &model, "--prompt-file", &prompt, "-o", &state]);
    assert!(message.contains("the prompt is empty"), "{message}");
}

#[test]
fn a_prompt_after_a_saved_text_gets_no_start_tokens_and_begins_a_reply() {
    // This model has a start token.
    let (folder, state) = {
        let folder = tempfile::tempdir().unwrap();
        let state = path_in(&folder, "s.rwstate");
        (folder, state)
    };
    let prompt = |summary: &str| summary.lines().find(|line| line.starts_with("prompt:")).map(str::to_owned);
    let (_, summary) =
        run_with(&[&[FAIRY, "-p", " The fox", "-n", "4", "--seed", "1", "--save-state", &state]]);
    let first: u32 = prompt(&summary).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let (_, summary) = run_with(&[&[FAIRY, "-p", " The fox", "-n", "1", "--state", &state]]);
    let second: u32 = prompt(&summary).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(second, first - 1);
    drop(folder);
}

#[test]
fn options_override_what_was_saved_and_a_seed_restarts_the_random_numbers() {
    let (folder, model) = tiny();
    let state = path_in(&folder, "s.rwstate");
    text(&[&[&model, "-p", "x", "-n", "3", "--seed", "1", "--save-state", &state], &LIVELY]);
    let go_on = |more: &[&str]| run_with(&[&[&model, "--state", &state, "-n", "20"], more]);
    let (saved, summary) = go_on(&[]);
    assert_eq!(go_on(&[]).0, saved);
    assert_ne!(go_on(&["--temperature", "0"]).0, saved);
    assert_ne!(go_on(&["--seed", "1"]).0, saved);
    assert_eq!(go_on(&["--seed", "1"]).0, go_on(&["--seed", "1"]).0);
    assert_eq!(go_on(&LIVELY).0, saved);
    // The seed in the summary repeats the text.
    let seed = summary.split("seed: ").nth(1).unwrap().split(',').next().unwrap();
    assert_ne!(seed, "1");
    assert_eq!(go_on(&["--seed", seed]).0, saved);
}

#[test]
fn files_that_are_no_saved_text_of_the_model_are_refused_in_one_line() {
    let (folder, model) = tiny();
    let state = path_in(&folder, "s.rwstate");
    text(&[&[&model, "-p", "x", "-n", "3", "--save-state", &state]]);
    let refused = |model: &str, state: &str, words: &str| {
        let message = failure(&["run", model, "--state", state]);
        assert!(message.contains(state) && message.contains(words), "expected {words:?} in {message}");
    };
    refused(FAIRY, &state, "the state belongs to another model");
    refused(&model, &model, "it is a model");
    refused(&model, &path_in(&folder, "missing"), "No such file");
    let whole = fs::read(&state).unwrap();
    let changed = path_in(&folder, "changed.rwstate");
    fs::write(&changed, &whole[..whole.len() - 1]).unwrap();
    refused(&model, &changed, "it was not copied completely");
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&changed, &bytes).unwrap();
    refused(&model, &changed, "checksum mismatch in the values");
    let mut bytes = whole;
    bytes[8] = 9;
    fs::write(&changed, &bytes).unwrap();
    refused(&model, &changed, "format version 9 is newer");
    let checkpoint = fixture("v7-tiny-state.pth");
    let checkpoint = checkpoint.to_str().unwrap();
    let output = checkpoint.replace(".pth", ".rwstate");
    refused(&model, checkpoint, &format!("rwkv-quantize --state-only {checkpoint} {output} --for {model}"));
    let message = failure(&["run", &state, "-p", "x"]);
    assert!(message.contains("it is a saved state"), "{message}");
}

#[test]
fn a_place_that_cannot_be_written_is_found_before_the_run() {
    let (folder, model) = tiny();
    for (place, words) in
        [("no/s.rwstate", "there is no folder"), (".", "directory"), ("model.rwkv", "not replaced")]
    {
        let message = failure(&["run", &model, "-p", "x", "--save-state", &path_in(&folder, place)]);
        assert!(message.contains(words), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_text_and_nothing_else() {
    let (folder, model) = tiny();
    let state = path_in(&folder, "s.rwstate");
    text(&[&[&model, "-p", "x", "-n", "3", "--save-state", &state]]);
    let old = fs::read(&state).unwrap();
    let go_on = command();
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 1; exec \"$@\"", "sh"])
        .arg(go_on.get_program())
        .args(go_on.get_args())
        .args(["run", &model, "--state", &state, "-n", "3", "--save-state", &state])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("rwkv-edge: ") && message.contains("limit of file sizes"), "{message}");
    assert!(fs::read(&state).unwrap() == old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_reader_that_goes_away_does_not_cost_the_text() {
    let (folder, model) = tiny();
    let state = path_in(&folder, "s.rwstate");
    let mut child = command()
        .args(["run", &model, "-p", "x", "-n", "0", "--save-state", &state])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    assert!(child.wait().unwrap().success());
    text(&[&[&model, "--state", &state, "-n", "3"]]);
}

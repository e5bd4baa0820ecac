//! Prompts and texts from files, pipes and devices, and file names that command a terminal.
#![cfg(unix)]

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rwkv_edge::format::Template;
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;

use crate::common::{convert, fixture, options};
use crate::program::{FAIRY, command, run, tiny};

/// The one line that a failing run prints.
#[track_caller]
fn failure(output: &Output) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message.trim_end().to_owned()
}

/// Runs with the named pipe `path` as a text, and writes `text` to the pipe.
fn with_pipe(path: &Path, text: &str, command: &mut Command) -> Output {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn prompts_and_texts_come_through_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let greedy = ["-n", "3", "--temperature", "0"];
    let expected =
        command().args(["run", FAIRY, "-p", "Once upon a time"]).args(greedy).output().unwrap().stdout;
    assert!(!expected.is_empty());
    let prompt = folder.path().join("prompt");
    let output = with_pipe(
        &prompt,
        "Once upon a time",
        command().args(["run", FAIRY, "-f"]).arg(&prompt).args(greedy),
    );
    assert_eq!(output.stdout, expected);
    let text = folder.path().join("text");
    let output = with_pipe(&text, "There was a King.", command().args(["eval", FAIRY, "--text"]).arg(&text));
    assert!(String::from_utf8_lossy(&output.stdout).contains("bytes             17"), "{output:?}");
}

#[test]
fn endless_texts_are_refused() {
    for args in [["run", FAIRY, "--prompt-file", "/dev/zero"], ["eval", FAIRY, "--text", "/dev/zero"]] {
        let message = failure(&command().args(args).output().unwrap());
        assert_eq!(
            message,
            "rwkv-edge: /dev/zero: there are more than 1048576 bytes, which is the limit here"
        );
    }
    for args in [["run", FAIRY, "-n1"], ["tokenize", FAIRY, "--no-verify"]] {
        let zero = Stdio::from(fs::File::open("/dev/zero").unwrap());
        let message = failure(&command().args(args).stdin(zero).output().unwrap());
        assert!(message.starts_with("rwkv-edge: standard input: there are more than 134217728"), "{message}");
    }
}

#[test]
fn an_empty_device_is_an_empty_prompt() {
    let output = command().args(["run", FAIRY, "-f", "/dev/null", "-n", "1"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_empty_prompt_begins_with_the_start_token_or_token_0() {
    let (folder, tiny) = tiny();
    for model in [FAIRY, &tiny] {
        let args = ["run", model, "-n", "5", "--seed", "1", "--prompt"];
        let begun = run(&[&args[..], &[""]].concat());
        assert!(String::from_utf8_lossy(&begun.stderr).starts_with("prompt:     1 tokens"), "{begun:?}");
        assert!(!begun.stdout.is_empty() && begun.status.success());
    }
    // A model of bytes has no start token, and token 0 is the byte 0.
    let zero = folder.path().join("zero");
    fs::write(&zero, [0]).unwrap();
    let byte = run(&["run", &tiny, "-n", "5", "--seed", "1", "--prompt-file", zero.to_str().unwrap()]);
    let begun = run(&["run", &tiny, "-n", "5", "--seed", "1", "--prompt", ""]);
    assert_eq!(begun.stdout, byte.stdout);
}

#[test]
fn what_is_between_two_texts_is_asked_for_as_the_models_were_trained() {
    let fill =
        ["run", FAIRY, "--prompt", "The king\r\n", "--suffix", "\n\nthe end", "-n", "5", "--seed", "1"];
    assert!(failure(&run(&fill)).contains("not trained to write text between"));
    let (folder, path) = convert(
        &fixture("v4-tiny.pth"),
        &Options { template: Some(Template::Flower), ..options(DType::Int8) },
    );
    let model = path.to_str().unwrap();
    let suffix = folder.path().join("suffix.txt");
    fs::write(&suffix, "\n\nthe end").unwrap();
    let common = ["-n", "9", "--seed", "1"];
    let prompt = "✿prefix✿✿suffix✿\n\nthe end✿middle✿The king\r\n";
    let expected = run(&[&["run", model, "--prompt", prompt][..], &common].concat());
    for option in [["--suffix", "\n\nthe end"], ["--suffix-file", suffix.to_str().unwrap()]] {
        let output = run(&[&["run", model, "--prompt", "The king\r\n"][..], &option, &common].concat());
        assert!(output.status.success() && output.stdout == expected.stdout, "{output:?}");
    }
}

#[test]
fn names_of_files_do_not_command_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"a\x1b[2J\nb\xc2\x9b2J\xe2\x80\xae");
    let path = folder.path().join(name);
    let message = failure(&command().arg("info").arg(&path).output().unwrap());
    assert!(message.contains("a\\u{1b}[2J\\nb\\u{9b}2J\\u{202e}: "), "{message}");
    let message = failure(&command().args(["run", FAIRY, "-f"]).arg(&path).output().unwrap());
    assert!(message.contains("a\\u{1b}[2J\\nb\\u{9b}2J\\u{202e}: "), "{message}");

    fs::copy(FAIRY, &path).unwrap();
    let output = command().arg("info").arg("--tensors").arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.ends_with("a\\u{1b}[2J\\nb\\u{9b}2J\\u{202e}"), "{first}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

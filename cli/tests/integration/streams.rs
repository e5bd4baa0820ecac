//! Standard streams that are non-blocking, and narrow terminals.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::pipe::fcntl_setpipe_size;

use crate::program::{command, pipe, run, stdout, terminal, tiny};

/// Long enough for a program to reach a full or empty pipe.
const A_WHILE: Duration = Duration::from_millis(300);

/// A pipe of one page that is non-blocking at both ends.
fn non_blocking() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    ioctl_fionbio(&reader, true).unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    (reader, writer)
}

/// The bytes from a pipe that nobody reads for a while.
fn late(mut reader: PipeReader) -> Vec<u8> {
    sleep(A_WHILE);
    ioctl_fionbio(&reader, false).unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Runs a command whose standard output is non-blocking.
fn run_into_slow_pipe(args: &[&str]) -> Vec<u8> {
    let (reader, writer) = non_blocking();
    let mut command = command();
    let mut child = command.args(args).stdout(writer).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let bytes = late(reader);
    assert!(child.wait().unwrap().success(), "{args:?}");
    bytes
}

#[test]
fn output_that_would_block_is_waited_for() {
    let (_folder, model) = tiny();
    let text = ["run", &model, "-p", "x", "-n", "6000", "--seed", "1"];
    let info = ["info", &model, "--tensors"];
    let logits = ["logits", &model, "--tokens", "1,2", "--all"];
    for args in [&text[..], &info[..], &logits[..]] {
        let expected = run(args).stdout;
        assert_eq!(run_into_slow_pipe(args), expected, "{args:?}");
    }
}

#[test]
fn input_that_is_not_there_yet_is_waited_for() {
    let (_folder, model) = tiny();
    for args in [&["run", &model, "-n", "9", "--seed", "1"][..], &["tokenize", &model][..]] {
        let expected = stdout(&pipe(args, b"Once upon a time"));
        let (reader, mut writer) = non_blocking();
        let mut command = command();
        let child = command.args(args).stdin(reader).stdout(Stdio::piped()).spawn().unwrap();
        drop(command);
        for part in ["Once upon", " a time"] {
            sleep(A_WHILE);
            writer.write_all(part.as_bytes()).unwrap();
        }
        drop(writer);
        assert_eq!(stdout(&child.wait_with_output().unwrap()), expected, "{args:?}");
    }
}

#[test]
fn a_summary_that_would_block_is_waited_for() {
    let (_folder, model) = tiny();
    let (reader, mut writer) = non_blocking();
    writer.write_all(&[b'.'; 4096]).unwrap();
    let mut command = command();
    let mut child = command
        .args(["run", &model, "-p", "x", "-n", "1"])
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    drop(command);
    let summary = String::from_utf8(late(reader)).unwrap();
    assert!(summary.contains("generation: 1 tokens") && summary.contains("peak RSS"), "{summary}");
    assert!(child.wait().unwrap().success());
}

/// A text that takes every machine more than seconds to read, and its length.
fn endless_text(folder: &Path) -> (String, usize) {
    let path = folder.join("text.txt");
    let text = "some bytes to predict ".repeat(100_000);
    fs::write(&path, &text).unwrap();
    (path.to_str().unwrap().to_owned(), text.len())
}

fn terminate(child: &Child) {
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
}

/// The output of a command on a terminal of `columns` columns. A signal ends the command after it
/// has shown progress twice.
fn interrupted_on_terminal(mut command: Command, columns: u16) -> (String, ExitStatus) {
    let (mut terminal, peer) = terminal(columns);
    let mut child = command.stdout(peer.try_clone().unwrap()).stderr(peer).spawn().unwrap();
    drop(command);
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    let mut is_terminated = false;
    // The read ends with an error, because nobody has the terminal open any more.
    while let Ok(n @ 1..) = terminal.read(&mut piece) {
        bytes.extend_from_slice(&piece[..n]);
        if !is_terminated && bytes.iter().filter(|byte| **byte == b'\r').count() >= 2 {
            terminate(&child);
            is_terminated = true;
        }
    }
    (String::from_utf8(bytes).unwrap(), child.wait().unwrap())
}

/// The updates of a line of progress.
fn updates(progress: &str) -> Vec<&str> {
    progress.split('\r').filter(|update| !update.is_empty()).collect()
}

#[test]
fn an_interrupted_prompt_erases_its_progress_and_tells_the_tokens_read() {
    let (folder, model) = tiny();
    let (text, tokens) = endless_text(folder.path());
    let mut run = command();
    run.args(["run", &model, "--threads", "1", "--prompt-file", &text]);
    let (output, status) = interrupted_on_terminal(run, 80);
    assert_eq!(status.signal(), Some(15), "{output}");
    let (progress, summary) = output.split_once('\n').unwrap();
    let updates = updates(progress);
    let (erased, shown) = updates.split_last().unwrap();
    assert!(shown.len() >= 2 && erased.trim().is_empty() && progress.ends_with('\r'), "{output:?}");
    // Each covers what the one before has left on the line.
    assert!(updates.windows(2).all(|pair| pair[1].len() >= pair[0].trim_end().len()), "{output:?}");
    for update in shown {
        assert!(update.contains(&format!("/{tokens} tokens, ")) && update.contains(" s left"), "{update}");
    }
    let read: usize = summary.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(summary.starts_with("prompt: ") && (1..tokens).contains(&read), "{summary}");
    assert!(summary.contains("generation: 0 tokens"), "{summary}");
}

#[test]
fn progress_does_not_wrap_on_a_narrow_terminal() {
    let (folder, model) = tiny();
    let (text, _) = endless_text(folder.path());
    let output = |columns| {
        let mut eval = command();
        eval.args(["eval", &model, "--threads", "1", "--text", &text]);
        interrupted_on_terminal(eval, columns).0
    };
    thread::scope(|scope| {
        for (columns, room) in [(40, 39), (10, 9), (0, 39)] {
            scope.spawn(move || {
                let output = output(columns);
                let updates = updates(&output);
                assert!(
                    updates.len() >= 2 && updates.iter().all(|update| update.len() <= room),
                    "{output:?}"
                );
                assert!(updates.iter().all(|update| update.contains("/21")), "{output:?}");
            });
        }
    });
}

#[test]
fn a_pipe_gets_no_progress() {
    let (folder, model) = tiny();
    let (text, _) = endless_text(folder.path());
    let start =
        |args: [&str; 6]| command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let run = start(["run", &model, "--threads", "1", "--prompt-file", &text]);
    let eval = start(["eval", &model, "--threads", "1", "--text", &text]);
    sleep(Duration::from_millis(1500));
    let errors = [run, eval].map(|child| {
        terminate(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(15), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    });
    assert!(errors[0].starts_with("prompt: ") && errors[0].lines().count() == 3, "{}", errors[0]);
    assert_eq!(errors[1], "");
}

fn hint(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("UTF-16")
}

#[test]
fn a_text_in_utf_16_gets_a_hint() {
    let (folder, model) = tiny();
    let text = "Once upon a time there was a king";
    let file = folder.path().join("text.txt");
    let path = file.to_str().unwrap();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, expected) in [(text.as_bytes(), false), (&utf16[..], true)] {
        fs::write(&file, bytes).unwrap();
        assert_eq!(hint(&run(&["run", &model, "-n", "1", "-f", path])), expected);
        assert_eq!(hint(&run(&["eval", &model, "--text", path])), expected);
        assert_eq!(hint(&pipe(&["run", &model, "-n", "1"], bytes)), expected);
        assert_eq!(hint(&pipe(&["tokenize", &model], bytes)), expected);
    }
}

#[test]
fn the_summary_tells_the_seed_that_repeats_the_text() {
    let (_folder, model) = tiny();
    let text = ["run", &model, "-p", "x", "-n", "50", "--temperature", "1"];
    let first = run(&text);
    let summary = String::from_utf8_lossy(&first.stderr).into_owned();
    let seed = summary.split("seed: ").nth(1).unwrap().split(',').next().unwrap();
    let again = run(&[&text[..], &["--seed", seed]].concat());
    assert_eq!(again.stdout, first.stdout);
}

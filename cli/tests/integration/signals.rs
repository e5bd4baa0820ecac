//! How commands end by signals.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::program::{command, is_emulated, tiny};

const SIGNALS: [(&str, i32); 3] = [("HUP", 1), ("INT", 2), ("TERM", 15)];

fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
}

/// Whether a field of a process's status in `/proc` has the bit of a signal.
fn has_signal(pid: u32, field: &str, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (signal - 1) != 0
}

/// The signals that reach programs started by these tests. A script's background job ignores some
/// signals.
fn signals() -> impl Iterator<Item = (&'static str, i32)> {
    SIGNALS.into_iter().filter(|&(_, number)| !has_signal(std::process::id(), "SigIgn:", number))
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn endless(model: &str) -> Command {
    // A model of bytes has no stop token, so only a signal can end this run.
    let mut command = command();
    command.args(["run", model, "-p", "x", "-n", "0"]);
    command
}

/// Waits for the first byte of text.
fn wait_for_text(child: &mut Child) {
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
}

/// Waits for the end, up to a limit.
fn end_of(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(20) {
        // A full pipe would hold up the end.
        let mut text = [0; 1 << 16];
        let _ = child.stdout.as_mut().map(|out| out.read(&mut text));
    }
    let _ = child.kill();
    child.wait_with_output().unwrap()
}

#[test]
fn a_signal_ends_a_run_with_the_summary_and_is_what_the_run_dies_by() {
    let (_folder, model) = tiny();
    for (name, number) in signals() {
        let mut child = spawn(endless(&model));
        wait_for_text(&mut child);
        send(name, child.id());
        let output = end_of(child);
        assert_eq!(output.status.signal(), Some(number), "{name}: {:?}", output.status);
        assert!(String::from_utf8_lossy(&output.stderr).contains("generation:"), "{name}");
    }
}

#[test]
fn an_interrupted_run_saves_the_text_so_far() {
    let (folder, model) = tiny();
    let state = folder.path().join("s.rwstate");
    let sampling = ["--seed", "3", "--temperature", "1"];
    for (name, number) in signals() {
        let mut run = endless(&model);
        run.args(sampling).arg("--save-state").arg(&state);
        let mut child = spawn(run);
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        send(name, child.id());
        let mut rest = Vec::new();
        child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
        let output = end_of(child);
        assert_eq!(output.status.signal(), Some(number), "{name}: {:?}", output.status);
        let summary = String::from_utf8(output.stderr).unwrap();
        let tokens = summary.split("generation: ").nth(1).unwrap().split(' ').next().unwrap();
        let tokens: u64 = tokens.parse().unwrap();
        let resumed = run_for(&["run", &model, "-n", "40", "--state", state.to_str().unwrap()]);
        let all = (tokens + 40).to_string();
        let whole = run_for(&[&["run", &model, "-p", "x", "-n", &all], &sampling[..]].concat());
        assert!([&first[..], &rest, &resumed].concat() == whole, "{name} after {tokens} tokens");
    }
}

/// The bytes that a command writes.
fn run_for(args: &[&str]) -> Vec<u8> {
    let output = command().args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn a_script_sees_the_signal_that_ended_a_run() {
    let (_folder, model) = tiny();
    let run = endless(&model);
    let mut script = Command::new("sh");
    script.args(["-c", "\"$@\"; echo status $? >&2", "sh"]).arg(run.get_program()).args(run.get_args());
    let mut child = spawn(script);
    wait_for_text(&mut child);
    send("TERM", only_child(child.id()));
    let output = end_of(child);
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("status 143\n"), "{output:?}");
}

#[test]
fn a_copy_of_a_signal_does_not_cut_the_summary() {
    let (_folder, model) = tiny();
    let mut child = spawn(endless(&model));
    wait_for_text(&mut child);
    let pid = child.id();
    // Sends the signal to the process and to its group, as `timeout` does.
    send("TERM", pid);
    let _ = Command::new("kill").args(["-TERM", &pid.to_string()]).output();
    let output = end_of(child);
    assert_eq!(output.status.signal(), Some(15));
    assert!(String::from_utf8_lossy(&output.stderr).contains("generation:"));
}

#[test]
fn a_second_signal_ends_a_run_that_waits_for_its_reader() {
    let (_folder, model) = tiny();
    let mut child = spawn(endless(&model));
    wait_for_text(&mut child);
    // The pipe takes 64 KiB; after that the run waits.
    sleep(Duration::from_millis(300));
    send("HUP", child.id());
    sleep(rwkv_edge::signals::SECOND_AFTER + Duration::from_millis(100));
    if child.try_wait().unwrap().is_none() {
        send("TERM", child.id());
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(20), "it waits for ever");
            sleep(Duration::from_millis(5));
        }
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
}

#[test]
fn a_signal_that_the_parent_ignores_does_not_end_a_run() {
    if is_emulated() {
        return;
    }
    let (_folder, model) = tiny();
    let run = endless(&model);
    let mut script = Command::new("sh");
    script.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
    let mut child = spawn(script);
    wait_for_text(&mut child);
    send("HUP", child.id());
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(300) {
        wait_for_text(&mut child);
    }
    send("TERM", child.id());
    assert_eq!(end_of(child).status.signal(), Some(15));
}

#[test]
fn text_beyond_the_limit_of_a_files_size_is_an_error() {
    let (folder, model) = tiny();
    let run = endless(&model);
    let text = fs::File::create(folder.path().join("text")).unwrap();
    let mut script = Command::new("sh");
    script.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
    let output = script.stdout(text).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// The only child of a process.
fn only_child(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let started = Instant::now();
    loop {
        if let Some(child) = fs::read_to_string(&path).unwrap().split_whitespace().next() {
            return child.parse().unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{pid} starts nothing");
        sleep(Duration::from_millis(1));
    }
}

/// A command as process 1 of a namespace. This needs root or user namespaces; `None` if neither is
/// allowed.
fn as_process_one(run: &Command) -> Option<Child> {
    let can = |args: &[&str]| {
        Command::new("unshare").args(args).arg("true").output().is_ok_and(|output| output.status.success())
    };
    let ways: [&[&str]; 2] = [&["-p", "-f"], &["-U", "-r", "-p", "-f"]];
    let Some(way) = ways.into_iter().find(|way| can(way)) else {
        eprintln!("skipped: no namespaces");
        return None;
    };
    let mut unshare = Command::new("unshare");
    unshare.args(way).arg(run.get_program()).args(run.get_args()).stdin(Stdio::piped());
    Some(spawn(unshare))
}

#[test]
fn as_process_one_every_command_ends_by_a_signal() {
    if is_emulated() {
        return;
    }
    let (folder, model) = tiny();
    let text = folder.path().join("text.txt");
    fs::write(&text, "some bytes to predict ".repeat(100_000)).unwrap();
    let text = text.to_str().unwrap();
    let commands: [&[&str]; 4] = [
        &["run", &model, "-p", "x", "-n", "0"],
        &["eval", &model, "--text", text],
        &["bench", &model, "-n", "10000000"],
        // The command waits for its standard input.
        &["tokenize", &model],
    ];
    for args in commands {
        for (name, number) in SIGNALS {
            let mut run = command();
            run.args(args);
            let Some(child) = as_process_one(&run) else { return };
            let pid = only_child(child.id());
            let started = Instant::now();
            while !has_signal(pid, "SigCgt:", number) {
                assert!(started.elapsed() < Duration::from_secs(20), "{args:?} does not catch {name}");
                sleep(Duration::from_millis(1));
            }
            send(name, pid);
            let output = end_of_one(child, pid);
            assert_eq!(output.status.code(), Some(128 + number), "{args:?} {name}");
        }
    }
}

/// As [`end_of`], for process 1 of a namespace and the process that started it.
fn end_of_one(child: Child, pid: u32) -> Output {
    let started = Instant::now();
    while fs::exists(format!("/proc/{pid}")).unwrap() && started.elapsed() < Duration::from_secs(20) {
        sleep(Duration::from_millis(1));
    }
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).output();
    child.wait_with_output().unwrap()
}

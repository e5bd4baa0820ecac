//! The program, as tests start it.

#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};

#[cfg(target_os = "linux")]
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
#[cfg(target_os = "linux")]
use rustix::termios::{Winsize, tcsetwinsize};

use crate::common::{convert, fixture, options};
use rwkv_edge::kernels::DType;
use tempfile::TempDir;

/// The binary. `RWKV_EDGE_BINARY` names one of another machine instead, and `RWKV_EDGE_RUNNER` the
/// emulator that runs it.
pub(crate) fn command() -> Command {
    let binary = std::env::var("RWKV_EDGE_BINARY").unwrap_or(env!("CARGO_BIN_EXE_rwkv-edge").into());
    let mut command = match std::env::var("RWKV_EDGE_RUNNER") {
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("RWKV_EDGE_RUNNER names a program"));
            command.args(words).arg(&binary);
            command
        }
        Err(_) => Command::new(&binary),
    };
    command.stdin(Stdio::null()).env_remove("RWKV_EDGE_ISA");
    command
}

/// Whether an emulator runs the binary. An emulator catches signals of its own.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("RWKV_EDGE_RUNNER").is_some()
}

/// The shipped model, for tests that also run with a binary without a built-in model.
pub(crate) const FAIRY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fairy7-int8.rwkv");

pub(crate) fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line on standard error of a run that must fail with exit code 1.
pub(crate) fn failure(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("rwkv-edge: "), "{message}");
    message
}

/// A pseudo-terminal of 24 rows: the side of the test, and that of the program.
#[cfg(target_os = "linux")]
pub(crate) fn terminal(columns: u16) -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let terminal = openpt(flags).unwrap();
    unlockpt(&terminal).unwrap();
    let peer = File::from(ioctl_tiocgptpeer(&terminal, flags).unwrap());
    resize(&peer, columns);
    (File::from(terminal), peer)
}

/// Gives a terminal so many columns.
#[cfg(target_os = "linux")]
pub(crate) fn resize(terminal: &File, columns: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

pub(crate) fn tiny() -> (TempDir, String) {
    let (folder, path) = convert(&fixture("v4-tiny.pth"), &options(DType::Int8));
    (folder, path.to_str().unwrap().to_owned())
}

/// Runs the binary with `input` on standard input.
pub(crate) fn pipe(args: &[&str], input: &[u8]) -> Output {
    let mut child = command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

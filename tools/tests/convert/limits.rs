//! The program where the system gives little: threads that cannot start, small address spaces.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use crate::common::{Desk, fixture};

fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
    command.args(args).env_remove("RWKV_EDGE_ISA");
    command
}

/// No address space holds a stack of this size.
#[cfg(target_pointer_width = "64")]
#[test]
fn threads_that_cannot_start_are_done_without() {
    let desk = Desk::new();
    let convert = |output: &str, threads: &str| {
        let output = desk.path(output);
        let input = fixture("v6-tiny.pth");
        command([input.as_os_str(), output.as_ref(), "--threads".as_ref(), threads.as_ref()])
    };
    assert!(convert("expected", "1").output().unwrap().status.success());
    for threads in ["1", "2", "5"] {
        let output =
            convert("found", threads).env("RUST_MIN_STACK", (1u64 << 47).to_string()).output().unwrap();
        assert!(output.status.success(), "{threads}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(fs::read(desk.path("found")).unwrap() == fs::read(desk.path("expected")).unwrap());
        fs::remove_file(desk.path("found")).unwrap();
    }
}

//! The memory of the program: its plan, its limit, and how it loads a file.

use std::fs::{self, File};

use crate::program::{FAIRY, command, failure, is_emulated, run, stdout};

fn plan(args: &[&str]) -> serde_json::Value {
    let args = [&["plan", "--json"], args].concat();
    serde_json::from_str(&stdout(&run(&args))).unwrap()
}

fn resident(args: &[&str]) -> u64 {
    plan(args)["resident_bytes"].as_u64().unwrap()
}

#[test]
fn a_plan_adds_up_and_grows_with_what_is_asked_for() {
    let plan = plan(&[FAIRY, "--threads", "2"]);
    let buffers = plan["buffers"].as_array().unwrap();
    let sum: u64 = buffers.iter().map(|buffer| buffer["resident_bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["resident_bytes"], sum);
    assert!(plan["arena_bytes"].as_u64().unwrap() > 0);
    let base = sum;
    let state = plan["state_bytes"].as_u64().unwrap();
    for (options, least) in [
        (&["--sessions", "3"][..], 2 * state),
        (&["--prompt-chunk", "512"], 1 << 20),
        (&["--load", "copy"], 1 << 20),
    ] {
        let larger = resident(&[&[FAIRY, "--threads", "2"], options].concat());
        assert!(larger >= base + least, "{options:?}: {larger}");
    }
    assert!(resident(&[FAIRY, "--threads", "3"]) >= base + (64 << 10));
}

#[test]
fn the_plan_of_a_file_needs_none_of_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hole.rwkv");
    let bytes = fs::read(FAIRY).unwrap();
    // The sections before the weights take less than this.
    fs::write(&path, &bytes[..256 << 10]).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64).unwrap();
    let hole = path.to_str().unwrap();
    assert_eq!(plan(&[hole])["buffers"], plan(&[FAIRY])["buffers"]);
    assert!(failure(&["run", hole, "-p", "a", "-n", "1"]).contains("checksum"));
    let text = stdout(&run(&["plan", hole]));
    for part in ["weights", "worker stacks", "program", "resident", "computed, at 40 MB/s"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_model_beyond_the_limit_is_refused_with_an_option_that_makes_it_fit() {
    let needed = resident(&[FAIRY, "--threads", "1", "--prompt-chunk", "64"]);
    let less = resident(&[FAIRY, "--threads", "1", "--prompt-chunk", "8"]);
    let limit = less.to_string();
    let args = ["run", FAIRY, "-p", "Once", "-n", "3", "--threads", "1", "--memory-limit", &limit];
    let message = failure(&[&args[..], &["--prompt-chunk", "64"]].concat());
    assert!(message.contains("it fits with --prompt-chunk 8"), "{message}");
    assert!(message.contains(&format!("needs {:.1} MiB", needed as f64 / 1048576.0)), "{message}");
    stdout(&run(&[&args[..], &["--prompt-chunk", "8"]].concat()));
    for command in [
        &["bench", FAIRY, "-n", "1"][..],
        &["logits", FAIRY, "--tokens", "1"],
        &["eval", FAIRY, "--text", "/dev/null"],
        &["info", FAIRY, "--verify"],
        &["plan", FAIRY],
    ] {
        let message = failure(&[command, &["--memory-limit", "5M"]].concat());
        assert!(message.contains("limit of 5.0 MiB: weights 7.5"), "{message}");
        assert!(message.contains("`rwkv-quantize --type int4` is smaller"), "{message}");
    }
    // These read no weights.
    stdout(&run(&["info", FAIRY, "--memory-limit", "11M"]));
    stdout(&run(&["tokenize", FAIRY, "--memory-limit", "11M"]));
}

#[test]
fn a_text_that_does_not_fit_beside_the_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("long.txt");
    fs::write(&text, "a ".repeat(100_000)).unwrap();
    let needed = resident(&[FAIRY, "--threads", "1"]);
    let limit = (needed + 5 * 200_000 - 5).to_string();
    let args = ["run", FAIRY, "--threads", "1", "--memory-limit", &limit, "-f", text.to_str().unwrap()];
    let message = failure(&args);
    assert!(message.contains("199999 bytes"), "{message}");
}

#[test]
fn mapped_copied_and_locked_models_give_the_same_text() {
    let story = |options: &[&str]| {
        let args = ["run", FAIRY, "-p", "Once upon", "-n", "20", "--temperature", "0", "--threads", "2"];
        stdout(&run(&[&args[..], options].concat()))
    };
    let mapped = story(&["--load", "mmap"]);
    assert_eq!(story(&["--load", "copy"]), mapped);
    if !is_emulated() {
        let locked = run(&["run", FAIRY, "-p", "a", "-n", "1", "--mlock"]);
        match locked.status.success() {
            true => assert_eq!(story(&["--mlock"]), mapped),
            false => {
                let message = String::from_utf8(locked.stderr).unwrap();
                assert!(message.contains("ulimit -l") && message.lines().count() == 1, "{message}");
            }
        }
    }
}

#[test]
fn a_copied_model_runs_in_the_address_space_of_its_plan() {
    if is_emulated() {
        return;
    }
    let options = ["--load", "copy", "--threads", "2"];
    let plan = plan(&[&[FAIRY], &options[..]].concat());
    // A test's binary has the built-in model too. It is mapped, but nobody reads it.
    let built_in = if cfg!(feature = "builtin-model") { fs::metadata(FAIRY).unwrap().len() } else { 0 };
    let space = plan["address_space_bytes"].as_u64().unwrap() + built_in;
    let run_within = |bytes: u64| {
        let program = command();
        let script = "ulimit -v \"$1\" && shift && exec \"$@\"";
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script, "sh", &bytes.div_ceil(1024).to_string()]).arg(program.get_program());
        shell.args(["run", FAIRY, "-p", "Once upon a time", "-n", "60"]).args(options);
        shell.args(["--memory-limit", &plan["resident_bytes"].to_string()]).output().unwrap()
    };
    stdout(&run_within(space));
    assert!(!run_within(space - (8 << 20)).status.success());
}

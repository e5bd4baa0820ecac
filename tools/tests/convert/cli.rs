//! The binary as a user meets it: reports, progress, errors, exit codes, interruption.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{Desk, Model, Part, Parts, fixture};
use rwkv_edge::format::ElementType;
use rwkv_quantize::shapes::RELEASED;
use rwkv_quantize::source::SourceDType;
use sha2::{Digest, Sha256};

pub(crate) fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
    command.args(args).stdin(Stdio::null()).env_remove("RWKV_EDGE_ISA");
    command
}

pub(crate) fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    command(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
pub(crate) fn stdout(output: &Output) -> &str {
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The one line on standard error of a run that must fail with this code.
#[track_caller]
pub(crate) fn failure(output: &Output) -> &str {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.starts_with("rwkv-quantize: ") && message.ends_with('\n'), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message.trim_end()
}

#[test]
fn help_names_every_option_and_version_is_the_crates() {
    let output = run(["--help"]);
    let help = stdout(&output);
    for part in [
        "<INPUT>",
        "[OUTPUT]",
        "--type",
        "int8",
        "int4",
        "f16",
        "f32",
        "--codes",
        "table",
        "linear",
        "--naming",
        "blinkdl",
        "web-rwkv",
        "--variant",
        "othello-extended",
        "--tokenizer",
        "--allow-unused-ids",
        "--chat",
        "--start-token",
        "--sampling",
        "--state",
        "--state-only",
        "--for",
        "--group-norm-eps",
        "--synth <SHAPE>",
        "--ffn-sparsity",
        "--seed",
        "--threads",
        "--force",
        "--inspect",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    let output = run(["--version"]);
    assert_eq!(stdout(&output), concat!("rwkv-quantize ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn int4_has_codes_of_the_table_unless_linear_ones_are_asked_for() {
    let input = fixture("v7-tiny.pth");
    for (options, minor, wanted) in [
        (&["--type", "int4"][..], 1, ElementType::Int4n),
        (&["--type", "int4", "--codes", "table"], 1, ElementType::Int4n),
        (&["--type", "int4", "--codes", "linear"], 0, ElementType::Int4),
    ] {
        let desk = Desk::new();
        let output = command(options).arg(&input).arg(desk.output()).output().unwrap();
        assert!(output.status.success(), "{options:?}: {}", text(&output.stderr));
        let model = Model::open(&desk.output()).0;
        assert_eq!(model.format_version(), (1, minor), "{options:?}");
        for name in ["blocks.0.ffn.key.weight", "blocks.0.ffn.value.weight", "blocks.1.att.output.weight"] {
            assert_eq!(model.tensor(name).unwrap().dtype, wanted, "{options:?} {name}");
        }
        for name in ["head.weight", "head.residual"] {
            assert_eq!(model.tensor(name).unwrap().dtype, ElementType::Int4, "{options:?} {name}");
        }
    }
    let output = run(["--type", "int8", "--codes", "table", "x.pth", "x.rwkv"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--codes is for --type int4"), "{}", text(&output.stderr));
}

#[test]
fn a_conversion_reports_size_and_errors_and_shows_progress_in_plain_lines() {
    let desk = Desk::new();
    let output = run([
        fixture("v7-tiny.pth").as_os_str(),
        desk.output().as_os_str(),
        "--type".as_ref(),
        "int4".as_ref(),
        "--calib".as_ref(),
        "none".as_ref(),
    ]);
    let report = text(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{report}");
    assert!(!report.contains(['\r', '\u{1b}']), "{report:?}");
    assert!(report.starts_with("100 % "), "{report}");

    let model = Model::open(&desk.output()).0;
    let weights = model.tensors().iter().filter(|tensor| tensor.dtype.weight().is_some());
    // The second plane of the head holds the same weights as the first. Bounds are no weights.
    let is_extra = |name: &str| name == "head.residual" || name.ends_with(".bound");
    let (bytes, count) = weights.clone().fold((0, 0), |(bytes, count), tensor| {
        let weights = if is_extra(&tensor.name) { 0 } else { tensor.shape[0] * tensor.shape[1] };
        (bytes + tensor.len, count + weights)
    });
    let bits = 8.0 * bytes as f64 / count as f64;
    let size = fs::metadata(desk.output()).unwrap().len();
    let line = format!("{count} weights, {bits:.3} bits per weight, file size {size} bytes\n");
    assert!(report.contains(&line), "{line} is not in {report}");
    assert!(
        report.contains(&format!("relative error {:.5} over all weights\n", model.provenance().rel_error))
    );
    // The rounding error of the first plane does not count: the second plane has it.
    let mut worst: Vec<_> = weights
        .filter(|tensor| tensor.name != "head.weight")
        .map(|tensor| (tensor.rel_error, tensor.name.as_str()))
        .collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (error, name) in &worst[..5] {
        assert!(report.contains(&format!("  {error:.5}  {name}\n")), "{name} is not in {report}");
    }
    assert!(report.contains("peak RSS"), "{report}");
}

#[test]
fn inspection_shows_what_is_there_and_what_would_be_written_and_converts_nothing() {
    let desk = Desk::new();
    for (version, name, facts) in [
        ("v4", "RWKV-4", "3 layers, n_embd 64, n_att 64, n_ffn 96, n_vocab 256"),
        ("v5.1", "RWKV-5.1", "3 layers, n_embd 64, n_att 64, n_ffn 72, n_vocab 256"),
        ("v6", "RWKV-6", "2 layers, n_embd 64, n_att 64, n_ffn 96, n_vocab 256"),
        ("v7", "RWKV-7", "3 layers, n_embd 64, n_att 64, n_ffn 40, n_vocab 256"),
    ] {
        let parts = Parts::of(version);
        desk.put(&parts.torch());
        let input = desk.input();
        let output = run([input.as_os_str(), desk.output().as_os_str(), "--inspect".as_ref()]);
        let shown = stdout(&output);
        let first = format!("input.pth: pth, {} bytes\n{name}: {facts}", fs::metadata(&input).unwrap().len());
        assert!(shown.starts_with(&first), "{shown}");
        let digest: String = Sha256::digest(parts.torch()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(shown.contains(&format!("\nsha256 {digest}  input.pth\n")), "{shown}");
        let (source, written) = shown.split_once("\nwould write ").unwrap();
        for Part { name, shape, dtype, .. } in &parts.0 {
            let listed = |line: &str| {
                line.trim_start().starts_with(name) && line.ends_with(&format!("{shape:?} {dtype}"))
            };
            assert!(source.lines().any(listed), "{name} is not in {source}");
        }
        assert_eq!(desk.files(), ["input.pth"]);

        let model = desk.convert(&parts, &crate::common::options(rwkv_edge::kernels::DType::Int8)).0;
        assert!(written.starts_with(&format!("{} bytes:\n", model.file_len())), "{written}");
        assert_eq!(written.lines().count(), 1 + model.tensors().len());
        for (tensor, line) in model.tensors().iter().zip(written.lines().skip(1)) {
            let words: Vec<_> = line.split_whitespace().collect();
            assert_eq!(words[0], tensor.name);
            assert!(line.contains(&format!(" {} ", tensor.dtype)), "{line}");
            assert!(line.ends_with(&format!(" {} bytes", tensor.len)), "{line}");
        }
        fs::remove_file(desk.output()).unwrap();
    }
}

#[test]
fn inspection_needs_no_tokenizer_and_says_that_one_is_missing() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4");
    parts.get("emb.weight").reshape(&[1000, 64]);
    parts.get("head.weight").reshape(&[1000, 64]);
    desk.put(&parts.torch());
    let output = run([desk.input().as_os_str(), "--inspect".as_ref()]);
    let shown = stdout(&output);
    assert!(shown.contains("n_vocab 1000") && shown.contains("--tokenizer FILE"), "{shown}");
    assert!(shown.contains("  head.weight"), "{shown}");
    let output = run([desk.input(), desk.output()]);
    assert!(failure(&output).contains("--tokenizer FILE"));
    assert_eq!(desk.files(), ["input.pth"]);
}

#[test]
fn what_is_wrong_with_an_input_is_said_in_one_line() {
    let desk = Desk::new();
    fs::create_dir(desk.path("folder")).unwrap();
    fs::write(desk.path("empty"), "").unwrap();
    fs::write(desk.path("page.pth"), "<!DOCTYPE html><html></html>").unwrap();
    fs::write(desk.path("cut.pth"), &Parts::of("v4").torch()[..100_000]).unwrap();
    let files = desk.files();
    for name in ["missing.pth", "folder", "empty", "page.pth", "cut.pth"] {
        for rest in [desk.output(), "--inspect".into()] {
            let output = run([desk.path(name), rest]);
            assert!(failure(&output).contains(name), "{}", failure(&output));
        }
    }
    assert_eq!(desk.files(), files);
}

#[test]
fn a_tensor_that_cannot_be_converted_is_said_in_the_last_line() {
    let desk = Desk::new();
    let mut parts = Parts::of("v6");
    parts.get("ln_out.bias").set(9, f32::NAN);
    desk.put(&parts.torch());
    let output = run([desk.input(), desk.output()]);
    let wanted = format!(
        "rwkv-quantize: {}: tensor ln_out.bias: expected a finite number in element 9, found NaN",
        desk.input().display()
    );
    assert_eq!(failure(&output), wanted);
    assert_eq!(desk.files(), ["input.pth"]);
}

#[test]
fn the_input_is_not_overwritten() {
    let desk = Desk::new();
    let bytes = Parts::of("v4").torch();
    desk.put(&bytes);
    failure(&run([desk.input(), desk.input()]));
    assert!(fs::read(desk.input()).unwrap() == bytes);
    assert_eq!(desk.files(), ["input.pth"]);
}

#[test]
fn a_second_checkpoint_is_not_taken_for_the_output() {
    for desk in Desk::everywhere() {
        desk.put(&Parts::of("v4").torch());
        let second = desk.path("second.pth");
        fs::write(&second, Parts::of("v7").torch()).unwrap();
        for path in [second.clone(), desk.path("notes.safetensors")] {
            fs::write(&path, "PK or anything else").unwrap();
            let synth = path.extension().is_some_and(|extension| extension == "safetensors");
            let args = if synth { vec!["--synth".into(), "rwkv4-169m".into()] } else { vec![desk.input()] };
            let output = command(&args).arg(&path).output().unwrap();
            let message = failure(&output);
            assert!(message.starts_with(&format!("rwkv-quantize: {}: ", path.display())), "{message}");
            assert!(message.ends_with("; --force replaces it"), "{message}");
            assert_eq!(fs::read(&path).unwrap(), b"PK or anything else");
        }
        let output = command([desk.input(), second.clone()]).arg("--force").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        Model::open(&second);
        // A model may be replaced.
        assert!(run([desk.input(), second]).status.success());
        assert_eq!(desk.files(), ["input.pth", "notes.safetensors", "second.pth"]);
    }
}

#[cfg(unix)]
#[test]
fn streams_and_devices_are_no_outputs() {
    let desk = Desk::new();
    desk.put(&Parts::of("v4").torch());
    for (output, word) in [
        ("-", "must be a file"),
        ("/dev/stdout", "open file"),
        ("/dev/fd/1", "open file"),
        ("/proc/self/fd/1", "open file"),
        ("/dev/null", "regular file"),
    ] {
        for force in [None, Some("--force")] {
            let ran = command([desk.input().as_os_str(), output.as_ref()]).args(force).output().unwrap();
            assert!(failure(&ran).contains(word), "{output}: {}", failure(&ran));
            let synth = ["--synth", "rwkv4-169m", output];
            assert!(failure(&command(synth).args(force).output().unwrap()).contains(word), "{output}");
        }
    }
    // Also where standard output is a file.
    let file = fs::File::create(desk.path("redirected")).unwrap();
    let ran =
        command([desk.input(), "/dev/stdout".into()]).stdout(file).stderr(Stdio::piped()).output().unwrap();
    assert!(failure(&ran).contains("open file"), "{}", failure(&ran));
    assert_eq!(desk.files(), ["input.pth", "redirected"]);
    assert!(fs::read(desk.path("redirected")).unwrap().is_empty());
}

#[test]
fn a_wrong_instruction_set_is_refused_before_the_work() {
    let desk = Desk::new();
    desk.put(&Parts::of("v4").torch());
    for (isa, word) in [("avx9", "unknown instruction set"), (other_isa(), "does not have")] {
        let output = command([desk.input(), desk.output()]).env("RWKV_EDGE_ISA", isa).output().unwrap();
        // One line: there was no progress.
        assert!(failure(&output).contains(word), "{}", failure(&output));
        assert_eq!(desk.files(), ["input.pth"]);
    }
}

/// An instruction set of another architecture.
fn other_isa() -> &'static str {
    if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" }
}

#[test]
fn files_that_are_named_are_looked_at_before_the_work() {
    let desk = Desk::new();
    desk.put(&Parts::of("v7").torch());
    fs::create_dir(desk.path("folder")).unwrap();
    let (input, output) = (desk.input(), desk.output());
    for option in ["--tokenizer", "--state"] {
        for value in ["folder", "none"] {
            failure(&command([&input, &output]).arg(option).arg(desk.path(value)).output().unwrap());
        }
    }
    for output in ["none/m.rwkv", "folder", "folder/", "input.pth/m.rwkv", "none/"] {
        failure(&run([desk.input(), desk.path(output)]));
        failure(&command(["--synth", "rwkv4-169m"]).arg(desk.path(output)).output().unwrap());
    }
    assert_eq!(desk.files(), ["folder", "input.pth"]);
}

/// A run of `--synth` under a limit of the shell.
#[cfg(target_os = "linux")]
fn limited(limit: &str, shape: &str, output: &Path) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
    shell.arg(env!("CARGO_BIN_EXE_rwkv-quantize")).args(["--synth", shape]).arg(output).stdin(Stdio::null());
    shell.env_remove("RWKV_EDGE_ISA").output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn missing_room_is_told_before_the_work_with_what_is_needed_and_available() {
    for desk in Desk::everywhere() {
        for name in ["m.rwkv", "c.safetensors"] {
            let path = desk.path(name);
            // In units of 512 or 1024 bytes.
            let ran = limited("-f 1000", "rwkv4-169m", &path);
            let message = text(&ran.stderr);
            let last = message.lines().last().unwrap();
            assert!(!message.contains('%') && ran.status.code() == Some(1), "{message}");
            assert!(last.starts_with(&format!("rwkv-quantize: {}: ", path.display())), "{message}");
            for part in [" bytes are needed, ", " are available within the limit"] {
                assert!(last.contains(part), "{message}");
            }
        }
        let large = desk.path("m.rwkv");
        let ran = limited("-v 1000000", "rwkv7-1.5b", &large);
        let message = failure(&ran);
        assert!(message.contains("m.rwkv: ") && message.contains("address space"), "{message}");
        assert!(desk.files().is_empty());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_replaced_is_refused_before_the_work() {
    let desk = Desk::new();
    desk.put(&Parts::of("v4").torch());
    assert!(run([desk.input(), desk.output()]).status.success());
    // Only the superuser may do that, and not on every file system.
    let attribute = |change: &str| {
        let program = Command::new("chattr").arg(change).arg(desk.output()).stderr(Stdio::null()).status();
        program.is_ok_and(|status| status.success())
    };
    if attribute("+i") {
        let output = run([desk.input(), desk.output()]);
        assert!(attribute("-i"));
        assert!(failure(&output).contains("an attribute that forbids to replace it"), "{}", failure(&output));
        assert_eq!(desk.files(), ["input.pth", "output.rwkv"]);
    }
}

/// A user who may not do everything, if the tests run as one who may.
#[cfg(target_os = "linux")]
fn as_somebody(command: &mut Command, desk: &Desk) {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65534;
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        for path in [desk.path("."), desk.input()] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_may_not_be_read_gets_a_complete_file_and_a_warning() {
    use std::os::unix::fs::PermissionsExt;

    for desk in Desk::everywhere() {
        desk.put(&Parts::of("v4").torch());
        // A place where anybody may run it. Another process copies the program: a test beside this
        // one could start a child while the file is open here, and a file that is open for writing
        // does not run.
        let program = desk.path("program");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_rwkv-quantize")).arg(&program).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(&program);
        command.args([desk.input(), desk.output()]).stdin(Stdio::null()).env_remove("RWKV_EDGE_ISA");
        as_somebody(&mut command, &desk);
        let set_mode = |mode| fs::set_permissions(desk.path("."), fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o300);
        let ran = command.output().unwrap();
        set_mode(0o700);
        let said = text(&ran.stderr);
        assert!(ran.status.success(), "{said}");
        let warning = format!("rwkv-quantize: warning: {}: Permission denied", desk.output().display());
        assert!(said.lines().any(|line| line.starts_with(&warning)), "{said}");
        Model::open(&desk.output());
        assert_eq!(desk.files(), ["input.pth", "output.rwkv", "program"]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_the_file_behind_it_is_replaced_with_its_mode() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    for desk in Desk::everywhere() {
        desk.put(&Parts::of("v4").torch());
        let file = desk.path("file.rwkv");
        symlink("file.rwkv", desk.output()).unwrap();
        assert!(run([desk.input(), desk.output()]).status.success());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(run([desk.input(), desk.output()]).status.success());
        Model::open(&file);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(desk.output().is_symlink());
        assert_eq!(desk.files(), ["file.rwkv", "input.pth", "output.rwkv"]);
    }
}

#[test]
fn options_that_do_not_go_with_the_model_exit_with_1() {
    let desk = Desk::new();
    let fixture = fixture("v7-tiny.pth");
    for (option, value, part) in [
        ("--start-token", "256", "start_tokens"),
        ("--sampling", "heat=1", "heat"),
        ("--sampling", "top-p=0.5,temperature=-1", "temperature"),
        ("--group-norm-eps", "2", "group_norm_eps"),
        ("--state", "no such file", "no such file"),
        ("--tokenizer", "no such file", "no such file"),
    ] {
        let output = run([fixture.as_os_str(), desk.output().as_os_str(), option.as_ref(), value.as_ref()]);
        assert!(failure(&output).contains(part), "{}", failure(&output));
    }
    assert!(desk.files().is_empty());
}

#[test]
fn wrong_usage_exits_with_2() {
    let desk = Desk::new();
    let (input, target) = (fixture("v4-tiny.pth"), desk.output());
    let (input, target) = (input.to_str().unwrap(), target.to_str().unwrap());
    for args in [
        &[][..],
        &[input, target, "another"],
        &[input, target, "--type", "int5"],
        &[input, target, "--threads", "0"],
        &[input, target, "--threads", "many"],
        &[input, target, "--chat", "nobody"],
        &[input, target, "--start-token", "-1"],
        &[input, target, "--group-norm-eps", "small"],
        &[input, target, "--naming", "fla"],
        &[input, target, "--variant", "sudoku"],
        &[input, "--state-only", "--for", target],
        &[input, target, "--unknown"],
        &["--inspect"],
        &["--synth", "rwkv7-0.1b"],
        &["--synth", "rwkv7-0.1b", input, target],
        &["--synth", "rwkv7-0.1b", "--seed", "-1", target],
        &["--synth", "rwkv7-0.1b", "--ffn-sparsity", "most", target],
        &["--synth", "rwkv7-0.1b", "--type", "int4", "x.safetensors"],
        &["--synth", "rwkv7-0.1b", "--chat", "none", "x.SafeTensors"],
        &["--seed", "1", input, target],
        &["--ffn-sparsity", "0.5", input, target],
        &["--outlier", "2700", input, target],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && text(&output.stderr).starts_with("error: "), "{args:?}");
    }
    assert!(desk.files().is_empty());
}

#[test]
fn a_shape_that_is_not_known_gets_the_list_of_those_that_are() {
    let output = run(["--synth", "rwkv7-1.6b", "x.rwkv"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for shape in RELEASED {
        assert!(message.contains(shape.name), "{} is not in {message}", shape.name);
    }
}

#[test]
fn a_synthetic_checkpoint_can_be_inspected() {
    let output = run(["--synth", "rwkv7-13.3b", "--type", "int4", "--seed", "3", "--inspect"]);
    let shown = stdout(&output);
    let first = "synth rwkv7-13.3b seed 3 ffn-sparsity 0.5: synthetic, ";
    assert!(shown.starts_with(first) && shown.contains("RWKV-7: 61 layers, n_embd 4096"), "{shown}");
    assert!(shown.contains("would write ") && !shown.contains("tokenizer, but"), "{shown}");
}

#[test]
fn a_released_shape_becomes_a_model_or_the_checkpoint_of_the_same_model() {
    let desk = Desk::new();
    let (model, checkpoint) = (desk.output(), desk.path("checkpoint.safetensors"));
    let synth = |output: &Path, options: &[&str]| {
        let args = ["--synth", "rwkv4-169m", "--seed", "5", "--ffn-sparsity", "0.9"];
        let output = command(args).args(options).arg(output).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
        text(&output.stderr).to_owned()
    };
    let said = synth(&model, &["--type", "f16"]);
    assert!(said.starts_with("no built-in vocabulary has 50277 tokens"), "{said}");
    assert!(synth(&checkpoint, &[]).contains("synth rwkv4-169m seed 5 ffn-sparsity 0.9: "));
    let model = Model::open(&model).0;
    let provenance = model.provenance();
    assert_eq!(provenance.source_name, "synth rwkv4-169m seed 5 ffn-sparsity 0.9");
    let bytes = fs::read(&checkpoint).unwrap();
    assert_eq!(provenance.source_bytes, bytes.len() as u64);
    assert!(provenance.source_sha256 == *Sha256::digest(&bytes));
    assert_eq!(desk.files(), ["checkpoint.safetensors", "output.rwkv"]);
}

#[test]
fn a_conversion_does_not_depend_on_somebody_reading_its_progress() {
    let desk = Desk::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command([fixture("v4-tiny.pth"), desk.output()]).stderr(writer).status().unwrap();
    assert!(status.success(), "{status}");
    Model::open(&desk.output());
}

#[test]
fn a_listing_that_nobody_reads_to_the_end_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command([fixture("v4-tiny.pth").as_os_str(), "--inspect".as_ref()])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

/// An RWKV-4 model of one layer whose conversion takes a while.
#[cfg(unix)]
fn large() -> Parts {
    const WIDTH: usize = 1024;
    const INNER: usize = 8 * WIDTH;
    let mut parts = Parts::of("v4").without(|name| name.contains(".1.") || name.contains(".2."));
    for part in &mut parts.0 {
        let shape: Vec<_> = part
            .shape
            .iter()
            .map(|&n| match n {
                64 => WIDTH,
                96 => INNER,
                n => n,
            })
            .collect();
        let values = part.bytes.clone();
        part.reshape(&shape);
        for (byte, &value) in part.bytes.iter_mut().zip(values.iter().cycle()) {
            *byte = value;
        }
        assert_eq!(part.dtype, SourceDType::BF16);
    }
    parts
}

/// Waits until a process has a file open for writing in the folder of `desk`, with a name or
/// without.
#[cfg(target_os = "linux")]
fn wait_until_it_writes(desk: &Desk, pid: u32) {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    let folder = fs::canonicalize(desk.path(".")).unwrap();
    let writes = |entry: fs::DirEntry| {
        let open = fs::read_link(entry.path()).unwrap_or_default();
        open.parent() == Some(&folder) && open != folder.join("input.pth")
    };
    let started = Instant::now();
    while !fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().any(writes) {
        assert!(started.elapsed() < Duration::from_secs(60), "no output is written");
        sleep(Duration::from_millis(1));
    }
}

/// Signals that end a process by default.
#[cfg(target_os = "linux")]
const SIGNALS: [(&str, i32); 11] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("XCPU", 24),
    ("VTALRM", 26),
    ("PROF", 27),
    ("IO", 29),
];

/// Whether a field of `/proc/PID/status` has the bit of a signal.
#[cfg(target_os = "linux")]
fn has_signal(pid: u32, field: &str, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (signal - 1) != 0
}

/// Starts a conversion and sends it a signal as soon as the one with the number `caught` is caught.
#[cfg(target_os = "linux")]
fn interrupt(mut command: Command, name: &str, caught: i32) -> Output {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !has_signal(child.id(), "SigCgt:", caught) {
        assert!(started.elapsed() < Duration::from_secs(60), "{name} is not caught");
        sleep(Duration::from_millis(1));
    }
    let killed = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    child.wait_with_output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn signals_end_a_conversion_which_dies_by_them_and_leaves_nothing_behind() {
    use std::os::unix::process::ExitStatusExt;

    // A script's job in the background ignores some.
    let reach = |&(_, number): &(&str, i32)| !has_signal(std::process::id(), "SigIgn:", number);
    for desk in Desk::everywhere() {
        desk.put(&large().torch());
        for (name, number) in SIGNALS.into_iter().filter(reach) {
            let args = [desk.input(), desk.output(), "--type=int4".into(), "--threads=1".into()];
            let output = interrupt(command(args), name, number);
            assert_eq!(text(&output.stderr), "rwkv-quantize: interrupted\n", "{name}");
            let status = output.status;
            // The default of IO is not known to the crate that restores defaults.
            let died = status.signal() == Some(number) || name == "IO" && status.code() == Some(128 + number);
            assert!(died, "{name}: {status}");
            assert_eq!(desk.files(), ["input.pth"], "{name}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_conversion_leaves_the_old_file_and_nothing_else() {
    for desk in Desk::everywhere() {
        desk.put(&large().torch());
        let old = b"\x89RWKV\r\n\x1aold";
        for signal in ["KILL", "QUIT"] {
            fs::write(desk.output(), old).unwrap();
            let args = [desk.input(), desk.output(), "--type=int4".into(), "--threads=1".into()];
            let mut child = command(args).stderr(Stdio::null()).spawn().unwrap();
            wait_until_it_writes(&desk, child.id());
            let killed = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
            assert!(killed.unwrap().success());
            assert!(!child.wait().unwrap().success(), "{signal}");
            assert_eq!(desk.files(), ["input.pth", "output.rwkv"], "{signal}");
            assert_eq!(fs::read(desk.output()).unwrap(), old, "{signal}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_the_parent_ignores_does_not_end_a_conversion() {
    let desk = Desk::new();
    desk.put(&large().torch());
    let convert = command([desk.input(), desk.output(), "--type=int4".into()]);
    let mut script = Command::new("sh");
    script.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(convert.get_program()).args(convert.get_args());
    let output = interrupt(script, "HUP", 15);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(desk.files(), ["input.pth", "output.rwkv"]);
}

#[cfg(unix)]
#[test]
fn progress_of_a_long_conversion_is_one_line_per_step() {
    let desk = Desk::new();
    desk.put(&large().torch());
    let args = [desk.input(), desk.output(), "--type=int8".into(), "--threads=2".into()];
    let output = run(args);
    let lines: Vec<_> = text(&output.stderr).lines().take_while(|line| line.contains(" % ")).collect();
    let percents: Vec<u32> =
        lines.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(percents.is_sorted() && percents.iter().all(|percent| percent % 10 == 0), "{lines:?}");
    assert_eq!(percents.last(), Some(&100));
    assert!(output.status.success());
}

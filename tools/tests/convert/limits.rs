//! The program where the system gives little: threads that cannot start, small address spaces.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Desk, fixture};

fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
    command.args(args).env_remove("RWKV_EDGE_ISA");
    command
}

/// A shell puts names of files in the place of `*.pth`.
#[test]
fn arguments_that_are_too_many_do_not_command_the_terminal() {
    let output = command(["a.pth", "b.pth", "c\u{1b}[2J.pth"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.starts_with("error: unexpected argument 'c\\u{1b}[2J.pth' found\n"), "{message}");
    assert!(message.contains("\nUsage: rwkv-quantize [OPTIONS] <INPUT> [OUTPUT]\n"), "{message}");
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

/// The one line that the program must fail with, in an address space of 1 GB.
#[cfg(target_os = "linux")]
#[track_caller]
fn failure(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 1048576; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_rwkv-quantize")]);
    let started = std::time::Instant::now();
    let output = command.args(args).env_remove("RWKV_EDGE_ISA").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(started.elapsed().as_secs() < 60, "{message}");
    message.trim_end().to_owned()
}

/// Fails unless the program refuses an input of these bytes for this reason.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_refused(bytes: &[u8], reason: &str) {
    let desk = Desk::new();
    desk.put(bytes);
    let message = failure([desk.input(), desk.output()]);
    assert!(message.contains(reason), "{reason:?} is not in {message:?}");
    assert_eq!(desk.files(), ["input.pth"]);
}

#[cfg(target_os = "linux")]
#[test]
fn inputs_that_would_fill_the_memory_are_refused() {
    use rwkv_quantize::source::SourceDType;
    use rwkv_quantize::source::torch_writer::{self, TensorSpec, ZipWriter};

    // Many pairs that share one key, beside a tensor and without one.
    let tensor = TensorSpec { name: "emb.weight".into(), shape: vec![4], dtype: SourceDType::F32 };
    for (tensors, len, batches, reason) in [
        (vec![tensor.clone()], 1000, 67, "more than 131072 entries"),
        (vec![], 1000, 67, "more than 131072 entries"),
        (vec![tensor], 1 << 20, 4, "a key is longer"),
        (vec![], 1 << 20, 4, "holds no tensors"),
    ] {
        let mut pickle = torch_writer::pickle(&tensors);
        pickle.pop();
        pickle.extend(b"(X");
        pickle.extend((len as u32).to_le_bytes());
        pickle.resize(pickle.len() + len, b'a');
        pickle.extend(b"q\0Nu");
        for _ in 0..batches {
            pickle.push(b'(');
            (0..30_000).for_each(|_| pickle.extend(b"h\0N"));
            pickle.push(b'u');
        }
        pickle.push(b'.');
        let mut zip = ZipWriter::new(Vec::new());
        zip.entry("archive/data.pkl", &pickle).unwrap();
        zip.entry("archive/data/0", &[0; 16]).unwrap();
        assert_refused(&zip.finish().unwrap(), reason);
    }

    let safetensors = |header: String| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let shape =
        format!(r#"{{"a":{{"dtype":"F16","shape":[{}1],"data_offsets":[0,0]}}}}"#, "1,".repeat(8 << 20));
    assert_refused(&safetensors(shape), "a list of at most 8 sizes");
    let tensor = r#""a":{"dtype":"F16","shape":[],"data_offsets":[0,0]},"#.repeat(1 << 18);
    assert_refused(&safetensors(format!("{{{tensor}}}")), "more than 131072 tensors");
    let name = "a".repeat(4 << 20);
    assert_refused(&safetensors(format!(r#"{{"{name}":0}}"#)), "a tensor name of 4194304 bytes");

    let entries: String = (0..300_000).map(|i| format!(r#""{i:x}":"","#)).collect();
    assert_refused(format!(r#"{{"weight_map":{{{entries}"a":""}}}}"#).as_bytes(), "more than 131072 entries");

    let record = [&[0, 1, 0].map(i32::to_le_bytes).concat(), b"a\0\0\0\0".as_slice()].concat();
    let header = [101, 4, 4, 1, 0].map(i32::to_le_bytes).concat();
    assert_refused(
        &[b"fmgg", header.as_slice(), &record.repeat(200_000)].concat(),
        "more than 131072 entries",
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_zip_directory_without_bound_is_refused() {
    let mut zip = rwkv_quantize::source::torch_writer::ZipWriter::new(Vec::new());
    zip.entry("archive/data.pkl", b"\x80\x02}.").unwrap();
    let mut bytes = zip.finish().unwrap();
    let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let end = bytes.split_off(bytes.len() - 22);
    let entry = bytes[directory..].to_vec();
    // Many names that differ, in a directory of zip64.
    for name in 0..400_000u32 {
        let mut entry = entry.clone();
        entry[46..50].copy_from_slice(&name.to_le_bytes());
        bytes.extend(entry);
    }
    let size = (bytes.len() - directory) as u64;
    let at = bytes.len() as u64;
    let counts = [400_001, 400_001, size, directory as u64].map(u64::to_le_bytes).concat();
    bytes.extend(
        [b"PK\x06\x06", 44u64.to_le_bytes().as_slice(), b"\x2d\0\x2d\0\0\0\0\0\0\0\0\0", &counts].concat(),
    );
    bytes.extend([b"PK\x06\x07\0\0\0\0", at.to_le_bytes().as_slice(), b"\x01\0\0\0"].concat());
    bytes.extend([&end[..8], &[0xff; 12], &[0, 0]].concat());
    assert_refused(&bytes, "no directory in 16777216 bytes");
}

/// A sparse safetensors file of an RWKV-7 of one layer and 64 channels, apart from its width.
#[cfg(target_os = "linux")]
fn sparse_v7(path: &Path, width: usize, decay_rank: usize) {
    let (n, w, r) = (64, width, decay_rank);
    let mut tensors = vec![("emb.weight", vec![256, w]), ("head.weight", vec![256, w])];
    for name in
        ["ln_out.weight", "ln_out.bias", "blocks.0.ln0.weight", "blocks.0.ln0.bias", "blocks.0.ln1.weight"]
    {
        tensors.push((name, vec![w]));
    }
    for name in ["blocks.0.ln1.bias", "blocks.0.ln2.weight", "blocks.0.ln2.bias", "blocks.0.ffn.x_k"] {
        tensors.push((name, vec![w]));
    }
    for name in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"] {
        tensors.push((name, vec![w]));
    }
    for name in ["w0", "a0", "k_k", "k_a", "ln_x.weight", "ln_x.bias"] {
        tensors.push((name, vec![n]));
    }
    for name in ["receptance.weight", "key.weight", "value.weight"] {
        tensors.push((name, vec![n, w]));
    }
    tensors.extend([("w1", vec![w, r]), ("a1", vec![w, 8]), ("g1", vec![w, 8])]);
    tensors.extend([("w2", vec![r, n]), ("a2", vec![8, n]), ("g2", vec![8, n])]);
    tensors.extend([("r_k", vec![1, n]), ("output.weight", vec![w, n])]);
    tensors.extend([("blocks.0.ffn.key.weight", vec![n, w]), ("blocks.0.ffn.value.weight", vec![w, n])]);
    let (mut end, mut entries) = (0, Vec::new());
    for (name, shape) in tensors {
        let is_whole = ["emb.", "head.", "ln_out.", "blocks."].iter().any(|start| name.starts_with(start));
        let layer = if is_whole { "" } else { "blocks.0.att." };
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let range = [start, end];
        entries
            .push(format!(r#""{layer}{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":{range:?}}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn low_rank_matrices_that_would_fill_the_memory_are_refused() {
    let desk = Desk::new();
    for (width, rank, reason) in [
        (65_536, 65_536, "decay_rank is 65536; it must be in 1..=8192"),
        (65_536, 8192, "tensor blocks.0.att.w1: expected at most 33554432 values in a low-rank matrix"),
    ] {
        sparse_v7(&desk.input(), width, rank);
        let message = failure([desk.input(), desk.output()]);
        assert!(message.contains(reason), "{message}");
        assert_eq!(desk.files(), ["input.pth"]);
    }
    sparse_v7(&desk.input(), 128, 64);
    assert!(command([desk.input(), desk.output()]).output().unwrap().status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn vocabularies_and_inputs_that_are_no_files_are_refused_at_once() {
    let desk = Desk::new();
    let pipe = desk.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let input = fixture("v4-tiny.pth");
    for path in ["/dev/zero".as_ref(), "/dev/stdin".as_ref(), pipe.as_path(), desk.path(".").as_path()] {
        let output = desk.output();
        let vocabulary = [input.as_ref(), output.as_os_str(), "--tokenizer".as_ref(), path.as_os_str()];
        let checkpoint = [path.as_os_str(), output.as_os_str()];
        let state =
            [fixture("v7-tiny.pth").into_os_string(), output.clone().into(), "--state".into(), path.into()];
        for message in [failure(vocabulary), failure(checkpoint), failure(&state)] {
            assert!(
                message.contains(": this is a ") || message.contains("not a checkpoint: this is a "),
                "{message}"
            );
        }
        assert_eq!(desk.files(), ["pipe"]);
    }
}

//! The program as a user sees it: output, errors, exit codes.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use crate::common::{convert, fixture, options};
use crate::program::{FAIRY, command, failure, pipe, run, stdout, tiny};
use rwkv_edge::kernels::DType;
use rwkv_quantize::calibration::CalibrationText;
use rwkv_quantize::convert::Options;

#[test]
fn run_without_a_model_tells_a_story_and_a_summary() {
    if std::env::var_os("RWKV_EDGE_BINARY").is_some() {
        eprintln!("skipped: what ships for other machines has no built-in model");
        return;
    }
    let output = run(&["run", "--prompt", "Once upon a time", "-n", "40", "--temperature", "0"]);
    let text = stdout(&output);
    assert!(text.split_whitespace().count() >= 20, "{text}");
    let summary = String::from_utf8(output.stderr).unwrap();
    for part in ["prompt:", "generation: 40 tokens", "tokens/s", "built-in", "RWKV-7", "threads:", "peak RSS"]
    {
        assert!(summary.contains(part), "{part:?} missing in {summary}");
    }
}

#[test]
fn greedy_text_is_the_same_on_every_isa_and_thread_count() {
    let story = |isa: &str, threads: &str| {
        let args = [
            "run",
            FAIRY,
            "-p",
            "The fox",
            "-n",
            "12",
            "--temperature",
            "0",
            "--isa",
            isa,
            "--threads",
            threads,
        ];
        stdout(&run(&args))
    };
    let expected = story("scalar", "1");
    assert!(!expected.is_empty());
    let info = stdout(&run(&["info", FAIRY]));
    let (_, levels) = info.split_once("this CPU has: ").unwrap();
    let (levels, _) = levels.split_once(')').unwrap();
    for isa in levels.split(", ") {
        assert_eq!(story(isa, "2"), expected, "{isa}");
    }
}

#[test]
fn a_seed_repeats_a_text_and_another_gives_another() {
    let story = |seed| stdout(&run(&["run", FAIRY, "-p", "A king", "-n", "30", "--seed", seed]));
    assert_eq!(story("1"), story("1"));
    assert_ne!(story("1"), story("2"));
}

#[test]
fn the_prompt_may_come_from_a_file_or_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "The old woman").unwrap();
    let rest = ["-n", "10", "--temperature", "0"];
    let expected = stdout(&run(&[&["run", FAIRY, "-p", "The old woman"], &rest[..]].concat()));
    assert_eq!(stdout(&run(&[&["run", FAIRY, "-f", file.to_str().unwrap()], &rest[..]].concat())), expected);

    assert_eq!(stdout(&pipe(&[&["run", FAIRY], &rest[..]].concat(), b"The old woman")), expected);
}

#[test]
fn a_stop_text_ends_the_output_before_it() {
    let args = ["run", FAIRY, "-p", "Once upon a time", "-n", "60", "--temperature", "0"];
    let whole = stdout(&run(&args));
    let stop = whole.get(20..26).unwrap();
    let stopped = stdout(&run(&[&args[..], &["--stop", stop]].concat()));
    assert_eq!(stopped, whole[..whole.find(stop).unwrap()]);
}

#[test]
fn logits_as_text_and_binary_are_the_same_numbers() {
    let (_folder, model) = tiny();
    let text = stdout(&run(&["logits", &model, "--tokens", "1,2,3"]));
    let binary = run(&["logits", &model, "--tokens", "1,2,3", "--binary"]).stdout;
    let from_text: Vec<f32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let from_binary: Vec<f32> = binary.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(from_text.len(), 256);
    assert_eq!(from_text, from_binary);
}

#[test]
fn chunks_of_every_length_give_the_same_logits() {
    let (_folder, model) = tiny();
    let tokens: Vec<_> = (0..130).map(|i| (i * 89 % 256).to_string()).collect();
    let tokens = tokens.join(",");
    let logits = |options: &[&str]| {
        let output = run(&[&["logits", &model, "--tokens", &tokens, "--binary"], options].concat());
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let expected = logits(&[]);
    assert_eq!(expected.len(), 4 * 256);
    for chunk in ["1", "7", "64", "4096"] {
        assert!(logits(&["--prompt-chunk", chunk]) == expected, "chunks of {chunk}");
    }
}

#[test]
fn logits_of_all_tokens_are_those_after_each_prefix() {
    let (_folder, model) = tiny();
    let tokens: Vec<_> = (0..20).map(|i| (i * 89 % 256).to_string()).collect();
    let logits = |tokens: &[String], options: &[&str]| {
        let output = run(&[&["logits", &model, "--tokens", &tokens.join(",")], options].concat());
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let binary: Vec<_> = (1..=20).flat_map(|prefix| logits(&tokens[..prefix], &["--binary"])).collect();
    let text: String = (1..=20)
        .map(|prefix| String::from_utf8(logits(&tokens[..prefix], &[])).unwrap())
        .map(|lines| lines.trim_end().replace('\n', " ") + "\n")
        .collect();
    for chunk in ["1", "7", "64"] {
        let options = ["--all", "--prompt-chunk", chunk];
        assert!(logits(&tokens, &[&options[..], &["--binary"]].concat()) == binary, "chunks of {chunk}");
        assert_eq!(String::from_utf8(logits(&tokens, &options)).unwrap(), text, "chunks of {chunk}");
    }
}

#[test]
fn an_unknown_token_is_refused_before_any_logits() {
    assert!(failure(&["logits", FAIRY, "--all", "--tokens", "1,2,5000"]).contains("5000"));
}

#[test]
fn logits_that_nobody_reads_are_no_failure() {
    let (_folder, model) = tiny();
    let tokens = vec!["1"; 2000].join(",");
    let mut child = command()
        .args(["logits", &model, "--all", "--tokens", &tokens])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn tokenize_prints_ids_and_decodes_them_again() {
    let text = b"Once upon a time, \xf0\x9f\x90\xba \xff\n";
    let ids = stdout(&pipe(&["tokenize", FAIRY], text));
    assert!(ids.lines().count() > 5);
    assert_eq!(pipe(&["tokenize", FAIRY, "--decode"], ids.as_bytes()).stdout, text);
    let listed = ids.trim().replace('\n', ",");
    assert_eq!(pipe(&["tokenize", FAIRY, "--decode"], format!("{listed} ,\n").as_bytes()).stdout, text);
    for (ids, part) in [("1 2 five", "five"), ("1,-2", "-2"), ("4096", "outside 0..4096")] {
        let refused = pipe(&["tokenize", FAIRY, "--decode"], ids.as_bytes());
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(part), "{refused:?}");
    }
}

#[test]
fn ids_that_the_tokenizer_does_not_have_decode_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = folder.path().join("vocab.txt");
    let lines: String = (1..250).map(|id| format!("{id} b'\\x{id:02x}' 1\n")).collect();
    fs::write(&vocabulary, lines).unwrap();
    let few = Options { tokenizer: Some(vocabulary), ..options(DType::Int8) };
    let (_folder, model) = convert(&fixture("v4-tiny.pth"), &few);
    let decode = |ids: &str| pipe(&["tokenize", model.to_str().unwrap(), "--decode"], ids.as_bytes());
    assert_eq!(decode("0, 250 65,255,66").stdout, b"AB");
    assert_eq!(decode("256").status.code(), Some(1));
}

#[test]
fn info_shows_the_header_the_plan_and_the_kernels_and_verifies() {
    let (_folder, model) = tiny();
    let text = stdout(&run(&["info", &model, "--tensors", "--verify"]));
    for part in [
        "RWKV-4",
        "v4-tiny.pth",
        "SHA-256",
        "MiB at most; `rwkv-edge plan`",
        "kernels",
        "self-test         ok",
    ] {
        assert!(text.contains(part), "{part:?} missing in {text}");
    }
    assert!(text.contains("blocks.2.ffn.value.weight"), "{text}");
}

#[test]
fn info_tells_what_activations_were_measured_on() {
    let with = |calibration| Options { calibration, ..options(DType::Int4n) };
    for (calibration, told) in [
        (CalibrationText::None, "calibration       none;"),
        (CalibrationText::Own, "calibration       self, 2048 tokens, SHA-256 "),
    ] {
        let (_folder, model) = convert(&fixture("v7-tiny.pth"), &with(calibration));
        let info = stdout(&run(&["info", model.to_str().unwrap()]));
        assert!(info.contains(told), "{told:?} missing in {info}");
    }
}

#[test]
fn bench_prints_speed_and_bandwidth() {
    let (_folder, model) = tiny();
    let text = stdout(&run(&["bench", &model, "-n", "4", "--threads", "1,2", "--profile"]));
    for part in [
        "threads           2",
        "prompt   ",
        "GMAC/s",
        "share of peak",
        "decode",
        "p99",
        "read per token",
        "share of limit",
        "time_mix in",
    ] {
        assert!(text.contains(part), "{part:?} missing in {text}");
    }
    assert!(!text.contains("texts") && !text.contains("depth"), "{text}");
    let text =
        stdout(&run(&["bench", &model, "-n", "4", "--threads", "1", "--sessions", "3", "--depth", "9"]));
    for part in ["the sum over 3 texts", "depth             9 tokens"] {
        assert!(text.contains(part), "{part:?} missing in {text}");
    }
}

#[test]
fn bench_prints_json() {
    let (_folder, model) = tiny();
    let text = stdout(&run(&["bench", &model, "-n", "4", "--threads", "1,2", "--json", "--profile"]));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["sessions"], &json["depth"]), (&1.into(), &0.into()));
    for (run, threads) in json["runs"].as_array().unwrap().iter().zip([1, 2]) {
        assert_eq!(run["threads"], threads);
        for key in [
            "prompt_chunk",
            "prompt_tokens_per_second",
            "multiply_accumulate_peak_per_second",
            "prompt_share_of_peak",
            "decode_tokens_per_second",
            "bytes_per_token",
            "read_bandwidth_bytes_per_second",
            "share_of_limit",
        ] {
            assert!(run[key].as_f64().unwrap() > 0.0, "{key} in {text}");
        }
        let latency = |key: &str| run["latency_ms"][key].as_f64().unwrap();
        assert!(0.0 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("max"));
        assert!(run["profile_us_per_token"]["head"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn bench_cold_measures_the_first_token_of_a_file() {
    let (_folder, model) = tiny();
    let args = ["bench", &model, "-n", "2", "--prompt", "2", "--threads", "1", "--cold"];
    let text = stdout(&run(&args));
    assert!(text.contains("first token") && text.contains("nothing of the file cached"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&run(&[&args[..], &["--json"]].concat()))).unwrap();
    for key in ["cold", "warm"] {
        assert!(json["first_token_seconds"][key].as_f64().unwrap() > 0.0, "{json}");
    }
    assert!(failure(&["bench", "--cold"]).contains("--cold needs a model file"));
}

/// What `bench` measures with one thread.
fn bench(options: &[&str]) -> serde_json::Value {
    let args = ["bench", FAIRY, "--prompt", "8", "--threads", "1", "--json"];
    let text = stdout(&run(&[&args, options].concat()));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["runs"][0].clone()
}

/// Bytes per token that `bench` measures.
fn bytes(options: &[&str]) -> f64 {
    bench(&[&["-n", "8"], options].concat())["bytes_per_token"].as_f64().unwrap()
}

#[test]
fn texts_together_read_each_matrix_once() {
    for choose in ["greedy", "sample"] {
        let one = bytes(&["--choose", choose]);
        let four = bytes(&["--choose", choose, "--sessions", "4"]);
        // What remains are the columns of ffn.value, which differ between texts, and states.
        assert!(four < 0.6 * one, "{choose}: {four} bytes of {one}");
    }
}

#[test]
fn the_speed_of_several_texts_is_the_sum_and_the_latency_that_of_a_step() {
    let run = bench(&["-n", "1", "--sessions", "5", "--choose", "logits"]);
    let (speed, latency) = (&run["decode_tokens_per_second"], &run["latency_ms"]["max"]);
    let tokens = speed.as_f64().unwrap() * latency.as_f64().unwrap() / 1e3;
    assert!((tokens - 5.0).abs() < 0.05, "{run}");
}

#[test]
fn what_bench_does_without_costs_bytes() {
    let all = bytes(&[]);
    assert!(bytes(&["--without", "sparse-value"]) > 1.1 * all);
    assert!(bytes(&["--without", "shortlist"]) > 1.02 * all);
    assert!(bytes(&["--choose", "logits"]) > 1.02 * all);
}

/// Writes `bytes` to a file and returns the error that `logits` gives for it.
fn error_for(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.rwkv");
    fs::write(&path, bytes).unwrap();
    let message = failure(&["logits", path.to_str().unwrap(), "--tokens", "1"]);
    assert!(message.contains("bad.rwkv"), "{message}");
    message
}

#[test]
fn bad_files_give_one_clear_line() {
    let (_folder, model) = tiny();
    let good = fs::read(&model).unwrap();
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 0x10;
    let mut newer = good.clone();
    newer[8] = 9;
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let cases: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (
            b"something else entirely, long enough to be read as a header of 64 bytes",
            "not an rwkv-edge model",
        ),
        (&good[..good.len() - 1], "bytes"),
        (&flipped, "checksum"),
        (lfs, "LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (&newer, "newer"),
        (&fs::read(fixture("v4-tiny.pth")).unwrap(), "rwkv-quantize"),
    ];
    for (bytes, expected) in cases {
        let message = error_for(bytes);
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
    assert!(failure(&["run", "no/such/file.rwkv", "-p", "x"]).contains("no/such/file.rwkv"));
    assert!(failure(&["run", FAIRY, "-f", "no/such/prompt.txt"]).contains("no/such/prompt.txt"));
}

#[test]
fn a_damaged_embedding_row_is_found_when_it_is_read() {
    let (folder, model) = tiny();
    let mut bytes = fs::read(&model).unwrap();
    let file = rwkv_edge::format::ModelFile::open(Path::new(&model)).unwrap();
    let embedding = file.tensor("emb.weight").unwrap();
    bytes[(embedding.offset + 7 * embedding.len / 256) as usize] ^= 1;
    let path = folder.path().join("damaged.rwkv");
    fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    assert!(run(&["logits", path, "--tokens", "6,8"]).status.success());
    assert!(failure(&["logits", path, "--tokens", "6,7"]).contains("record 7 of tensor emb.weight"));
}

#[test]
fn wrong_numbers_are_refused() {
    assert!(failure(&["logits", FAIRY, "--tokens", "5000"]).contains("5000"));
    assert!(failure(&["run", FAIRY, "-p", "x", "--top-p", "2"]).contains("top_p"));
    let output = command().args(["run", FAIRY, "-p", "x"]).env("RWKV_EDGE_ISA", "mmx").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mmx"));
    assert_eq!(run(&["run", "--no-such-option"]).status.code(), Some(2));
    for command in ["run", "logits", "eval", "bench"] {
        for chunk in ["0", "4097", "many"] {
            let output = run(&[command, "--prompt-chunk", chunk]);
            assert_eq!(output.status.code(), Some(2));
            let message = String::from_utf8(output.stderr).unwrap();
            let line = message.lines().next().unwrap();
            assert!(line.contains("--prompt-chunk") && line.contains(chunk), "{message}");
        }
    }
    for [option, value] in
        [["--sessions", "0"], ["--sessions", "65"], ["--depth", "-1"], ["--without", "prompt-chunks"]]
    {
        let output = run(&["bench", &format!("{option}={value}")]);
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
        let message = String::from_utf8(output.stderr).unwrap();
        let line = message.lines().next().unwrap();
        assert!(line.contains(option) && line.contains(value), "{message}");
    }
}

#[test]
fn the_environment_does_not_matter_where_the_option_chooses_the_kernels() {
    let args = ["info", FAIRY, "--isa", "scalar"];
    let output = command().args(args).env("RWKV_EDGE_ISA", "mmx").output().unwrap();
    assert!(stdout(&output).contains("kernels           scalar"));
}

#[test]
fn the_environment_chooses_the_kernels() {
    let output = command().args(["info", FAIRY]).env("RWKV_EDGE_ISA", "scalar").output().unwrap();
    assert!(stdout(&output).contains("kernels           scalar"));
}

#[test]
fn a_closed_pipe_is_success() {
    let mut child = command()
        .args(["run", FAIRY, "-p", "x", "-n", "300", "--seed", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_closed_standard_error_does_not_spoil_the_text() {
    let args = ["run", FAIRY, "-p", "A king", "-n", "200", "--seed", "1"];
    let expected = stdout(&run(&args));
    let mut child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(stdout(&child.wait_with_output().unwrap()), expected);
}

#[test]
fn a_run_of_a_damaged_file_ends_with_an_error_however_short_it_is() {
    let (folder, model) = tiny();
    let mut bytes = fs::read(&model).unwrap();
    let file = rwkv_edge::format::ModelFile::open(Path::new(&model)).unwrap();
    let damaged = file.range(file.tensor("head.residual").unwrap());
    bytes[damaged.end - 1] ^= 0x10;
    let path = folder.path().join("damaged.rwkv");
    fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    for n in ["1", "100"] {
        let output = run(&["run", path, "-p", "x", "-n", n]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.lines().count() == 1, "{message}");
        assert!(message.contains("tensor head.residual") && message.contains("damaged.rwkv"), "{message}");
    }
    assert!(run(&["run", path, "-p", "x", "-n", "1", "--no-verify"]).status.success());
}

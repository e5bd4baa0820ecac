//! Options that people bring along from other programs, mistyped ones, and JSON.

use std::thread;

use crate::program::{FAIRY, failure, run, stdout};

/// The first lines of a usage error.
fn usage(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn names_of_llama_cpp_mean_the_same() {
    let ours = ["run", FAIRY, "--prompt", "Once", "--tokens", "9", "--temperature", "0.7", "--top-p", "0.5"];
    let ours = stdout(&run(&[&ours[..], &["--seed", "5", "--threads", "1"]].concat()));
    let theirs = ["run", "-m", FAIRY, "-p", "Once", "-n", "9", "--temp", "0.7", "--top_p", "0.5"];
    assert_eq!(stdout(&run(&[&theirs[..], &["-s", "5", "-t", "1"]].concat())), ours);
    let positional = ["run", FAIRY, "Once", "--n-predict", "9", "--temp", "0.7", "--top-p", "0.5", "-s", "5"];
    assert_eq!(stdout(&run(&positional)), ours);
}

#[test]
fn a_context_length_is_refused_with_the_reason() {
    for option in ["-c", "--ctx-size"] {
        let message = usage(&["run", FAIRY, option, "4096"]);
        assert!(message.contains("no context length"), "{message}");
    }
}

#[test]
fn a_text_in_the_place_of_the_model_gets_a_hint() {
    let message = failure(&["run", "Once upon a time"]);
    assert!(message.contains("-p TEXT") && message.contains("No such file"), "{message}");
    assert!(!failure(&["run", "/dev/null", "-n", "1"]).contains("-p TEXT"));
}

#[test]
fn minus_one_is_no_limit_and_other_negative_numbers_are_wrong_values() {
    // The text ends by the stop text, as there is no limit.
    let args = ["run", FAIRY, "-p", "Once upon a time", "--temperature", "0", "-n", "-1", "--stop", " "];
    stdout(&run(&args));
    for (option, value) in [("-n", "-2"), ("--top-k", "-1"), ("--seed", "-1"), ("--threads", "-4")] {
        let message = usage(&["run", FAIRY, option, value]);
        assert!(message.contains("invalid value") && message.contains(value), "{message}");
        assert!(!message.contains("tip:"), "{message}");
    }
    assert!(failure(&["run", FAIRY, "-p", "a", "--temperature", "-1"]).contains("temperature is -1"));
}

#[test]
fn a_mistyped_option_gets_a_suggestion() {
    for (typo, meant) in
        [("--temprature", "--temperature"), ("--promt", "--prompt"), ("--trheads", "--threads")]
    {
        let message = usage(&["run", FAIRY, typo, "1"]);
        assert!(message.contains(&format!("'{meant}'")), "{message}");
    }
    assert!(usage(&["rum"]).contains("'run'"));
}

#[test]
fn more_threads_than_cores_give_one_warning() {
    let cores = thread::available_parallelism().unwrap().get();
    let warnings = |threads: usize| {
        let threads = threads.to_string();
        let output = run(&["run", FAIRY, "-p", "a", "-n", "1", "--threads", &threads]);
        let text = String::from_utf8(output.stderr).unwrap();
        text.lines().filter(|line| line.contains("more threads are slower")).count()
    };
    assert_eq!((warnings(cores), warnings(cores + 1)), (0, 1));
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(&run(args))).unwrap()
}

#[test]
fn json_has_the_figures_of_the_text() {
    let info = json(&["info", FAIRY, "--json", "--tensors", "--verify", "--threads", "1"]);
    assert_eq!(info["version"], "RWKV-7");
    assert_eq!(info["verified"], true);
    assert!(info["tensors"].as_array().unwrap().len() > 50);
    assert_eq!(info["resident_bytes"], json(&["plan", FAIRY, "--json", "--threads", "1"])["resident_bytes"]);

    let logits = json(&["logits", FAIRY, "--json", "--tokens", "1,2"]);
    assert_eq!(logits["token"], 2);
    let logits: Vec<f32> = serde_json::from_value(logits["logits"].clone()).unwrap();
    let text = stdout(&run(&["logits", FAIRY, "--tokens", "1,2"]));
    assert_eq!(logits, text.lines().map(|line| line.parse().unwrap()).collect::<Vec<f32>>());
    let all = stdout(&run(&["logits", FAIRY, "--json", "--all", "--tokens", "1,2"]));
    let tokens: Vec<serde_json::Value> =
        all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&tokens[0]["token"], &tokens[1]["token"]), (&1.into(), &2.into()));

    let folder = tempfile::tempdir().unwrap();
    let story = folder.path().join("story.txt");
    std::fs::write(&story, "Once upon a time there was a king.").unwrap();
    let args = ["eval", FAIRY, "--text", story.to_str().unwrap(), "--against", FAIRY];
    let eval = json(&[&args[..], &["--json"]].concat());
    let text = stdout(&run(&args));
    assert!(text.contains(&format!("nats/token        {:.5}", eval["nats_per_token"].as_f64().unwrap())));
    assert_eq!((eval["mean_kl"].as_f64(), eval["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
}

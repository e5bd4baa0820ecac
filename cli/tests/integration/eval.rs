//! `rwkv-edge eval`: windows, several models and texts, and the table of tokens.

use std::fs;

use crate::common::{convert, fixture, options};
use crate::program::{FAIRY, failure, run, stdout, tiny};
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use serde_json::Value;
use tempfile::TempDir;

/// The options of `eval`, and the JSON that it prints.
fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&run(&[&["eval", "--json", "--threads", "1"], args].concat()))).unwrap()
}

/// A model of 256 tokens, each a byte, that begins with token 0.
fn model(dtype: DType) -> (TempDir, String) {
    let begun = Options { start_tokens: vec![0], ..options(dtype) };
    let (folder, path) = convert(&fixture("v7-tiny.pth"), &begun);
    (folder, path.to_str().unwrap().to_owned())
}

/// A folder with texts of 110 and 180 bytes.
fn texts() -> (TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let texts = [("a.txt", "some bytes to predict ", 5), ("b.txt", "0123456789 and a b", 10)];
    let texts = texts.map(|(name, text, times)| {
        let path = folder.path().join(name);
        fs::write(&path, text.repeat(times)).unwrap();
        path.to_str().unwrap().to_owned()
    });
    (folder, texts)
}

/// The rows of a table, without its head.
fn rows(path: &str) -> Vec<Vec<String>> {
    let table = fs::read_to_string(path).unwrap();
    let mut lines = table.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let head = lines.next().unwrap().join(",");
    assert_eq!(head, "model,text,window,position,token,nats,reference_nats,kl,same_best");
    lines.collect()
}

#[test]
fn a_file_against_itself_is_exact_and_against_another_is_not() {
    let (_f32_folder, f32) = convert(&fixture("v4-tiny.pth"), &options(DType::F32));
    let f32 = f32.to_str().unwrap();
    let (_folder, int8) = tiny();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "some bytes to predict ".repeat(5)).unwrap();
    let eval = |model: &str| {
        let args = ["eval", model, "--text", text.to_str().unwrap(), "--against", f32];
        let text = stdout(&run(&args));
        let field = |name: &str| {
            let line =
                text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
            line[name.len()..].split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        (field("tokens"), field("nats/token"), field("mean KL"), field("top-1 agreement"))
    };
    let (tokens, nats, kl, agreement) = eval(f32);
    assert_eq!((tokens, kl, agreement), (109.0, 0.0, 100.0));
    assert!(nats > 0.0);
    let (_, _, kl, _) = eval(&int8);
    assert!(kl > 0.0 && kl < 0.01, "{kl}");
}

#[test]
fn chunks_of_every_length_print_the_same() {
    let (_f32_folder, f32) = convert(&fixture("v4-tiny.pth"), &options(DType::F32));
    let (folder, model) = tiny();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Some bytes, and then 99 others. ".repeat(5)).unwrap();
    let (f32, text) = (f32.to_str().unwrap(), text.to_str().unwrap());
    let windows = ["--against", f32, "--windows", "50", "--skip", "9"];
    for against in [&[][..], &["--against", f32], &windows] {
        let eval =
            |options: &[&str]| stdout(&run(&[&["eval", &model, "--text", text], against, options].concat()));
        let expected = eval(&[]);
        for chunk in ["1", "7", "64"] {
            assert_eq!(eval(&["--prompt-chunk", chunk]), expected, "chunks of {chunk}");
        }
    }
}

#[test]
fn another_model_is_refused() {
    let (_folder, model) = tiny();
    let message =
        failure(&["eval", FAIRY, "--text", fixture("README.md").to_str().unwrap(), "--against", &model]);
    assert!(message.contains("different models"), "{message}");
}

#[test]
fn a_window_is_read_like_a_text_of_its_own() {
    let ((folder, model), (_texts, [_, text])) = (model(DType::Int8), texts());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [all, part, table] = ["all.csv", "part.txt", "part.csv"].map(path);
    let skip = ["--skip", "20"];
    json(&[&[&model, "--text", &text, "--windows", "50", "--csv", &all], &skip[..]].concat());
    let mut rows_of_parts = Vec::new();
    // The last window has 30 tokens.
    for (window, tokens) in fs::read(&text).unwrap().chunks(50).enumerate() {
        fs::write(&part, tokens).unwrap();
        json(&[&[&model, "--text", &part, "--csv", &table], &skip[..]].concat());
        for mut row in rows(&table) {
            (row[1], row[2]) = (text.clone(), window.to_string());
            assert_eq!(row[4], tokens[row[3].parse::<usize>().unwrap()].to_string());
            rows_of_parts.push(row);
        }
    }
    assert_eq!((rows_of_parts.len(), rows(&all)), (3 * 30 + 10, rows_of_parts));
}

#[test]
fn models_and_texts_together_have_the_scores_of_each_alone() {
    let ((_f32, f32), (_int8, int8), (_int4, int4)) =
        (model(DType::F32), model(DType::Int8), model(DType::Int4));
    let (_texts, [a, b]) = texts();
    let rest = ["--against", &f32, "--windows", "20", "--skip", "5"];
    let judge = |args: &[&str]| json(&[args, &rest].concat());
    let all = judge(&[&int8, &int4, "--text", &a, "--text", &b]);
    let models = all["models"].as_array().unwrap();
    for (model, alone) in models.iter().zip([&int8, &int4]) {
        assert_eq!(model["model"], **alone);
        let alone_all = judge(&[alone, "--text", &a, "--text", &b]);
        let alone = [&a, &b].map(|text| judge(&[alone, "--text", text]));
        for key in ["tokens", "bytes", "perplexity", "mean_kl", "mean_kl_interval", "kl_p99", "live_units"] {
            assert!(!model[key].is_null() && model[key] == alone_all[key], "{key}: {model}");
            for (text, alone) in model["texts"].as_array().unwrap().iter().zip(&alone) {
                assert!(!text[key].is_null() && text[key] == alone[key], "{key}: {text} {alone}");
            }
        }
        let tokens: Vec<_> = model["texts"].as_array().unwrap().iter().map(|text| &text["tokens"]).collect();
        assert_eq!(
            (tokens, &model["tokens"]),
            (vec![&Value::from(80), &Value::from(135)], &Value::from(215))
        );
    }
    let [int8, int4] = [0, 1].map(|m| models[m]["mean_kl"].as_f64().unwrap());
    let ratio = models[1]["kl_ratio"].as_f64().unwrap();
    assert!(models[0].get("kl_ratio").is_none() && ratio > 5.0 && (ratio * int8 / int4 - 1.0).abs() < 1e-12);
    let interval = |value: &Value| [0, 1].map(|i| value[i].as_f64().unwrap());
    let [low, high] = interval(&models[1]["kl_ratio_interval"]);
    assert!(low < ratio && ratio < high, "{low} {ratio} {high}");
    let [low, high] = interval(&models[1]["mean_kl_interval"]);
    assert!(low < int4 && int4 < high, "{low} {int4} {high}");
}

#[test]
fn equal_models_have_the_ratio_1_and_the_reference_no_distance() {
    let ((_f32, f32), (_int4, int4), (_texts, [text, _])) = (model(DType::F32), model(DType::Int4), texts());
    let all = json(&[&int4, &int4, &f32, "--text", &text, "--against", &f32, "--windows", "10"]);
    let [first, equal, same] = [0, 1, 2].map(|m| &all["models"][m]);
    assert_eq!(equal["kl_ratio"], 1.0);
    assert_eq!(equal["kl_ratio_interval"], serde_json::json!([1, 1]));
    assert_eq!(equal["mean_kl_interval"], first["mean_kl_interval"]);
    for key in ["mean_kl", "kl_ratio", "kl_p99"] {
        assert_eq!(same[key], 0.0, "{key}");
    }
    assert_eq!(same["top1_agreement"], 1.0);
    assert_eq!(same["live_units"], same["reference_live_units"]);
    let live = same["live_units"].as_f64().unwrap();
    assert!(0.05 < live && live < 0.95, "{live}");
    assert_ne!(first["live_units"], same["live_units"]);
}

#[test]
fn the_table_has_every_scored_token_and_the_means_that_are_printed() {
    let ((folder, int8), (_int4, int4), (_texts, [a, b])) = (model(DType::Int8), model(DType::Int4), texts());
    let csv = folder.path().join("tokens.csv");
    let csv = csv.to_str().unwrap();
    let args = [&int4, &int8, "--text", &a, "--text", &b, "--against", &int8, "--csv", csv];
    let all = json(&args);
    let rows = rows(csv);
    for model in all["models"].as_array().unwrap() {
        let rows: Vec<_> = rows.iter().filter(|row| model["model"] == *row[0]).collect();
        assert_eq!(rows.len(), 110 + 180);
        for (column, key) in [(5, "nats_per_token"), (7, "mean_kl"), (8, "top1_agreement")] {
            let sum: f64 = rows.iter().map(|row| row[column].parse::<f64>().unwrap()).sum();
            let (mean, expected) = (sum / rows.len() as f64, model[key].as_f64().unwrap());
            assert!((mean - expected).abs() <= 1e-6 * expected, "{key}: {mean} {expected}");
        }
        let ranges = model["positions"].as_array().unwrap().iter();
        let ranges: Vec<_> = ranges.map(|range| range["tokens"].as_u64().unwrap()).collect();
        assert_eq!(ranges, [128, 162]);
    }
    // Another run replaces the table, but no other file.
    json(&[&int8, "--text", &a, "--csv", csv]);
    assert_eq!(fs::read_to_string(csv).unwrap().lines().count(), 1 + 110);
    let text = fs::read(&a).unwrap();
    let message = failure(&["eval", &int8, "--text", &b, "--csv", &a]);
    assert!(message.contains("no rwkv-edge table"), "{message}");
    assert_eq!(fs::read(&a).unwrap(), text);
}

#[test]
fn a_table_that_is_not_complete_does_not_appear() {
    let ((folder, int8), (_texts, [a, _])) = (model(DType::Int8), texts());
    let csv = folder.path().join("tokens.csv");
    failure(&["eval", &int8, "--text", &a, "--text", "no/such/text", "--csv", csv.to_str().unwrap()]);
    assert!(!csv.exists());
}

#[test]
fn windows_without_scored_tokens_are_refused() {
    let ((_folder, model), (_texts, [text, _])) = (model(DType::Int8), texts());
    let eval = |args: &[&str]| failure(&[&["eval", &model, "--text", &text], args].concat());
    let message = eval(&["--windows", "8", "--skip", "8"]);
    assert!(message.contains("--skip 8 leaves nothing of a window of 8 tokens"), "{message}");
    assert!(eval(&["--windows", "0"]).contains("of a window of 0 tokens"));
    assert!(eval(&["--skip", "110"]).contains("a.txt: too short to predict anything"));
}

#[test]
fn every_model_counts_in_the_limit_of_memory() {
    let text = fixture("README.md");
    let text = text.to_str().unwrap();
    let eval = ["eval", "--threads", "1", "--max-tokens", "9", "--memory-limit", "28M", "--text", text];
    let models = |n: usize| [&eval[..], &vec![FAIRY; n]].concat();
    stdout(&run(&models(1)));
    let message = failure(&models(3));
    assert!(message.contains("limit of 28.0 MiB: the other models"), "{message}");
}

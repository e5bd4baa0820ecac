//! Adapters that are merged: the model is the one that a checkpoint of the sums gives.

use std::path::PathBuf;

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::source::{Merge, SourceDType};

use crate::common::{Desk, Part, Parts, assert_names, options};

const KEY: &str = "blocks.1.att.key.weight";
const VALUE: &str = "blocks.0.ffn.value.weight";

/// A desk with the RWKV-7 fixture, and an adapter file beside it.
struct Bench {
    desk: Desk,
    base: Parts,
}

/// Small multiples of 1/64, so that sums of products are exact.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 11) % 29) as f32 / 64.0 - 0.21875).collect()
}

fn part(name: &str, shape: &[usize], seed: usize) -> Part {
    Part::new(name, shape, SourceDType::F32, &values(shape.iter().product(), seed))
}

impl Bench {
    fn new() -> Self {
        Self { desk: Desk::new(), base: Parts::of("v7") }
    }

    fn path(&self, name: &str, parts: &Parts) -> PathBuf {
        let path = self.desk.path(name);
        std::fs::write(&path, parts.torch()).unwrap();
        path
    }

    /// Rows and columns of a matrix of the model.
    fn shape(&mut self, name: &str) -> [usize; 2] {
        self.base.get(name).shape[..].try_into().unwrap()
    }

    fn lora(&mut self, name: &str, rank: usize, seed: usize) -> [Part; 2] {
        let [rows, columns] = self.shape(name);
        let key = name.strip_suffix(".weight").unwrap();
        [
            part(&format!("{key}.lora_A"), &[rank, columns], seed),
            part(&format!("{key}.lora_B"), &[rows, rank], seed + 1),
        ]
    }

    fn merge(&self, adapter: &Parts, alpha: Option<f64>) -> Merge {
        Merge { adapter: self.path("adapter.pth", adapter), alpha, pissa_init: None }
    }

    /// Checks that merging gives the model of `expected`, in weights of f32 and of int4.
    #[track_caller]
    fn check(&self, merge: &Merge, expected: &Parts) {
        for dtype in [DType::F32, DType::Int4] {
            let merge = Some(merge.clone());
            let merged = self.desk.convert(&self.base, &Options { merge, ..options(dtype) });
            let other = Desk::new();
            let expected = other.convert(expected, &options(dtype));
            for (found, expected) in merged.tensors().into_iter().zip(expected.tensors()) {
                assert!(found == expected, "{} {dtype}", found.0);
            }
        }
    }

    #[track_caller]
    fn refusal(&self, merge: Merge) -> String {
        self.desk.refusal(&self.base, &Options { merge: Some(merge), ..options(DType::F32) })
    }
}

/// Sets a matrix to the sums of its values and `delta(row, column)`.
fn add(parts: &mut Parts, name: &str, delta: impl Fn(usize, usize) -> f64) {
    let matrix = parts.get(name);
    let columns = matrix.shape[1];
    let values = matrix.values();
    let sum = |(i, &x): (usize, &f32)| (f64::from(x) + delta(i / columns, i % columns)) as f32;
    let sums: Vec<f32> = values.iter().enumerate().map(sum).collect();
    matrix.fill(SourceDType::F32, sums);
}

/// Element of `B A`.
fn product([a, b]: &[Part; 2], row: usize, column: usize) -> f64 {
    let [rank, columns] = a.shape[..] else { panic!() };
    let (a, b) = (a.values(), b.values());
    (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * columns + column])).sum()
}

#[test]
fn lora_is_added_with_alpha_over_rank() {
    let mut bench = Bench::new();
    let factors = [(KEY, bench.lora(KEY, 4, 1)), (VALUE, bench.lora(VALUE, 2, 5))];
    let mut expected = bench.base.clone();
    for (name, factors) in &factors {
        let scale = 8.0 / factors[0].shape[0] as f64;
        let deltas: Vec<f64> = {
            let [rows, columns] = bench.shape(name);
            (0..rows * columns).map(|i| scale * product(factors, i / columns, i % columns)).collect()
        };
        let columns = bench.shape(name)[1];
        add(&mut expected, name, |row, column| deltas[row * columns + column]);
    }
    let adapter = Parts(factors.into_iter().flat_map(|(_, factors)| factors).collect());
    bench.check(&bench.merge(&adapter, Some(8.0)), &expected);
    // The prefixes of trainers, and PEFT's linear layers.
    let mut renamed = adapter.clone();
    renamed.0.iter_mut().for_each(|part| part.name = format!("base_model.model.{}.weight", part.name));
    bench.check(&bench.merge(&renamed, Some(8.0)), &expected);
    let merge = bench.merge(&adapter, Some(8.0));
    std::fs::write(&merge.adapter, renamed.safetensors()).unwrap();
    bench.check(&merge, &expected);
}

#[test]
fn other_tensors_of_an_adapter_replace_those_of_the_model() {
    let mut bench = Bench::new();
    let mut adapter = Parts(bench.lora(KEY, 2, 3).to_vec());
    adapter.0[1].bytes.fill(0);
    let mut expected = bench.base.clone();
    for name in ["ln_out.weight", "blocks.0.att.x_k", "emb.weight"] {
        let part = expected.get(name);
        let new = values(part.elements(), 7);
        part.fill(SourceDType::F32, new);
        adapter.0.push(part.clone());
    }
    bench.check(&bench.merge(&adapter, Some(32.0)), &expected);
    adapter.get("ln_out.weight").reshape(&[3]);
    assert_names(&bench.refusal(bench.merge(&adapter, Some(32.0))), "ln_out.weight");
}

#[test]
fn pissa_takes_the_first_product_away() {
    let mut bench = Bench::new();
    let (now, init) = (bench.lora(KEY, 4, 2), bench.lora(KEY, 4, 9));
    let mut expected = bench.base.clone();
    add(&mut expected, KEY, |row, column| -product(&init, row, column));
    let rounded: Vec<f32> =
        expected.get(KEY).values().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    expected.get(KEY).fill(SourceDType::F32, rounded);
    add(&mut expected, KEY, |row, column| product(&now, row, column));
    let mut init = Parts(init.to_vec());
    init.0.iter_mut().for_each(|part| part.name = part.name.replace("lora_", "init_lora_"));
    let adapter = Parts(now.to_vec());
    let init_path = bench.path("init.pth", &init);
    let merge = Merge { pissa_init: Some(init_path.clone()), ..bench.merge(&adapter, None) };
    bench.check(&merge, &expected);
    let message = bench.refusal(Merge { alpha: Some(1.0), ..merge.clone() });
    assert!(message.contains("PiSSA has no alpha"), "{message}");
    bench.path("init.pth", &Parts(vec![init.0[0].clone()]));
    assert_names(&bench.refusal(merge), KEY);
}

#[test]
fn miss_adds_its_shards_to_the_columns_in_turn() {
    let mut bench = Bench::new();
    let [rows, columns] = bench.shape(VALUE);
    // A rank that does not divide the columns.
    for rank in [4, 7] {
        let mut expected = bench.base.clone();
        for name in ["blocks.0.ffn.value.bone", "blocks.0.ffn.value.disha", "blocks.0.ffn.value.miss_block"] {
            let shards = part(name, &[rank, rows], 3);
            if name.ends_with("bone") {
                let d = shards.values();
                add(&mut expected, VALUE, |row, column| f64::from(d[column % rank * rows + row]));
            }
            bench.check(&bench.merge(&Parts(vec![shards]), None), &expected);
        }
    }
    // PEFT's mode mini.
    let shards = part("blocks.0.ffn.value.miss_block", &[4, rows / 2], 3);
    let d = shards.values();
    let mut expected = bench.base.clone();
    add(&mut expected, VALUE, |row, column| f64::from(d[column % 4 * (rows / 2) + row % (rows / 2)]));
    bench.check(&bench.merge(&Parts(vec![shards]), None), &expected);
    let old = part("blocks.0.ffn.value.bone", &[rows, 4], 3);
    assert!(rows != columns);
    let message = bench.refusal(bench.merge(&Parts(vec![old]), None));
    assert_names(&message, "blocks.0.ffn.value.bone");
}

#[test]
fn the_mode_bat_of_both_programs_multiplies_blocks() {
    const RANK: usize = 4;
    let mut bench = Bench::new();
    let [rows, columns] = bench.shape(VALUE);
    for (name, count, by_input) in [
        ("blocks.0.ffn.value.disha", columns / RANK, true),
        ("blocks.0.ffn.value.bone_block", rows / RANK, false),
    ] {
        let blocks = part(name, &[count, RANK, RANK], 3);
        let d = blocks.values();
        let weights = bench.base.get(VALUE).values();
        let mut expected = bench.base.clone();
        add(&mut expected, VALUE, |row, column| {
            let block = if by_input { column / RANK } else { row / RANK };
            let at = |i: usize| f64::from(d[(block * RANK + i) * RANK + column % RANK]);
            let first = row * columns + column / RANK * RANK;
            (0..RANK).map(|i| f64::from(weights[first + i]) * at(i)).sum::<f64>() + at(row % RANK)
        });
        bench.check(&bench.merge(&Parts(vec![blocks]), None), &expected);
    }
}

#[test]
fn a_model_that_has_its_adapter_beside_the_weights_is_merged_with_itself() {
    let mut bench = Bench::new();
    let factors = bench.lora(KEY, 4, 1);
    let mut expected = bench.base.clone();
    add(&mut expected, KEY, |row, column| 2.0 * product(&factors, row, column));
    let mut both = bench.base.clone();
    both.0.extend(factors.clone());
    let message = bench.desk.refusal(&both, &options(DType::F32));
    assert!(message.contains("beside its weights") && message.contains("lora_A"), "{message}");
    bench.desk.put(&both.torch());
    let other = bench.merge(&Parts(factors.to_vec()), Some(8.0));
    let message = bench.desk.refusal_of_input(&Options { merge: Some(other), ..options(DType::F32) });
    assert!(message.contains("beside its weights"), "{message}");
    let merge = Merge { adapter: bench.desk.input(), alpha: Some(8.0), pissa_init: None };
    bench.base = both;
    bench.check(&merge, &expected);
}

#[test]
fn adapters_that_do_not_say_enough_or_do_not_fit_are_refused() {
    let mut bench = Bench::new();
    let [a, b] = bench.lora(KEY, 4, 1);
    let refusal = |parts: &[Part]| bench.refusal(bench.merge(&Parts(parts.to_vec()), Some(8.0)));
    let message = bench.refusal(bench.merge(&Parts(vec![a.clone(), b.clone()]), None));
    assert!(message.contains("--lora-alpha") && message.contains("--pissa-init"), "{message}");
    assert_names(&refusal(std::slice::from_ref(&a)), &a.name);
    let misshapen = part(&a.name, &[4, 3], 1);
    assert_names(&refusal(&[misshapen, b.clone()]), &a.name);
    let stranger = part("blocks.9.att.key.lora_A", &[4, 3], 1);
    assert_names(&refusal(&[stranger]), "blocks.9.att.key.lora_A");
    let mut broken = a.clone();
    broken.set(5, f32::NAN);
    assert_names(&refusal(&[broken, b.clone()]), &a.name);
    let message = refusal(&[part("blocks.0.att.key.hada_w1_a", &[4, 4], 1)]);
    assert!(message.contains("LoHa") && message.contains("not merged"), "{message}");
    assert!(refusal(&[part("ln_out.weight", &[32], 1)]).contains("no adapter"));
    for alpha in [f64::NAN, f64::INFINITY] {
        let merge = bench.merge(&Parts(vec![a.clone(), b.clone()]), Some(alpha));
        assert!(bench.refusal(merge).contains("finite"));
    }
}

#[test]
fn settings_of_peft_beside_the_adapter_count() {
    let mut bench = Bench::new();
    let factors = bench.lora(KEY, 4, 1);
    let mut adapter = Parts(factors.to_vec());
    adapter.0.iter_mut().for_each(|part| part.name = format!("base_model.model.{}.weight", part.name));
    let config = bench.desk.path("adapter_config.json");
    let write = |text: &str| std::fs::write(&config, text).unwrap();
    for (root, scale) in [("false", 8.0 / 4.0), ("true", 8.0 / 2.0)] {
        let mut expected = bench.base.clone();
        add(&mut expected, KEY, |row, column| scale * product(&factors, row, column));
        write(&format!(r#"{{"peft_type": "LORA", "lora_alpha": 8, "r": 4, "use_rslora": {root}}}"#));
        bench.check(&bench.merge(&adapter, None), &expected);
    }
    for (text, words) in [
        (r#"{"peft_type": "LORA", "lora_alpha": 8, "use_dora": true}"#, "DoRA"),
        (r#"{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"key": 3}}"#, "alpha of its own"),
        (r#"{"peft_type": "LORA", "lora_alpha": 8, "init_lora_weights": "pissa"}"#, "taken from the weights"),
        (r#"{"peft_type": "VERA"}"#, "adapter_config.json"),
        ("[]", "no settings"),
    ] {
        write(text);
        assert!(bench.refusal(bench.merge(&adapter, None)).contains(words), "{text}");
    }
    write(r#"{"peft_type": "LORA", "lora_alpha": 16}"#);
    let message = bench.refusal(bench.merge(&adapter, Some(8.0)));
    assert!(message.contains("16") && message.contains("--lora-alpha is 8"), "{message}");
}

#[test]
fn the_file_says_what_was_merged_and_the_adapter_is_not_replaced() {
    let mut bench = Bench::new();
    let adapter = Parts(bench.lora(KEY, 4, 1).to_vec());
    let merge = bench.merge(&adapter, Some(12.5));
    let with = Options { merge: Some(merge.clone()), ..options(DType::Int8) };
    let model = bench.desk.convert(&bench.base, &with);
    let settings = &model.0.provenance().settings;
    assert!(settings.contains(" --merge adapter.pth --lora-alpha 12.5"), "{settings}");
    let conversion = rwkv_quantize::convert::Conversion::prepare(&bench.desk.input(), &with).unwrap();
    let target = rwkv_edge::format::Target::new(&merge.adapter, rwkv_edge::format::Replace::Any).unwrap();
    let flag = std::sync::atomic::AtomicBool::new(false);
    let error = conversion.run(target, rwkv_quantize::job::Job::new(&mut crate::common::Quiet, &flag));
    assert!(error.unwrap_err().to_string().contains("must not be replaced"));
}

#[test]
fn the_command_merges_and_says_which_options_go_together() {
    let mut bench = Bench::new();
    let adapter = Parts(bench.lora(KEY, 4, 1).to_vec());
    let adapter = bench.path("adapter.pth", &adapter).display().to_string();
    bench.desk.put(&bench.base.torch());
    let [input, output] = [bench.desk.input(), bench.desk.output()].map(|path| path.display().to_string());
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
        let result = command.args([&input, &output]).args(args).output().unwrap();
        (result.status.code(), String::from_utf8(result.stderr).unwrap())
    };
    let (code, message) = run(&["--merge", &adapter, "--lora-alpha", "32"]);
    assert_eq!(code, Some(0), "{message}");
    let (code, message) = run(&["--merge", &adapter]);
    assert!(code == Some(1) && message.contains("--lora-alpha N"), "{message}");
    for args in [&["--lora-alpha", "8"][..], &["--pissa-init", &adapter]] {
        assert!(matches!(run(args), (Some(2), message) if message.contains("--merge")), "{args:?}");
    }
    let both = ["--merge", &adapter, "--lora-alpha", "8", "--pissa-init", &adapter];
    assert_eq!(run(&both).0, Some(2));
}

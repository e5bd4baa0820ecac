//! The `config.json` beside a checkpoint: what is applied, and what is refused.

use std::fs;

use rwkv_edge::format::{Variant, Version};
use rwkv_edge::kernels::DType;
use rwkv_edge::{LoadOptions, Session, SessionOptions};
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::source::SourceDType;

use crate::common::{Desk, Model, Parts, options};
use crate::schemes::{blinkdl, fla, linear_attention};

/// A desk with this file beside the input.
fn desk(config: &str) -> Desk {
    let desk = Desk::new();
    fs::write(desk.path("config.json"), config).unwrap();
    desk
}

/// The epsilons of layer norm and group norm, and the notes.
#[track_caller]
fn epsilons(desk: &Desk, options: &Options) -> (f32, f32, Vec<String>) {
    let conversion = Conversion::prepare(&desk.input(), options).unwrap();
    let config = &conversion.layout().contents().config;
    (config.layer_norm_eps, config.heads().unwrap().group_norm_eps, conversion.notes().to_vec())
}

#[test]
fn epsilons_come_from_every_key_that_has_them() {
    for (keys, layer_norm, group_norm) in [
        ("", 1e-5, 64e-5),
        (r#", "norm_eps": 1e-5"#, 1e-5, 32e-5),
        (r#", "norm_eps": 0.001, "head_dim": 32"#, 1e-3, 32e-3),
        (r#", "layer_norm_epsilon": 0.001"#, 1e-3, 64e-5),
        (r#", "layer_norm_epsilon": 1e-4, "group_norm_epsilon": 2e-4, "head_size": 32"#, 1e-4, 2e-4),
        (r#", "norm_eps": 1e-4, "group_norm_epsilon": 2e-4"#, 1e-4, 2e-4),
        (r#", "head_size_divisor": 4, "rescale_every": 6"#, 1e-5, 16e-5),
        (r#", "norm_eps": null, "head_dim": null, "hidden_act": null"#, 1e-5, 64e-5),
        (r#", "hidden_act": "sqrelu""#, 1e-5, 64e-5),
    ] {
        let desk = desk(&format!(r#"{{"model_type": "rwkv7", "hidden_size": 64, "vocab_size": 256{keys}}}"#));
        desk.put(&fla(&blinkdl()).safetensors());
        let (found_layer, found_group, notes) = epsilons(&desk, &options(DType::Int8));
        assert_eq!(found_layer, layer_norm, "{keys}");
        assert!((found_group / group_norm - 1.0).abs() < 1e-6, "{keys}: {found_group}");
        let [note] = &notes[..] else { panic!("{notes:?}") };
        assert!(note.contains("config.json: layer norm epsilon ") && !note.contains('\n'), "{note}");
        assert_eq!(note.contains("rescale_every 6 not applied"), keys.contains("rescale_every"), "{note}");

        let given = Options { group_norm_eps: Some(0.5), ..options(DType::Int8) };
        assert_eq!(epsilons(&desk, &given).1, 0.5, "{keys}");
    }
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_key() {
    for (keys, what) in [
        (r#""hidden_act": "gelu""#, r#"hidden_act: expected sqrelu, found "gelu""#),
        (
            r#""norm_eps": 1e-5, "layer_norm_epsilon": 1e-6"#,
            "norm_eps is 1e-5 and layer_norm_epsilon is 1e-6",
        ),
        (r#""norm_eps": "small""#, "norm_eps: expected a number above 0"),
        (r#""norm_eps": 0"#, "norm_eps: expected a number above 0, found 0"),
        (r#""norm_eps": -1e-5"#, "norm_eps: expected a number above 0"),
        (r#""layer_norm_epsilon": 7"#, "layer_norm_eps is 7"),
        (r#""group_norm_epsilon": 1e-300"#, "group_norm_eps is 0"),
        (r#""head_dim": 63"#, "its head size is 63"),
        (r#""head_dim": -64"#, "head_dim: expected a whole number"),
        (r#""rescale_every": 1.5"#, "rescale_every: expected a whole number"),
        (r#""embedding_layer_norm_fused": "no\n""#, "embedding_layer_norm_fused: expected true or false"),
    ] {
        let desk = desk(&format!(r#"{{"architectures": ["RWKV7ForCausalLM"], {keys}}}"#));
        desk.put(&fla(&blinkdl()).safetensors());
        let message = desk.refusal_of_input(&options(DType::Int8));
        assert!(message.contains(what), "{keys}: {message}");
    }
}

#[test]
fn a_damaged_file_is_named_in_one_line() {
    let deep = format!("{{\"a\": {}", "[".repeat(500_000));
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    for text in ["", "{", "[]", "null", "{\"a\": 1}}", "<html>", "\u{0}\u{1}", &deep, &long] {
        let desk = desk(text);
        desk.put(&blinkdl().safetensors());
        let message = desk.refusal_of_input(&options(DType::Int8));
        assert!(message.contains("config.json: "), "{message}");
    }
    let desk = Desk::new();
    fs::create_dir(desk.path("config.json")).unwrap();
    desk.put(&blinkdl().safetensors());
    assert!(desk.refusal_of_input(&options(DType::Int8)).contains("config.json: this is a folder"));
}

#[test]
fn the_config_of_another_model_is_not_used_and_named() {
    for (config, why) in [
        (r#"{"model_type": "llama", "norm_eps": 0.5}"#, "name RWKV"),
        (r#"{"norm_eps": 0.5}"#, "name RWKV"),
        (
            r#"{"model_type": "rwkv7", "norm_eps": 0.5, "hidden_size": 768}"#,
            "hidden_size is 768, the checkpoint has 64",
        ),
        (
            r#"{"model_type": "rwkv7", "norm_eps": 0.5, "vocab_size": 9}"#,
            "vocab_size is 9, the checkpoint has 256",
        ),
        (r#"{"model_type": "rwkv7", "norm_eps": 0.5, "num_hidden_layers": 2}"#, "num_hidden_layers is 2"),
    ] {
        let desk = desk(config);
        desk.put(&blinkdl().torch());
        let (layer_norm, group_norm, notes) = epsilons(&desk, &options(DType::Int8));
        assert_eq!((layer_norm, group_norm), (1e-5, 64e-5));
        let [note] = &notes[..] else { panic!("{notes:?}") };
        assert!(note.contains("config.json: not used: ") && note.contains(why), "{note}");

        // A folder is one model.
        fs::rename(desk.input(), desk.path("model.safetensors")).unwrap();
        let Err(error) = Conversion::prepare(desk.folder(), &options(DType::Int8)) else {
            panic!("{config}")
        };
        let message = format!("{error:#}");
        assert!(message.contains("not the model of this folder") && message.contains(why), "{message}");
    }
}

#[test]
fn a_variant_is_stored_in_the_file_and_refused_where_there_is_none() {
    let desk = Desk::new();
    for (version, variant, exists) in [
        ("v7", Variant::Puzzle, false),
        ("v7", Variant::OthelloExtended, true),
        ("v6", Variant::Puzzle, true),
        ("v6", Variant::OthelloExtended, false),
        ("v4", Variant::Puzzle, false),
    ] {
        desk.put(&Parts::of(version).torch());
        let options = Options { variant, ..options(DType::Int8) };
        match Conversion::prepare(&desk.input(), &options) {
            Ok(conversion) => {
                let contents = conversion.layout().contents();
                assert!(exists && contents.config.variant == variant, "{version} {variant}");
                assert!(contents.provenance.settings.ends_with(&format!(" --variant {variant}")));
            }
            Err(error) => assert!(!exists && format!("{error:#}").contains("has no variant"), "{error:#}"),
        }
    }
}

/// A tensor as float64.
fn get(parts: &mut Parts, name: &str) -> Vec<f64> {
    parts.get(name).values().into_iter().map(f64::from).collect()
}

/// `matrix` of shape `[out, in]` times `x`.
fn times(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// Norm of each run of `len` values, with weights and biases.
fn norm(x: &[f64], len: usize, weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for run in x.chunks(len) {
        let mean = run.iter().sum::<f64>() / len as f64;
        let variance = run.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
        out.extend(run.iter().map(|x| (x - mean) / (variance + eps).sqrt()));
    }
    out.iter().zip(weight).zip(bias).map(|((x, w), b)| x * w + b).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The logits after one token of a model of one layer, by the equations of RWKV-7. Its state is
/// empty before: the token before is zero, and nothing decays.
fn logits(parts: &mut Parts, token: usize, layer_norm_eps: f64, group_norm_eps: f64) -> Vec<f64> {
    let [heads, size] = parts.get("blocks.0.att.r_k").shape[..] else { panic!("r_k") };
    let width = parts.get("ln_out.weight").elements();
    let mut vector = |name: &str| get(parts, name);
    let x = vector("emb.weight")[token * width..][..width].to_vec();
    let layer_norm =
        |x: &[f64], weight: Vec<f64>, bias: Vec<f64>| norm(x, width, &weight, &bias, layer_norm_eps);
    let mut x = layer_norm(&x, vector("blocks.0.ln0.weight"), vector("blocks.0.ln0.bias"));
    let mut layer = |name: &str| vector(&format!("blocks.0.{name}"));
    let mixed = |x: &[f64], mix: Vec<f64>| x.iter().zip(mix).map(|(x, m)| x - x * m).collect::<Vec<f64>>();
    let turned = |factor: Vec<f64>, rows: usize| -> Vec<f64> {
        let cols = factor.len() / rows;
        (0..factor.len()).map(|i| factor[i % rows * cols + i / rows]).collect()
    };
    let xx = layer_norm(&x, layer("ln1.weight"), layer("ln1.bias"));
    let r = times(&layer("att.receptance.weight"), &mixed(&xx, layer("att.x_r")));
    let v = times(&layer("att.value.weight"), &mixed(&xx, layer("att.x_v")));
    let mut k = times(&layer("att.key.weight"), &mixed(&xx, layer("att.x_k")));
    let low = times(&turned(layer("att.a1"), width), &mixed(&xx, layer("att.x_a")));
    let a = times(&turned(layer("att.a2"), low.len()), &low);
    let a: Vec<f64> = a.iter().zip(layer("att.a0")).map(|(a, a0)| sigmoid(a + a0)).collect();
    for ((k, a), k_a) in k.iter_mut().zip(&a).zip(layer("att.k_a")) {
        *k *= 1.0 + (a - 1.0) * k_a;
    }
    let low = times(&turned(layer("att.g1"), width), &mixed(&xx, layer("att.x_g")));
    let low: Vec<f64> = low.into_iter().map(sigmoid).collect();
    let g = times(&turned(layer("att.g2"), low.len()), &low);
    // The state is the outer product of value and key.
    let dot = |head: usize, of: &dyn Fn(usize) -> f64| (head * size..(head + 1) * size).map(of).sum::<f64>();
    let read: Vec<f64> = (0..heads).map(|head| dot(head, &|i| r[i] * k[i])).collect();
    let y: Vec<f64> = (0..width).map(|i| v[i] * read[i / size]).collect();
    let y = norm(&y, size, &layer("att.ln_x.weight"), &layer("att.ln_x.bias"), group_norm_eps);
    let r_k = layer("att.r_k");
    let bonus: Vec<f64> = (0..heads).map(|head| dot(head, &|i| r[i] * k[i] * r_k[i])).collect();
    let y: Vec<f64> = (0..width).map(|i| (y[i] + bonus[i / size] * v[i]) * g[i]).collect();
    let out = times(&layer("att.output.weight"), &y);
    x.iter_mut().zip(out).for_each(|(x, out)| *x += out);

    let xx = layer_norm(&x, layer("ln2.weight"), layer("ln2.bias"));
    let k = times(&layer("ffn.key.weight"), &mixed(&xx, layer("ffn.x_k")));
    let k: Vec<f64> = k.into_iter().map(|k| k.max(0.0).powi(2)).collect();
    let out = times(&layer("ffn.value.weight"), &k);
    x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
    let x = layer_norm(&x, vector("ln_out.weight"), vector("ln_out.bias"));
    times(&vector("head.weight"), &x)
}

/// The logits of a converted model after one token.
fn computed(desk: &Desk, token: u32) -> Vec<f32> {
    let model = rwkv_edge::Model::open(desk.output(), &LoadOptions::default()).unwrap();
    let mut session = Session::new(model, &SessionOptions::default()).unwrap();
    session.feed(&[token]).unwrap();
    session.logits().unwrap().to_vec()
}

#[test]
fn a_small_embedding_with_another_epsilon_has_the_logits_of_the_equations() {
    let mut parts = blinkdl().without(|name| name.starts_with("blocks.1.") || name.starts_with("blocks.2."));
    let emb = parts.get("emb.weight");
    let small: Vec<f32> = emb.values().iter().map(|x| x * 1e-2).collect();
    emb.fill(SourceDType::F32, small);
    let size = parts.get("blocks.0.att.r_k").shape[1];
    let largest =
        |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
    for (eps, written) in [(1e-3, fla(&parts)), (1e-5, fla(&parts)), (1e-3, linear_attention(&parts))] {
        let is_fla =
            written.0.iter().any(|part| part.name.contains("attn.r_k") && !part.name.contains("linear"));
        let (config, group_norm) = if is_fla {
            (
                format!(r#"{{"model_type": "rwkv7", "norm_eps": {eps}, "head_dim": {size}}}"#),
                size as f64 * eps,
            )
        } else {
            let keys = r#""group_norm_epsilon": 0.02"#;
            (format!(r#"{{"model_type": "rwkv", "layer_norm_epsilon": {eps}, {keys}}}"#), 0.02)
        };
        let desk = desk(&config);
        desk.put(&written.safetensors());
        desk.try_convert(&options(DType::F32)).unwrap();
        for token in [1, 77, 200] {
            let wanted = logits(&mut parts, token, eps, group_norm);
            let found = computed(&desk, token as u32);
            let range = wanted.iter().fold(0.0f64, |range, x| range.max(x.abs()));
            assert!(largest(&wanted, &found) < 1e-4 * range, "{config}: token {token}");
            if eps != 1e-5 {
                let without = logits(&mut parts, token, 1e-5, 64e-5);
                let off = largest(&without, &found);
                assert!(off > 0.05 * range, "{config}: the default epsilon is off by {off} of {range} only");
            }
        }
        assert_eq!(Model::open(&desk.output()).0.config().version(), Version::V7);
    }
}

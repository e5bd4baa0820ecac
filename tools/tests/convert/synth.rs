//! Synthetic checkpoints: exact, repeatable, and with the numbers of a model that works.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::common::{DTYPES, Desk, Model, Quiet, options, target};
use rwkv_edge::format::{Arch, Config, Heads, Replace, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7, Target, Variant};
use rwkv_edge::kernels::DType;
use rwkv_edge::{LoadOptions, Session, SessionOptions, Version};
use rwkv_quantize::convert::Conversion;
use rwkv_quantize::job::Job;
use rwkv_quantize::shapes::GROUP_NORM_EPS;
use rwkv_quantize::source::{Checkpoint, SourceDType};
use rwkv_quantize::synth::{self, Recipe};

/// A small model with different widths everywhere.
fn small(version: Version) -> Recipe {
    let heads = Heads { n_head: 4, head_size: 48, group_norm_eps: GROUP_NORM_EPS };
    let v5 = |variant| Arch::V5(Rwkv5 { variant, heads });
    let arch = match version {
        Version::V4 => Arch::V4,
        Version::V5_0 => v5(Rwkv5Variant::V5_0),
        Version::V5_1 => v5(Rwkv5Variant::V5_1),
        Version::V5_2 => v5(Rwkv5Variant::V5_2),
        Version::V6 => Arch::V6(Rwkv6 { heads, mix_rank: 16, decay_rank: 24 }),
        Version::V7 | Version::V7a => Arch::V7(Rwkv7 {
            heads,
            decay_rank: 24,
            iclr_rank: 16,
            value_rank: Some(8),
            gate_rank: 32,
            deep_rank: (version == Version::V7a).then_some(16),
        }),
    };
    let (n_layer, n_embd, n_att, n_ffn, n_vocab) = (4, 256, 192, 800, 256);
    let (layer_norm_eps, variant) = (1e-5, Variant::Plain);
    let config = Config { n_layer, n_embd, n_att, n_ffn, n_vocab, layer_norm_eps, arch, variant };
    Recipe { name: "small".into(), config, ffn_sparsity: 0.87, outlier: None, seed: 7 }
}

#[track_caller]
fn convert(checkpoint: Checkpoint, dtype: DType, output: &Path) -> Model {
    let (conversion, tokenizer_error) = Conversion::of(checkpoint, &options(dtype)).unwrap();
    assert!(tokenizer_error.is_none());
    conversion.run(target(output), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
    Model::open(output)
}

fn run(recipe: &Recipe, dtype: DType, desk: &Desk) -> Session {
    convert(synth::checkpoint(recipe).unwrap(), dtype, &desk.output());
    let model = rwkv_edge::Model::open(desk.output(), &LoadOptions::default()).unwrap();
    Session::new(model, &SessionOptions::with_threads(Some(2))).unwrap()
}

/// A fixed walk over the tokens.
fn token(i: u32) -> u32 {
    i.wrapping_mul(2_654_435_761) >> 24
}

#[test]
fn the_share_of_zeros_is_the_one_asked_for() {
    let desk = Desk::new();
    for version in Version::ALL {
        for ffn_sparsity in [synth::DENSE, 0.87, 0.95] {
            let mut session = run(&Recipe { ffn_sparsity, ..small(version) }, DType::Int4, &desk);
            (0..100).for_each(|i| session.feed(&[token(i)]).unwrap());
            let traffic = session.engine().traffic();
            let zeros = 1.0 - traffic.active_columns as f64 / traffic.columns as f64;
            assert!((zeros - ffn_sparsity).abs() < 0.02, "{version}: {zeros} instead of {ffn_sparsity}");
        }
    }
}

#[test]
fn a_long_text_leaves_logits_of_the_usual_size_and_bounded_states() {
    let desk = Desk::new();
    for version in Version::ALL {
        let mut session = run(&small(version), DType::Int8, &desk);
        for i in 0..5000 {
            session.feed(&[token(i)]).unwrap();
        }
        let logits = session.logits().unwrap();
        let square: f64 = logits.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let rms = (square / logits.len() as f64).sqrt();
        assert!((2.0..4.5).contains(&rms), "{version}: {rms}");
        let state = session.state().to_values();
        let values = state.iter().filter(|x| x.abs() < 1e20);
        let largest = values.fold(0.0, |largest: f32, x| largest.max(x.abs()));
        assert!((1.0..1e4).contains(&largest), "{version}: {largest}");
    }
}

#[test]
fn values_are_exact_in_both_half_types_and_distributed_as_planned() {
    for version in Version::ALL {
        let checkpoint = synth::checkpoint(&small(version)).unwrap();
        for tensor in checkpoint.tensors() {
            let mut values = vec![0.0; tensor.elements()];
            checkpoint.read(tensor, 0, &mut values).unwrap();
            assert_eq!(tensor.dtype, SourceDType::BF16);
            for &x in &values {
                assert_eq!(half::f16::from_f32(x).to_f32(), x, "{version} {}", tensor.name);
                assert!(x == 0.0 || x.is_normal(), "{version} {}", tensor.name);
            }
            if tensor.name == "blocks.1.att.key.weight" {
                let count = values.len() as f64;
                let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
                let moment = |n: i32| values.iter().map(|&x| f64::from(x).powi(n)).sum::<f64>() / count;
                assert!(mean.abs() < 0.02 * moment(2).sqrt(), "{version}: mean {mean}");
                let kurtosis = moment(4) / moment(2).powi(2);
                assert!((kurtosis - 3.0).abs() < 0.1, "{version}: kurtosis {kurtosis}");
            }
        }
    }
}

#[test]
fn values_do_not_depend_on_how_they_are_read() {
    let checkpoint = synth::checkpoint(&small(Version::V7)).unwrap();
    for tensor in checkpoint.tensors().iter().filter(|tensor| tensor.name.starts_with("blocks.1.")) {
        let mut whole = vec![0.0; tensor.elements()];
        checkpoint.read(tensor, 0, &mut whole).unwrap();
        for len in [1, 3, 7, 64, 1001] {
            let mut part = vec![0.0; len.min(whole.len())];
            for start in (0..=whole.len() - part.len()).step_by(1 + whole.len() / 29) {
                checkpoint.read(tensor, start, &mut part).unwrap();
                assert_eq!(part, whole[start..][..part.len()], "{} from {start}", tensor.name);
            }
        }
    }
}

#[test]
fn the_written_checkpoint_gives_the_same_model() {
    let desk = Desk::new();
    let path = desk.path("checkpoint.safetensors");
    for version in Version::ALL {
        let recipe = small(version);
        let checkpoint = || Target::new(&path, Replace::Any).unwrap();
        let (bytes, _) =
            synth::write(&recipe, checkpoint(), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        // The search for codes of a table takes too long for so many weights.
        for dtype in DTYPES.into_iter().filter(|dtype| *dtype != DType::Int4n) {
            let direct = convert(synth::checkpoint(&recipe).unwrap(), dtype, &desk.path("direct.rwkv"));
            let file = convert(Checkpoint::open(&path).unwrap(), dtype, &desk.path("file.rwkv"));
            assert!(direct.tensors() == file.tensors(), "{version} {dtype}");
            assert_eq!(direct.0.config(), &recipe.config);
            assert_eq!(direct.0.self_test(), file.0.self_test());
            let (direct, file) = (direct.0.provenance(), file.0.provenance());
            assert_eq!(direct.source_name, "synth small seed 7 ffn-sparsity 0.87");
            assert_eq!((&*direct.source_format, &*file.source_format), ("synthetic", "safetensors"));
            assert_eq!((direct.source_bytes, direct.source_sha256), (file.source_bytes, file.source_sha256));
        }
    }
    assert_eq!(desk.files(), ["checkpoint.safetensors", "direct.rwkv", "file.rwkv"]);
}

#[test]
fn a_seed_gives_its_own_weights_every_time() {
    let desk = Desk::new();
    let path = desk.path("checkpoint.safetensors");
    let mut seen = HashSet::new();
    for seed in [0, 1, u64::MAX] {
        let recipe = Recipe { seed, ..small(Version::V5_2) };
        let write = || {
            let checkpoint = Target::new(&path, Replace::Any).unwrap();
            synth::write(&recipe, checkpoint, Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
            fs::read(&path).unwrap()
        };
        let bytes = write();
        assert!(bytes == write());
        // The description at the front has the seed too, so only the values at the end are
        // compared.
        assert!(seen.insert(bytes[bytes.len() - 1024..].to_vec()), "seed {seed}");
    }
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let desk = Desk::new();
    for output in ["checkpoint.safetensors", "model.rwkv"] {
        let (recipe, flag, output) = (small(Version::V4), AtomicBool::new(true), desk.path(output));
        let result = if output.extension().is_some_and(|extension| extension == "rwkv") {
            let checkpoint = synth::checkpoint(&recipe).unwrap();
            let (conversion, _) = Conversion::of(checkpoint, &options(DType::Int8)).unwrap();
            conversion.run(target(&output), Job::new(&mut Quiet, &flag)).map(drop)
        } else {
            synth::write(&recipe, target(&output), Job::new(&mut Quiet, &flag)).map(drop)
        };
        assert_eq!(result.unwrap_err().to_string(), "interrupted");
        assert!(desk.files().is_empty());
    }
}

#[test]
fn impossible_recipes_are_refused_in_one_line() {
    let desk = Desk::new();
    let sparse = |ffn_sparsity| Recipe { ffn_sparsity, ..small(Version::V4) };
    let outlier = |outlier| Recipe { outlier: Some(outlier), ..small(Version::V4) };
    let mut narrow = small(Version::V7);
    narrow.config.n_embd = 0;
    for (recipe, part) in [
        (sparse(0.0), "0.01"),
        (sparse(1.0), "0.99"),
        (sparse(f64::NAN), "NaN"),
        (outlier(0.5), "it must be 1 to 10000"),
        (outlier(1e5), "an outlier of 100000"),
        (outlier(f64::NAN), "an outlier of NaN"),
        (narrow, "n_embd"),
    ] {
        let opened = synth::checkpoint(&recipe).unwrap_err().to_string();
        let written = synth::write(
            &recipe,
            target(&desk.path("x.safetensors")),
            Job::new(&mut Quiet, &AtomicBool::new(false)),
        );
        for message in [opened, format!("{:#}", written.unwrap_err())] {
            assert!(message.starts_with("synth small seed 7") && message.contains(part), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
    assert!(desk.files().is_empty());
}

#[test]
fn a_model_of_a_vocabulary_that_is_not_built_in_gets_byte_tokens() {
    let desk = Desk::new();
    let mut recipe = small(Version::V4);
    recipe.config.n_vocab = 1000;
    let (conversion, error) =
        Conversion::of(synth::checkpoint(&recipe).unwrap(), &options(DType::Int8)).unwrap();
    assert!(error.is_none() && conversion.has_byte_tokens());
    conversion.run(desk.target(), Job::new(&mut Quiet, &AtomicBool::new(false))).unwrap();
    let model = rwkv_edge::Model::open(desk.output(), &LoadOptions::default()).unwrap();
    assert_eq!(model.tokenizer().n_tokens(), 256);
    assert!(model.tokenizer().token(999).is_empty());
}

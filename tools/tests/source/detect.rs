//! Version detection: every version, and every variant that is refused.

use crate::common::models::{blinkdl, joined};
use crate::common::{Random, open, pickle, rwkvcpp_of, safetensors, safetensors_of, spec, torch_file_of};
use rwkv_edge::format::Version;
use rwkv_quantize::source::torch_writer::TensorSpec;
use rwkv_quantize::source::{Container, SourceDType, SourceError, detect};

const WIDTH: usize = 4;
const LAYERS: usize = 3;

/// Matrices and mixes of a layer by version, without the tensors that need a shape of their own.
fn local_names(version: Version) -> Vec<&'static str> {
    let mut names = vec![
        "ln1.weight",
        "ln1.bias",
        "ln2.weight",
        "ln2.bias",
        "att.receptance.weight",
        "att.key.weight",
        "att.value.weight",
        "att.output.weight",
        "ffn.key.weight",
        "ffn.value.weight",
    ];
    let old = [
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
        "ffn.time_mix_k",
        "ffn.time_mix_r",
        "ffn.receptance.weight",
    ];
    let new: &[&str] = match version {
        Version::V4 => &["att.time_decay", "att.time_first"],
        Version::V5_0 => &["att.ln_x.weight", "att.ln_x.bias"],
        Version::V5_1 => &["att.ln_x.weight", "att.ln_x.bias", "att.gate.weight", "att.time_mix_g"],
        Version::V5_2 => {
            &["att.ln_x.weight", "att.ln_x.bias", "att.time_faaaa", "att.gate.weight", "att.time_mix_g"]
        }
        Version::V6 => &[
            "att.ln_x.weight",
            "att.ln_x.bias",
            "att.gate.weight",
            "att.time_maa_x",
            "att.time_maa_w",
            "att.time_maa_k",
            "att.time_maa_v",
            "att.time_maa_r",
            "att.time_maa_g",
            "att.time_maa_w1",
            "att.time_maa_w2",
            "att.time_decay",
            "att.time_decay_w1",
            "att.time_decay_w2",
            "att.time_faaaa",
            "ffn.time_maa_k",
            "ffn.time_maa_r",
            "ffn.receptance.weight",
        ],
        Version::V7 | Version::V7a => &[
            "att.ln_x.weight",
            "att.ln_x.bias",
            "att.x_r",
            "att.x_w",
            "att.x_k",
            "att.x_v",
            "att.x_a",
            "att.x_g",
            "att.w0",
            "att.w1",
            "att.w2",
            "att.a0",
            "att.a1",
            "att.a2",
            "att.g1",
            "att.g2",
            "att.k_k",
            "att.k_a",
            "att.r_k",
            "ffn.x_k",
        ],
    };
    names.extend(new);
    if matches!(version, Version::V4 | Version::V5_0 | Version::V5_1 | Version::V5_2) {
        names.extend(old);
    }
    if version == Version::V7a {
        names.extend(["ffn.s_emb.weight", "ffn.s_emb_x.weight", "ffn.s0", "ffn.s1", "ffn.s2"]);
    }
    names
}

fn vector(name: String) -> TensorSpec {
    spec(&name, &[WIDTH], SourceDType::BF16)
}

/// A model of the given version, with its decay in the shape that files have.
fn model(version: Version) -> Vec<TensorSpec> {
    let mut tensors: Vec<_> = [
        "emb.weight",
        "blocks.0.ln0.weight",
        "blocks.0.ln0.bias",
        "ln_out.weight",
        "ln_out.bias",
        "head.weight",
    ]
    .map(|name| vector(name.to_owned()))
    .into();
    for layer in 0..LAYERS {
        tensors.extend(local_names(version).into_iter().map(|name| vector(format!("blocks.{layer}.{name}"))));
        let decay: Option<&[usize]> = match version {
            Version::V5_0 | Version::V5_1 => Some(&[WIDTH / 2]),
            Version::V5_2 => Some(&[WIDTH / 2, 2]),
            _ => None,
        };
        tensors.extend(
            decay.map(|shape| spec(&format!("blocks.{layer}.att.time_decay"), shape, SourceDType::BF16)),
        );
        if matches!(version, Version::V5_0 | Version::V5_1) {
            tensors.push(spec(&format!("blocks.{layer}.att.time_first"), &[WIDTH / 2], SourceDType::BF16));
        }
        if matches!(version, Version::V7 | Version::V7a) && layer > 0 {
            tensors.extend(["v0", "v1", "v2"].map(|name| vector(format!("blocks.{layer}.att.{name}"))));
        }
    }
    tensors
}

fn detected(tensors: &[TensorSpec]) -> Result<Version, SourceError> {
    detect(&open(&safetensors(tensors)).unwrap())
}

/// The refusal of a model after adding tensors.
#[track_caller]
fn refusal_with(version: Version, names: &[&str]) -> String {
    let mut tensors = model(version);
    tensors.extend(names.iter().map(|name| vector((*name).to_owned())));
    detected(&tensors).expect_err("the model was accepted").to_string()
}

#[test]
fn every_version_is_detected_in_any_order_of_its_tensors() {
    let mut random = Random(11);
    for version in Version::ALL {
        let mut tensors = model(version);
        for _ in 0..4 {
            assert_eq!(detected(&tensors).unwrap(), version);
            for at in (1..tensors.len()).rev() {
                tensors.swap(at, random.below(at + 1));
            }
        }
    }
}

#[test]
fn gate_and_decay_tell_the_fives_apart_also_with_one_head() {
    let decay = |version, shape: &[usize]| {
        let mut tensors = model(version);
        let decays = tensors.iter_mut().filter(|tensor| tensor.name.ends_with("att.time_decay"));
        decays.for_each(|tensor| tensor.shape = shape.to_vec());
        detected(&tensors)
    };
    for (shape, version) in [
        (&[1, WIDTH][..], Version::V5_2),
        (&[WIDTH / 2, 2, 1], Version::V5_2),
        (&[2, 1, 1], Version::V5_1),
        (&[1], Version::V5_1),
        (&[1, 1, 1], Version::V5_1),
    ] {
        assert_eq!(decay(Version::V5_2, shape).unwrap(), version, "{shape:?}");
    }
    for shape in [&[3][..], &[WIDTH, 2], &[0]] {
        let message = decay(Version::V5_1, shape).unwrap_err().to_string();
        assert!(message.contains("blocks.0.att.time_decay"), "{message}");
    }
}

#[test]
fn fives_take_either_name_of_the_bonus_but_not_both() {
    let mut tensors = model(Version::V5_0);
    for tensor in &mut tensors {
        tensor.name = tensor.name.replace("time_first", "time_faaaa");
    }
    assert_eq!(detected(&tensors).unwrap(), Version::V5_0);
    assert!(refusal_with(Version::V5_2, &["blocks.1.att.time_first"]).contains("more than one"));
    tensors.retain(|tensor| tensor.name != "blocks.2.att.time_faaaa");
    assert!(detected(&tensors).unwrap_err().to_string().contains("blocks.2.att.time_first"));
}

#[test]
fn value_residual_of_the_first_layer_is_optional_in_seven() {
    let mut tensors = model(Version::V7);
    tensors.extend(["v0", "v1", "v2"].map(|name| vector(format!("blocks.0.att.{name}"))));
    assert_eq!(detected(&tensors).unwrap(), Version::V7);
    tensors.retain(|tensor| tensor.name != "blocks.1.att.v1");
    assert!(detected(&tensors).unwrap_err().to_string().contains("blocks.1.att.v1"));
}

#[test]
fn tuned_state_belongs_to_five_six_and_seven() {
    for version in [Version::V5_2, Version::V6, Version::V7] {
        let mut tensors = model(version);
        tensors.push(vector("blocks.0.att.time_state".to_owned()));
        assert_eq!(detected(&tensors).unwrap(), version);
    }
    assert!(refusal_with(Version::V4, &["blocks.0.att.time_state"]).contains("time_state"));
}

#[test]
fn variants_are_refused_by_name_with_the_reason() {
    use Version::{V4, V5_2, V6, V7, V7a};
    for (base, tensor, name, reason) in [
        (V7, "blocks.2.qkv.qq.weight", "RWKV-7b", "token cache"),
        (V7, "blocks.0.ffn.s1", "every RWKV-7a model", "blocks.0.ffn.s2"),
        (V7, "blocks.1.ffn.s1", "unknown variant of RWKV-7", "blocks.1.ffn.s1"),
        (V7a, "blocks.2.qkv.qq.weight", "RWKV-7b", "token cache"),
        (V7a, "blocks.1.ffn.s3", "unknown variant of RWKV-7a", "ffn.s3"),
        (V7, "blocks.0.ffn.enn.weight", "RWKV-8", "not final"),
        (V7, "blocks.1.rosa.emb", "RWKV-8", "not final"),
        (V6, "blocks.0.att.time_maa_rkvw_w1", "x060", "never released"),
        (V6, "blocks.0.att.gate_w1", "x060", "never released"),
        (V4, "blocks.1.tiny_q.weight", "RWKV-4a", "not constant"),
        (V4, "blocks.1.tiny_ln.weight", "RWKV-4a", "not constant"),
        (V4, "blocks.0.ffnPre.key.weight", "pre-FFN", "different block"),
        (V4, "blocks.0.ffn.aa.weight", "MishGLU", "different block"),
        (V4, "pos_emb_x", "position embeddings", "bounded"),
        (V4, "pos_emb_y", "position embeddings", "bounded"),
        (V4, "blocks.0.pos_emb_x", "position embeddings", "bounded"),
        (V4, "head_q.weight", "head-QK", "all previous tokens"),
        (V4, "head_k.weight", "head-QK", "all previous tokens"),
        (V4, "blocks.0.att.qq.weight", "attention", "grows"),
        (V5_2, "_rescale_layer", "ChatRWKV", "original"),
        (V4, "blocks.0.att.time_mix_q", "unknown variant of RWKV-4", "time_mix_q"),
        (V4, "blocks.2.att.gate.weight", "unknown variant of RWKV-4", "gate"),
        (V4, "blocks.1.ln0.weight", "unknown variant of RWKV-4", "blocks.1.ln0.weight"),
        (V6, "blocks.1.att.time_mix_x", "unknown variant of RWKV-6", "time_mix_x"),
        (V4, "value_head.weight", "unknown variant of RWKV-4", "value_head"),
        (V4, "blocks.01.ln1.weight", "unknown variant of RWKV-4", "blocks.01"),
    ] {
        let message = refusal_with(base, &[tensor]);
        assert!(message.contains(name) && message.contains(reason), "{tensor}: {message}");
    }
}

#[test]
fn chatrwkv_files_are_recognised_before_their_tensors_are_looked_at() {
    let names = ["_strategy", "_version", "_rescale_layer"];
    let mut items: Vec<_> = names.map(|name| (name, pickle::text("cuda fp16"))).into();
    // A matrix that does not fit its storage.
    items.push(("emb.weight", pickle::view("0", 9, 0, &[3, 3], &[1, 7])));
    let bytes = torch_file_of(&pickle::whole(&pickle::dict(&items)), &[("0", &[0; 16])]);
    let message = open(&bytes).unwrap_err().to_string();
    assert!(message.contains("ChatRWKV") && message.contains("original"), "{message}");
}

#[test]
fn a_hybrid_of_eight_is_not_called_seven_b() {
    let message = refusal_with(Version::V7, &["blocks.0.qkv.qq.weight", "blocks.0.ffn.enn.weight"]);
    assert!(message.contains("RWKV-8") && !message.contains("7b"), "{message}");
}

#[test]
fn only_four_is_compared_with_four_b() {
    assert!(refusal_with(Version::V4, &["blocks.1.att.x"]).contains("4b"));
    assert!(!refusal_with(Version::V7, &["blocks.1.att.x"]).contains("4b"));
}

#[test]
fn integers_and_objects_where_weights_should_be_are_named() {
    let storage = pickle::storage("LongStorage", "0", 2);
    let integers = [
        &*pickle::global("torch._utils", "_rebuild_tensor_v2"),
        b"(",
        &storage,
        &pickle::int(0),
        &pickle::tuple(&[2]),
        &pickle::tuple(&[1]),
        b"\x89",
        &pickle::hooks(),
        b"tR",
    ]
    .concat();
    let object = [&*pickle::global("torch._utils", "_rebuild_sparse_tensor"), b")R"].concat();
    let file = |name: &str, value: &[u8]| {
        let items = [("emb.weight", pickle::vector("1", 4)), (name, value.to_vec())];
        let body = pickle::whole(&pickle::dict(&items));
        open(&torch_file_of(&body, &[("0", &[0; 16]), ("1", &[0; 16])])).unwrap()
    };
    for (value, found) in [(&integers, "int64"), (&object, "torch._utils._rebuild_sparse_tensor")] {
        let checkpoint = file("module.blocks.0.att.key.weight", value);
        let message = detect(&checkpoint).unwrap_err().to_string();
        assert!(message.contains("tensor blocks.0.att.key.weight") && message.contains(found), "{message}");
        assert_eq!(file("step", value).other_entries(), ["step"]);
    }
}

#[test]
fn missing_tensors_are_named_in_every_layer() {
    for (version, missing) in [
        (Version::V4, "ln_out.bias"),
        (Version::V4, "head.weight"),
        (Version::V4, "blocks.0.ln0.weight"),
        (Version::V4, "blocks.2.ffn.receptance.weight"),
        (Version::V4, "blocks.1.att.time_first"),
        (Version::V5_1, "blocks.1.att.gate.weight"),
        (Version::V6, "blocks.2.att.time_maa_w2"),
        (Version::V7, "blocks.1.att.r_k"),
        (Version::V7a, "blocks.1.ffn.s_emb_x.weight"),
        (Version::V7a, "blocks.0.ffn.s2"),
    ] {
        let mut tensors = model(version);
        tensors.retain(|tensor| tensor.name != missing);
        let message = detected(&tensors).unwrap_err().to_string();
        assert!(message.contains(&format!("tensor {missing}")), "{missing}: {message}");
    }
    let mut tensors = model(Version::V4);
    tensors.retain(|tensor| !tensor.name.starts_with("blocks.1."));
    assert!(detected(&tensors).unwrap_err().to_string().contains("blocks.1."));
}

#[test]
fn an_absurd_layer_number_costs_nothing() {
    let message = refusal_with(Version::V4, &["blocks.18446744073709551615.ln1.weight"]);
    assert!(message.contains("blocks.3."), "{message}");
    assert!(
        refusal_with(Version::V4, &["blocks.99999999999999999999.ln1.weight"]).contains("unknown variant")
    );
}

#[test]
fn other_models_are_refused_with_their_first_names() {
    for (names, part) in [
        (&["rwkv.blocks.0.attention.key.weight", "head.weight"][..], "Hugging Face"),
        (&["model.layers.0.attn.r_proj.weight", "lm_head.weight"], "flash-linear-attention"),
        (&["model.layers.0.attn.r_k", "lm_head.weight"], "flash-linear-attention"),
        (&["transformer.h.0.attn.weight"], "transformer.h.0.attn.weight"),
        (&["emb.weight", "blocks.0.ln1.weight", "blocks.0.att.time_w"], "blocks.0.att.time_w"),
    ] {
        let tensors: Vec<_> = names.iter().map(|name| vector((*name).to_owned())).collect();
        let message = detected(&tensors).unwrap_err().to_string();
        assert!(message.contains("no RWKV version") && message.contains(part), "{message}");
    }
}

#[test]
fn joined_mixes_of_seven_belong_to_rwkv_cpp_files_only() {
    let joined = joined(blinkdl(Version::V7), "x_rwkvag", &[6, 1, 8]);
    let message = detect(&open(&safetensors_of(&joined, SourceDType::F32)).unwrap()).unwrap_err().to_string();
    assert!(message.contains("x_rwkvag"), "{message}");
    let file = open(&rwkvcpp_of(&joined)).unwrap();
    assert_eq!(file.container(), Container::RwkvCpp);
    assert_eq!(detect(&file).unwrap(), Version::V7);
}

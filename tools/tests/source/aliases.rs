//! One model as different programs write it: the same names, shapes and values come out.

use crate::common::models::{
    FACTORS, HEADS, LAYERS, VERSIONS, WIDTH, blinkdl, fla, hugging_face, is_factor, joined, rwkvcpp,
    web_rwkv, with_states,
};
use crate::common::{
    Filled, Folder, counting, open, pickle, read, refusal, rwkvcpp_of, safetensors_of, shared, torch_file_of,
    torch_of,
};
use rwkv_edge::format::Version;
use rwkv_quantize::source::{Checkpoint, Container, Naming, SourceDType, detect};

fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&n| n != 1).collect()
}

/// A tensor as BlinkDL would have it.
fn upright(checkpoint: &Checkpoint, name: &str) -> Filled {
    let tensor = checkpoint.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let values = read(checkpoint, name);
    let stored = Filled { name: name.to_owned(), shape: tensor.shape.clone(), values };
    if tensor.transposed { stored.swapped() } else { stored }
}

/// Fails unless the file holds exactly the tensors of `model`, which is in BlinkDL's form.
#[track_caller]
fn assert_same(checkpoint: &Checkpoint, model: &[Filled]) {
    let names: Vec<_> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), model.len(), "{names:?}");
    for expected in model {
        let found = upright(checkpoint, &expected.name);
        assert_eq!(squeezed(&found.shape), squeezed(&expected.shape), "{}", expected.name);
        assert_eq!(found.values, expected.values, "{}", expected.name);
    }
}

/// Names of the tensors that are marked as transposed.
fn transposed(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().filter(|t| t.transposed).map(|t| t.name.as_str()).collect()
}

fn has_low_rank_factors(version: Version) -> bool {
    matches!(version, Version::V6 | Version::V7)
}

/// Opens the same tensors as a safetensors and as a torch file.
fn both(model: &[Filled]) -> [Checkpoint; 2] {
    [safetensors_of(model, SourceDType::F32), torch_of(model, SourceDType::F64)]
        .map(|file| open(&file).unwrap())
}

fn without(model: Vec<Filled>, part: &str) -> Vec<Filled> {
    model.into_iter().filter(|tensor| !tensor.name.contains(part)).collect()
}

#[track_caller]
fn detect_refusal(model: &[Filled]) -> String {
    let file = open(&safetensors_of(model, SourceDType::F32)).unwrap();
    detect(&file).expect_err("the model was accepted").to_string()
}

#[test]
fn blinkdl_models_stay_as_they_are() {
    for version in VERSIONS {
        let model = blinkdl(version);
        for file in both(&model) {
            assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::BlinkDl, version));
            assert!(transposed(&file).is_empty(), "{version}");
            for expected in &model {
                assert_eq!(upright(&file, &expected.name), *expected);
            }
        }
    }
}

#[test]
fn hugging_face_models_agree_with_blinkdls() {
    for version in VERSIONS {
        if version == Version::V7 {
            continue;
        }
        let model = blinkdl(version);
        for file in both(&hugging_face(model.clone())) {
            assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::HuggingFace, version));
            assert!(transposed(&file).is_empty(), "{version}");
            assert_same(&file, &model);
        }
    }
}

#[test]
fn hugging_face_ports_of_six_may_call_the_mixes_time_mix() {
    let model = blinkdl(Version::V6);
    let mut renamed = hugging_face(model.clone());
    for tensor in &mut renamed {
        tensor.name = tensor.name.replace("time_maa", "time_mix");
    }
    let file = open(&safetensors_of(&renamed, SourceDType::F32)).unwrap();
    assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::HuggingFace, Version::V6));
    assert!(transposed(&file).is_empty());
    assert_same(&file, &model);
}

#[test]
fn flash_linear_attention_models_agree_with_blinkdls() {
    let model = blinkdl(Version::V7);
    let bare = |mut tensor: Filled| {
        tensor.name = tensor.name.replace("model.", "");
        tensor
    };
    for written in [
        fla(model.clone()),
        fla(model.clone()).into_iter().map(bare).collect(),
        joined(fla(model.clone()), "x_x", &[6, WIDTH]),
    ] {
        for file in both(&written) {
            assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::FlashLinearAttention, Version::V7));
            assert!(transposed(&file).iter().all(|name| is_factor(name)));
            assert_eq!(transposed(&file).len(), LAYERS * 8 - 2);
            assert_same(&file, &model);
            let r_k = file.get("blocks.1.att.r_k").unwrap();
            assert_eq!(r_k.shape, [HEADS, WIDTH / HEADS]);
        }
    }
}

#[test]
fn flash_linear_attention_variants_are_refused_with_the_reason() {
    let model = fla(blinkdl(Version::V7));
    let message = detect_refusal(&without(model.clone(), "pre_norm"));
    assert!(
        message.contains("norm_first = false") && message.contains("normalise the embedding"),
        "{message}"
    );

    let message = detect_refusal(&without(model.clone(), "lm_head"));
    assert!(message.contains("head.weight") && message.contains("tied"), "{message}");

    let message = detect_refusal(&without(model.clone(), "layers.1.attn.w_lora.lora.2.bias"));
    assert!(message.contains("blocks.1.att.w0") && message.contains("flash-linear-attention"), "{message}");

    let mut hybrid = model.clone();
    for tensor in &mut hybrid {
        tensor.name = tensor.name.replace("layers.1.attn.r_proj", "layers.1.attn.q_proj");
    }
    let message = detect_refusal(&hybrid);
    assert!(message.contains("hybrid with attention"), "{message}");

    let gated = Filled { name: "model.layers.0.attn.g_lora.lora.2.bias".to_owned(), ..model[0].clone() };
    let message = detect_refusal(&[model.clone(), vec![gated]].concat());
    assert!(message.contains("unknown variant") && message.contains("att.g0"), "{message}");

    let message = detect_refusal(&without(model, "r_k"));
    assert!(message.contains("no RWKV version") && message.contains("another architecture"), "{message}");
}

#[test]
fn web_rwkv_models_agree_with_blinkdls() {
    for version in [Version::V5_2, Version::V6, Version::V7] {
        let model = with_states(blinkdl(version));
        for file in both(&web_rwkv(model.clone())) {
            assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::WebRwkv, version));
            assert_same(&file, &model);
            let expected = model.iter().filter(|t| is_factor(&t.name) || t.name.ends_with("time_state"));
            assert_eq!(transposed(&file).len(), expected.count(), "{version}");
        }
    }
    let model = blinkdl(Version::V4);
    let file = open(&safetensors_of(&web_rwkv(model.clone()), SourceDType::F16)).unwrap();
    assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::BlinkDl, Version::V4));
    assert_same(&file, &model);
}

#[test]
fn rwkv_cpp_models_agree_with_blinkdls() {
    for version in VERSIONS {
        let model = blinkdl(version);
        let file = open(&rwkvcpp_of(&rwkvcpp(model.clone()))).unwrap();
        assert_eq!(file.container(), Container::RwkvCpp);
        assert_eq!((file.naming(), detect(&file).unwrap()), (Naming::BlinkDl, version));
        assert_eq!(transposed(&file).is_empty(), !has_low_rank_factors(version), "{version}");
        assert_same(&file, &model);
    }
}

#[test]
fn a_split_mix_is_read_in_any_range() {
    let model = blinkdl(Version::V7);
    let file = open(&rwkvcpp_of(&rwkvcpp(model.clone()))).unwrap();
    for mix in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"] {
        let name = format!("blocks.1.att.{mix}");
        let expected = &model.iter().find(|tensor| tensor.name == name).unwrap().values;
        let tensor = file.get(&name).unwrap();
        assert_eq!(tensor.shape, [1, 1, WIDTH]);
        for (start, end) in [(0, WIDTH), (3, 5), (7, 8), (8, 8)] {
            let mut out = vec![f32::NAN; end - start];
            file.read(tensor, start, &mut out).unwrap();
            assert_eq!(out, expected[start..end], "{name}");
        }
        assert!(file.read(tensor, 7, &mut [0.0; 2]).is_err());
    }
}

#[test]
fn joined_mixes_with_gaps_between_them_are_read() {
    let mixes = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];
    let pickle = pickle::whole(&pickle::dict(&[
        ("model.layers.0.attn.x_x", pickle::view("0", 36, 1, &[6, 4], &[6, 1])),
        ("model.layers.0.attn.r_k", pickle::view("0", 36, 0, &[2, 2], &[2, 1])),
        ("model.layers.1.attn.x_x", pickle::view("0", 36, 0, &[6, 2, 2], &[6, 3, 1])),
    ]));
    let file = open(&torch_file_of(&pickle, &[("0", &counting(SourceDType::F32, 36))])).unwrap();
    for (mix, start) in mixes.into_iter().zip((0..).step_by(6)) {
        let values = |offsets: [i32; 4]| offsets.map(|offset| (start + offset) as f32);
        assert_eq!(read(&file, &format!("blocks.0.att.{mix}")), values([1, 2, 3, 4]));
        assert_eq!(read(&file, &format!("blocks.1.att.{mix}")), values([0, 1, 3, 4]));
    }
}

#[test]
fn tuned_states_are_transposed_in_web_rwkv_files_only() {
    for version in [Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
        let model = with_states(blinkdl(version));
        for file in both(&model) {
            assert!(transposed(&file).is_empty(), "{version}");
            assert_same(&file, &model);
        }
        let mut converted = rwkvcpp(without(model.clone(), "time_state"));
        converted.extend(model.iter().filter(|tensor| tensor.name.ends_with("time_state")).cloned());
        assert_same(&open(&rwkvcpp_of(&converted)).unwrap(), &model);
    }
}

#[test]
fn states_alone_are_read_from_torch_files_and_refused_from_safetensors() {
    let states: Vec<_> =
        with_states(Vec::new()).into_iter().filter(|tensor| tensor.name.ends_with("time_state")).collect();
    let file = open(&torch_of(&states, SourceDType::BF16)).unwrap();
    assert!(transposed(&file).is_empty());
    assert_eq!(file.tensors().len(), LAYERS);
    let message = refusal(&safetensors_of(&states, SourceDType::F16));
    assert!(message.contains("transposed") && message.contains(".pth"), "{message}");
}

#[test]
fn the_name_of_the_file_does_not_count() {
    let folder = Folder::new();
    for (model, naming) in
        [(blinkdl(Version::V7), Naming::BlinkDl), (web_rwkv(blinkdl(Version::V7)), Naming::WebRwkv)]
    {
        for name in ["model.st", "model.safetensors", "model.pth"] {
            let path = folder.path(name);
            std::fs::write(&path, safetensors_of(&model, SourceDType::F16)).unwrap();
            assert_eq!(Checkpoint::open(&path).unwrap().naming(), naming, "{name}");
        }
    }
}

/// A model whose `w1` and `w2`, and with `all` every factor, are square.
fn with_square_factors(mut model: Vec<Filled>, all: bool) -> Vec<Filled> {
    for tensor in model.iter_mut().filter(|tensor| is_factor(&tensor.name)) {
        if all || tensor.name.ends_with("att.w1") || tensor.name.ends_with("att.w2") {
            tensor.shape = vec![WIDTH, WIDTH];
            tensor.values = (0..WIDTH * WIDTH).map(|n| n as f32).collect();
        }
    }
    model
}

#[test]
fn square_factors_follow_the_others_of_the_file() {
    let model = with_states(with_square_factors(blinkdl(Version::V7), false));
    for (written, naming) in [(model.clone(), Naming::BlinkDl), (web_rwkv(model.clone()), Naming::WebRwkv)] {
        let file = open(&safetensors_of(&written, SourceDType::F32)).unwrap();
        assert_eq!(file.naming(), naming);
        assert_eq!(file.get("blocks.0.att.w1").unwrap().transposed, naming == Naming::WebRwkv);
        assert_same(&file, &model);
    }
}

#[test]
fn square_factors_alone_follow_the_tradition() {
    let model = with_square_factors(blinkdl(Version::V7), true);
    let blinkdl = open(&torch_of(&model, SourceDType::F32)).unwrap();
    assert_eq!(blinkdl.naming(), Naming::BlinkDl);
    assert_same(&blinkdl, &model);
    // Both BlinkDL and web-rwkv write safetensors files.
    let message = refusal(&safetensors_of(&model, SourceDType::F32));
    assert!(message.contains("--naming blinkdl or --naming web-rwkv"), "{message}");
    assert_same(&open(&safetensors_of(&fla(model.clone()), SourceDType::F32)).unwrap(), &model);
    assert_same(&open(&rwkvcpp_of(&rwkvcpp(model.clone()))).unwrap(), &model);

    let mut six = blinkdl_six_with_square_decay();
    assert_same(&open(&safetensors_of(&web_rwkv(six.clone()), SourceDType::F32)).unwrap(), &six);
    six.retain(|tensor| !tensor.name.contains("time_maa_w"));
    let file = open(&safetensors_of(&web_rwkv(six.clone()), SourceDType::F32)).unwrap();
    assert_same(&file, &six);
}

fn blinkdl_six_with_square_decay() -> Vec<Filled> {
    let mut model = blinkdl(Version::V6);
    for tensor in model.iter_mut().filter(|tensor| tensor.name.contains("time_decay_w")) {
        tensor.shape = vec![WIDTH, WIDTH];
        tensor.values = (0..WIDTH * WIDTH).map(|n| n as f32).collect();
    }
    model
}

#[test]
fn factors_in_both_orientations_are_told_apart_by_shape_unless_one_is_square() {
    let half = |model: &[Filled]| -> Vec<Filled> {
        let swap =
            |t: &Filled| if t.name.contains("att.g") && is_factor(&t.name) { t.swapped() } else { t.clone() };
        model.iter().map(swap).collect()
    };
    let model = blinkdl(Version::V7);
    let file = open(&safetensors_of(&half(&model), SourceDType::F32)).unwrap();
    assert_eq!(transposed(&file).len(), 2 * LAYERS);
    assert_eq!(file.naming(), Naming::BlinkDl);
    assert_same(&file, &model);

    let square = half(&with_square_factors(model, false));
    let message = refusal(&safetensors_of(&square, SourceDType::F32));
    assert!(message.contains("blocks.0.att.w1") && message.contains("square"), "{message}");
}

#[test]
fn factors_that_fit_neither_way_are_left_for_the_shape_check() {
    let mut model = blinkdl(Version::V7);
    for tensor in model.iter_mut().filter(|tensor| tensor.name.ends_with("att.a1")) {
        tensor.shape = vec![4, 6];
    }
    let file = open(&safetensors_of(&model, SourceDType::F32)).unwrap();
    assert!(!file.get("blocks.0.att.a1").unwrap().transposed);
    assert_eq!(file.naming(), Naming::BlinkDl);
}

#[test]
fn a_bonus_per_head_stays_an_exponent_and_one_per_channel_is_raw() {
    for version in [Version::V5_0, Version::V5_1] {
        let file = open(&safetensors_of(&web_rwkv(blinkdl(version)), SourceDType::F32)).unwrap();
        assert!(
            file.get("blocks.0.att.time_first").is_some() && file.get("blocks.0.att.time_faaaa").is_none()
        );
        assert_eq!(file.naming(), Naming::BlinkDl);
    }
    let file = open(&safetensors_of(&web_rwkv(blinkdl(Version::V5_2)), SourceDType::F32)).unwrap();
    assert!(file.get("blocks.0.att.time_first").is_none() && file.get("blocks.0.att.time_faaaa").is_some());
    // rwkv.cpp stores the exponential under this name, so it keeps it whatever the shape.
    let file = open(&rwkvcpp_of(&web_rwkv(blinkdl(Version::V5_2)))).unwrap();
    assert!(file.get("blocks.0.att.time_first").is_some() && file.get("blocks.0.att.time_faaaa").is_none());
}

#[test]
fn names_that_meet_after_translation_are_refused() {
    let model = blinkdl(Version::V4);
    let mut doubled = hugging_face(model.clone());
    doubled.push(Filled { name: "emb.weight".to_owned(), ..model[0].clone() });
    let message = refusal(&safetensors_of(&doubled, SourceDType::F32));
    assert!(message.contains("tensor emb.weight") && message.contains("two"), "{message}");

    let model = blinkdl(Version::V7);
    let mut both = rwkvcpp(model.clone());
    both.extend(model.into_iter().filter(|tensor| tensor.name == "blocks.1.att.x_v"));
    let message = refusal(&rwkvcpp_of(&both));
    assert!(message.contains("tensor blocks.1.att.x_v"), "{message}");
}

#[test]
fn joined_mixes_that_are_not_six_are_refused() {
    for shape in [vec![5, 1, WIDTH], vec![1, 6 * WIDTH], vec![6 * WIDTH], vec![WIDTH, 6]] {
        let mut model = rwkvcpp(blinkdl(Version::V7));
        for tensor in model.iter_mut().filter(|tensor| tensor.name.ends_with("x_rwkvag")) {
            tensor.shape = shape.clone();
            tensor.values.truncate(shape.iter().product());
        }
        let message = refusal(&rwkvcpp_of(&model));
        assert!(message.contains("x_rwkvag") && message.contains("six mixes"), "{message}");
    }
}

#[test]
fn golden_models_have_their_mixes_and_factors_in_place() {
    let Some(golden) = shared("golden") else { return };
    for file in ["FP32", "FP16"] {
        let seven = Checkpoint::open(&golden.join(format!("tiny-rwkv-7v0-834K-{file}.bin"))).unwrap();
        assert_eq!(detect(&seven).unwrap(), Version::V7);
        let layers = seven.tensors().iter().filter(|tensor| tensor.name.ends_with("ln1.weight")).count();
        for layer in 0..layers {
            for mix in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"] {
                assert_eq!(seven.get(&format!("blocks.{layer}.att.{mix}")).unwrap().shape, [1, 1, 64]);
            }
            for factor in &FACTORS[4..] {
                let tensor = seven.get(&format!("blocks.{layer}.{factor}"));
                assert!(tensor.is_none_or(|tensor| tensor.transposed), "{factor}");
                assert_eq!(tensor.is_none(), layer == 0 && factor.contains(".v"), "{factor}");
            }
        }
        assert_eq!(transposed(&seven).len(), 8 * layers - 2);
        assert_golden_mixes(&seven, &golden.join(format!("tiny-rwkv-7v0-834K-{file}.bin")));
    }
    let five = Checkpoint::open(&golden.join("tiny-rwkv-5v2-730K-FP32.bin")).unwrap();
    assert_eq!((detect(&five).unwrap(), five.naming()), (Version::V5_2, Naming::BlinkDl));
    assert!(transposed(&five).is_empty());
    assert_eq!(five.get("blocks.0.att.time_faaaa").unwrap().shape, [8, 8, 1]);
}

/// The six mixes of layer 0 are the bytes behind the joined tensor's name, in order.
#[track_caller]
fn assert_golden_mixes(checkpoint: &Checkpoint, path: &std::path::Path) {
    let bytes = std::fs::read(path).unwrap();
    let name = b"blocks.0.att.x_rwkvag";
    let start = name.len() + bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut at = start;
    for mix in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"] {
        let name = format!("blocks.0.att.{mix}");
        let dtype = checkpoint.get(&name).unwrap().dtype;
        for value in read(checkpoint, &name) {
            assert_eq!(crate::common::encode(dtype, value), bytes[at..at + dtype.size()], "{name}");
            at += dtype.size();
        }
    }
}

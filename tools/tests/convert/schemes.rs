//! One RWKV-7 in every naming scheme of safetensors files, written from the schemes' definitions.

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::source::{Naming, SourceDType};

use crate::common::{Desk, Model, Part, Parts, options};
use crate::fla::IN_LAYERS;

/// The model.
pub(crate) fn blinkdl() -> Parts {
    Parts::of("v7")
}

/// The same after a change of each tensor.
fn each(parts: &Parts, mut change: impl FnMut(&mut Part)) -> Parts {
    let mut parts = parts.clone();
    parts.0.iter_mut().for_each(&mut change);
    parts
}

fn squeeze(part: &mut Part) {
    part.shape.retain(|&n| n != 1);
}

/// `name` with the first of the beginnings, or the parts in the middle, replaced.
fn renamed(name: &str, table: &[(&str, &str)]) -> String {
    table.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// BlinkDL's names in a module, but for the head. Transformers of 2026 call it `rwkv7`.
fn in_a_module(parts: &Parts, module: &str) -> Parts {
    each(parts, |part| {
        if part.name != "head.weight" {
            part.name = format!("{module}.{}", part.name);
        }
    })
}

/// The same with another name of the embedding.
fn with_embeddings(parts: &Parts) -> Parts {
    each(&in_a_module(parts, "model"), |part| {
        squeeze(part);
        part.name = part.name.replace("model.emb.", "model.embeddings.");
    })
}

/// flash-linear-attention: linear layers take the place of low-rank factors.
pub(crate) fn fla(parts: &Parts) -> Parts {
    let mut written = each(parts, |part| {
        if part.is_factor() {
            part.transpose();
        }
        let low_rank = part.name.split_once(".att.").and_then(|(layer, local)| {
            let (map, digit) = local.split_at_checked(1).filter(|(map, _)| "wavg".contains(map))?;
            let part = match digit {
                "0" => "2.bias",
                "1" => "0.weight",
                "2" => "2.weight",
                _ => return None,
            };
            Some(format!("{layer}.attn.{map}_lora.lora.{part}"))
        });
        if low_rank.as_ref().is_some_and(|name| name.ends_with("bias")) {
            squeeze(part);
        }
        let name = low_rank.unwrap_or_else(|| part.name.clone());
        let name = renamed(
            &name,
            &[
                ("emb.weight", "model.embeddings.weight"),
                ("head.weight", "lm_head.weight"),
                ("ln_out.", "model.norm."),
                ("blocks.", "model.layers."),
            ],
        );
        part.name = renamed(&name, &IN_LAYERS);
    });
    written.0.sort_by(|a, b| a.name.cmp(&b.name));
    written
}

/// Early flash-linear-attention: one tensor has the six mixes.
fn early_fla(parts: &Parts) -> Parts {
    let mut written = fla(parts);
    let width = written.get("model.norm.weight").elements();
    for layer in (0..).map(|layer| format!("model.layers.{layer}.attn.")) {
        let mixes = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"].map(|mix| format!("{layer}{mix}"));
        let joined: Vec<Part> = mixes
            .iter()
            .filter_map(|name| written.0.iter().find(|part| part.name == *name).cloned())
            .collect();
        let Some(first) = joined.first() else { return written };
        let bytes = joined.iter().flat_map(|part| part.bytes.clone()).collect();
        let (name, dtype) = (format!("{layer}x_x"), first.dtype);
        written = written.without(|name| mixes.iter().any(|mix| mix == name));
        written.0.push(Part { name, shape: vec![6, width], dtype, bytes });
    }
    unreachable!("the loop ends with the layers")
}

/// transformers with `linear_attn`: nothing is transposed, the norm of the embedding is beside the
/// layers.
pub(crate) fn linear_attention(parts: &Parts) -> Parts {
    each(parts, |part| {
        squeeze(part);
        part.name = renamed(
            &part.name,
            &[
                ("emb.weight", "model.embed_tokens.weight"),
                ("head.weight", "lm_head.weight"),
                ("ln_out.", "model.norm."),
                ("blocks.0.ln0.", "model.embedding_norm."),
                ("blocks.", "model.layers."),
                (".ln1.", ".input_layernorm."),
                (".ln2.", ".post_attention_layernorm."),
                (".att.receptance.", ".linear_attn.r_proj."),
                (".att.key.", ".linear_attn.k_proj."),
                (".att.value.", ".linear_attn.v_proj."),
                (".att.output.", ".linear_attn.o_proj."),
                (".att.ln_x.", ".linear_attn.g_norm."),
                (".att.", ".linear_attn."),
                (".ffn.", ".mlp."),
            ],
        );
    })
}

/// The same with the matrices of channel mixing named as in other transformers.
fn up_and_down(parts: &Parts) -> Parts {
    each(&linear_attention(parts), |part| {
        part.name =
            renamed(&part.name, &[(".mlp.key.", ".mlp.up_proj."), (".mlp.value.", ".mlp.down_proj.")]);
    })
}

/// web-rwkv's converter transposes the factors.
fn web_rwkv(parts: &Parts) -> Parts {
    each(parts, |part| {
        if part.is_factor() {
            part.transpose();
        }
    })
}

/// The refusal of a safetensors file.
#[track_caller]
fn refusal(desk: &Desk, parts: &Parts, options: &Options) -> String {
    desk.put(&parts.safetensors());
    desk.refusal_of_input(options)
}

#[track_caller]
fn convert(desk: &Desk, parts: &Parts, options: &Options) -> Model {
    desk.put(&parts.safetensors());
    desk.try_convert(options).unwrap();
    Model::open(&desk.output())
}

#[test]
fn one_model_gives_the_same_file_in_every_scheme() {
    let desk = Desk::new();
    let parts = blinkdl();
    for dtype in [DType::F32, DType::Int4] {
        let options = options(dtype);
        let wanted = desk.convert(&parts, &options);
        for written in [
            parts.clone(),
            in_a_module(&parts, "model"),
            in_a_module(&parts, "rwkv7"),
            with_embeddings(&parts),
            fla(&parts),
            early_fla(&parts),
            linear_attention(&parts),
            up_and_down(&parts),
            web_rwkv(&parts),
        ] {
            let found = convert(&desk, &written, &options);
            let first = &written.0[0].name;
            assert!(found.tensors() == wanted.tensors(), "{dtype} {first}");
            assert_eq!(found.0.config(), wanted.0.config(), "{first}");
            assert_eq!(found.0.self_test(), wanted.0.self_test(), "{first}");
            assert_eq!(found.0.model_id(), wanted.0.model_id(), "{first}");
        }
    }
}

#[test]
fn an_embedding_that_is_normalised_already_is_taken_if_config_json_says_so() {
    let desk = Desk::new();
    let wanted = desk.convert(&blinkdl(), &options(DType::F32));
    let normed = wanted.get("emb.weight");
    let mut written = linear_attention(&blinkdl());
    written.get("model.embed_tokens.weight").fill(SourceDType::F32, normed);
    let folded = written.without(|name| name.contains("embedding_norm"));

    let message = refusal(&desk, &folded, &options(DType::F32));
    assert!(message.contains("embedding_layer_norm_fused") && message.contains("ln0"), "{message}");

    let config = |fused: &str| {
        let text = format!(r#"{{"model_type": "rwkv7", "embedding_layer_norm_fused": {fused}}}"#);
        std::fs::write(desk.path("config.json"), text).unwrap();
    };
    config("false");
    assert!(refusal(&desk, &folded, &options(DType::F32)).contains("embedding_layer_norm_fused"));
    config("true");
    let message = refusal(&desk, &written, &options(DType::F32));
    assert!(message.contains("config.json: embedding_layer_norm_fused is true"), "{message}");
    let found = convert(&desk, &folded, &options(DType::F32));
    assert!(found.tensors() == wanted.tensors());
    config("1");
    let message = refusal(&desk, &folded, &options(DType::F32));
    assert!(message.contains("expected true or false, found 1"), "{message}");
}

/// A model whose low-rank factors are all square.
fn square() -> Parts {
    each(&blinkdl(), |part| {
        if part.is_factor() {
            let width = *part.shape.iter().max().unwrap();
            part.reshape(&[width, width]);
            let values: Vec<f32> = (0..width * width).map(|i| (i % 251) as f32 / 1024.0).collect();
            part.fill(SourceDType::F32, values);
        }
    })
}

#[test]
fn factors_that_are_all_square_need_the_name_of_the_writer() {
    let desk = Desk::new();
    let parts = square();
    let named = |naming| Options { naming: Some(naming), ..options(DType::F32) };
    let wanted = desk.convert(&parts, &options(DType::F32));

    let message = refusal(&desk, &parts, &options(DType::F32));
    assert!(message.contains("tensor blocks.0.att.") && message.contains("--naming web-rwkv"), "{message}");
    let found = convert(&desk, &parts, &named(Naming::BlinkDl));
    assert!(found.tensors() == wanted.tensors());
    let found = convert(&desk, &web_rwkv(&parts), &named(Naming::WebRwkv));
    assert!(found.tensors() == wanted.tensors());
    // Schemes with names of their own say how they store factors.
    for written in [fla(&parts), linear_attention(&parts)] {
        assert!(convert(&desk, &written, &options(DType::F32)).tensors() == wanted.tensors());
    }
}

#[test]
fn a_name_of_the_writer_that_the_tensors_contradict_is_refused() {
    let desk = Desk::new();
    let parts = blinkdl();
    for (written, naming, is) in [
        (parts.clone(), Naming::WebRwkv, "those of BlinkDL"),
        (web_rwkv(&parts), Naming::BlinkDl, "those of web-rwkv"),
        (fla(&parts), Naming::BlinkDl, "those of flash-linear-attention"),
    ] {
        let options = Options { naming: Some(naming), ..options(DType::F32) };
        let message = refusal(&desk, &written, &options);
        assert!(message.contains(is) && message.contains(&naming.to_string()), "{message}");
    }
}

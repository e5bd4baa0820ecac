//! Whole models of every version, and the same models as other programs write them.

use rwkv_edge::format::Version;

use super::Filled;
use crate::fla::IN_LAYERS;

pub(crate) const VOCAB: usize = 6;
pub(crate) const WIDTH: usize = 8;
pub(crate) const HEADS: usize = 2;
pub(crate) const LAYERS: usize = 2;
const HEAD_SIZE: usize = WIDTH / HEADS;
const FFN: usize = 12;
const DEEP_RANK: usize = 16;

/// Versions that other programs write too.
pub(crate) const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

/// Low-rank factors, which some programs transpose.
pub(crate) const FACTORS: [&str; 12] = [
    "att.time_maa_w1",
    "att.time_maa_w2",
    "att.time_decay_w1",
    "att.time_decay_w2",
    "att.w1",
    "att.w2",
    "att.a1",
    "att.a2",
    "att.v1",
    "att.v2",
    "att.g1",
    "att.g2",
];

pub(crate) fn is_factor(name: &str) -> bool {
    FACTORS.iter().any(|factor| name.ends_with(factor))
}

/// A model as BlinkDL publishes it. Every element has a value of its own.
pub(crate) fn blinkdl(version: Version) -> Vec<Filled> {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("emb.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("blocks.0.ln0.weight".to_owned(), vec![WIDTH]),
        ("blocks.0.ln0.bias".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let locals = layer_shapes(version, layer);
        shapes.extend(locals.into_iter().map(|(name, shape)| (format!("blocks.{layer}.{name}"), shape)));
    }
    for (name, shape) in
        [("ln_out.weight", vec![WIDTH]), ("ln_out.bias", vec![WIDTH]), ("head.weight", vec![VOCAB, WIDTH])]
    {
        shapes.push((name.to_owned(), shape));
    }
    let mut count = 0;
    let filled = shapes.into_iter().map(|(name, shape)| {
        let elements: usize = shape.iter().product();
        let values = (count..count + elements).map(|n| n as f32).collect();
        count += elements;
        Filled { name, shape, values }
    });
    filled.collect()
}

fn layer_shapes(version: Version, layer: usize) -> Vec<(&'static str, Vec<usize>)> {
    let d = WIDTH;
    let vector = || vec![1, 1, d];
    let mut shapes = vec![
        ("ln1.weight", vec![d]),
        ("ln1.bias", vec![d]),
        ("ln2.weight", vec![d]),
        ("ln2.bias", vec![d]),
        ("att.receptance.weight", vec![d, d]),
        ("att.key.weight", vec![d, d]),
        ("att.value.weight", vec![d, d]),
        ("att.output.weight", vec![d, d]),
        ("ffn.key.weight", vec![FFN, d]),
        ("ffn.value.weight", vec![d, FFN]),
    ];
    if !matches!(version, Version::V7 | Version::V7a) {
        shapes.push(("ffn.receptance.weight", vec![d, d]));
    }
    if version != Version::V4 {
        shapes.extend([("att.ln_x.weight", vec![d]), ("att.ln_x.bias", vec![d])]);
    }
    if matches!(version, Version::V5_1 | Version::V5_2 | Version::V6) {
        shapes.push(("att.gate.weight", vec![d, d]));
    }
    match version {
        Version::V6 => shapes_of_v6(&mut shapes),
        Version::V7 | Version::V7a => shapes_of_v7(&mut shapes, layer),
        _ => {
            for mix in
                ["att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "ffn.time_mix_k", "ffn.time_mix_r"]
            {
                shapes.push((mix, vector()));
            }
        }
    }
    match version {
        Version::V4 => shapes.extend([("att.time_decay", vec![d]), ("att.time_first", vec![d])]),
        Version::V5_0 | Version::V5_1 => {
            shapes.extend([("att.time_decay", vec![HEADS]), ("att.time_first", vec![HEADS])]);
        }
        Version::V5_2 => shapes
            .extend([("att.time_decay", vec![HEADS, HEAD_SIZE]), ("att.time_faaaa", vec![HEADS, HEAD_SIZE])]),
        Version::V7a => shapes.extend([
            ("ffn.s_emb.weight", vec![VOCAB, DEEP_RANK * DEEP_RANK]),
            ("ffn.s_emb_x.weight", vec![DEEP_RANK * DEEP_RANK, d]),
            ("ffn.s0", vec![1, 1, FFN]),
            ("ffn.s1", vec![d, DEEP_RANK]),
            ("ffn.s2", vec![DEEP_RANK, FFN]),
        ]),
        Version::V6 | Version::V7 => {}
    }
    if matches!(version, Version::V5_1 | Version::V5_2) {
        shapes.push(("att.time_mix_g", vector()));
    }
    shapes
}

fn shapes_of_v6(shapes: &mut Vec<(&'static str, Vec<usize>)>) {
    let (d, mix, decay) = (WIDTH, 3, 2);
    for name in [
        "att.time_maa_x",
        "att.time_maa_w",
        "att.time_maa_k",
        "att.time_maa_v",
        "att.time_maa_r",
        "att.time_maa_g",
        "ffn.time_maa_k",
        "ffn.time_maa_r",
        "att.time_decay",
    ] {
        shapes.push((name, vec![1, 1, d]));
    }
    shapes.extend([
        ("att.time_maa_w1", vec![d, 5 * mix]),
        ("att.time_maa_w2", vec![5, mix, d]),
        ("att.time_decay_w1", vec![d, decay]),
        ("att.time_decay_w2", vec![decay, d]),
        ("att.time_faaaa", vec![HEADS, HEAD_SIZE]),
    ]);
}

fn shapes_of_v7(shapes: &mut Vec<(&'static str, Vec<usize>)>, layer: usize) {
    let d = WIDTH;
    for name in [
        "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.k_k",
        "att.k_a", "ffn.x_k",
    ] {
        shapes.push((name, vec![1, 1, d]));
    }
    shapes.extend([
        ("att.r_k", vec![HEADS, HEAD_SIZE]),
        ("att.w1", vec![d, 2]),
        ("att.w2", vec![2, d]),
        ("att.a1", vec![d, 3]),
        ("att.a2", vec![3, d]),
        ("att.g1", vec![d, 10]),
        ("att.g2", vec![10, d]),
    ]);
    if layer > 0 {
        shapes.extend([("att.v0", vec![1, 1, d]), ("att.v1", vec![d, 1]), ("att.v2", vec![1, d])]);
    }
}

/// Adds the tuned states.
pub(crate) fn with_states(mut model: Vec<Filled>) -> Vec<Filled> {
    for layer in 0..LAYERS {
        let values = (0..WIDTH * HEAD_SIZE).map(|n| (1000 + n + 100 * layer) as f32).collect();
        let shape = vec![HEADS, HEAD_SIZE, HEAD_SIZE];
        model.push(Filled { name: format!("blocks.{layer}.att.time_state"), shape, values });
    }
    model
}

fn replaced(mut tensor: Filled, replacements: &[(&str, &str)]) -> Filled {
    for (from, to) in replacements {
        tensor.name = tensor.name.replace(from, to);
    }
    tensor
}

/// The names of transformers.
pub(crate) fn hugging_face(model: Vec<Filled>) -> Vec<Filled> {
    let rename = |tensor: Filled| {
        let mut tensor = replaced(tensor, &[("emb.", "embeddings."), (".ln0.", ".pre_ln.")]);
        tensor = replaced(tensor, &[(".att.", ".attention."), (".ffn.", ".feed_forward.")]);
        for (short, long) in [("k", "key"), ("v", "value"), ("r", "receptance"), ("g", "gate")] {
            if let Some(start) = tensor.name.strip_suffix(&format!(".time_mix_{short}")) {
                tensor.name = format!("{start}.time_mix_{long}");
            }
        }
        if tensor.name != "head.weight" {
            tensor.name = format!("rwkv.{}", tensor.name);
        }
        tensor
    };
    model.into_iter().map(rename).collect()
}

/// RWKV-7 in flash-linear-attention. Linear layers replace low-rank factors; vectors have no
/// leading dimensions of 1.
pub(crate) fn fla(model: Vec<Filled>) -> Vec<Filled> {
    let rename = |tensor: Filled| {
        let mut tensor = if is_factor(&tensor.name) { tensor.swapped() } else { tensor };
        if tensor.shape == [1, 1, WIDTH] && !tensor.name.contains(".att.x_") {
            tensor.shape = vec![WIDTH];
        }
        for map in ["w", "a", "v", "g"] {
            for (digit, part) in [("0", "2.bias"), ("1", "0.weight"), ("2", "2.weight")] {
                if let Some(start) = tensor.name.strip_suffix(&format!(".att.{map}{digit}")) {
                    tensor.name = format!("{start}.attn.{map}_lora.lora.{part}");
                }
            }
        }
        let name = match tensor.name.as_str() {
            "emb.weight" => "model.embeddings.weight".to_owned(),
            "head.weight" => "lm_head.weight".to_owned(),
            other => other.replace("ln_out.", "model.norm.").replace("blocks.", "model.layers."),
        };
        replaced(Filled { name, ..tensor }, &IN_LAYERS)
    };
    model.into_iter().map(rename).collect()
}

/// The work of web-rwkv's converters: they change names and transpose factors and states.
pub(crate) fn web_rwkv(model: Vec<Filled>) -> Vec<Filled> {
    let convert = |tensor: Filled| {
        let swap = is_factor(&tensor.name) || tensor.name.ends_with("time_state");
        let tensor = if swap { tensor.swapped() } else { tensor };
        replaced(tensor, &[("time_faaaa", "time_first"), ("time_maa", "time_mix")])
    };
    model.into_iter().map(convert).collect()
}

/// The work of rwkv.cpp's converter, without the functions that it applies to values.
pub(crate) fn rwkvcpp(model: Vec<Filled>) -> Vec<Filled> {
    let mut converted = Vec::new();
    for tensor in model {
        let mut tensor = if is_factor(&tensor.name) { tensor.swapped() } else { tensor };
        if tensor.name.contains(".time_") {
            tensor.shape.retain(|&n| n != 1);
        }
        if ["time_faaaa", "time_first", "time_decay"].iter().any(|name| tensor.name.ends_with(name)) {
            tensor.shape.push(1);
        }
        converted.push(tensor);
    }
    joined(converted, "x_rwkvag", &[6, 1, WIDTH])
}

/// The six mixes of every layer in one tensor.
pub(crate) fn joined(model: Vec<Filled>, name: &str, shape: &[usize]) -> Vec<Filled> {
    let (mixes, mut rest): (Vec<_>, Vec<_>) = model
        .into_iter()
        .partition(|tensor| tensor.name.contains(".att.x_") || tensor.name.contains(".attn.x_"));
    for layer in mixes.chunks(6) {
        let (start, first) = layer[0].name.rsplit_once('.').unwrap();
        assert_eq!(first, "x_r");
        let values = layer.iter().flat_map(|mix| mix.values.clone()).collect();
        rest.push(Filled { name: format!("{start}.{name}"), shape: shape.to_vec(), values });
    }
    rest
}

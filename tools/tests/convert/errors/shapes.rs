//! Missing tensors and wrong shapes.

use rwkv_edge::kernels::DType;

use crate::common::{Desk, Part, Parts, VERSIONS, options};

/// Tensors that tell a version from the others. Without one of them, the file is of no version or
/// looks like a variant of another version.
fn tells_the_version(version: &str, name: &str) -> bool {
    let marks: &[&str] = match version {
        "v4" => &["att.time_first"],
        "v5.0" => &["att.ln_x.weight"],
        "v5.1" | "v5.2" => &["att.ln_x.weight", "att.gate.weight"],
        "v6" => &["att.time_maa_x"],
        _ => &["att.r_k"],
    };
    let in_layer = name.strip_prefix("blocks.0.");
    name == "emb.weight" || in_layer.is_some_and(|local| local == "ln1.weight" || marks.contains(&local))
}

#[test]
fn every_missing_tensor_is_refused_by_name() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for Part { name, .. } in &parts.0 {
            let rest = parts.without(|other| other == name);
            if tells_the_version(version, name) {
                let message = desk.refusal(&rest, &options(DType::Int8));
                assert!(message.contains("unsupported: "), "{version} {name}: {message}");
                continue;
            }
            // A layer of RWKV-5 has its bonus under one of two names.
            let wanted =
                name.replace("time_faaaa", if version == "v5.2" { "time_first" } else { "time_faaaa" });
            desk.tensor_refusal(&rest, &options(DType::Int8), &wanted);
        }
    }
}

#[test]
fn every_dimension_that_is_larger_by_one_is_refused_and_the_tensor_named() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, Part { name, shape, .. }) in parts.0.iter().enumerate() {
            for dimension in 0..shape.len() {
                let mut larger = shape.clone();
                larger[dimension] += 1;
                let changed = parts.changed(index, |part| part.reshape(&larger));
                // In 5.1 and 5.2, decays are counted, and the group norm says how many there must
                // be.
                let gated = ["v5.1", "v5.2"].contains(&version);
                let norm = gated && name == "blocks.0.att.ln_x.weight";
                let counted = norm || (gated && name == "blocks.0.att.time_decay");
                let named = if norm { "blocks.0.att.time_decay" } else { name };
                let message = desk.tensor_refusal(&changed, &options(DType::Int8), named);
                assert!(
                    counted || message.contains(&format!("{larger:?}")),
                    "{version} {larger:?}: {message}"
                );
            }
        }
    }
}

#[test]
fn every_dimension_of_zero_is_refused() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, Part { shape, .. }) in parts.0.iter().enumerate() {
            for dimension in 0..shape.len() {
                let mut empty = shape.clone();
                empty[dimension] = 0;
                let changed = parts.changed(index, |part| part.reshape(&empty));
                desk.refusal(&changed, &options(DType::Int8));
            }
        }
    }
}

#[test]
fn matrices_of_another_rank_are_refused() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate().filter(|(_, part)| !part.is_vector()) {
            let more = [&[1], &part.shape[..]].concat();
            for shape in [vec![part.elements()], more] {
                let changed = parts.changed(index, |part| part.reshape(&shape));
                desk.tensor_refusal(&changed, &options(DType::Int8), &part.name);
            }
        }
    }
}

/// Whether the number of heads is read from the shape of this tensor.
fn states_the_heads(version: &str, name: &str) -> bool {
    let local = match version {
        "v5.2" => "time_decay",
        "v6" => "time_faaaa",
        "v7" | "v7a" => "r_k",
        _ => return false,
    };
    name == format!("blocks.0.att.{local}")
}

#[test]
fn vectors_of_another_rank_are_the_same_vectors_unless_they_state_the_heads() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        let model = desk.convert(&parts, &options(DType::F32));
        for shape in [|n| vec![n], |n| vec![1, 1, n], |n| vec![n, 1]] {
            let mut reshaped = parts.clone();
            for part in reshaped.0.iter_mut().filter(|part| part.is_vector()) {
                if !states_the_heads(version, &part.name) {
                    part.shape = shape(part.elements());
                }
            }
            assert_eq!(desk.convert(&reshaped, &options(DType::F32)).tensors(), model.tensors(), "{version}");
        }
        std::fs::remove_file(desk.output()).unwrap();
    }
}

#[test]
fn vectors_in_the_shape_of_a_matrix_are_refused() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate().filter(|(_, part)| part.is_vector()) {
            let n = part.elements();
            let local = if n == 64 { [n / 8, 8] } else { [n / 2, 2] };
            let changed = parts.changed(index, |part| part.reshape(&local));
            // The tensor that states the heads makes others wrong, and is named with them.
            desk.tensor_refusal(&changed, &options(DType::Int8), &part.name);
        }
    }
}

#[test]
fn heads_without_a_head_size_are_refused() {
    let desk = Desk::new();
    for (version, name) in
        [("v5.2", "blocks.0.att.time_decay"), ("v6", "blocks.0.att.time_faaaa"), ("v7", "blocks.0.att.r_k")]
    {
        let mut parts = Parts::of(version);
        let right = parts.get(name).shape.clone();
        for shape in [
            vec![64],
            vec![64, 1],
            vec![1, 1, 64],
            vec![1, right[0], right[1]],
            vec![right[1], right[0]],
            vec![5, 16],
            vec![0, 16],
        ] {
            parts.get(name).reshape(&shape);
            let message = desk.tensor_refusal(&parts, &options(DType::Int8), name);
            // Telling RWKV-5.1 from 5.2 takes the number of decays.
            let number = format!("found {}", shape.iter().product::<usize>());
            let shown =
                message.contains(&format!("{shape:?}")) || (version == "v5.2" && message.contains(&number));
            assert!(shown, "{shape:?}: {message}");
        }
        // As rwkv.cpp has it.
        parts.get(name).reshape(&[right[0], right[1], 1]);
        desk.convert(&parts, &options(DType::Int8));
        std::fs::remove_file(desk.output()).unwrap();
    }
}

#[test]
fn heads_that_do_not_divide_the_channels_are_refused() {
    let desk = Desk::new();
    for (version, name, shape) in [
        ("v5.0", "blocks.0.att.time_decay", &[5][..]),
        ("v5.0", "blocks.0.att.time_decay", &[0]),
        ("v5.0", "blocks.0.att.time_decay", &[64]),
        ("v5.1", "blocks.0.att.time_decay", &[5]),
        ("v5.2", "blocks.0.att.time_decay", &[3, 32]),
        ("v6", "blocks.0.att.time_faaaa", &[5, 13]),
        ("v7", "blocks.0.att.r_k", &[3, 21]),
    ] {
        let mut parts = Parts::of(version);
        parts.get(name).reshape(shape);
        desk.tensor_refusal(&parts, &options(DType::Int8), name);
    }
}

#[test]
fn decays_and_bonuses_of_five_are_one_per_head_or_one_per_channel_in_every_layer() {
    let desk = Desk::new();
    for (version, local, bad) in [
        ("v5.0", "time_decay", &[&[3][..], &[5], &[2], &[8], &[0]][..]),
        ("v5.0", "time_first", &[&[3], &[5], &[2], &[0]]),
        ("v5.1", "time_decay", &[&[3], &[5], &[32]]),
        ("v5.1", "time_first", &[&[3], &[32]]),
        ("v5.2", "time_decay", &[&[2], &[1, 32], &[32], &[64, 2], &[32, 2]]),
        ("v5.2", "time_faaaa", &[&[1], &[32], &[2, 16], &[32, 2]]),
    ] {
        for shape in bad {
            let mut parts = Parts::of(version);
            let name = format!("blocks.1.att.{local}");
            parts.get(&name).reshape(shape);
            let message = desk.tensor_refusal(&parts, &options(DType::Int8), &name);
            assert!(message.contains(&format!("{shape:?}")), "{version}: {message}");
        }
    }
}

#[test]
fn low_rank_factors_that_disagree_between_layers_are_refused() {
    let desk = Desk::new();
    let cases: [(&str, &[&str]); 6] = [
        ("v6", &["time_maa_w1", "time_maa_w2"]),
        ("v6", &["time_decay_w1", "time_decay_w2"]),
        ("v7", &["w1", "w2"]),
        ("v7", &["a1", "a2"]),
        ("v7", &["v1", "v2"]),
        ("v7", &["g1", "g2"]),
    ];
    for (version, factors) in cases {
        // The value residual starts in layer 1.
        let layer = if factors[0] == "v1" { 2 } else { 1 };
        let mut parts = Parts::of(version);
        let [first, second] = [0, 1].map(|i| format!("blocks.{layer}.att.{}", factors[i]));
        let (narrow, step) =
            if factors[0] == "time_maa_w1" { ([5, 8, 64].to_vec(), 40) } else { (vec![8, 64], 8) };
        parts.get(&first).reshape(&[64, step]);
        parts.get(&second).reshape(&narrow);
        let message = desk.tensor_refusal(&parts, &options(DType::Int8), &first);
        let reference = format!("blocks.{}.att.{}", layer - 1, factors[0]);
        assert!(message.contains(&reference), "{message}");
    }
}

#[test]
fn an_inner_size_of_the_mixes_that_is_no_multiple_of_five_is_refused() {
    let desk = Desk::new();
    for columns in [3, 59, 61, 64] {
        let mut parts = Parts::of("v6");
        parts.get("blocks.0.att.time_maa_w1").reshape(&[64, columns]);
        desk.tensor_refusal(&parts, &options(DType::Int8), "blocks.0.att.time_maa_w1");
    }
}

#[test]
fn transposed_matrices_that_are_not_square_are_refused() {
    let desk = Desk::new();
    for version in VERSIONS {
        let parts = Parts::of(version);
        for (index, part) in parts.0.iter().enumerate() {
            let &[rows, cols] = &part.shape[..] else { continue };
            if rows != cols && !part.is_vector() && part.name.ends_with(".weight") {
                let changed = parts.changed(index, Part::transpose);
                desk.tensor_refusal(&changed, &options(DType::Int8), &part.name);
            }
        }
    }
}

#[test]
fn transposed_low_rank_factors_give_the_same_model() {
    let desk = Desk::new();
    for version in ["v6", "v7"] {
        let parts = Parts::of(version);
        let model = desk.convert(&parts, &options(DType::Int8));
        for layer in ["blocks.0.", "blocks.1.", "blocks."] {
            let mut changed = parts.clone();
            let factors =
                changed.0.iter_mut().filter(|part| part.is_factor() && part.name.starts_with(layer));
            assert!(factors.map(Part::transpose).count() >= 4);
            assert_eq!(desk.convert(&changed, &options(DType::Int8)).tensors(), model.tensors(), "{version}");
        }
        std::fs::remove_file(desk.output()).unwrap();
    }
}

/// No file says which way round a square matrix is, so a transposed one makes another model.
#[test]
fn a_transposed_square_matrix_cannot_be_noticed() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4");
    let name = "blocks.1.att.key.weight";
    let wanted = {
        let part = parts.get(name);
        part.transpose();
        part.values()
    };
    let model = desk.convert(&parts, &options(DType::F32));
    assert_eq!(model.get(name), wanted);
    assert_ne!(model.get(name), Parts::of("v4").get(name).values());
}

#[test]
fn a_missing_layer_is_named_and_the_first_alone_is_a_model() {
    let desk = Desk::new();
    for version in VERSIONS {
        let mut parts = Parts::of(version);
        // The fixtures of RWKV-6 and 7a have two layers, so their second becomes the third.
        parts = parts.without(|name| name.starts_with("blocks.1.") && !["v6", "v7a"].contains(&version));
        for part in &mut parts.0 {
            part.name = part.name.replace("blocks.1.", "blocks.2.");
        }
        desk.tensor_refusal(&parts, &options(DType::Int8), "blocks.1.ln1.weight");

        let first = parts.without(|name| name.starts_with("blocks.2."));
        let model = desk.convert(&first, &options(DType::Int8));
        assert_eq!(model.0.config().n_layer, 1, "{version}");
        std::fs::remove_file(desk.output()).unwrap();
    }
}

#[test]
fn a_model_of_too_many_layers_is_refused() {
    let desk = Desk::new();
    let mut parts = Parts::of("v4").without(|name| name.starts_with("blocks.2."));
    let layer = parts.without(|name| !name.starts_with("blocks.1."));
    for i in 2..1025 {
        parts.0.extend(layer.0.iter().map(|part| {
            let name = part.name.replace("blocks.1.", &format!("blocks.{i}."));
            Part { name, ..part.clone() }
        }));
    }
    let message = desk.refusal(&parts, &options(DType::Int8));
    assert!(message.contains("n_layer is 1025"), "{message}");
}

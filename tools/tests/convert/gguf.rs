//! GGUF files become the same models as the `.pth` files of their weights.

use std::fs;
use std::process::Command;

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::source::SourceDType;

use crate::common::{Desk, Model, Part, Parts, options};
use crate::gguf_writer::{
    Gguf, Kind, Style, Tensor, Value, Weights, halvings, kind_of, llama_cpp, part_name,
};

const STYLE: Style = Style { kind: Kind::F32, fused: true, rescale: 0, head_size: 32 };

/// The fixtures that llama.cpp has an architecture for, and their head sizes.
const MODELS: [(&str, &str, usize); 2] = [("v6", "rwkv6", 16), ("v7", "rwkv7", 32)];

fn weights(parts: &Parts) -> Vec<Weights> {
    let weights =
        |part: &Part| Weights { name: part.name.clone(), shape: part.shape.clone(), values: part.values() };
    parts.0.iter().map(weights).collect()
}

/// The checkpoint with the values that a file of this style keeps, in F32.
fn kept(arch: &str, parts: &Parts, style: Style) -> Parts {
    let mut kept = parts.clone();
    for part in &mut kept.0 {
        let weights = Weights { name: part.name.clone(), shape: part.shape.clone(), values: part.values() };
        // A model of this tensor alone, which tells its type.
        let written = llama_cpp(arch, std::slice::from_ref(&weights), Style { fused: false, ..style });
        let Tensor { name, shape, .. } = &written.tensors[written.tensors.len() - 1];
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        let kind = kind_of(style, name, &shape);
        let factor = 2f32.powi(halvings(name, style.rescale));
        part.fill(SourceDType::F32, weights.values);
        if part.is_factor() {
            part.transpose();
        }
        let halved: Vec<f32> = part.values().iter().map(|x| x / factor).collect();
        part.fill(SourceDType::F32, kind.rounded(&halved).into_iter().map(|x| x * factor));
        if part.is_factor() {
            part.transpose();
        }
    }
    kept
}

/// Converts a GGUF file.
#[track_caller]
fn converted(desk: &Desk, file: &Gguf, options: &Options) -> Model {
    desk.put(&file.bytes());
    if let Err(error) = desk.try_convert(options) {
        panic!("{error:#}");
    }
    Model::open(&desk.output())
}

/// Fails unless a file of this style gives the tensors of the `.pth` file of the same values.
#[track_caller]
fn assert_same_tensors(arch: &str, parts: &Parts, style: Style, dtype: DType) {
    let desk = Desk::new();
    let expected = desk.convert(&kept(arch, parts, style), &options(dtype));
    let found = converted(&Desk::new(), &llama_cpp(arch, &weights(parts), style), &options(dtype));
    assert!(found.tensors() == expected.tensors(), "{arch} {style:?} {dtype}");
    assert_eq!(found.0.config(), expected.0.config());
    assert_eq!(found.0.tokenizer_bytes(), expected.0.tokenizer_bytes());
    assert_eq!(found.0.chat(), expected.0.chat());
}

#[test]
fn files_of_every_type_give_the_tensors_of_the_pth_file() {
    for (version, arch, head_size) in MODELS {
        let parts = Parts::of(version);
        for kind in [Kind::F32, Kind::Bf16, Kind::F16, Kind::Q8_0] {
            assert_same_tensors(arch, &parts, Style { kind, head_size, ..STYLE }, DType::F32);
        }
        assert_same_tensors(arch, &parts, Style { head_size, ..STYLE }, DType::Int4);
        assert_same_tensors(arch, &parts, Style { head_size, fused: false, ..STYLE }, DType::Int8);
    }
}

/// The model of RWKV-6 with eight layers, no two of which are the same.
fn deep() -> Parts {
    let base = Parts::of("v6");
    let mut deep = base.without(|name| name.starts_with("blocks.1"));
    for layer in 1..8 {
        for part in base.0.iter().filter(|part| part.name.starts_with("blocks.1.")) {
            let mut part = part.clone();
            part.name = part.name.replacen("blocks.1.", &format!("blocks.{layer}."), 1);
            part.set(3, layer as f32 / 16.0);
            deep.0.push(part);
        }
    }
    deep
}

#[test]
fn rescaling_of_rwkv_6_is_undone_beyond_the_sixth_layer() {
    let parts = deep();
    for kind in [Kind::F32, Kind::F16, Kind::Q8_0] {
        let style = Style { kind, rescale: 6, head_size: 16, ..STYLE };
        assert_same_tensors("rwkv6", &parts, style, DType::F32);
        let file = llama_cpp("rwkv6", &weights(&parts), style);
        let plain = llama_cpp("rwkv6", &weights(&parts), Style { rescale: 0, ..style });
        let differ = file.tensors.iter().zip(&plain.tensors).filter(|(a, b)| a.data != b.data).count();
        assert_eq!(differ, 4, "two matrices of two layers are halved");
    }
}

/// The file with a vocabulary of 245 tokens.
fn with_vocabulary(file: &Gguf) -> Gguf {
    let text = |id: usize| match id {
        0 => "<s>".to_owned(),
        1 => r"\x00".to_owned(),
        2 => r"\n".to_owned(),
        3 => "it's".to_owned(),
        4 => r"\xe4\xbd\xa0".to_owned(),
        5..245 => format!("t{id}"),
        _ => format!("[PAD{id}]"),
    };
    let kind = |id: usize| match id {
        0 => 3,
        1..245 => 1,
        _ => 5,
    };
    let (texts, kinds) = ((0..256).map(text).collect(), (0..256).map(kind).collect());
    file.with("tokenizer.ggml.model", Value::text("rwkv"))
        .with("tokenizer.ggml.tokens", Value::Texts(texts))
        .with("tokenizer.ggml.token_type", Value::I32s(kinds))
}

#[test]
fn the_tokenizer_and_the_template_come_from_the_file() {
    let parts = Parts::of("v7");
    let desk = Desk::new();
    let first = "1 '\\x00' 1\n2 '\\n' 1\n3 \"it's\" 4\n4 '你' 3\n".to_owned();
    let others = (5..245).map(|id| format!("{id} 't{id}' {}\n", format!("t{id}").len()));
    fs::write(desk.path("vocabulary.txt"), first + &others.collect::<String>()).unwrap();
    let given = Options { tokenizer: Some(desk.path("vocabulary.txt")), ..options(DType::Int8) };
    let expected = desk.convert(&parts, &given).0.tokenizer_bytes().to_vec();

    let file = with_vocabulary(&llama_cpp("rwkv7", &weights(&parts), STYLE));
    let model = converted(&desk, &file, &options(DType::Int8));
    assert_eq!(model.0.tokenizer_bytes(), expected);
    assert_eq!((&*model.0.chat().name, &*model.0.chat().stop_tokens), ("none", &[0][..]));
    let file = file.with("tokenizer.chat_template", Value::text("rwkv-world"));
    assert_eq!(converted(&desk, &file, &options(DType::Int8)).0.chat().name, "world");

    // The option counts more.
    let file = file.with("tokenizer.ggml.model", Value::text("gpt2"));
    assert_eq!(converted(&desk, &file, &given).0.tokenizer_bytes(), expected);
    desk.put(&file.bytes());
    let message = desk.refusal_of_input(&options(DType::Int8));
    assert!(message.contains("\"gpt2\"") && message.contains("--tokenizer FILE"), "{message}");
}

#[test]
fn another_epsilon_of_the_layer_norms_is_stored() {
    let file = llama_cpp("rwkv7", &weights(&Parts::of("v7")), STYLE);
    let file = file.with("rwkv7.attention.layer_norm_epsilon", Value::F32(1e-3));
    let model = converted(&Desk::new(), &file, &options(DType::F32));
    assert_eq!(model.0.config().layer_norm_eps, 1e-3);
    let file = file.with("rwkv7.attention.layer_norm_epsilon", Value::F32(f32::NAN));
    let desk = Desk::new();
    desk.put(&file.bytes());
    assert!(desk.refusal_of_input(&options(DType::F32)).contains("layer_norm_eps"));
}

/// A model of RWKV-7 whose embedding has type Q4_0.
fn coarse() -> Gguf {
    let mut file = llama_cpp("rwkv7", &weights(&Parts::of("v7")), STYLE);
    let embedding = file.tensor("token_embd.weight");
    let block = [&half::f16::from_f32(0.125).to_le_bytes()[..], &[0x5b; 16]].concat();
    (embedding.kind, embedding.data) = (2, block.repeat(256 * 64 / 32));
    file
}

#[test]
fn coarse_types_are_converted_with_one_warning_and_named_in_the_file() {
    let desk = Desk::new();
    desk.put(&coarse().bytes());
    let report = desk.try_convert(&options(DType::F32)).unwrap();
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    let warning = warning.to_string();
    assert!(
        warning.contains("quantized before (Q4_0)") && warning.contains("F16, BF16 or Q8_0"),
        "{warning}"
    );
    let model = Model::open(&desk.output());
    assert_eq!(model.0.provenance().source_format, "gguf (F32, Q4_0)");

    let output = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"))
        .args([desk.input().as_os_str(), "--inspect".as_ref()])
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.starts_with("input.pth: gguf (F32, Q4_0), "), "{shown}");
    assert!(shown.contains("RWKV-7: 3 layers") && shown.contains("[256, 64] Q4_0\n"), "{shown}");

    let fine = Style { kind: Kind::Q8_0, ..STYLE };
    desk.put(&llama_cpp("rwkv7", &weights(&Parts::of("v7")), fine).bytes());
    assert!(desk.try_convert(&options(DType::Int8)).unwrap().warnings.is_empty());
}

#[test]
fn a_checkpoint_in_parts_gives_the_same_model_and_no_part_is_overwritten() {
    let desk = Desk::new();
    let parts = Parts::of("v7");
    let expected = desk.convert(&parts, &options(DType::Int8));
    let file = llama_cpp("rwkv7", &weights(&parts), STYLE);
    let split = file.parts(40);
    let folder = Desk::new();
    for (number, part) in (1..).zip(&split) {
        fs::write(folder.path(&part_name("m", number, split.len())), part.bytes()).unwrap();
    }
    let second = folder.path(&part_name("m", 2, split.len()));
    let run = |input: &std::path::Path, output: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-quantize"));
        command.args([input, output]).arg("--force").output().unwrap()
    };
    let output = run(&second, &folder.output());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(Model::open(&folder.output()).tensors() == expected.tensors());
    let first = folder.path(&part_name("m", 1, split.len()));
    let output = run(&second, &first);
    assert!(String::from_utf8_lossy(&output.stderr).contains("must not be replaced"));
    assert_eq!(fs::read(first).unwrap(), split[0].bytes());
}

#[test]
fn a_hole_in_a_quantized_matrix_gives_a_warning() {
    let parts = Parts::of("v7");
    let mut file = llama_cpp("rwkv7", &weights(&parts), Style { kind: Kind::Q8_0, ..STYLE });
    // Zeros from the middle of a row on, for more than a page of the file.
    let head = file.tensor("output.weight");
    let (row, len) = (2 * 34, head.data.len());
    head.data[row + 34..row + 34 + 9000.min(len / 2)].fill(0);
    let desk = Desk::new();
    desk.put(&file.bytes());
    let report = desk.try_convert(&options(DType::Int8)).unwrap();
    assert!(report.warnings[0].to_string().contains("head.weight"), "{:?}", report.warnings);
}

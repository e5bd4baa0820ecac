//! A folder as Hugging Face lays it out, and outputs without a name.

use std::fs;
use std::path::Path;

use rwkv_edge::Tokenizer;
use rwkv_edge::kernels::DType;
use rwkv_edge::tokenizer::Kind;
use rwkv_quantize::convert::Conversion;

use crate::cli::{command, failure, run, stdout, text};
use crate::common::{Desk, Model, Parts, options};
use crate::schemes::{blinkdl, fla, linear_attention};

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

/// Writes a model in two files with an index into `folder`.
fn write_sharded(folder: &Path, parts: &Parts) {
    let (first, second) = parts.0.split_at(parts.0.len() / 2);
    let mut entries = Vec::new();
    for (name, part) in [(FIRST, first), (SECOND, second)] {
        fs::write(folder.join(name), Parts(part.to_vec()).safetensors()).unwrap();
        entries.extend(part.iter().map(|part| format!("{:?}: {name:?}", part.name)));
    }
    let index = format!("{{\"metadata\": {{}}, \"weight_map\": {{{}}}}}", entries.join(", "));
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

/// A desk with a folder `rwkv7-tiny` of a model in two files.
fn sharded() -> Desk {
    let desk = Desk::new();
    let folder = desk.path("rwkv7-tiny");
    fs::create_dir(&folder).unwrap();
    write_sharded(&folder, &fla(&blinkdl()));
    fs::write(folder.join("config.json"), r#"{"model_type": "rwkv7", "norm_eps": 1e-5, "head_dim": 32}"#)
        .unwrap();
    desk
}

/// The refusal of the folder: one line.
#[track_caller]
fn refusal(desk: &Desk) -> String {
    let output = run([desk.path("rwkv7-tiny")]);
    assert_eq!(desk.files(), ["rwkv7-tiny"]);
    failure(&output).to_owned()
}

#[test]
fn a_folder_is_one_model_with_tokenizer_template_and_start_tokens() {
    let desk = sharded();
    let folder = desk.path("rwkv7-tiny");
    let vocabulary: String = (1..250).map(|id| format!("{id} b'\\x{id:02x}' 1\n")).collect();
    fs::write(folder.join("rwkv_vocab_v20230424.txt"), vocabulary).unwrap();
    fs::write(folder.join("chat_template.jinja"), "{{ bos_token }}{% for m in messages %}User✿Bot✿").unwrap();
    fs::write(folder.join("generation_config.json"), r#"{"bos_token_id": 3}"#).unwrap();
    let output = run([&folder]);
    let report = text(&output.stderr);
    assert!(output.status.success(), "{report}");
    for line in [
        "rwkv7-tiny/config.json: layer norm epsilon 1e-5, group norm epsilon 3.2e-4\n",
        "rwkv7-tiny: tokenizer rwkv_vocab_v20230424.txt, template flower, start tokens 3\n",
        "rwkv7-tiny-int8.rwkv\n",
    ] {
        assert!(report.contains(line), "{line} is not in {report}");
    }
    assert_eq!(desk.files(), ["rwkv7-tiny", "rwkv7-tiny-int8.rwkv"]);
    let model = Model::open(&desk.path("rwkv7-tiny-int8.rwkv")).0;
    assert_eq!((model.chat().name.as_str(), &model.chat().start_tokens[..]), ("flower", &[3][..]));
    assert_eq!(Tokenizer::parse(model.tokenizer_bytes()).unwrap().kind(), Kind::Greedy);

    // Options take precedence.
    let given = ["--chat", "raven", "--start-token", "7", "--type", "int4"];
    assert!(command(given).arg(&folder).output().unwrap().status.success());
    let model = Model::open(&desk.path("rwkv7-tiny-int4.rwkv")).0;
    assert_eq!((model.chat().name.as_str(), &model.chat().start_tokens[..]), ("raven", &[7][..]));
}

#[test]
fn a_tokenizer_of_a_folder_that_is_not_known_gives_way_to_the_built_in_one() {
    let desk = sharded();
    fs::write(desk.path("rwkv7-tiny/tokenizer.json"), r#"{"model": {"type": "RwkvTrie"}}"#).unwrap();
    let conversion = Conversion::prepare(&desk.path("rwkv7-tiny"), &options(DType::Int8)).unwrap();
    assert!(conversion.notes()[1].contains("tokenizer built in"), "{:?}", conversion.notes());
}

#[test]
fn files_that_a_folder_lacks_are_named() {
    let desk = sharded();
    fs::remove_file(desk.path("rwkv7-tiny").join(SECOND)).unwrap();
    assert!(refusal(&desk).contains(SECOND));

    let desk = sharded();
    let index = desk.path("rwkv7-tiny/model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replacen(SECOND, FIRST, 1)).unwrap();
    let message = refusal(&desk);
    assert!(message.contains(FIRST) && message.contains("as the index says"), "{message}");

    let desk = sharded();
    fs::remove_file(desk.path("rwkv7-tiny/model.safetensors.index.json")).unwrap();
    let message = refusal(&desk);
    assert!(message.contains("no index") && message.contains(FIRST), "{message}");
}

#[test]
fn folders_without_one_checkpoint_are_refused_with_what_they_have() {
    let desk = Desk::new();
    let folder = desk.path("rwkv7-tiny");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("optimizer.pt"), "x").unwrap();
    fs::write(folder.join("README.md"), "x").unwrap();
    assert!(refusal(&desk).contains("this is a folder without a checkpoint"));
    for name in ["a.pth", "b.pth", "c.st", "d.safetensors", "e.bin"] {
        fs::write(folder.join(name), blinkdl().torch()).unwrap();
    }
    let message = refusal(&desk);
    assert!(message.contains("name one of a.pth, b.pth, c.st, d.safetensors, ..."), "{message}");
    for name in ["b.pth", "c.st", "d.safetensors", "e.bin"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    assert!(Conversion::prepare(&folder, &options(DType::Int8)).is_ok());
}

#[test]
fn damaged_files_beside_the_weights_are_said_in_one_line() {
    let deep = "[".repeat(500_000);
    for name in
        ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
    {
        for text in ["", "{", "\u{1b}[31m", deep.as_str()] {
            let desk = sharded();
            fs::write(desk.path("rwkv7-tiny").join(name), text).unwrap();
            let message = refusal(&desk);
            assert!(message.contains(name) && !message.contains('\u{1b}'), "{message}");
        }
    }
}

#[test]
fn an_output_without_a_name_gets_that_of_the_input_and_the_type() {
    let desk = Desk::new();
    for (input, wanted) in [
        ("rwkv7-g1-0.1b.pth", "rwkv7-g1-0.1b-int4.rwkv"),
        ("model.SafeTensors", "model-int4.rwkv"),
        ("best", "best-int4.rwkv"),
        ("v1.5", "v1.5-int4.rwkv"),
        (".pth", ".pth-int4.rwkv"),
    ] {
        fs::write(desk.path(input), blinkdl().torch()).unwrap();
        let output = command(["--type", "int4"]).arg(desk.path(input)).output().unwrap();
        let report = text(&output.stderr);
        let wrote = format!("\nwrote {}\n", desk.path(wanted).display());
        assert!(output.status.success() && report.contains(&wrote), "{report}");
        assert!(fs::read(desk.path(input)).unwrap() == blinkdl().torch());
        Model::open(&desk.path(wanted));
        // Another model may be there, and nothing else.
        assert!(command(["--type", "int4"]).arg(desk.path(input)).output().unwrap().status.success());
        fs::write(desk.path(wanted), "a diary").unwrap();
        let output = command(["--type", "int4"]).arg(desk.path(input)).output().unwrap();
        assert!(failure(&output).contains(wanted), "{}", failure(&output));
        assert_eq!(fs::read(desk.path(wanted)).unwrap(), b"a diary");
        fs::remove_file(desk.path(wanted)).unwrap();
        fs::remove_file(desk.path(input)).unwrap();
    }
    assert!(desk.files().is_empty());
}

#[test]
fn a_folder_that_is_named_by_a_dot_or_a_slash_has_its_own_name() {
    let desk = sharded();
    let folder = desk.path("rwkv7-tiny");
    assert!(command(["."]).current_dir(&folder).output().unwrap().status.success());
    assert_eq!(desk.files(), ["rwkv7-tiny", "rwkv7-tiny-int8.rwkv"]);
    fs::remove_file(desk.path("rwkv7-tiny-int8.rwkv")).unwrap();
    assert!(run([format!("{}/", folder.display())]).status.success());
    assert_eq!(desk.files(), ["rwkv7-tiny", "rwkv7-tiny-int8.rwkv"]);
    let index = folder.join("model.safetensors.index.json");
    assert!(run([index]).status.success());
    Model::open(&folder.join("model-int8.rwkv"));
}

#[test]
fn inspection_of_a_folder_names_every_file_with_its_digest() {
    let desk = sharded();
    fs::write(desk.path("rwkv7-tiny/model-00003.txt"), "").unwrap();
    let output = run([desk.path("rwkv7-tiny").as_os_str(), "--inspect".as_ref()]);
    let shown = stdout(&output);
    let digests: Vec<_> = shown.lines().filter(|line| line.starts_with("sha256 ")).collect();
    assert_eq!(digests.len(), 2, "{shown}");
    for (line, name) in digests.iter().zip([FIRST, SECOND]) {
        assert!(line.len() == 7 + 64 + 2 + name.len() && line.ends_with(name), "{line}");
    }
    assert!(shown.contains("config.json: layer norm epsilon 1e-5"), "{shown}");
    assert_eq!(desk.files(), ["rwkv7-tiny"]);
}

#[test]
fn a_vocabulary_of_a_puzzle_names_the_option_of_its_models() {
    let desk = Desk::new();
    let mut parts = Parts::of("v6");
    for name in ["emb.weight", "head.weight"] {
        parts.get(name).reshape(&[20, 64]);
    }
    desk.put(&parts.torch());
    let words = ["<fill number>", "</fill number>", "<check state>", "</check state>", "(0, 1) "];
    let fill = (6..20).map(|id| format!("{id} '{id}' {}\n", id.to_string().len()));
    let lines = (1..).zip(words).map(|(id, word)| format!("{id} '{word}' {}\n", word.len()));
    fs::write(desk.path("vocab.txt"), lines.chain(fill).collect::<String>()).unwrap();
    let args = [desk.input(), desk.output(), "--tokenizer".into(), desk.path("vocab.txt")];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("Sudoku-RWKV: its models compute right with --variant puzzle"));
    let output = command(&args).args(["--variant", "puzzle", "--inspect"]).output().unwrap();
    assert!(!stdout(&output).contains("Sudoku"), "{}", stdout(&output));
}

#[test]
fn a_folder_in_another_scheme_gives_the_file_of_the_original() {
    let desk = Desk::new();
    let wanted = desk.convert(&blinkdl(), &options(DType::Int8));
    let folder = desk.path("folder");
    fs::create_dir(&folder).unwrap();
    write_sharded(&folder, &linear_attention(&blinkdl()));
    assert!(run([folder]).status.success());
    let found = Model::open(&desk.path("folder-int8.rwkv"));
    assert!(found.tensors() == wanted.tensors());
    assert_eq!(found.0.model_id(), wanted.0.model_id());
}

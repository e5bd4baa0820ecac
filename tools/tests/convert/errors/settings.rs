//! Options that do not go with the model.

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::source::Checkpoint;

use crate::common::{Desk, Parts, VERSIONS, options};

/// The refusal of a sound model under `options`.
#[track_caller]
fn refusal(version: &str, options: &Options) -> String {
    Desk::new().refusal(&Parts::of(version), options)
}

#[test]
fn an_epsilon_of_the_group_norm_out_of_range_is_refused() {
    for group_norm_eps in [0.0, -1e-5, 1.5, 1e-45, f32::NAN, f32::INFINITY] {
        let options = Options { group_norm_eps: Some(group_norm_eps), ..options(DType::Int8) };
        for version in &VERSIONS[1..] {
            let message = refusal(version, &options);
            let wanted = format!("group_norm_eps is {group_norm_eps}");
            assert!(message.contains("input.pth: ") && message.contains(&wanted), "{message}");
        }
    }
}

#[test]
fn four_has_no_group_norm_and_takes_any_epsilon() {
    let options = Options { group_norm_eps: Some(f32::NAN), ..options(DType::Int8) };
    let model = Desk::new().convert(&Parts::of("v4"), &options);
    assert!(!model.0.provenance().settings.contains("eps"));
}

#[test]
fn start_tokens_outside_the_vocabulary_are_refused() {
    for token in [256, u32::MAX] {
        let options = Options { start_tokens: vec![0, token], ..options(DType::Int8) };
        let message = refusal("v4", &options);
        assert!(message.contains(&format!("start_tokens: token {token} is not below 256")), "{message}");
    }
    let options = Options { start_tokens: vec![0; (1 << 16) + 1], ..options(DType::Int8) };
    assert!(refusal("v4", &options).contains("start_tokens"));
}

#[test]
fn sampling_defaults_that_make_no_sense_are_refused_by_name() {
    for (setting, part) in [
        ("temperature", "KEY=VALUE"),
        ("", "KEY=VALUE"),
        ("temperature=", "temperature"),
        ("temperature=hot", "hot"),
        ("temperature=-1", "temperature"),
        ("temperature=nan", "temperature"),
        ("temperature=inf", "temperature"),
        ("top-p=1.5", "top_p"),
        ("top-k=-1", "top-k"),
        ("top-k=1.5", "top-k"),
        ("top-k=4294967296", "top-k"),
        ("presence-penalty=1e9", "presence_penalty"),
        ("frequency-penalty=nan", "frequency_penalty"),
        ("penalty-decay=2", "penalty_decay"),
        ("heat=1", "heat"),
        ("he\nat=1", "he\\nat"),
        ("top-p=\u{1b}[2J", "top-p"),
    ] {
        let options = Options { sampling: vec!["top-k=3".into(), setting.into()], ..options(DType::Int8) };
        let message = refusal("v4", &options);
        assert!(message.contains(part), "{setting}: {message}");
    }
}

/// A RWKV-4 model of another vocabulary.
fn with_vocabulary(n_vocab: usize) -> Parts {
    let mut parts = Parts::of("v4");
    parts.get("emb.weight").reshape(&[n_vocab, 64]);
    parts.get("head.weight").reshape(&[n_vocab, 64]);
    parts
}

#[test]
fn vocabularies_without_a_built_in_tokenizer_ask_for_one() {
    let desk = Desk::new();
    for (n_vocab, part) in [(255, "--tokenizer"), (1000, "--tokenizer"), (50_277, "20B_tokenizer.json")] {
        let message = desk.refusal(&with_vocabulary(n_vocab), &options(DType::Int8));
        assert!(message.contains(part) && message.contains(&n_vocab.to_string()), "{message}");
    }
}

#[test]
fn a_model_without_its_tokenizer_can_be_inspected() {
    let desk = Desk::new();
    for n_vocab in [1, 255, 1000] {
        desk.put(&with_vocabulary(n_vocab).torch());
        let (conversion, error) =
            Conversion::of(Checkpoint::open(&desk.input()).unwrap(), &options(DType::Int8)).unwrap();
        assert!(format!("{:#}", error.unwrap()).contains("--tokenizer"));
        assert_eq!(conversion.layout().contents().config.n_vocab, n_vocab);
    }
}

#[test]
fn tokenizers_of_other_models_are_refused_and_their_file_named() {
    let desk = Desk::new();
    let tokenizer = desk.path("vocab.txt");
    let options = Options { tokenizer: Some(tokenizer.clone()), ..options(DType::Int8) };
    // `id literal length` lines of `n` tokens: the ids from 1 on, as two bytes each.
    let vocabulary = |n: usize| -> String {
        (1..n).map(|id| format!("{id} b'\\x{:02x}\\x{:02x}' 2\n", id / 256, id % 256)).collect()
    };
    for (n_tokens, n_vocab) in [(257, 256), (300, 256), (239, 256), (937, 1000), (1001, 1000)] {
        std::fs::write(&tokenizer, vocabulary(n_tokens)).unwrap();
        let message = desk.refusal(&with_vocabulary(n_vocab), &options);
        for part in ["vocab.txt", "another model's", &n_tokens.to_string(), &n_vocab.to_string()] {
            assert!(message.contains(part), "{n_tokens} {n_vocab}: {message}");
        }
    }
    let lenient = Options { allow_unused_ids: true, ..options.clone() };
    std::fs::write(&tokenizer, vocabulary(239)).unwrap();
    assert!(desk.refusal(&with_vocabulary(256), &options).contains("; --allow-unused-ids"));
    desk.convert(&with_vocabulary(256), &lenient);
    std::fs::remove_file(desk.output()).unwrap();
    std::fs::write(&tokenizer, vocabulary(257)).unwrap();
    assert!(!desk.refusal(&with_vocabulary(256), &lenient).contains("--allow-unused-ids"));
    for (n_tokens, n_vocab) in [(256, 256), (240, 256), (938, 1000), (1000, 1000)] {
        std::fs::write(&tokenizer, vocabulary(n_tokens)).unwrap();
        desk.convert(&with_vocabulary(n_vocab), &options);
        std::fs::remove_file(desk.output()).unwrap();
    }
}

#[test]
fn tokenizers_that_cannot_be_read_are_named() {
    let desk = Desk::new();
    let tokenizer = desk.path("vocab.txt");
    let options = Options { tokenizer: Some(tokenizer.clone()), ..options(DType::Int8) };
    let parts = Parts::of("v4");
    let refused = |content: Option<&str>| {
        if let Some(content) = content {
            std::fs::write(&tokenizer, content).unwrap();
        }
        let message = desk.refusal(&parts, &options);
        assert_eq!(message.matches("vocab.txt").count(), 1, "{message}");
        message
    };
    refused(None);
    refused(Some(""));
    refused(Some("not a vocabulary"));
    refused(Some("{\"version\": \"1.0\"}"));
    refused(Some("{\n"));
    assert!(refused(Some("1 'a' 1\n2 'b' 2\n")).contains("line 2"));
    assert!(refused(Some("1 'a' 1\n1 'b' 1\n")).contains('1'));
}

#[test]
fn no_threads_at_all_means_one() {
    let desk = Desk::new();
    let parts = Parts::of("v4");
    let one = desk.convert(&parts, &Options { threads: 1, ..options(DType::Int4) }).0.mapping().to_vec();
    let none = desk.convert(&parts, &Options { threads: 0, ..options(DType::Int4) }).0.mapping().to_vec();
    assert_eq!(one, none);
}

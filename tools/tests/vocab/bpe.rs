//! Byte-level BPE against ids of Hugging Face's `tokenizers`; `data/make_vectors.py` made them.

use std::path::PathBuf;

use rwkv_edge::tokenizer::compile::{self, BpeSource, Merge};
use rwkv_edge::tokenizer::{Kind, Tokenizer};
use rwkv_quantize::vocab;
use serde_json::{Value, json};

use crate::common::{decode, encode};

const SMALL: &str = include_str!("../data/small_bpe.json");

fn vectors(json: &str) -> Vec<(String, Vec<u32>)> {
    let rows: Vec<Value> = serde_json::from_str(json).unwrap();
    let ids =
        |row: &Value| row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    rows.iter().map(|row| (row["text"].as_str().unwrap().to_owned(), ids(row))).collect()
}

/// The section of the 20B vocabulary, if the file is there.
fn neox() -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vocab/20B_tokenizer.json");
    if !path.exists() {
        eprintln!("skipped: {} is missing", path.display());
        return None;
    }
    Some(vocab::load(&path).unwrap())
}

#[test]
fn small_vocabulary_gives_the_ids_of_hugging_face() {
    let section = vocab::from_bytes(SMALL.as_bytes()).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(Tokenizer::parse(&section).unwrap().kind(), Kind::Bpe);
    let vectors = vectors(include_str!("../data/small_bpe_vectors.json"));
    assert!(vectors.len() > 75);
    for (text, ids) in vectors {
        assert_eq!(encode(tokenizer, &text), ids, "{text:?}");
    }
}

#[test]
fn neox_vocabulary_gives_the_ids_of_hugging_face() {
    let Some(section) = neox() else { return };
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let vectors = vectors(include_str!("../data/20b_vectors.json"));
    assert!(vectors.len() > 70);
    for (text, ids) in vectors {
        assert_eq!(encode(tokenizer, &text), ids, "{text:?}");
    }
}

#[test]
fn neox_vectors() {
    let Some(section) = neox() else { return };
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let cases: [(&str, &[u32]); 10] = [
        ("Hello world", &[12092, 1533]),
        ("Bob: hi\n\nAlice:", &[26845, 27, 14260, 187, 187, 2422, 547, 27]),
        ("a\n\n", &[66, 535]),
        ("a  b", &[66, 50276, 67]),
        ("你好", &[24553, 34439]),
        ("😀", &[14931, 235, 211]),
        ("\n", &[187]),
        (" ", &[209]),
        ("  ", &[50276]),
        ("\r\n", &[2379]),
    ];
    for (text, ids) in cases {
        assert_eq!(encode(tokenizer, text), ids, "{text:?}");
    }
}

#[test]
fn neox_control_tokens_decode_to_nothing_and_the_others_to_their_bytes() {
    let Some(section) = neox() else { return };
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(tokenizer.n_tokens(), 50_277);
    assert_eq!((tokenizer.token(0), tokenizer.token(1)), (&b""[..], &b""[..]));
    assert_eq!(tokenizer.token(12092), b"Hello");
    assert_eq!(tokenizer.token(50_254), [b' '; 24]);
    assert_eq!(tokenizer.token(50_277), b"");
    let lens = (0..50_277).map(|id| tokenizer.token(id).len());
    assert_eq!(lens.clone().filter(|len| *len == 0).count(), 2);
    assert_eq!(lens.max().unwrap(), tokenizer.max_token_len());
    let with_blank_line =
        (0..50_277).filter(|id| tokenizer.token(*id).windows(2).any(|pair| pair == b"\n\n"));
    assert_eq!(with_blank_line.count(), 41);
}

#[test]
fn neox_text_survives_a_round_trip_in_normalisation_form_c() {
    let Some(section) = neox() else { return };
    let tokenizer = Tokenizer::parse(&section).unwrap();
    for (text, ids) in vectors(include_str!("../data/20b_vectors.json")) {
        let changes =
            text.contains("<|") || text.contains(['\u{301}', '\u{327}', '\u{323}', '\u{212b}', '\u{1100}']);
        if !changes {
            assert_eq!(decode(tokenizer, &ids), text.as_bytes(), "{text:?}");
        }
    }
    assert_eq!(
        decode(tokenizer, &encode(tokenizer, "e\u{301} \u{212b} \u{1112}\u{1161}\u{11ab}")),
        "é Å 한".as_bytes()
    );
    // Tokens that are text by themselves. Encoding and decoding one gives its bytes back.
    for id in 2..50_277 {
        let bytes = tokenizer.token(id);
        if str::from_utf8(bytes).is_ok_and(|text| text.chars().all(|c| c < '\u{300}')) {
            assert_eq!(decode(tokenizer, &encode(tokenizer, bytes)), bytes, "token {id}");
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_become_single_tokens_or_are_named() {
    let section = vocab::from_bytes(SMALL.as_bytes()).unwrap();
    let small = Tokenizer::parse(&section).unwrap();
    let ids = encode(small, b"the\xff\xe4\xbd the");
    assert_eq!(decode(small, &ids), b"the\xff\xe4\xbd the");
    let pieces: [&[u8]; 5] = [b"the", b"\xff", b"\xe4", b"\xbd", b" the"];
    assert_eq!(ids, pieces.map(|piece| encode(small, piece)).concat());
    assert_eq!(encode(small, b"\xff").len(), 1);
    let Some(section) = neox() else { return };
    let neox = Tokenizer::parse(&section).unwrap();
    assert_eq!(decode(neox, &encode(neox, b"a\x80\xe4\xbdb")), b"a\x80\xe4\xbdb");
    let error = neox.encode(b"caf\xc3\xa9 \xe4\xff", &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "no token for byte 0xff at offset 7 of the text");
}

/// The refusal of the small tokenizer with one part replaced.
fn refusal(pointer: &str, part: Value) -> String {
    let mut json: Value = serde_json::from_str(SMALL).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = part,
        other => other[key] = part,
    }
    vocab::from_bytes(json.to_string().as_bytes()).unwrap_err().to_string()
}

/// The pattern of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn split(pattern: &str, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

#[test]
fn other_spellings_of_the_same_steps_give_the_same_section() {
    let sequence = |list: &str, steps: &[Value]| json!({"type": "Sequence", list: steps});
    let short = GPT2.replace("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)");
    let splitters = [
        sequence("pretokenizers", &[byte_level(true)]),
        sequence("pretokenizers", &[split(GPT2, "Isolated"), byte_level(false)]),
        sequence("pretokenizers", &[split(&short, "Isolated"), byte_level(false)]),
    ];
    let plain = vocab::from_bytes(SMALL.as_bytes()).unwrap();
    for splitter in splitters {
        assert!(changed(|json| json["pre_tokenizer"] = splitter).unwrap() == plain);
    }
    let decoder = sequence("decoders", &[json!({"type": "ByteLevel"})]);
    assert!(changed(|json| json["decoder"] = decoder).unwrap() == plain);
    let nfc = changed(|json| json["normalizer"] = json!({"type": "NFC"})).unwrap();
    let listed = sequence("normalizers", &[json!({"type": "NFC"})]);
    assert!(changed(|json| json["normalizer"] = listed).unwrap() == nfc);
    let none = changed(|json| json["normalizer"] = Value::Null).unwrap();
    assert!(changed(|json| json["normalizer"] = sequence("normalizers", &[])).unwrap() == none);
    assert!(nfc != none);
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let cases = [
        ("/model/type", json!("Unigram"), "model Unigram"),
        ("/model/type", json!("WordPiece"), "model WordPiece"),
        ("/model/byte_fallback", json!(true), "BPE with byte_fallback"),
        ("/model/dropout", json!(0.1), "BPE with dropout"),
        ("/model/unk_token", json!("<unk>"), "BPE with unk_token"),
        ("/model/continuing_subword_prefix", json!("##"), "BPE with continuing_subword_prefix"),
        ("/model/end_of_word_suffix", json!("</w>"), "BPE with end_of_word_suffix"),
        ("/model/ignore_merges", json!(true), "BPE with ignore_merges"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "normalizer NFC",
        ),
        ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFD"}]}), "normalizer NFD"),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split("x", "Isolated"), byte_level(false)]}),
            "pre_tokenizer Split with another pattern",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split(GPT2, "Removed"), byte_level(false)]}),
            "pre_tokenizer Split with another pattern",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split(GPT2, "Isolated"), byte_level(true)]}),
            "pre_tokenizer ByteLevel with a pattern after Split",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split(GPT2, "Isolated")]}),
            "pre_tokenizer Split",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [byte_level(true), byte_level(true)]}),
            "pre_tokenizer Sequence",
        ),
        ("/normalizer", json!({"type": "NFKC"}), "normalizer NFKC"),
        ("/pre_tokenizer", json!({"type": "Metaspace"}), "pre_tokenizer Metaspace"),
        ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "x"}}), "pre_tokenizer Split"),
        ("/pre_tokenizer", Value::Null, "pre_tokenizer without a type"),
        ("/pre_tokenizer/add_prefix_space", json!(true), "add_prefix_space"),
        ("/pre_tokenizer/use_regex", json!(false), "pre_tokenizer ByteLevel without its pattern"),
        ("/decoder", json!({"type": "WordPiece"}), "decoder WordPiece"),
        ("/post_processor", json!({"type": "TemplateProcessing"}), "post_processor TemplateProcessing"),
        ("/truncation", json!({"max_length": 8}), "truncation"),
        ("/padding", json!({"strategy": "BatchLongest"}), "padding"),
        ("/added_tokens/0/lstrip", json!(true), "added token \"<|end|>\" with lstrip"),
        ("/added_tokens/0/rstrip", json!(true), "added token \"<|end|>\" with rstrip"),
        ("/added_tokens/0/single_word", json!(true), "added token \"<|end|>\" with single_word"),
    ];
    for (pointer, part, name) in cases {
        let message = refusal(pointer, part);
        assert!(
            message.starts_with(&format!("not a usable tokenizer.json: {name} is not supported")),
            "{pointer}: {message}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let cases = [
        ("/model/merges/0", json!("a b c"), "merge 0: \"b c\" is not in the vocabulary"),
        ("/model/merges/1", json!(["a"]), "merge 1 is not two tokens"),
        ("/model/merges/2", json!(7), "merge 2 is not two tokens"),
        ("/model/vocab/!", json!(-1), "token \"!\" has no id"),
        ("/model/vocab/!", json!(1), "its id occurs twice"),
        ("/model/vocab/!", json!(1 << 30), "its id is too large"),
        ("/model/vocab/\u{4f60}", json!(999), "not of the byte-level alphabet"),
        ("/model/vocab/<|end|>", json!(999), "has another id in the vocabulary"),
        ("/model/vocab", json!([]), "model.vocab is not an object"),
        ("/model/vocab", json!({"a": 1}), "is not in the vocabulary"),
        ("/model/merges", Value::Null, "model.merges is not a list"),
        ("/added_tokens", json!(1), "added_tokens is not a list"),
        ("/added_tokens/0", json!({"id": 1}), "an added token without content"),
        ("/added_tokens/0/id", json!(451), "its id occurs twice"),
        ("/added_tokens/0/content", json!(""), "it is empty"),
    ];
    for (pointer, part, what) in cases {
        let message = refusal(pointer, part);
        assert!(message.contains(what), "{pointer}: {message}");
    }
}

/// The small tokenizer after a change, compiled.
fn changed(change: impl FnOnce(&mut Value)) -> vocab::Result<Vec<u8>> {
    let mut json: Value = serde_json::from_str(SMALL).unwrap();
    change(&mut json);
    vocab::from_bytes(json.to_string().as_bytes())
}

#[test]
fn an_added_token_with_the_id_of_another_token_is_refused() {
    let added = |id: u32, content: &str| {
        let token = json!({"id": id, "content": content, "special": false, "normalized": false});
        changed(|json| json["added_tokens"].as_array_mut().unwrap().push(token))
    };
    let message = added(64, "<foo>").unwrap_err().to_string();
    assert_eq!(message, "added token \"<foo>\" has id 64, which is that of \"a\"");
    // A token that is added under its own id is the token.
    added(64, "a").unwrap();
}

#[test]
fn of_merges_with_the_same_sides_the_last_one_counts() {
    let moved = changed(|json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let first = merges.remove(0);
        merges.push(first);
    });
    let repeated = changed(|json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.push(merges[0].clone());
    });
    assert!(moved.unwrap() == repeated.unwrap());
}

#[test]
fn messages_show_no_structures_of_the_program() {
    let source = BpeSource {
        tokens: (0..=255).map(|byte| (u32::from(byte), vec![byte])).chain([(256, b"ab".to_vec())]).collect(),
        ..Default::default()
    };
    let merge = |left, right, merged| Merge { left, right, merged };
    for (merges, what) in [
        (vec![merge(97, 97, 256)], "merge 0 (tokens 97 and 97 to 256): the result is not both sides"),
        (vec![merge(97, 300, 256)], "merge 0 (tokens 97 and 300 to 256): a token is unknown"),
        (vec![merge(97, 98, 256); 2], "merge 1 (tokens 97 and 98 to 256): an earlier one has its sides"),
    ] {
        let source = BpeSource { merges, ..source.clone() };
        assert_eq!(compile::bpe(&source).unwrap_err().to_string(), what);
    }
}

/// The time is linear in their number. Comparing every token with every added one would take
/// minutes.
#[test]
fn many_tokens_outside_the_byte_alphabet_are_compiled_in_seconds() {
    let n = 60_000;
    let started = std::time::Instant::now();
    let section = changed(|json| {
        for i in 0..n {
            let (id, content) = (1000 + i, format!("\u{4f60}{i}"));
            json["model"]["vocab"][&content] = json!(id);
            let token = json!({"id": id, "content": content, "special": false, "normalized": false});
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
    })
    .unwrap();
    let took = started.elapsed();
    assert!(took.as_secs() < 20, "{took:?}");
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(tokenizer.n_tokens(), 1000 + n);
    assert_eq!(encode(tokenizer, "\u{4f60}59999"), [60_999]);
}

#[test]
fn texts_that_would_fill_the_memory_are_refused() {
    let bombs = [
        format!("{{\"a\":[{}0]}}", "0,".repeat(21 << 20)),
        format!("{{\"a\":[{}0]}}", "{\"\":0},".repeat(2 << 20)),
        format!("{{\"a\":[{}0]}}", "[0],".repeat(5 << 20)),
    ];
    for bomb in bombs {
        let message = vocab::from_bytes(bomb.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("more values than a tokenizer may have"), "{message}");
    }
    // Characters inside of strings are no values, whatever they look like.
    let text = format!("{{\"a\":\"{}\"}}", "{[:,\\\"".repeat(1 << 20));
    let message = vocab::from_bytes(text.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("pre_tokenizer without a type"), "{message}");
}

#[test]
fn merges_as_pairs_and_as_text_are_the_same() {
    let mut json: Value = serde_json::from_str(SMALL).unwrap();
    for merge in json["model"]["merges"].as_array_mut().unwrap() {
        *merge = match &*merge {
            Value::String(text) => json!(text.split(' ').collect::<Vec<_>>()),
            pair => json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())),
        };
    }
    let other = vocab::from_bytes(json.to_string().as_bytes()).unwrap();
    assert!(other == vocab::from_bytes(SMALL.as_bytes()).unwrap());
}

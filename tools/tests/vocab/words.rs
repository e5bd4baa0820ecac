//! Whole words, as the MIDI models have them, and web-rwkv's vocabularies.

use rwkv_edge::tokenizer::{Kind, Tokenizer};
use rwkv_quantize::vocab;
use serde_json::{Value, json};

use crate::common::{decode, encode};

/// A small tokenizer.json like `tokenizer-midi.json`.
fn midi() -> Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            special(0, "<pad>"), special(1, "<start>"), special(2, "<end>"),
            {"id": 8, "content": "<extra0>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false},
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": {"<pad>": 0, "<start>": 1, "<end>": 2, "t1": 3, "t12": 4, "p:3c:a": 5, "ß": 6, "i̇": 7},
            "unk_token": "<pad>",
        },
    })
}

fn compile(json: &Value) -> vocab::Result<Vec<u8>> {
    vocab::from_bytes(json.to_string().as_bytes())
}

#[test]
fn words_give_the_ids_of_hugging_face() {
    let section = compile(&midi()).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.n_tokens()), (Kind::Words, 9));
    // As `tokenizers` 0.23 encodes them with the same file.
    for (text, ids) in VECTORS {
        assert_eq!(encode(tokenizer, text), ids, "{text:?}");
    }
}

const VECTORS: [(&str, &[u32]); 12] = [
    ("", &[]),
    (" \n\t ", &[]),
    ("t1 t12  t1\nt12", &[3, 4, 3, 4]),
    ("T12 P:3C:A", &[4, 5]),
    ("<start> p:3c:a <end>", &[1, 5, 2]),
    ("<start>t1<end>t12", &[1, 3, 2, 4]),
    ("t123 t t1.", &[0, 0, 0]),
    ("t1\u{a0}t12\u{3000}t1", &[3, 4, 3]),
    ("<START> t1", &[1, 3]),
    ("t1<extra0>t12 <EXTRA0>", &[3, 8, 4, 8]),
    ("<extra", &[0]),
    ("ß İ", &[6, 7]),
];

#[test]
fn words_decode_with_a_blank_in_front_and_come_back() {
    let section = compile(&midi()).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let ids = [3, 4, 5, 8, 3];
    assert_eq!(decode(tokenizer, &ids), b" t1 t12 p:3c:a <extra0> t1");
    assert_eq!(encode(tokenizer, decode(tokenizer, &ids)), ids);
    assert_eq!(decode(tokenizer, &[0, 1, 2, 9, 1000]), b"");
}

#[test]
fn words_need_text_and_without_an_unknown_token_known_words() {
    let section = compile(&midi()).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let error = tokenizer.encode(b"t1 \xff", &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "no token for byte 0xff at offset 3 of the text");

    let mut json = midi();
    json["model"]["unk_token"] = Value::Null;
    let section = compile(&json).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let mut ids = vec![7];
    let error = tokenizer.encode("t1 x t1".as_bytes(), &mut ids).unwrap_err().to_string();
    assert_eq!((error.as_str(), &ids[..]), ("no token for the word \"x\"", &[7][..]));
}

#[test]
fn words_of_another_kind_are_refused_by_name() {
    for (pointer, part, what) in [
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "pre_tokenizer Whitespace is not supported"),
        ("/normalizer", json!({"type": "NFKC"}), "normalizer NFKC is not supported"),
        ("/decoder", json!({"type": "WordPiece"}), "decoder WordPiece is not supported"),
        ("/post_processor", json!({"type": "ByteLevel"}), "post_processor ByteLevel is not supported"),
        ("/model/unk_token", json!("<unk>"), "unk_token \"<unk>\" is not in the vocabulary"),
        ("/model/vocab/t1", json!(4), "its id occurs twice"),
        ("/model/vocab/t1", json!(-4), "has no id"),
        ("/added_tokens/0/lstrip", json!(true), "with lstrip"),
        ("/added_tokens/3/id", json!(3), "which is that of"),
        ("/truncation", json!({"max_length": 8}), "truncation"),
    ] {
        let mut json = midi();
        *json.pointer_mut(pointer).unwrap() = part;
        let message = compile(&json).unwrap_err().to_string();
        assert!(message.contains(what), "{pointer}: {message}");
    }
}

#[test]
fn a_damaged_section_of_words_is_refused() {
    let section = compile(&midi()).unwrap();
    for len in 0..section.len() {
        assert!(Tokenizer::parse(&section[..len]).is_err(), "{len}");
    }
    for at in 0..section.len() {
        let mut damaged = section.clone();
        damaged[at] ^= 0x80;
        if let Ok(tokenizer) = Tokenizer::parse(&damaged) {
            let _ = tokenizer.encode("<start> t1 t12 <extra0> x".as_bytes(), &mut Vec::new());
            assert!((0..20).all(|id| tokenizer.token(id).len() <= tokenizer.max_token_len()));
        }
    }
}

#[test]
fn web_rwkvs_json_is_the_world_vocabulary() {
    let lines = "1 '\\x00' 1\n2 'a' 1\n3 'ab' 2\n4 b'\\xff' 1\n7 'é' 2\n";
    let world = vocab::from_bytes(lines.as_bytes()).unwrap();
    let json = json!({"0": "<|endoftext|>", "7": "é", "4": [255], "3": "ab", "2": "a", "1": "\u{0}"});
    assert!(compile(&json).unwrap() == world);
    assert!(vocab::from_bytes(format!(" \n{json}").as_bytes()).unwrap() == world);
}

#[test]
fn web_rwkvs_json_with_a_fault_is_refused() {
    for (json, what) in [
        (json!({"1": 7}), "token 1: expected a text or a list of bytes"),
        (json!({"1": [256]}), "token 1: expected a text or a list of bytes"),
        (json!({"99999999999": "a"}), "token 99999999999: its id is too large"),
        (json!({"2": "a", "3": "a"}), "its bytes occur twice"),
        (json!({"2": ""}), "it is empty"),
        (json!({"0": "a"}), "the vocabulary is empty"),
        (json!({"2": "a", "x": "b"}), "not a usable tokenizer.json"),
    ] {
        let message = compile(&json).unwrap_err().to_string();
        assert!(message.contains(what), "{json}: {message}");
    }
}

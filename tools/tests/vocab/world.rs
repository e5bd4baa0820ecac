//! The World vocabulary and files of its form.

use std::collections::HashMap;
use std::path::PathBuf;

use rwkv_edge::tokenizer::{Kind, Tokenizer};
use rwkv_quantize::vocab;

use crate::common::{decode, encode};

const TEXTS: [&str; 16] = [
    "Plain English, with a comma.",
    "Größe, Übermut, Straße",
    "Où est l’œuf ?",
    "¿Dónde está el niño?",
    "Жили у бабуси",
    "Μια φορά κι έναν καιρό",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "从前有座山，山里有座庙。",
    "むかしむかし、カタカナ",
    "옛날 옛적에",
    "สวัสดีชาวโลก",
    "👨‍👩‍👧 🇩🇪 👍🏽",
    "fn main() {\n    println!(\"{}\", 1 << 4); // \t\r\n}\n\n\n",
    "\0\u{1}\u{7f}\u{fffd}\u{10ffff}",
];

/// Bytes from a fixed stream.
fn random_bytes(n: usize, mut state: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(n)
    .collect()
}

#[test]
fn world_vectors() {
    let section = vocab::world_builtin();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let cases: [(&[u8], &[u32]); 11] = [
        (b"Hello world", &[33155, 40213]),
        (b"User: hi\n\nAssistant:", &[24281, 59, 4571, 261, 5585, 41693, 59]),
        ("你好".as_bytes(), &[10464, 11685]),
        ("😀".as_bytes(), &[3319, 153, 129]),
        (&[0xff, 0xfe], &[256, 255]),
        (b"1234567890", &[632, 654, 676, 698, 710]),
        (b"<think>", &[61, 35762, 63]),
        (b"\n\n\n", &[3328]),
        (b"\n", &[11]),
        (b" ", &[33]),
        (b"\r\n", &[263]),
    ];
    for (text, ids) in cases {
        assert_eq!(encode(tokenizer, text), ids, "{:?}", String::from_utf8_lossy(text));
    }
    assert_eq!(encode(tokenizer, "\n\n"), [261]);
    assert_eq!(encode(tokenizer, " \n\n"), [3336]);
    assert_eq!(encode(tokenizer, "\n\n "), [3329]);
}

#[test]
fn world_has_its_size_and_no_token_0() {
    let section = vocab::world_builtin();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(tokenizer.kind(), Kind::Greedy);
    assert_eq!(tokenizer.n_tokens(), 65_530);
    assert_eq!(tokenizer.max_token_len(), 128);
    for id in [0, 65_530, 65_535, u32::MAX] {
        assert_eq!(tokenizer.token(id), b"", "token {id}");
    }
    let with_blank_line =
        (0..65_536).filter(|id| tokenizer.token(*id).windows(2).any(|pair| pair == b"\n\n"));
    assert_eq!(with_blank_line.count(), 34);
}

#[test]
fn every_token_of_world_encodes_to_itself() {
    let section = vocab::world_builtin();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    for id in 1..65_530 {
        assert_eq!(encode(tokenizer, tokenizer.token(id)), [id]);
    }
}

#[test]
fn world_text_and_random_bytes_survive_a_round_trip() {
    let section = vocab::world_builtin();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    for text in TEXTS {
        let ids = encode(tokenizer, text);
        assert_eq!(decode(tokenizer, &ids), text.as_bytes());
    }
    for seed in 0..200 {
        let bytes = random_bytes(seed as usize * 7, seed);
        assert_eq!(decode(tokenizer, &encode(tokenizer, &bytes)), bytes);
    }
}

#[test]
fn world_is_a_plain_longest_match() {
    let section = vocab::world_builtin();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let ids: HashMap<&[u8], u32> = (1..65_530).map(|id| (tokenizer.token(id), id)).collect();
    let naive = |text: &[u8]| {
        let (mut rest, mut out) = (text, Vec::new());
        while !rest.is_empty() {
            let lens = (1..=rest.len().min(128)).rev();
            let (len, id) = lens.filter_map(|len| Some((len, *ids.get(&rest[..len])?))).next().unwrap();
            out.push(id);
            rest = &rest[len..];
        }
        out
    };
    for text in TEXTS {
        assert_eq!(encode(tokenizer, text), naive(text.as_bytes()), "{text:?}");
    }
    // Concatenated tokens: matches that end early and late.
    for seed in 0..200 {
        let picks = random_bytes(60, seed + 1000);
        let text: Vec<u8> = picks
            .as_chunks::<3>()
            .0
            .iter()
            .flat_map(|[a, b, c]| {
                let token = tokenizer.token(u32::from_le_bytes([*a, *b, 0, 0]));
                &token[..token.len().min(1 + usize::from(*c))]
            })
            .copied()
            .collect();
        assert_eq!(encode(tokenizer, &text), naive(&text), "{text:?}");
    }
}

#[test]
fn a_file_with_gaps_and_without_some_bytes_names_the_missing_byte() {
    let section = vocab::from_bytes(b"5 'a' 1\n9 'ab' 2\n700 b'\\xe4\\xbd' 2\n").unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(encode(tokenizer, b"aab\xe4\xbda"), [5, 9, 700, 5]);
    assert_eq!((tokenizer.n_tokens(), tokenizer.max_token_len()), (701, 2));
    assert_eq!(tokenizer.token(6), b"");
    let mut ids = vec![1, 2];
    let error = tokenizer.encode(b"aab\xe4\xbe", &mut ids).unwrap_err().to_string();
    assert_eq!(error, "no token for byte 0xe4 at offset 3 of the text");
    assert_eq!(ids, [1, 2], "the output of a failed call stays");
}

#[test]
fn content_tells_the_kind_of_file() {
    let error = |content: &[u8]| vocab::from_bytes(content).unwrap_err().to_string();
    assert!(error(b"").contains("neither a World vocabulary"));
    assert!(error(b"\x0a\x0e<unk>").contains("neither a World vocabulary"));
    assert!(error(b"{").starts_with("not a usable tokenizer.json: EOF"));
    assert!(error(b"{}").starts_with("not a usable tokenizer.json: "));
    assert_eq!(error(b"1 'a' 1\n2 '\xff' 1\n"), "line 2: not UTF-8");
    assert!(error(b"4294967295 'a' 1\n").contains("its id is too large"));
    let missing = vocab::load("no/such/file".as_ref()).unwrap_err().to_string();
    assert!(missing.starts_with("no/such/file: "), "{missing}");
}

#[test]
fn shared_vocabularies_load() {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let world = shared.join("vocab/rwkv_vocab_v20230424.txt");
    let fairy = shared.join("fairy/fairy_vocab.txt");
    if !world.exists() || !fairy.exists() {
        eprintln!("skipped: {} or {} is missing", world.display(), fairy.display());
        return;
    }
    assert!(vocab::load(&world).unwrap() == vocab::world_builtin());
    let section = vocab::load(&fairy).unwrap();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!(Tokenizer::parse(&section).unwrap().n_tokens(), 4096);
    assert_eq!(decode(tokenizer, &encode(tokenizer, TEXTS.concat())), TEXTS.concat().as_bytes());
    assert_eq!(encode(tokenizer, " the\n\n"), [260, 289]);
}

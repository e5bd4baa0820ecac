//! Tokenizer sections: compiled, refused and damaged ones.

use crate::common::Random;
use rwkv_edge::tokenizer::compile::{self, AddedToken, BpeSource, Merge};
use rwkv_edge::tokenizer::{Kind, Tokenizer};

fn encode(tokenizer: Tokenizer<'_>, text: impl AsRef<[u8]>) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text.as_ref(), &mut ids).unwrap();
    ids
}

fn greedy(tokens: &[(u32, &str)]) -> Vec<u8> {
    let tokens: Vec<_> = tokens.iter().map(|(id, text)| (*id, text.as_bytes().to_vec())).collect();
    compile::greedy(&tokens).unwrap()
}

/// Bytes as ids 0..=255, a few merges, and two kinds of added tokens.
fn bpe_source() -> BpeSource {
    let mut tokens: Vec<(u32, Vec<u8>)> = (0..=255).map(|byte| (byte.into(), vec![byte])).collect();
    tokens.extend(
        (256..).zip(["he", "ll", "hell", "hello", " hello", "\n\n"].map(|text| text.as_bytes().to_vec())),
    );
    let merge = |left: u32, right: u32, merged| Merge { left, right, merged };
    let merges = vec![
        merge(b'h'.into(), b'e'.into(), 256),
        merge(b'l'.into(), b'l'.into(), 257),
        merge(256, 257, 258),
        merge(258, b'o'.into(), 259),
        merge(b' '.into(), 259, 260),
        merge(b'\n'.into(), b'\n'.into(), 261),
    ];
    let added = |id, content: &str, special| AddedToken {
        id,
        content: content.into(),
        special,
        normalized: !special,
    };
    let added = vec![added(300, "<end>", true), added(301, "   ", false), added(302, "  ", false)];
    BpeSource { tokens, merges, added, nfc: true }
}

fn bpe() -> Vec<u8> {
    compile::bpe(&bpe_source()).unwrap()
}

#[test]
fn bytes_are_their_own_ids() {
    let section = compile::bytes();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.n_tokens(), tokenizer.max_token_len()), (Kind::Bytes, 256, 1));
    assert_eq!(encode(tokenizer, "\"in\u{e9}"), [34, 105, 110, 0xc3, 0xa9]);
    for id in 0..256 {
        assert_eq!(tokenizer.token(id), [id as u8]);
    }
    assert_eq!(tokenizer.token(256), b"");
}

#[test]
fn the_longest_match_wins_and_falls_back() {
    let section = greedy(&[(1, "a"), (2, "b"), (3, "ab"), (4, "abcd"), (7, "c")]);
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.n_tokens(), tokenizer.max_token_len()), (Kind::Greedy, 8, 4));
    assert_eq!(encode(tokenizer, "abcabcdaab"), [3, 7, 4, 1, 3]);
    assert!(encode(tokenizer, "").is_empty());
    assert_eq!(tokenizer.token(4), b"abcd");
    assert_eq!((tokenizer.token(0), tokenizer.token(5), tokenizer.token(8)), (&b""[..], &b""[..], &b""[..]));
}

#[test]
fn encoding_appends_and_takes_back_what_it_appended_on_error() {
    let section = greedy(&[(1, "a")]);
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let mut ids = vec![9];
    tokenizer.encode(b"aa", &mut ids).unwrap();
    assert_eq!(ids, [9, 1, 1]);
    let error = tokenizer.encode(b"aax", &mut ids).unwrap_err().to_string();
    assert_eq!(error, "no token for byte 0x78 at offset 2 of the text");
    assert_eq!(ids, [9, 1, 1]);
}

#[test]
fn merges_follow_their_ranks_and_added_tokens_go_first() {
    let section = bpe();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.n_tokens(), tokenizer.max_token_len()), (Kind::Bpe, 303, 6));
    assert_eq!(encode(tokenizer, "hello hello"), [259, 260]);
    assert_eq!(encode(tokenizer, "hellhe"), [258, 256]);
    assert_eq!(encode(tokenizer, "hello<end>hello"), [259, 300, 259]);
    assert_eq!(encode(tokenizer, "      hello"), [301, 301, 259]);
    assert_eq!(encode(tokenizer, "     hello"), [301, 302, 259]);
    assert_eq!(encode(tokenizer, "\n\nhello\n\n"), [10, 10, 259, 261]);
    assert_eq!(encode(tokenizer, "e\u{301}"), "é".bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(
        (tokenizer.token(300), tokenizer.token(301), tokenizer.token(299)),
        (&b""[..], &b"   "[..], &b""[..])
    );
}

#[test]
fn the_section_of_the_format_page_is_what_is_compiled() {
    let section = greedy(&[(1, "a"), (2, "ab")]);
    let words: Vec<u32> = section.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let none = u32::MAX;
    let expected = [
        &[u32::from_le_bytes(*b"RWTK"), 1, 3, 2][..],
        &[3, 0, 0, 1, 3, u32::from_le_bytes(*b"aab\0")],
        &[3, 1, 2, 3, 3, none, 1, 2, u32::from_le_bytes(*b"\0ab\0")],
    ];
    assert_eq!(words, expected.concat());
}

/// The error for a small greedy section after one change.
fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut section = greedy(&[(1, "a"), (2, "ab")]);
    change(&mut section);
    Tokenizer::parse(&section).unwrap_err().to_string()
}

fn set(section: &mut [u8], word: usize, value: u32) {
    section[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn structural_attacks_are_refused_with_a_reason() {
    let word = |word, value| refusal(|section| set(section, word, value));
    assert!(word(0, 0).contains("does not begin with RWTK"));
    assert!(word(1, 7).contains("tokenizer kind 7"));
    assert!(word(1, 0).contains("a byte vocabulary has 256 tokens"));
    assert!(word(2, u32::MAX).contains("too many or too long tokens"));
    assert!(word(3, 1 << 20).contains("too many or too long tokens"));
    assert!(word(3, 1).contains("not as long as the header says"));
    assert!(word(4, u32::MAX).contains("cut off"), "huge blob");
    assert!(word(7, 4).contains("offsets do not rise"));
    assert!(word(8, 2).contains("offsets do not rise"), "the last offset is not the end");
    assert!(word(5, 1).contains("offsets do not rise"), "the first offset is not 0");
    assert!(word(10, u32::MAX).contains("too many nodes"));
    assert!(word(10, 0).contains("breadth-first"), "no root");
    assert!(word(11, 0).contains("breadth-first"), "the root is its own child");
    assert!(word(12, 1).contains("breadth-first"), "a node is its own child");
    assert!(word(13, 4).contains("breadth-first"), "children fall");
    assert!(word(14, 9).contains("breadth-first"), "children behind the end");
    assert!(word(15, 1).contains("token outside"), "the root is a token, so nothing would be consumed");
    assert!(word(16, 3).contains("token outside"));
    assert!(word(18, u32::from_le_bytes(*b"\0ab\x01")).contains("padding"));
    assert!(word(9, u32::from_le_bytes(*b"aab\x01")).contains("padding"));
    assert!(refusal(|section| section.extend([0; 4])).contains("bytes after the last part"));
    let flat = |section: &mut Vec<u8>| {
        *section = greedy(&[(1, "a"), (2, "b")]);
        let labels = section.len() - 4;
        section[labels..].copy_from_slice(b"\0bb\0");
    };
    assert!(refusal(flat).contains("labels do not rise"));
    let deep = |section: &mut Vec<u8>| {
        *section = greedy(&[(1, "a"), (2, "bb")]);
        // The longest token shrinks to one byte in the header and in the decode table, but not in
        // the trie.
        section.drain(9 * 4..10 * 4);
        section.splice(9 * 4..9 * 4, *b"ab\0\0");
        set(section, 3, 1);
        set(section, 4, 2);
        set(section, 8, 2);
    };
    assert!(refusal(deep).contains("deeper than the longest token"));
}

#[test]
fn bpe_flags_and_byte_tokens_are_checked() {
    let section = bpe();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let blob: usize = (0..303).map(|id| tokenizer.token(id).len()).sum();
    let flags = 5 + 304 + blob.div_ceil(4);
    let damaged = |word, value| {
        let mut section = section.clone();
        set(&mut section, word, value);
        Tokenizer::parse(&section).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(damaged(flags, 2).unwrap_err().contains("tokenizer flags 0x2"));
    let byte = |byte: usize| flags + 1 + byte;
    assert!(damaged(byte(b'a'.into()), u32::MAX).unwrap_err().contains("a byte has no token"));
    assert!(damaged(byte(b'a'.into()), 303).unwrap_err().contains("a byte has no token"));
    assert!(damaged(byte(0xff), u32::MAX).is_ok(), "this byte is not in UTF-8");
}

/// Parses the section and, if that succeeds, uses the whole tokenizer. Returns whether it
/// succeeded.
fn survives(section: &[u8]) -> bool {
    const TEXTS: [&[u8]; 5] = [
        b"hello hello<end>   hello\n\n  <en hehellolo ",
        "e\u{301}\u{1112}\u{1161}\u{11ab} caf\u{e9}<end>".as_bytes(),
        b"\xff\xfe ab\xe4\xbd\x80abcabcd",
        b"abababababababababababababababababababababababababababababababababababababab",
        &[b' '; 100],
    ];
    let Ok(tokenizer) = Tokenizer::parse(section) else { return false };
    let mut ids = Vec::new();
    for text in TEXTS {
        ids.clear();
        if tokenizer.encode(text, &mut ids).is_ok() {
            assert!(
                ids.len() <= 4 * text.len() && ids.iter().all(|id| (*id as usize) < tokenizer.n_tokens())
            );
        }
    }
    for id in 0..tokenizer.n_tokens() as u32 + 2 {
        assert!(tokenizer.token(id).len() <= tokenizer.max_token_len());
    }
    true
}

fn samples() -> [Vec<u8>; 3] {
    [
        compile::bytes(),
        greedy(&[(1, "a"), (2, "b"), (3, "ab"), (4, "abcd"), (7, "c"), (8, "hello"), (9, " ")]),
        bpe(),
    ]
}

#[test]
fn sections_cut_anywhere_are_refused() {
    for section in samples() {
        assert!(survives(&section));
        for len in 0..section.len() {
            assert!(!survives(&section[..len]), "cut to {len} of {} bytes", section.len());
        }
    }
}

#[test]
fn sections_at_any_alignment_are_read() {
    for section in samples() {
        for shift in 1..4 {
            let shifted = [&vec![0; shift][..], &section].concat();
            let (here, there) =
                (Tokenizer::parse(&section).unwrap(), Tokenizer::parse(&shifted[shift..]).unwrap());
            assert_eq!(encode(here, "abc"), encode(there, "abc"));
        }
    }
}

#[test]
fn no_word_of_a_section_can_make_it_panic() {
    for section in samples() {
        let n_words = section.len() / 4;
        for word in 0..n_words {
            let old = u32::from_le_bytes(section[word * 4..][..4].try_into().unwrap());
            let near = [old.wrapping_add(1), old.wrapping_sub(1)];
            let extreme = [0, 1, 255, 302, n_words as u32, section.len() as u32, 1 << 20, 1 << 31, u32::MAX];
            for value in near.into_iter().chain(extreme) {
                let mut damaged = section.clone();
                set(&mut damaged, word, value);
                survives(&damaged);
            }
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = Random(0x5eed);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut section = samples_cached(round % 3).clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(section.len());
            section[at] = random.below(256) as u8;
        }
        accepted += usize::from(survives(&section));
    }
    assert!((100..19_000).contains(&accepted), "{accepted} of 20000 damaged sections were accepted");
}

fn samples_cached(index: usize) -> &'static Vec<u8> {
    static SAMPLES: std::sync::OnceLock<[Vec<u8>; 3]> = std::sync::OnceLock::new();
    &SAMPLES.get_or_init(samples)[index]
}

#[test]
fn vocabularies_that_contradict_themselves_are_not_compiled() {
    let greedy = |tokens: &[(u32, &[u8])]| {
        let tokens: Vec<_> = tokens.iter().map(|(id, bytes)| (*id, bytes.to_vec())).collect();
        compile::greedy(&tokens).unwrap_err().to_string()
    };
    assert!(greedy(&[]).contains("the vocabulary is empty"));
    assert!(greedy(&[(1, b"a"), (1, b"b")]).contains("its id occurs twice"));
    assert!(greedy(&[(1, b"a"), (2, b"a")]).contains("its bytes occur twice"));
    assert!(greedy(&[(1, b"")]).contains("it is empty"));
    assert!(greedy(&[(1 << 20, b"a")]).contains("its id is too large"));
    assert!(greedy(&[(1, &[b'a'; 1025])]).contains("it is too long"));

    let bpe = |change: &dyn Fn(&mut BpeSource)| {
        let mut source = bpe_source();
        change(&mut source);
        compile::bpe(&source).unwrap_err().to_string()
    };
    assert!(bpe(&|source| source.tokens.clear()).contains("the vocabulary is empty"));
    assert!(bpe(&|source| drop(source.tokens.remove(97))).contains("byte 0x61 has no token"));
    for (message, what) in [
        (bpe(&|source| source.merges[1].left = 999), "merge 1 (tokens 999 and "),
        (bpe(&|source| source.merges[1].left = 999), ": a token is unknown"),
        (bpe(&|source| source.merges[1].left = 256), ": the result is not both sides"),
        (bpe(&|source| source.merges.push(source.merges[0])), ": an earlier one has its sides"),
    ] {
        assert!(message.contains(what), "{message}");
    }
    assert!(bpe(&|source| source.added[0].id = 301).contains("its id occurs twice"));
    assert!(bpe(&|source| source.added[0].content.clear()).contains("it is empty"));
    let same_normalized = |source: &mut BpeSource| {
        source.added[1].content = "\u{e9}".into();
        source.added[2].content = "e\u{301}".into();
    };
    assert!(bpe(&same_normalized).contains("its bytes occur twice"));
}

#[test]
fn long_words_do_not_take_quadratic_time() {
    let section = bpe();
    let tokenizer = Tokenizer::parse(&section).unwrap();
    let n = 200_000;
    let ids = encode(tokenizer, "hello".repeat(n));
    assert_eq!(ids, vec![259; n]);
}

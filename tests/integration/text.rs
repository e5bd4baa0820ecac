//! Whole characters and stop texts from byte streams.

use std::io;

use rwkv_edge::text::{Status, TextStream};

/// Feeds the pieces and ends the text. Returns the output, and whether a stop text ended it.
fn run(stream: &mut TextStream, pieces: &[&[u8]]) -> (String, Status) {
    let mut out = String::new();
    let mut sink = |text: &str| {
        assert!(!text.is_empty(), "empty text was passed on");
        out.push_str(text);
        Ok(())
    };
    for piece in pieces {
        if stream.push(piece, &mut sink).unwrap() == Status::Stopped {
            break;
        }
    }
    let status = stream.finish(&mut sink).unwrap();
    (out, status)
}

fn stream(stops: &[&str]) -> TextStream {
    TextStream::new(stops).unwrap()
}

/// Calls `check` with all ways to cut `bytes` in two and in three, with single bytes, and with the
/// whole.
fn for_every_split(bytes: &[u8], mut check: impl FnMut(&[&[u8]])) {
    check(&[bytes]);
    check(&bytes.chunks(1).collect::<Vec<_>>());
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            check(&[&bytes[..first], &bytes[first..second], &bytes[second..]]);
        }
    }
}

/// The text before the stop text that is complete first, of equal ones the longest.
fn before_stop(text: &str, stops: &[&str]) -> (String, Status) {
    for end in 0..=text.len() {
        let found = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
        if let Some(longest) = found.map(|stop| stop.len()).max() {
            return (text[..end - longest].to_owned(), Status::Stopped);
        }
    }
    (text.to_owned(), Status::Running)
}

#[test]
fn any_split_gives_the_text_that_from_utf8_lossy_gives() {
    let texts: [&[u8]; 12] = [
        "aé你😀z".as_bytes(),
        "😀😀".as_bytes(),
        b"",
        b"\xff\xfe",
        b"a\x80b\xbf",
        b"\xe4\xbd",
        b"\xe4\xbdx\xf0\x9f\x98",
        b"\xf0\x9f\xf0\x9f\x98\x80",
        b"\xc0\xaf\xc1\x80\xf5\x80",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xe0\x80\x80\xf0\x80\x80\x80\xf4\x90\x80\x80",
        b"\xc3\xc3\xa9\xe2\x82\xe2\x82\xac\xf0",
    ];
    let mut stream = stream(&[]);
    for text in texts {
        let expected = String::from_utf8_lossy(text).into_owned();
        for_every_split(text, |pieces| {
            assert_eq!(run(&mut stream, pieces), (expected.clone(), Status::Running), "{pieces:x?}");
        });
    }
}

#[test]
fn random_bytes_give_the_text_that_from_utf8_lossy_gives() {
    // Bytes that begin, continue and break characters.
    const BYTES: [u8; 12] = [b'a', 0x80, 0x9f, 0xa0, 0xbf, 0xc3, 0xe0, 0xe4, 0xed, 0xf0, 0xf4, 0xff];
    let mut stream = stream(&["aa"]);
    let mut state = 7u32;
    for _ in 0..5000 {
        let bytes: Vec<u8> = (0..12)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                BYTES[(state >> 16) as usize % 12]
            })
            .collect();
        let lossy = String::from_utf8_lossy(&bytes).into_owned();
        let expected = before_stop(&lossy, &["aa"]);
        for size in [1, 2, 3, 5, 12] {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(run(&mut stream, &pieces), expected, "{bytes:x?} by {size}");
        }
    }
}

#[test]
fn stop_texts_are_found_at_any_split() {
    let cases: [(&str, &[&str]); 17] = [
        ("aabaaabaaac", &["aabaaac"]),
        ("aaab", &["aab"]),
        ("aaaab aab", &["aaab"]),
        ("one\n\nUser: two", &["\n\n"]),
        ("one\n\ntwo\n\nUser: three", &["\n\nUser:", "\nUser:"]),
        ("one\nUser: two", &["\n\nUser:", "\nUser:"]),
        ("one\n\nUse", &["\n\nUser:"]),
        ("abcd", &["c", "abcd"]),
        ("xabc", &["abc", "c", "bc"]),
        ("ababac", &["abac"]),
        ("stop", &["stop"]),
        ("stop at once", &["stop"]),
        ("nothing", &["x", "nothink"]),
        ("é你😀é", &["😀"]),
        ("ééèé", &["èé", "éé你"]),
        ("你佡你佢", &["你佢"]),
        ("aXbXXc", &["XX", "bXc"]),
    ];
    for (text, stops) in cases {
        let mut stream = stream(stops);
        let expected = before_stop(text, stops);
        for_every_split(text.as_bytes(), |pieces| {
            assert_eq!(run(&mut stream, pieces), expected, "{text:?} as {pieces:x?} with {stops:?}");
        });
    }
}

#[test]
fn the_stop_text_that_matched_is_told() {
    let mut stream = stream(&["bc", "abc", "abc", "x"]);
    assert_eq!(stream.stopped_by(), None);
    assert_eq!(
        stream
            .push(b"_abc_", &mut |text| {
                assert_eq!(text, "_");
                Ok(())
            })
            .unwrap(),
        Status::Stopped
    );
    assert_eq!(stream.stopped_by(), Some(1));
    assert_eq!(stream.push(b"more", &mut |_| panic!("text after the stop text")).unwrap(), Status::Stopped);
    stream.reset();
    assert_eq!(stream.stopped_by(), None);
    assert_eq!(run(&mut stream, &[b"y"]), ("y".into(), Status::Running));
}

#[test]
fn text_is_held_back_only_as_long_as_it_may_be_a_stop_text() {
    let mut stream = stream(&["\n\nUser:"]);
    let mut push = |bytes: &[u8]| {
        let mut out = String::new();
        stream
            .push(bytes, &mut |text| {
                out.push_str(text);
                Ok(())
            })
            .unwrap();
        out
    };
    assert_eq!(push(b"one\n"), "one");
    assert_eq!(push(b"\nUse"), "");
    assert_eq!(push(b"d"), "\n\nUsed");
    assert_eq!(push(b"\n\n\n"), "\n");
    assert_eq!(push(b"\xe4\xbd"), "", "half a character says nothing yet");
    assert_eq!(push(b"\xa0"), "\n\n你");
}

#[test]
fn the_end_passes_on_what_was_held_and_makes_the_stream_ready_again() {
    let mut stream = stream(&["ab\u{fffd}", "abc"]);
    assert_eq!(run(&mut stream, &[b"xab"]), ("xab".into(), Status::Running));
    assert_eq!(run(&mut stream, &[b"c"]), ("c".into(), Status::Running));
    // The replacement of a character that never ends can itself complete a stop text.
    assert_eq!(run(&mut stream, &[b"xab\xe4"]), ("x".into(), Status::Stopped));
    assert_eq!(run(&mut stream, &[b"ok"]), ("ok".into(), Status::Running));
}

#[test]
fn an_empty_stop_text_is_refused() {
    let error = TextStream::new(&["a", ""]).unwrap_err();
    assert_eq!(error.to_string(), "a stop text is empty");
}

#[test]
fn errors_of_the_sink_come_back() {
    let mut stream = stream(&[]);
    let error = stream.push(b"text", &mut |_| Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

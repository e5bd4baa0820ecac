//! Texts in UTF-16, which some editors write.

use rwkv_edge::stdio;

/// Warns on standard error if a text looks like UTF-16, which a model reads as nonsense.
pub(crate) fn hint_at_utf16(text: &[u8]) {
    if looks_like_utf16(text) {
        stdio::eprint_line(format_args!(
            "rwkv-edge: the text looks like UTF-16, but is read as UTF-8; iconv -f UTF-16 -t UTF-8 converts it"
        ));
    }
}

/// Whether a text begins with the byte order mark of UTF-16, or one byte of most pairs is zero and
/// the other almost never.
fn looks_like_utf16(text: &[u8]) -> bool {
    const MOST_PAIRS: usize = 512;
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return true;
    }
    let pairs = text.as_chunks::<2>().0;
    let pairs = &pairs[..pairs.len().min(MOST_PAIRS)];
    let zeros = |i: usize| pairs.iter().filter(|pair| pair[i] == 0).count();
    let (first, second) = (zeros(0), zeros(1));
    8 * first.min(second) < first.max(second) && 2 * first.max(second) > pairs.len()
}

#[cfg(test)]
mod tests {
    use super::looks_like_utf16;

    #[test]
    fn utf_16_is_known_by_its_mark_or_by_the_zeros() {
        let text = "Once upon a time, caf\u{e9} \u{4e00}";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert!(looks_like_utf16(&little) && looks_like_utf16(&big));
        assert!(looks_like_utf16(b"\xff\xfe\x00\x4e") && looks_like_utf16(b"\xfe\xff\x4e\x00"));
        for other in [text.as_bytes(), b"", b"a", b"\0\0\0\0", b"some\0text", b"\xef\xbb\xbftext"] {
            assert!(!looks_like_utf16(other), "{other:?}");
        }
    }
}

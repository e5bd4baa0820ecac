//! Recognises files that are given for a model by mistake.

use super::header::MAGIC;

/// What a file that does not begin like a model looks like and what to do, if it looks like anything.
pub(super) fn recognise(file: &[u8]) -> Option<&'static str> {
    let starts = |prefix: &[u8]| file.starts_with(prefix);
    let beginning = &file[..file.len().min(256)];
    if file.is_empty() {
        Some("the file is empty")
    } else if starts(&MAGIC) || MAGIC.starts_with(file) {
        None
    } else if starts(&MAGIC[..5]) {
        Some("a transfer in text mode changed it; copy it again in binary mode")
    } else if starts(b"version https://git-lfs") {
        Some("it is a Git LFS pointer instead of the file; run `git lfs pull` or download the file itself")
    } else if starts(b"GGUF") {
        Some("it is a GGUF file; convert the original .pth or .safetensors with rwkv-quantize")
    } else if starts(b"PK\x03\x04") {
        Some("it is a zip archive, probably a PyTorch checkpoint; convert it with rwkv-quantize")
    } else if starts(b"\x80\x02\x8a\x0a") {
        Some("it is a PyTorch checkpoint of the old kind; save it with a current PyTorch, then convert that")
    } else if starts(b"fmgg") {
        Some("it is an rwkv.cpp model; convert it with rwkv-quantize")
    } else if beginning.trim_ascii_start().starts_with(b"<") {
        Some("it is a web page; the download went wrong")
    } else if file.get(8) == Some(&b'{') {
        Some("it is probably a safetensors file; convert it with rwkv-quantize")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_given_by_mistake_are_named() {
        for (file, word) in [
            (b"".as_slice(), "empty"),
            (b"\x89RWKV\n\x1a\x01\x00", "text mode"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04archive", "zip"),
            (b"\x80\x02\x8a\x0al\xfc", "PyTorch"),
            (b"fmgg\x65\0\0\0", "rwkv.cpp"),
            (b"\n <!DOCTYPE html>", "web page"),
            (b"\x40\0\0\0\0\0\0\0{\"emb", "safetensors"),
        ] {
            let found = recognise(file).unwrap_or("nothing");
            assert!(found.contains(word), "{}: {found}", file.escape_ascii());
        }
    }

    #[test]
    fn a_model_and_any_beginning_of_one_are_not_foreign() {
        for len in 1..=MAGIC.len() {
            assert_eq!(recognise(&MAGIC[..len]), None, "{len} bytes");
        }
        assert_eq!(recognise(b"something else"), None);
    }
}

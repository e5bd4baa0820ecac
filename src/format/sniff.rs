//! Recognises a file by its first bytes: a model, or a file that people take for one.

use super::header::MAGIC;
use super::state_file;
use crate::input::without_byte_order_mark;

/// A kind of file with known first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// No bytes at all.
    Empty,
    /// A `.rwkv` model file, or the beginning of one.
    Model,
    /// A `.rwstate` file: a saved state.
    State,
    /// A model file after a transfer in text mode, which changed line ends or cut it.
    ModelAsText,
    /// The few lines that Git stores in place of a file of Git LFS.
    LfsPointer,
    /// A model of llama.cpp.
    Gguf,
    /// A zip archive, as `torch.save` writes it since version 1.6.
    Zip,
    /// The format of `torch.save` before version 1.6.
    LegacyTorch,
    /// A model of rwkv.cpp.
    RwkvCpp,
    /// HTML or XML, the result of a failed download.
    WebPage,
    /// Probably safetensors: JSON from byte 8 on.
    Safetensors,
}

impl FileKind {
    /// The kind of a file that begins with these bytes; `None` if it is unknown.
    pub fn of(file: &[u8]) -> Option<Self> {
        let starts = |prefix: &[u8]| file.starts_with(prefix);
        let text = without_byte_order_mark(file);
        if file.is_empty() {
            Some(Self::Empty)
        } else if starts(&MAGIC) || MAGIC.starts_with(file) {
            Some(Self::Model)
        } else if starts(&state_file::MAGIC) {
            Some(Self::State)
        } else if starts(&MAGIC[..5]) {
            Some(Self::ModelAsText)
        } else if starts(b"version https://git-lfs") {
            Some(Self::LfsPointer)
        } else if starts(b"GGUF") {
            Some(Self::Gguf)
        } else if starts(b"PK\x03\x04") {
            Some(Self::Zip)
        } else if starts(b"\x80\x02\x8a\x0a") {
            Some(Self::LegacyTorch)
        } else if starts(b"fmgg") {
            Some(Self::RwkvCpp)
        } else if text[..text.len().min(256)].trim_ascii_start().starts_with(b"<") {
            Some(Self::WebPage)
        } else if file.get(8) == Some(&b'{') {
            Some(Self::Safetensors)
        } else {
            None
        }
    }

    /// What such a file is and what to do with it, for a user who wanted to run a model. `None` for
    /// a model.
    pub(super) fn advice(self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("the file is empty"),
            Self::Model => None,
            Self::State => Some("it is a saved state; name its model, and the state with --state"),
            Self::ModelAsText => Some("a transfer in text mode changed it; copy it again in binary mode"),
            Self::LfsPointer => Some(
                "it is a Git LFS pointer instead of the file; run `git lfs pull` or download the file itself",
            ),
            Self::Gguf => Some("it is a GGUF file; convert it with rwkv-quantize if it is an RWKV-6 or 7"),
            Self::Zip => {
                Some("it is a zip archive, probably a PyTorch checkpoint; convert it with rwkv-quantize")
            }
            Self::LegacyTorch => Some(
                "it is a PyTorch checkpoint of the old kind; save it with a current PyTorch, then convert that",
            ),
            Self::RwkvCpp => Some("it is an rwkv.cpp model; convert it with rwkv-quantize"),
            Self::WebPage => Some("it is a web page; the download went wrong"),
            Self::Safetensors => Some("it is probably a safetensors file; convert it with rwkv-quantize"),
        }
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
            (b"\x89RWST\r\n\x1a\x01\x00", "saved state"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04archive", "zip"),
            (b"\x80\x02\x8a\x0al\xfc", "PyTorch"),
            (b"fmgg\x65\0\0\0", "rwkv.cpp"),
            (b"\n <!DOCTYPE html>", "web page"),
            (b"\xef\xbb\xbf<?xml?>", "web page"),
            (b"\x40\0\0\0\0\0\0\0{\"emb", "safetensors"),
        ] {
            let found = FileKind::of(file).and_then(FileKind::advice).unwrap_or("nothing");
            assert!(found.contains(word), "{}: {found}", file.escape_ascii());
        }
    }

    #[test]
    fn a_model_and_any_beginning_of_one_are_models() {
        for len in 1..=MAGIC.len() {
            assert_eq!(FileKind::of(&MAGIC[..len]), Some(FileKind::Model), "{len} bytes");
        }
        assert_eq!(FileKind::Model.advice(), None);
        assert_eq!(FileKind::of(b"something else"), None);
    }
}

//! Files that are no checkpoints: each gets a message of its own.

use crate::common::{Folder, assert_refused};
use rwkv_quantize::source::{Checkpoint, SourceError};

#[test]
fn wrong_files_are_named() {
    for (bytes, part) in [
        (b"".as_slice(), "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n  <html lang=\"en\">", "HTML"),
        (b"\xef\xbb\xbf<?xml version=\"1.0\"?>", "HTML"),
        (b"<script>{\"a\":1}", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"GGUF\x03\0\0\0{", "ends before"),
        (b"\x89RWKV\r\x1a\n", "already converted"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "legacy"),
        (b"\x80\x02}q\0.", "bare pickle"),
        (b"PK\x05\x06\0\0\0\0", "empty zip"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"{\"metadata\": {\"total_size\": 1}}", "JSON"),
        (b"hello, world", "neither"),
        (b"x", "neither"),
        (b"PK\x03\x04", "zip"),
        (b"fmgg", "ends before"),
    ] {
        assert_refused(bytes, &[part]);
    }
}

#[test]
fn a_safetensors_header_of_any_length_is_recognised() {
    // The first byte of the length is the beginning of HTML, JSON, or a pickle.
    for len in [0x3c, 0x7b, 0x80, 0x28002] {
        let start = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let header = format!("{start}{}}}", " ".repeat(len - start.len() - 1));
        let bytes = crate::common::safetensors_file(&header, &[0; 4]);
        assert!(crate::common::open(&bytes).is_ok(), "{len:#x}");
    }
}

#[test]
fn folders_and_missing_files_are_named() {
    let folder = Folder::new();
    let message = Checkpoint::open(&folder.path("")).unwrap_err().to_string();
    assert!(message.contains("folder"), "{message}");
    let missing = Checkpoint::open(&folder.path("missing.pth")).unwrap_err();
    assert!(
        matches!(missing, SourceError::Io { .. }) && missing.to_string().contains("missing.pth"),
        "{missing}"
    );
}

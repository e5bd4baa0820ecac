//! Which container a file is, from its first bytes; wrong files get a message of their own.

use super::file::Source;
use super::{Container, SourceError, rwkvcpp, safetensors};

/// Beginnings of files that people take for checkpoints, and what to say.
const WRONG_FILES: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs",
        "this is a Git LFS pointer of a few lines; fetch the file itself (git lfs pull)",
    ),
    (b"GGUF", "this is a GGUF file; convert the original .pth or .safetensors instead"),
    (b"\x89RWKV", "this file is already converted; run it with rwkv-edge"),
    (b"PK\x05\x06", "this is an empty zip file"),
    (b"\x1f\x8b", "this file is compressed with gzip; unpack it first"),
];

/// Beginning of files that torch wrote before version 1.6 (`torch.save` without the zip container).
const LEGACY_TORCH: &[u8] = b"\x80\x02\x8a\x0a";

/// What a file is.
pub(super) enum Kind {
    /// A checkpoint.
    Container(Container),
    /// A JSON text, which may list the files of a checkpoint.
    Json,
}

/// Names the kind of a file.
pub(super) fn kind(source: &Source) -> Result<Kind, SourceError> {
    let mut head = [0; 64];
    let head = &mut head[..source.len().min(64) as usize];
    source.read_at(head, 0)?;
    if head.starts_with(b"PK\x03\x04") {
        return Ok(Kind::Container(Container::TorchZip));
    }
    if head.starts_with(&rwkvcpp::MAGIC) {
        return Ok(Kind::Container(Container::RwkvCpp));
    }
    if let Some((_, what)) = WRONG_FILES.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(source.not_a_checkpoint(*what));
    }
    let json_at_8 = head.get(8) == Some(&b'{');
    if json_at_8 && safetensors::plausible_header(head) {
        return Ok(Kind::Container(Container::Safetensors));
    }
    if head.starts_with(LEGACY_TORCH) {
        return Err(source.not_a_checkpoint(
            "this is a torch file of the legacy format without a zip container; load it and save it again with torch 1.6 or newer",
        ));
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    match (text.first(), head.first()) {
        (Some(b'<'), _) => Err(source.not_a_checkpoint(
            "this is an HTML or XML page, probably an error page saved by a download; download the file again",
        )),
        (Some(b'{'), _) => Ok(Kind::Json),
        (_, Some(0x80)) => Err(source.not_a_checkpoint(
            "this is a bare pickle, not what torch.save writes; save the state_dict again with torch.save",
        )),
        _ if json_at_8 => Ok(Kind::Container(Container::Safetensors)),
        _ => Err(source.not_a_checkpoint(
            "neither a torch zip file (.pth), nor .safetensors, nor an rwkv.cpp .bin; the first bytes match none",
        )),
    }
}

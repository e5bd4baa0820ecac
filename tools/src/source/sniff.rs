//! Which container a file is, from its first bytes; wrong files get a message of their own.

use rwkv_edge::format::FileKind;
use rwkv_edge::input;

use super::error::SourceError;
use super::file::Source;
use super::safetensors;
use super::tensor::Container;

/// Kind of a file.
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
    // The length in front of a safetensors header can look like the beginning of something else.
    let is_safetensors = head.get(8) == Some(&b'{') && safetensors::plausible_header(head);
    let what = match FileKind::of(head) {
        Some(FileKind::Zip) => return Ok(Kind::Container(Container::TorchZip)),
        Some(FileKind::RwkvCpp) => return Ok(Kind::Container(Container::RwkvCpp)),
        Some(FileKind::Gguf) => return Ok(Kind::Container(Container::Gguf)),
        Some(FileKind::Model | FileKind::ModelAsText) => {
            "this file is already converted; run it with rwkv-edge"
        }
        Some(FileKind::State) => "this is a saved state; give it to rwkv-edge run --state",
        Some(FileKind::LfsPointer) => {
            "this is a Git LFS pointer of a few lines; fetch the file itself (git lfs pull)"
        }
        _ if head.starts_with(b"PK\x05\x06") => "this is an empty zip file",
        _ if head.starts_with(b"\x1f\x8b") => "this file is compressed with gzip; unpack it first",
        _ if is_safetensors => return Ok(Kind::Container(Container::Safetensors)),
        Some(FileKind::LegacyTorch) => {
            "this is a torch file of the legacy format without a zip container; load it and save it again: `python3 -c \"import torch; torch.save(torch.load('OLD.pth', map_location='cpu'), 'NEW.pth')\"`"
        }
        Some(FileKind::WebPage) => {
            "this is an HTML or XML page, probably an error page saved by a download; download the file again"
        }
        _ if is_json(head) => return Ok(Kind::Json),
        _ if head.starts_with(b"\x80") => {
            "this is a bare pickle, not what torch.save writes; save the state_dict again with torch.save"
        }
        Some(FileKind::Safetensors) => return Ok(Kind::Container(Container::Safetensors)),
        Some(FileKind::Empty) | None => {
            "neither a torch zip file (.pth), nor .safetensors, nor GGUF, nor an rwkv.cpp .bin; the first bytes match none"
        }
    };
    Err(source.not_a_checkpoint(what))
}

fn is_json(head: &[u8]) -> bool {
    input::without_byte_order_mark(head).trim_ascii_start().starts_with(b"{")
}

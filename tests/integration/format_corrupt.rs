//! Attacks on the `.rwkv` reader. Each test is named after the damage it does to a small valid
//! file. Attacks on data under checksums recompute the checksums first, as an attacker would.

use std::fs;
use std::ops::Range;

use crate::common::{Random, assert_contains};
use rwkv_edge::format::{
    Arch, Chat, Config, ElementType, FileContents, FileLayout, ModelFile, ModelWriter, Provenance, Replace,
    SelfTest, Target, TensorLayout, Variant, WriteSpec,
};
use rwkv_edge::{ErrorKind, Result};

#[path = "../../src/format/testing.rs"]
mod testing;

const HEADER: usize = 64;
const SECTION: usize = 32;
const ENTRY: usize = 64;
const SECTIONS: [&[u8; 4]; 7] = [b"CONF", b"TENS", b"TOKN", b"CHAT", b"PROV", b"TEST", b"DATA"];
const HUGE: [u64; 6] = [u64::MAX, u64::MAX - 63, u64::MAX - 16_383, 1 << 63, 1 << 32, (1 << 32) - 64];

/// The bytes of a model file, and the positions of its parts by the format's definition.
#[derive(Clone)]
struct Victim {
    bytes: Vec<u8>,
}

impl Victim {
    fn new() -> Self {
        Self { bytes: testing::model_bytes() }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn put(&mut self, at: usize, value: &[u8]) -> &mut Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    /// Position of a section's entry in the section table.
    fn section_entry(&self, kind: &[u8; 4]) -> usize {
        let mut entries = (0..self.u32(12) as usize).map(|i| HEADER + SECTION * i);
        entries.find(|&at| &self.bytes[at..at + 4] == kind).unwrap()
    }

    fn section(&self, kind: &[u8; 4]) -> Range<usize> {
        let entry = self.section_entry(kind);
        let start = self.u64(entry + 8) as usize;
        start..start + self.u64(entry + 16) as usize
    }

    /// Position of entry `i` of the tensor table.
    fn entry(&self, i: usize) -> usize {
        self.section(b"TENS").start + 16 + ENTRY * i
    }

    /// Position of the bytes of a name in the tensor table.
    fn name(&self, i: usize) -> usize {
        let count = self.u32(self.section(b"TENS").start) as usize;
        self.entry(count) + self.u32(self.entry(i)) as usize
    }

    /// Position of field number `index` of a section.
    fn field(&self, kind: &[u8; 4], index: usize) -> usize {
        let start = self.section(kind).start;
        (0..index).fold(start, |at, _| at + 8 + (self.u32(at + 4) as usize).next_multiple_of(4))
    }

    /// Recomputes all checksums of sections and header, as far as ranges allow.
    fn fix_checksums(&mut self) -> &mut Self {
        for i in 0..self.u32(12).min(64) as usize {
            let entry = HEADER + SECTION * i;
            if entry + SECTION > self.bytes.len() || &self.bytes[entry..entry + 4] == b"DATA" {
                continue;
            }
            let (start, len) = (self.u64(entry + 8) as usize, self.u64(entry + 16) as usize);
            if let Some(body) = start.checked_add(len).and_then(|end| self.bytes.get(start..end)) {
                let crc = crc32fast::hash(body);
                self.put(entry + 24, &crc.to_le_bytes());
            }
        }
        let table = HEADER + SECTION * self.u32(12).min(1000) as usize;
        if let Some(table) = self.bytes.get(HEADER..table) {
            let crc = crc32fast::hash(&[&self.bytes[..24], table].concat());
            self.put(24, &crc.to_le_bytes());
        }
        self
    }

    fn open(&self) -> Result<ModelFile> {
        ModelFile::from_vec(self.bytes.clone())
    }

    /// The message of the reader that refuses the file although all checksums match.
    #[track_caller]
    fn refused(&mut self) -> String {
        let error = self.fix_checksums().open().expect_err("the file was accepted");
        assert!(!matches!(error.kind(), ErrorKind::Checksum { .. }), "{error}");
        error.to_string()
    }
}

#[test]
fn nothing_changed() {
    let mut victim = Victim::new();
    let bytes = victim.bytes.clone();
    assert!(victim.fix_checksums().bytes == bytes, "the test computes checksums differently");
    victim.open().unwrap().verify_all().unwrap();
}

#[test]
fn cut_at_every_byte() {
    let victim = Victim::new();
    for cut in 0..victim.bytes.len() {
        let error = ModelFile::from_vec(victim.bytes[..cut].to_vec()).expect_err("accepted");
        match error.kind() {
            ErrorKind::Truncated { found, .. } => assert_eq!(*found, cut as u64),
            kind => assert!(cut == 0 && matches!(kind, ErrorKind::NotAModel(_)), "cut at {cut}: {error}"),
        }
    }
}

#[test]
fn bytes_appended() {
    let mut victim = Victim::new();
    victim.bytes.push(0);
    assert!(matches!(victim.open().unwrap_err().kind(), ErrorKind::Truncated { .. }));
}

#[test]
fn every_bit_before_the_data_flipped() {
    let mut victim = Victim::new();
    for at in 0..victim.section(b"DATA").start {
        // In the long padding before the data, one bit of each byte.
        let bits = if at < victim.section(b"TEST").end { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            victim.bytes[at] ^= 1 << bit;
            assert!(victim.open().is_err(), "byte {at}, bit {bit}");
            victim.bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_byte_of_the_data_flipped() {
    let mut victim = Victim::new();
    let clean = victim.open().unwrap();
    let mut covered = 0;
    for (i, tensor) in clean.tensors().iter().enumerate() {
        for at in clean.range(tensor) {
            victim.bytes[at] ^= 1 << (at % 8);
            let file = victim.open().unwrap();
            let error = file.verify(&file.tensors()[i]).expect_err("not noticed");
            assert!(matches!(error.kind(), ErrorKind::Checksum { .. }), "{error}");
            victim.bytes[at] ^= 1 << (at % 8);
            covered += 1;
        }
    }
    assert_eq!(covered, clean.tensors().iter().map(|tensor| tensor.len).sum::<u64>());
}

#[test]
fn one_embedding_row_flipped() {
    let mut victim = Victim::new();
    let emb = victim.open().unwrap().tensor("emb.weight").unwrap().clone();
    let stride = emb.len as usize / testing::N_VOCAB;
    victim.bytes[emb.offset as usize + 7 * stride + 5] ^= 0x10;
    let file = victim.open().unwrap();
    let rows = file.records_handle("emb.weight", emb.layout, emb.shape).unwrap();
    let mut record = vec![0; rows.stride()];
    for row in 0..testing::N_VOCAB {
        assert_eq!(file.read_record(rows, row, &mut record).is_err(), row == 7, "row {row}");
    }
    assert_contains(&file.verify_embedding().unwrap_err().to_string(), "record 7");
}

#[test]
fn padding_between_tensors_used() {
    let mut victim = Victim::new();
    let end = victim.open().unwrap().tensors()[0].end() as usize;
    victim.bytes[end] = 1;
    assert_contains(&victim.open().unwrap().verify_all().unwrap_err().to_string(), "padding");
}

#[test]
fn section_sizes_and_offsets_near_the_maximum() {
    for kind in SECTIONS {
        for field in [8, 16] {
            for value in HUGE {
                let mut victim = Victim::new();
                let at = victim.section_entry(kind) + field;
                victim.put(at, &value.to_le_bytes()).refused();
            }
        }
    }
}

#[test]
fn file_length_near_the_maximum() {
    for value in HUGE {
        let mut victim = Victim::new();
        assert_contains(&victim.put(16, &value.to_le_bytes()).refused(), &value.to_string());
    }
}

#[test]
fn tensor_sizes_and_offsets_near_the_maximum() {
    for i in 0..6 {
        for field in [24, 32] {
            for value in HUGE {
                let mut victim = Victim::new();
                let at = victim.entry(i) + field;
                assert_contains(&victim.put(at, &value.to_le_bytes()).refused(), "tensor");
            }
        }
    }
}

#[test]
fn counts_that_would_need_huge_allocations() {
    for value in [u32::MAX, 1 << 31, 1 << 26, 65, 1000] {
        let value = value.to_le_bytes();
        Victim::new().put(12, &value).refused();
        for field in [0, 4] {
            let mut victim = Victim::new();
            let at = victim.section(b"TENS").start + field;
            assert_contains(&victim.put(at, &value).refused(), "TENS");
        }
        for (kind, fields) in [(b"CONF", 7), (b"CHAT", 11), (b"PROV", 7), (b"TEST", 2)] {
            for field in 0..fields {
                let mut victim = Victim::new();
                let at = victim.field(kind, field) + 4;
                victim.put(at, &value).refused();
            }
        }
    }
}

#[test]
fn tensor_dimensions_near_the_maximum() {
    for i in 0..6 {
        for dims in [[u32::MAX, u32::MAX], [u32::MAX, 1], [1, u32::MAX], [1 << 31, 1 << 31], [0, 1], [1, 0]] {
            let mut victim = Victim::new();
            let at = victim.entry(i) + 8;
            victim.put(at, &dims[0].to_le_bytes()).put(at + 4, &dims[1].to_le_bytes());
            assert_contains(&victim.refused(), "tensor");
        }
    }
}

#[test]
fn overlapping_sections() {
    for (kind, previous) in [(b"TENS", b"CONF"), (b"TEST", b"PROV"), (b"CONF", b"CONF")] {
        let mut victim = Victim::new();
        let start = if kind == previous { 0 } else { victim.section(previous).start as u64 };
        let at = victim.section_entry(kind) + 8;
        assert_contains(&victim.put(at, &start.to_le_bytes()).refused(), "overlaps");
    }
    let mut victim = Victim::new();
    let at = victim.section_entry(b"CONF") + 16;
    let len = victim.section(b"TENS").start - victim.section(b"CONF").start + 1;
    assert_contains(&victim.put(at, &(len as u64).to_le_bytes()).refused(), "overlaps");
}

#[test]
fn overlapping_tensors() {
    let mut victim = Victim::new();
    let previous = victim.u64(victim.entry(1) + 24);
    let at = victim.entry(2) + 24;
    assert_contains(&victim.put(at, &previous.to_le_bytes()).refused(), "overlaps");
}

#[test]
fn misaligned_sections_and_tensors() {
    for kind in SECTIONS {
        let mut victim = Victim::new();
        let at = victim.section_entry(kind) + 8;
        let offset = victim.u64(at) - 4;
        assert_contains(&victim.put(at, &offset.to_le_bytes()).refused(), "aligned");
    }
    for i in 0..6 {
        let mut victim = Victim::new();
        let at = victim.entry(i) + 24;
        let offset = victim.u64(at) + 4;
        assert_contains(&victim.put(at, &offset.to_le_bytes()).refused(), "aligned");
    }
}

#[test]
fn tensors_outside_the_data() {
    let mut victim = Victim::new();
    let (at, before) = (victim.entry(0) + 24, victim.section(b"TOKN").start as u64);
    assert_contains(&victim.put(at, &before.to_le_bytes()).refused(), "outside section DATA");
    let mut victim = Victim::new();
    let (at, after) = (victim.entry(5) + 24, victim.bytes.len().next_multiple_of(64) as u64);
    assert_contains(&victim.put(at, &after.to_le_bytes()).refused(), "outside section DATA");
}

#[test]
fn bytes_hidden_between_sections_or_tensors_or_at_the_end() {
    let mut victim = Victim::new();
    let end = victim.section(b"TEST").end;
    assert_contains(&victim.put(end, b"x").refused(), "unused bytes");

    // The last tensor begins 64 bytes later than it could.
    let mut victim = Victim::new();
    let last = victim.entry(5) + 24;
    let (offset, file_len) = (victim.u64(last) + 64, victim.bytes.len() as u64 + 64);
    let data = victim.section_entry(b"DATA") + 16;
    let data_len = victim.u64(data) + 64;
    victim.bytes.resize(file_len as usize, 0);
    victim
        .put(last, &offset.to_le_bytes())
        .put(data, &data_len.to_le_bytes())
        .put(16, &file_len.to_le_bytes());
    assert_contains(&victim.refused(), "unused bytes before the data");

    let mut victim = Victim::new();
    let longer = victim.bytes.len() + 64;
    let at = victim.section_entry(b"DATA") + 16;
    let data_len = (longer - victim.section(b"DATA").start) as u64;
    victim.bytes.resize(longer, 0);
    victim.put(16, &(longer as u64).to_le_bytes()).put(at, &data_len.to_le_bytes());
    assert_contains(&victim.refused(), "unused bytes");
    let mut victim = victim.clone();
    victim.put(at, &(data_len - 64).to_le_bytes());
    assert_contains(&victim.refused(), "unused bytes");
}

#[test]
fn sections_duplicate_missing_or_in_another_order() {
    for kind in &SECTIONS[..6] {
        let mut victim = Victim::new();
        let at = victim.section_entry(kind);
        let name = String::from_utf8_lossy(*kind);
        assert_contains(&victim.put(at, b"XXXX").put(at + 4, &[0]).refused(), &format!("{name} is missing"));
    }
    let mut victim = Victim::new();
    let at = victim.section_entry(b"CHAT");
    assert_contains(&victim.put(at, b"CONF").refused(), "CONF occurs twice");
    let at = victim.section_entry(b"DATA");
    assert_contains(&Victim::new().put(at, b"XXXX").refused(), "not DATA");
    assert_contains(&Victim::new().put(12, &0u32.to_le_bytes()).refused(), "not DATA");
}

/// The file with one more, empty section. Its entry fits between the table and the first section.
fn with_section(kind: &[u8; 4], flags: u32) -> Victim {
    let mut victim = Victim::new();
    let table = HEADER..HEADER + SECTION * 7;
    let first = victim.section(b"CONF").start;
    assert!(first >= table.end + SECTION);
    victim.bytes.copy_within(table, HEADER + SECTION);
    let (flags, offset) = (flags.to_le_bytes(), (first as u64).to_le_bytes());
    let entry = [kind.as_slice(), &flags, &offset, &[0; 16]].concat();
    victim.put(HEADER, &entry).put(12, &8u32.to_le_bytes());
    victim
}

#[test]
fn unknown_sections() {
    with_section(b"NOTE", 0).fix_checksums().open().unwrap().verify_all().unwrap();
    let error = with_section(b"NOTE", 1).fix_checksums().open().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert_contains(&with_section(b"NOTE", 2).refused(), "reserved");
    assert_contains(&with_section(b"NO\x1bE", 0).refused(), "ASCII");
    assert_contains(&with_section(b"TEST", 0).refused(), "twice");
}

/// The file with 16 KiB more between the section table and the first section.
fn with_room() -> Victim {
    const ROOM: u64 = 16 * 1024;
    let mut victim = Victim::new();
    let add = |victim: &mut Victim, at: usize| {
        let value = victim.u64(at) + ROOM;
        victim.put(at, &value.to_le_bytes());
    };
    (0..6).map(|i| victim.entry(i) + 24).collect::<Vec<_>>().into_iter().for_each(|at| add(&mut victim, at));
    SECTIONS.map(|kind| victim.section_entry(kind) + 8).into_iter().for_each(|at| add(&mut victim, at));
    add(&mut victim, 16);
    let table_end = HEADER + SECTION * SECTIONS.len();
    victim.bytes.splice(table_end..table_end, vec![0; ROOM as usize]);
    victim
}

/// The file with `count` sections in all. Empty, optional sections come before the others.
fn with_sections(count: usize) -> Victim {
    let mut victim = with_room();
    let first = victim.section(b"CONF").start as u64;
    let table = victim.bytes[HEADER..HEADER + SECTION * SECTIONS.len()].to_vec();
    let extra = (SECTIONS.len()..count).flat_map(|i| {
        let kind = format!("n{i:03}");
        [kind.as_bytes(), &[0; 4], &first.to_le_bytes(), &[0; 16]].concat()
    });
    let table: Vec<u8> = extra.chain(table).collect();
    victim.put(HEADER, &table).put(12, &(count as u32).to_le_bytes());
    victim
}

#[test]
fn room_for_hidden_bytes_between_sections() {
    assert_contains(&with_room().refused(), "unused bytes before section CONF");
}

#[test]
fn more_sections_than_a_reader_looks_at() {
    with_sections(64).fix_checksums().open().unwrap().verify_all().unwrap();
    assert_contains(&with_sections(65).refused(), "65 sections");
}

#[test]
fn tensor_names() {
    let edit = |i: usize, at: usize, value: &[u8]| {
        let mut victim = Victim::new();
        let name = victim.name(i);
        victim.put(name + at, value).refused()
    };
    assert_contains(&edit(1, 3, &[0xff]), "UTF-8");
    assert_contains(&edit(1, 3, "é".as_bytes()), "printable ASCII");
    assert_contains(&edit(1, 3, b"\x1b"), "printable ASCII");
    assert_contains(&edit(1, 3, b" "), "printable ASCII");
    assert_contains(&edit(5, 0, b"ffn.value.weight"), "occurs twice");
    assert_contains(&edit(5, 0, b"EMB"), "record checksums");

    // Four bytes after the last name, which were padding.
    let mut victim = Victim::new();
    let (section, table) = (victim.section_entry(b"TENS") + 16, victim.section(b"TENS"));
    let (len, names_len) = (table.len() as u64 + 4, victim.u32(table.start + 4) + 4);
    victim.put(section, &len.to_le_bytes()).put(table.start + 4, &names_len.to_le_bytes());
    assert_contains(&victim.refused(), "unused bytes after the names");

    for (field, value) in [(0, 1u16), (4, 0), (4, 1), (4, u16::MAX)] {
        for i in 0..6 {
            let mut victim = Victim::new();
            let at = victim.entry(i) + field;
            let value = if field == 0 { victim.u32(at) as u16 + value } else { value };
            victim.put(at, &value.to_le_bytes()).refused();
        }
    }
}

#[test]
fn types_layouts_and_shapes_that_do_not_go_together() {
    for i in 0..6 {
        for field in [6, 7] {
            let original = Victim::new();
            let at = original.entry(i) + field;
            // A vector of f32 may as well be one of u32; the lookup by type refuses that.
            let possible = [original.bytes[at], if (i, field) == (0, 6) { 4 } else { 255 }];
            for code in (0..=255).filter(|code| !possible.contains(code)) {
                original.clone().put(at, &[code]).refused();
            }
        }
        for field in [8, 12] {
            let mut victim = Victim::new();
            let at = victim.entry(i) + field;
            let dim = victim.u32(at) + 1024;
            assert_contains(&victim.put(at, &dim.to_le_bytes()).refused(), "tensor");
        }
    }
}

#[test]
fn a_vector_of_integers_where_numbers_are_wanted() {
    let mut victim = Victim::new();
    let at = victim.entry(0) + 6;
    let file = victim.put(at, &[4]).fix_checksums().open().unwrap();
    let error = file.vector_handle("ln.weight", testing::N_EMBD).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Tensor { .. }), "{error}");
}

#[test]
fn unknown_types_and_layouts_are_unsupported_rather_than_damaged() {
    for field in [6, 7] {
        let mut victim = Victim::new();
        let at = victim.entry(1) + field;
        let error = victim.put(at, &[99]).fix_checksums().open().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    }
}

#[test]
fn scales_and_errors_that_are_no_such_numbers() {
    for value in [0.0, -1.0, 0.75, f32::NAN, f32::INFINITY, f32::from_bits(1)] {
        for i in 0..6 {
            let mut victim = Victim::new();
            let at = victim.entry(i) + 16;
            assert_contains(&victim.put(at, &value.to_le_bytes()).refused(), "scale");
        }
    }
    for value in [-1.0, f32::NAN, f32::INFINITY] {
        let mut victim = Victim::new();
        let at = victim.entry(1) + 20;
        assert_contains(&victim.put(at, &value.to_le_bytes()).refused(), "relative error");
    }
}

#[test]
fn record_checksums_promised_for_other_tensors() {
    for i in [0, 1, 2, 3, 5] {
        let mut victim = Victim::new();
        let at = victim.entry(i) + 40;
        assert_contains(&victim.put(at, &[0, 0, 0, 0, 1]).refused(), "only row records");
    }
    let mut victim = Victim::new();
    let at = victim.entry(4) + 40;
    assert_contains(&victim.put(at, &[1]).refused(), "no other checksum");
}

#[test]
fn reserved_bits_set() {
    let reserved = |at: usize| Victim::new().put(at, &[2]).refused();
    let victim = Victim::new();
    for at in 28..HEADER {
        assert_contains(&reserved(at), "reserved");
    }
    for kind in SECTIONS {
        for at in [4, 5, 7, 28, 31] {
            let at = victim.section_entry(kind) + at;
            let value = victim.bytes[at] | 2;
            assert_contains(&Victim::new().put(at, &[value]).refused(), "reserved");
        }
    }
    assert_contains(&reserved(victim.section_entry(b"DATA") + 24), "DATA");
    for at in 8..16 {
        assert_contains(&reserved(victim.section(b"TENS").start + at), "TENS");
    }
    for at in (45..64).map(|at| victim.entry(1) + at) {
        assert_contains(&reserved(at), "reserved");
    }
    assert_contains(&reserved(victim.field(b"CONF", 0) + 3), "reserved");
    let padding = victim.field(b"CHAT", 1) - 1;
    assert_eq!(victim.u32(victim.field(b"CHAT", 0) + 4), 5, "`world` is padded");
    assert_contains(&reserved(padding), "reserved");
}

#[test]
fn fields_unknown_twice_or_missing() {
    let rename = |kind: &[u8; 4], index: usize, id: u16| {
        let mut victim = Victim::new();
        let at = victim.field(kind, index);
        victim.put(at, &id.to_le_bytes()).refused()
    };
    assert_contains(&rename(b"CONF", 2, 999), "field 999 is not known");
    assert_contains(&rename(b"CONF", 2, 4), "twice");
    assert_contains(&rename(b"PROV", 0, 999), "source_name is missing");
    assert_contains(&rename(b"TEST", 0, 999), "tokens is missing");
    assert_contains(&rename(b"CHAT", 0, 999), "name is missing");
}

#[test]
fn hyperparameters_out_of_range() {
    for (index, value) in [(0, 80u32), (1, 0), (1, 1025), (2, 0), (3, u32::MAX), (4, 1 << 21), (5, 0), (6, 0)]
    {
        let mut victim = Victim::new();
        let at = victim.field(b"CONF", index) + 8;
        victim.put(at, &value.to_le_bytes()).refused();
    }
}

#[test]
fn tokens_outside_the_vocabulary() {
    let n_vocab = (testing::N_VOCAB as u32).to_le_bytes();
    let victim = Victim::new();
    let stop_tokens = victim.field(b"CHAT", 3);
    assert_eq!(victim.bytes[stop_tokens], 6);
    assert_contains(&victim.clone().put(stop_tokens + 8, &n_vocab).refused(), "stop_tokens");
    let tokens = victim.field(b"TEST", 0);
    assert_contains(&victim.clone().put(tokens + 8, &n_vocab).refused(), "tokens");
}

#[test]
fn newer_versions() {
    let mut victim = Victim::new();
    victim.put(10, &77u16.to_le_bytes()).fix_checksums();
    assert_eq!(victim.open().unwrap().format_version(), (1, 77));
    victim.put(8, &2u16.to_le_bytes());
    victim.bytes.truncate(100);
    let error = victim.open().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NewerFormat { found: 2, supported: 1 }), "{error}");
    assert_contains(&Victim::new().put(8, &[0]).refused(), "version is 0");
}

#[test]
fn files_of_other_programs() {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes, word) in [
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".as_slice(), "Git LFS pointer"),
        ("html", b"<!DOCTYPE html><html></html>", "web page"),
        ("gguf", b"GGUF\x03\0\0\0\0\0\0\0", "GGUF"),
        ("pth", b"PK\x03\x04\0\0\0\0", "rwkv-quantize"),
        ("safetensors", b"\x10\0\0\0\0\0\0\0{\"emb.weight\":", "safetensors"),
        ("bin", b"fmgg\x65\0\0\0", "rwkv.cpp"),
        ("text", b"hello", "does not begin like"),
        ("crlf", b"\x89RWKV\n\x1a\x01\0\0\0", "text mode"),
        ("empty", b"", "empty"),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = ModelFile::open(&path).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotAModel(_)), "{error}");
        assert_eq!(error.path(), Some(path.as_path()));
        assert_contains(&error.to_string(), word);
    }
    assert_contains(&ModelFile::open(directory.path()).unwrap_err().to_string(), "directory");
    assert_contains(&ModelFile::from_vec(Vec::new()).unwrap_err().to_string(), "empty");
}

#[test]
fn damage_in_a_file_on_disk_is_reported_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.rwkv");
    let mut victim = Victim::new();
    let ln = victim.section(b"DATA").start;
    victim.bytes[ln] ^= 1;
    fs::write(&path, &victim.bytes).unwrap();
    let file = ModelFile::open(&path).unwrap();
    for error in [file.verify_all().unwrap_err(), file.tensor("none").unwrap_err()] {
        assert_eq!(error.path(), Some(path.as_path()));
    }
    fs::write(&path, &victim.bytes[..1000]).unwrap();
    let error = ModelFile::open(&path).unwrap_err();
    assert_contains(&error.to_string(), "m.rwkv: the file has 1000 bytes");
}

/// Calls everything that a file offers after it passed all checks.
fn use_everything(file: &ModelFile) {
    let _ = (file.config(), file.chat(), file.provenance(), file.self_test(), file.model_id());
    let _ = (file.tokenizer_bytes().len(), file.embedding_bytes(), file.data_bytes(), file.sections().len());
    let _ = (file.verify_all(), file.verify_embedding());
    for tensor in file.tensors() {
        let (name, [rows, cols]) = (tensor.name.as_str(), tensor.shape);
        assert_eq!(file.bytes(tensor).len() as u64, tensor.len);
        let matrix = file.matrix_handle(name, rows, cols).map(|r| file.matrix(r).data().len());
        let records = file.records_handle(name, tensor.layout, tensor.shape).map(|r| file.records(r).count());
        let vector = file.vector_handle(name, rows).map(|r| file.vector(r).len());
        let u32s = file.u32_handle(name, rows).map(|r| file.u32s(r).len());
        let views = [matrix, records, vector, u32s];
        assert_eq!(views.iter().filter(|view| view.is_ok()).count(), 1, "{name}");
        file.release(file.bytes(tensor));
    }
}

/// Changes a few bytes before the data: single bits, bytes, and numbers at the limits of their
/// types.
fn mutate(victim: &mut Victim, random: &mut Random) {
    let used = victim.section(b"TEST").end;
    for _ in 0..1 + random.below(4) {
        let at = random.below(used - 8);
        match random.below(5) {
            0 => victim.bytes[at] ^= 1 << random.below(8),
            1 => victim.bytes[at] = random.next() as u8,
            2 => drop(victim.put(at & !3, &[0u32, 1, 64, u32::MAX, 1 << 31][random.below(5)].to_le_bytes())),
            3 => drop(victim.put(at & !7, &HUGE[random.below(HUGE.len())].to_le_bytes())),
            _ => {
                let from = random.below(used - 8);
                victim.bytes.copy_within(from..from + 8, at);
            }
        }
    }
}

#[test]
fn seeded_mutations_never_panic() {
    let original = Victim::new();
    let mut random = Random(2024);
    let mut accepted = 0;
    const ROUNDS: usize = 20_000;
    for _ in 0..ROUNDS {
        let mut victim = original.clone();
        mutate(&mut victim, &mut random);
        victim.put(0, &original.bytes[..8]).put(16, &original.bytes[16..24]).fix_checksums();
        if let Ok(file) = victim.open() {
            use_everything(&file);
            accepted += 1;
        }
    }
    assert!(accepted > 0 && accepted < ROUNDS, "{accepted} of {ROUNDS} accepted: the mutations test nothing");
}

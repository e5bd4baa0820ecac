//! Attacks on the `.rwstate` reader. Each test is named after the damage it does to a valid file.
//! Attacks on bytes under checksums recompute the checksums first, as an attacker would.

use std::sync::{Arc, LazyLock};

use crate::common::{PLAIN, assert_contains, fixture, model};
use rwkv_edge::kernels::DType;
use rwkv_edge::{ErrorKind, Model, Result, Session, SessionOptions, Snapshot, StateNotes};

const HEADER: usize = 64;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| model(&fixture("v4-tiny.pth"), DType::Int8, None));

/// The bytes of a state file, and the positions of its parts by the format's definition.
#[derive(Clone)]
struct Victim {
    bytes: Vec<u8>,
}

impl Victim {
    fn new() -> Self {
        let options = SessionOptions { seed: 3, ..SessionOptions::with_threads(Some(1)) };
        let mut session = Session::new(Arc::clone(&MODEL), &options).unwrap();
        session.feed(&[1, 2, 3]).unwrap();
        (0..5).for_each(|_| _ = session.next_token().unwrap());
        assert!(session.text().pending.is_some() && session.text().sampler.counts().len() > 1);
        let notes =
            StateNotes { template: Some("world".into()), history: Some("once".into()), unshown: vec![0xf0] };
        let mut bytes = Vec::new();
        session.text().save(&notes, &mut bytes).unwrap();
        Self { bytes }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn put(&mut self, at: usize, value: &[u8]) -> &mut Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn values(&self) -> usize {
        HEADER + self.u32(12) as usize
    }

    /// Position of the field with this id.
    fn field(&self, id: u16) -> usize {
        let mut at = HEADER;
        while u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap()) != id {
            at += 8 + (self.u32(at + 4) as usize).next_multiple_of(4);
        }
        at
    }

    /// Replaces the payload of a field, by one of the same length.
    fn put_field(&mut self, id: u16, payload: &[u8]) -> &mut Self {
        let at = self.field(id);
        assert_eq!(self.u32(at + 4) as usize, payload.len());
        self.put(at + 8, payload)
    }

    /// Removes a field.
    fn remove(&mut self, id: u16) -> &mut Self {
        let at = self.field(id);
        let len = 8 + (self.u32(at + 4) as usize).next_multiple_of(4);
        self.bytes.drain(at..at + len);
        let (fields, file) = (self.u32(12) - len as u32, self.bytes.len() as u64);
        self.put(12, &fields.to_le_bytes()).put(16, &file.to_le_bytes())
    }

    fn fix_checksums(&mut self) -> &mut Self {
        let values = self.values().min(self.bytes.len());
        let [fields, rest] = [&self.bytes[HEADER..values], &self.bytes[values..]].map(crc32fast::hash);
        self.put(24, &fields.to_le_bytes()).put(28, &rest.to_le_bytes());
        let header = crc32fast::hash(&self.bytes[..32]);
        self.put(32, &header.to_le_bytes())
    }

    fn load(&self) -> Result<(Snapshot, StateNotes)> {
        Snapshot::load(&MODEL, PLAIN, 0, &self.bytes[..])
    }

    /// The message of the reader that refuses the file although all checksums match.
    #[track_caller]
    fn refused(&mut self) -> String {
        let error = self.fix_checksums().load().map(|_| ()).expect_err("the file was accepted");
        assert!(!matches!(error.kind(), ErrorKind::Checksum { .. }), "{error}");
        error.to_string()
    }
}

#[test]
fn nothing_changed() {
    let mut victim = Victim::new();
    let bytes = victim.bytes.clone();
    assert!(victim.fix_checksums().bytes == bytes, "the test computes checksums differently");
    victim.load().unwrap();
}

#[test]
fn cut_at_every_byte() {
    let victim = Victim::new();
    let expected = victim.bytes.len() as u64;
    for cut in 1..victim.bytes.len() {
        let mut cut_file = &victim.bytes[..cut];
        let error = Snapshot::load(&MODEL, PLAIN, 0, &mut cut_file).map(|_| ()).expect_err("accepted");
        let promised = if cut < HEADER { HEADER as u64 } else { expected };
        assert!(
            matches!(error.kind(), ErrorKind::Truncated { expected, found }
                if (*expected, *found) == (promised, cut as u64)),
            "cut at {cut}: {error}"
        );
    }
}

#[test]
fn every_byte_flipped() {
    let mut victim = Victim::new();
    for at in 0..victim.bytes.len() {
        // Of the values, one bit of each byte.
        let bits = if at < victim.values() { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            victim.bytes[at] ^= 1 << bit;
            assert!(victim.load().is_err(), "byte {at}, bit {bit}");
            victim.bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn bytes_appended_to_the_file() {
    let mut victim = Victim::new();
    victim.bytes.push(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.rwstate");
    std::fs::write(&path, &victim.bytes).unwrap();
    let error = Snapshot::open(&MODEL, PLAIN, 0, &path).map(|_| ()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{error}");
    assert_contains(&error.to_string(), "s.rwstate: the file has");
}

#[test]
fn version_of_a_newer_program() {
    let mut victim = Victim::new();
    victim.put(8, &2u16.to_le_bytes());
    let error = victim.load().map(|_| ()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NewerFormat { found: 2, supported: 1 }));
    assert_contains(&error.to_string(), "update rwkv-edge");
    // A newer minor version has only additions.
    Victim::new().put(10, &9u16.to_le_bytes()).fix_checksums().load().unwrap();
    assert_contains(&Victim::new().put(8, &0u16.to_le_bytes()).refused(), "version of 0");
}

#[test]
fn another_kind_of_file() {
    let advice: [(&[u8], &str); 7] = [
        (b"", "the file is empty"),
        (b"\x89RWKV\r\n\x1a", "it is a model"),
        (b"PK\x03\x04tuned.pth", "rwkv-quantize --state-only"),
        (b"\x80\x02\x8a\x0a", "rwkv-quantize --state-only"),
        (b"\x40\0\0\0\0\0\0\0{\"blocks", "rwkv-quantize --state-only"),
        (b"\x89RWST\n\x1a\x01\x00", "text mode"),
        (b"Once upon a time", "does not begin like a .rwstate file"),
    ];
    for (mut bytes, word) in advice {
        let error = Snapshot::load(&MODEL, PLAIN, 0, &mut bytes).map(|_| ()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotAState(_)), "{error}");
        assert_contains(&error.to_string(), word);
    }
}

#[test]
fn lengths_near_the_maximum() {
    for value in [u32::MAX, u32::MAX - 63, 1 << 31, 1 << 28, 1 << 20] {
        Victim::new().put(12, &value.to_le_bytes()).refused();
        for id in 1..=16 {
            let mut victim = Victim::new();
            let at = victim.field(id) + 4;
            assert_contains(&victim.put(at, &value.to_le_bytes()).refused(), "state: a field runs past");
        }
    }
    for value in [u64::MAX, u64::MAX - 63, 1 << 63, 1 << 32, 100, 0] {
        Victim::new().put(16, &value.to_le_bytes()).refused();
    }
}

#[test]
fn values_of_another_size() {
    let mut victim = Victim::new();
    victim.bytes.truncate(victim.bytes.len() - 4);
    let len = victim.bytes.len() as u64;
    assert_contains(&victim.put(16, &len.to_le_bytes()).refused(), "the model's state has");
}

#[test]
fn reserved_bytes_used() {
    for at in 36..HEADER {
        assert_contains(&Victim::new().put(at, &[1]).refused(), "reserved");
    }
}

#[test]
fn a_field_missing() {
    for id in [1, 2, 3] {
        assert_contains(&Victim::new().remove(id).refused(), "is missing");
    }
    // A sampler is there as a whole or not at all.
    for id in 5..=13 {
        assert_contains(&Victim::new().remove(id).refused(), "is missing");
    }
    for id in [4, 14, 15, 16] {
        Victim::new().remove(id).fix_checksums().load().unwrap();
    }
}

#[test]
fn a_field_of_a_newer_version() {
    let with_field = |flags: u8| {
        let mut victim = Victim::new();
        let at = victim.values();
        victim.bytes.splice(at..at, [99, 0, 1, flags, 4, 0, 0, 0, 1, 2, 3, 4]);
        let (fields, file) = (victim.u32(12) + 12, victim.bytes.len() as u64);
        victim.put(12, &fields.to_le_bytes()).put(16, &file.to_le_bytes()).fix_checksums().load()
    };
    with_field(0).unwrap();
    let error = with_field(1).map(|_| ()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
}

#[test]
fn tokens_outside_the_vocabulary() {
    let n_vocab = MODEL.config().n_vocab as u32;
    for token in [n_vocab, u32::MAX] {
        assert_contains(&Victim::new().put_field(4, &token.to_le_bytes()).refused(), "outside 0..");
        let mut victim = Victim::new();
        let at = victim.field(6) + 8;
        assert_contains(&victim.put(at, &token.to_le_bytes()).refused(), "the count");
    }
}

#[test]
fn counts_that_are_no_counts() {
    for count in [-1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut victim = Victim::new();
        let at = victim.field(7) + 8;
        assert_contains(&victim.put(at, &count.to_le_bytes()).refused(), "the count");
    }
    let mut victim = Victim::new();
    let at = victim.field(6) + 8;
    let first = victim.bytes[at..at + 4].to_vec();
    assert_contains(&victim.put(at + 4, &first).refused(), "twice");
    // One count fewer than tokens.
    let mut victim = Victim::new();
    let at = victim.field(7);
    let len = victim.u32(at + 4) - 4;
    victim.put(at + 4, &len.to_le_bytes());
    victim.bytes.drain(at + 8..at + 12);
    let (fields, file) = (victim.u32(12) - 4, victim.bytes.len() as u64);
    assert_contains(
        &victim.put(12, &fields.to_le_bytes()).put(16, &file.to_le_bytes()).refused(),
        "one count for each",
    );
}

#[test]
fn sampling_out_of_range() {
    for (id, value) in [(8, 101.0), (9, 1.5), (11, f32::NAN), (12, f32::INFINITY), (13, -0.1f32)] {
        assert_contains(&Victim::new().put_field(id, &value.to_le_bytes()).refused(), "must be in");
    }
}

#[test]
fn a_number_of_tokens_that_overflows_when_it_grows() {
    for tokens in [u64::MAX, (1 << 62) + 1, 0] {
        assert_contains(&Victim::new().put_field(2, &tokens.to_le_bytes()).refused(), "impossible");
    }
}

#[test]
fn text_that_commands_a_terminal() {
    assert_contains(&Victim::new().put_field(14, b"a\x1b[2m").refused(), "control characters");
    Victim::new().put_field(15, b"\x1b[2m").fix_checksums().load().unwrap();
    assert_contains(&Victim::new().put_field(15, b"abc\xff").refused(), "encoding");
}

#[test]
fn values_that_are_no_numbers() {
    for value in [f32::NAN, f32::INFINITY, f32::from_bits(0xffff_ffff), f32::MIN_POSITIVE / 2.0] {
        let mut victim = Victim::new();
        for at in (victim.values()..victim.bytes.len()).step_by(4) {
            victim.put(at, &value.to_le_bytes());
        }
        let (text, _) = victim.fix_checksums().load().unwrap();
        let options = SessionOptions::with_threads(Some(2));
        let mut session = Session::resume(Arc::clone(&MODEL), &options.engine, text).unwrap();
        // The numbers are wrong, and nothing else is.
        let _ = session.next_token();
        session.feed(&[1, 2, 3]).unwrap();
        session.text().save(&StateNotes::default(), &mut Vec::new()).unwrap();
    }
}

//! Seeded mutations of good files of all containers. Opening and reading end without a panic,
//! whatever the bytes.

use std::path::Path;

use crate::common::models::{blinkdl, fla, hugging_face, rwkvcpp, web_rwkv, with_states};
use crate::common::{
    Folder, Random, fixture, pickle, rwkvcpp_file, rwkvcpp_of, safetensors, safetensors_of, spec, torch_file,
    torch_file_of,
};
use crate::gguf::{STYLE, model as gguf_model, one_layer};
use crate::gguf_writer::{Kind, Style, Value};
use rwkv_edge::format::Version;
use rwkv_quantize::source::{Checkpoint, SourceDType, detect};

/// Mutated files per base file: `SOURCE_FUZZ_ROUNDS`, or enough to meet every branch.
fn rounds() -> usize {
    std::env::var("SOURCE_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2000)
}

/// Changes a few bytes: flips, boundary values, moved and repeated ranges, cuts.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let len = random.below(1 + (bytes.len() - at).min(16));
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes[at..at + len].fill([0, 0xff, 0x7f][random.below(3)]),
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            6 if bytes.len() >= at + 4 => {
                bytes[at..at + 4].copy_from_slice(&(random.next() as u32 >> random.below(32)).to_le_bytes());
            }
            _ if random.below(8) == 0 => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

/// Opens, and reads everything that opening promises.
fn exercise(folder: &Folder, bytes: &[u8]) -> bool {
    let Ok(checkpoint) = folder.open(bytes) else { return false };
    let _ = detect(&checkpoint);
    let _ = checkpoint.vocabulary();
    for tensor in checkpoint.tensors() {
        assert!(tensor.elements() <= bytes.len(), "{tensor:?}");
        assert!(checkpoint.get(&tensor.name).is_some_and(|found| found.shape == tensor.shape));
        let mut out = vec![0.0; tensor.elements()];
        checkpoint.read(tensor, 0, &mut out).unwrap();
    }
    true
}

/// Makes a torch file say that checksums were not computed, so that damage reaches the readers
/// behind.
fn without_checksums(bytes: &mut [u8]) {
    for at in 0..bytes.len() - 20 {
        if bytes[at..].starts_with(b"PK\x01\x02") {
            bytes[at + 16..at + 20].fill(0);
        }
    }
}

/// The base file must be good, and mutations must both break it and leave it good.
fn fuzz(base: &[u8], seed: u64, rounds: usize) {
    let folder = Folder::new();
    assert!(exercise(&folder, base));
    let mut random = Random(seed);
    let mut good = 0;
    for _ in 0..rounds {
        let mut bytes = base.to_vec();
        mutate(&mut bytes, &mut random);
        good += usize::from(exercise(&folder, &bytes));
    }
    assert!(0 < good && good < rounds, "{good}");
}

#[test]
fn mutated_torch_files_do_not_panic() {
    let tensors =
        [spec("emb.weight", &[3, 4], SourceDType::BF16), spec("blocks.0.x", &[2, 1, 2], SourceDType::F64)];
    let mut bytes = torch_file(&tensors);
    without_checksums(&mut bytes);
    fuzz(&bytes, 1, rounds());
}

#[test]
fn mutated_pickles_do_not_panic() {
    let parameter = [
        &*pickle::global("torch._utils", "_rebuild_parameter"),
        b"(",
        &pickle::view("0", 20, 1, &[3, 2], &[6, 1]),
        b"\x88",
        &pickle::hooks(),
        b"tR",
    ]
    .concat();
    let inner = pickle::dict(&[
        ("a", pickle::vector("0", 20)),
        ("b", parameter),
        ("c", pickle::view("0", 20, 2, &[2, 2, 2], &[8, 4, 1])),
    ]);
    let body = pickle::whole(&pickle::dict(&[
        ("state_dict", inner),
        ("list", b"](K\x01NeNa".to_vec()),
        ("n", b"Nq\x01".to_vec()),
    ]));
    let folder = Folder::new();
    assert!(exercise(&folder, &torch_file_of(&body, &[("0", &[1; 80])])));
    let mut random = Random(2);
    let mut good = 0;
    for _ in 0..rounds() {
        let mut mutated = body.clone();
        mutate(&mut mutated, &mut random);
        good += usize::from(exercise(&folder, &torch_file_of(&mutated, &[("0", &[1; 80])])));
    }
    assert!(0 < good && good < rounds(), "{good}");
}

#[test]
fn mutated_files_of_trainers_do_not_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth");
    for (seed, name) in [(31, "beside-2.pth"), (32, "beside-5.pth"), (33, "turned.pth"), (34, "deflated.pth")]
    {
        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        without_checksums(&mut bytes);
        let folder = Folder::new();
        let mut random = Random(seed);
        for _ in 0..rounds() / 16 {
            let mut bytes = bytes.clone();
            mutate(&mut bytes, &mut random);
            let Ok(checkpoint) = folder.open(&bytes) else { continue };
            let _ = detect(&checkpoint);
            for tensor in checkpoint.tensors() {
                // Damaged entries are found when they are unpacked.
                let _ = checkpoint.read(tensor, 0, &mut vec![0.0; tensor.elements()]);
            }
        }
    }
}

#[test]
fn mutated_safetensors_files_do_not_panic() {
    fuzz(
        &safetensors(&[
            spec("emb.weight", &[3, 4], SourceDType::F16),
            spec("blocks.0.x", &[5], SourceDType::F32),
        ]),
        3,
        rounds(),
    );
}

#[test]
fn mutated_rwkv_cpp_files_do_not_panic() {
    fuzz(&rwkvcpp_file(), 4, rounds());
}

#[test]
fn mutated_gguf_files_do_not_panic() {
    // Two tensors of different types, and a whole model with a vocabulary.
    let small = one_layer(3, 32, Kind::Q8_0.number(), Kind::Q8_0.encode(&[0.5; 96]));
    let texts = vec!["<s>".to_owned(), "a".to_owned()];
    let small = small
        .with("tokenizer.ggml.model", Value::text("rwkv"))
        .with("tokenizer.ggml.tokens", Value::Texts(texts))
        .with("tokenizer.ggml.token_type", Value::I32s(vec![3, 1]));
    fuzz(&small.bytes(), 20, rounds() / 2);
    for (seed, version) in [(21, Version::V6), (22, Version::V7)] {
        let style = Style { kind: Kind::F16, rescale: 1, ..STYLE };
        fuzz(&gguf_model(version, style).bytes(), seed, rounds() / 8);
    }
}

#[test]
fn mutated_models_of_other_programs_do_not_panic() {
    let seven = with_states(blinkdl(Version::V7));
    for (seed, base) in [
        rwkvcpp_of(&rwkvcpp(blinkdl(Version::V7))),
        safetensors_of(&fla(blinkdl(Version::V7)), SourceDType::F16),
        safetensors_of(&web_rwkv(seven), SourceDType::F16),
        safetensors_of(&web_rwkv(blinkdl(Version::V6)), SourceDType::F16),
        safetensors_of(&hugging_face(blinkdl(Version::V5_0)), SourceDType::F16),
    ]
    .into_iter()
    .enumerate()
    {
        fuzz(&base, 6 + seed as u64, rounds() / 8);
    }
}

#[test]
fn mutated_shard_index_does_not_panic() {
    let folder = Folder::new();
    std::fs::write(folder.path("a"), safetensors(&[spec("x", &[2], SourceDType::F32)])).unwrap();
    std::fs::write(folder.path("b"), safetensors(&[spec("y", &[2], SourceDType::F32)])).unwrap();
    let base = br#"{"metadata":{"total_size":16},"weight_map":{"x":"a","y":"b"}}"#;
    assert!(exercise(&folder, base));
    let mut random = Random(12);
    for _ in 0..rounds() {
        let mut bytes = base.to_vec();
        mutate(&mut bytes, &mut random);
        let _ = folder.open(&bytes).map(|checkpoint| detect(&checkpoint).is_ok());
    }
}

#[test]
fn mutated_index_of_a_whole_model_does_not_panic() {
    let mut original = std::fs::read(fixture("v4-tiny.pth")).unwrap();
    without_checksums(&mut original);
    let directory = original.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let folder = Folder::new();
    let path = folder.path("model.pth");
    let mut random = Random(5);
    for _ in 0..200 {
        let mut bytes = original.clone();
        for _ in 0..4 {
            let at = if random.below(2) == 0 {
                64 + random.below(8000)
            } else {
                directory + random.below(bytes.len() - directory)
            };
            bytes[at] = random.next() as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = Checkpoint::open(&path).map(|checkpoint| detect(&checkpoint).is_ok());
    }
}

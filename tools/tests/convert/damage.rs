//! Checkpoints whose bytes changed after they were written, and intact ones that look like it.

use std::fs;

use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;
use rwkv_quantize::report::Warning;

use crate::common::{Desk, Parts, fixture, options};

/// First byte of each tensor in the file of [`Parts::torch`].
fn places(parts: &Parts, file: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut places = Vec::new();
    for part in &parts.0 {
        at += file[at..].windows(part.bytes.len()).position(|window| window == part.bytes).unwrap();
        places.push(at);
        at += part.bytes.len();
    }
    places
}

#[test]
fn a_changed_bit_of_any_tensor_is_refused_by_name() {
    let desk = Desk::new();
    let parts = Parts::of("v7");
    let file = parts.torch();
    for (i, (part, place)) in parts.0.iter().zip(places(&parts, &file)).enumerate() {
        let mut damaged = file.clone();
        damaged[place + part.bytes.len() * (i % 7) / 7] ^= 1;
        desk.put(&damaged);
        let threads = 1 + i % 2;
        let message = desk.refusal_of_input(&Options { threads, ..options(DType::Int8) });
        let reason = format!(
            "{}: damaged checkpoint: the checksum of tensor {} does not match; copy or download the file again",
            desk.input().display(),
            part.name
        );
        assert_eq!(message, reason);
    }
}

#[test]
fn a_piece_of_zeros_in_a_torch_file_is_refused() {
    let desk = Desk::new();
    let parts = Parts::of("v4");
    let mut file = parts.torch();
    let emb = parts.0.iter().position(|part| part.name == "emb.weight").unwrap();
    let place = places(&parts, &file)[emb];
    file[place + 4096..place + 8192].fill(0);
    desk.put(&file);
    let message = desk.refusal_of_input(&options(DType::Int4));
    assert!(message.contains("the checksum of tensor emb.weight does not match"), "{message}");
}

#[test]
fn a_checksum_that_was_not_computed_is_not_compared() {
    let desk = Desk::new();
    let parts = Parts::of("v5.0");
    let mut file = parts.torch();
    for at in 0..file.len() - 4 {
        if file[at..].starts_with(b"PK\x01\x02") {
            file[at + 16..at + 20].fill(0);
        }
    }
    let place = places(&parts, &file)[0];
    file[place] ^= 1;
    desk.put(&file);
    desk.try_convert(&options(DType::Int8)).unwrap();
}

#[test]
fn a_damaged_index_of_a_torch_file_is_refused() {
    let desk = Desk::new();
    let mut file = Parts::of("v6").torch();
    let name = file.windows(10).position(|window| window == b"emb.weight").unwrap();
    file[name] = b'a';
    desk.put(&file);
    let message = desk.refusal_of_input(&options(DType::Int8));
    assert!(message.contains("the checksum of data.pkl does not match"), "{message}");
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let desk = Desk::new();
    let state = Parts::read(&fixture("v7-tiny-state.pth"));
    let mut file = state.torch();
    let place = places(&state, &file)[1];
    file[place + 9] ^= 0x80;
    let path = desk.path("state.pth");
    fs::write(&path, file).unwrap();
    desk.put(&Parts::of("v7").torch());
    for threads in [1, 2] {
        let options = Options { state: Some(path.clone()), threads, ..options(DType::Int8) };
        let message = desk.refusal_of_input(&options);
        assert!(message.starts_with(&path.display().to_string()), "{message}");
        assert!(message.contains(&format!("the checksum of tensor {}", state.0[1].name)), "{message}");
    }
}

/// Tensors of two files beside each other: each file's checksums are compared with its own bytes.
#[test]
fn damage_in_one_of_several_files_is_refused_by_name() {
    let desk = Desk::new();
    let parts = Parts::of("v4");
    let (mut map, mut files) = (Vec::new(), Vec::new());
    for (name, half) in [("a.bin", &parts.0[..20]), ("b.bin", &parts.0[20..])] {
        files.push((desk.path(name), Parts(half.to_vec())));
        map.extend(half.iter().map(|part| format!(r#"{:?}:{name:?}"#, part.name)));
    }
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, map.join(","));
    for damaged in [None, Some(0), Some(1)] {
        for (i, (path, half)) in files.iter().enumerate() {
            let mut bytes = half.torch();
            if damaged == Some(i) {
                let place = places(half, &bytes)[3];
                bytes[place] ^= 2;
            }
            fs::write(path, bytes).unwrap();
        }
        desk.put(index.as_bytes());
        match damaged {
            None => drop(desk.try_convert(&options(DType::Int8)).unwrap()),
            Some(i) => {
                fs::remove_file(desk.output()).unwrap_or_default();
                let message = desk.refusal_of_input(&options(DType::Int8));
                assert!(message.starts_with(&files[i].0.display().to_string()), "{message}");
                assert!(message.contains(&format!("tensor {} ", files[i].1.0[3].name)), "{message}");
            }
        }
    }
}

/// The warnings about a safetensors file with a range of bytes of `emb.weight` set to zero.
fn warnings(zeros: std::ops::Range<usize>) -> Vec<Warning> {
    let desk = Desk::new();
    let mut parts = Parts::of("v7");
    parts.get("emb.weight").bytes[zeros].fill(0);
    desk.put(&parts.safetensors());
    desk.try_convert(&options(DType::Int8)).unwrap().warnings
}

#[test]
fn a_piece_of_zeros_in_a_safetensors_file_is_warned_of() {
    let mut parts = Parts::of("v7");
    let row = 2 * parts.get("emb.weight").shape[1];
    // Wherever the file puts the tensor, a whole block is inside.
    let found = warnings(row / 2..row / 2 + 8192);
    let [Warning::ZeroRun { run, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((run.tensor.as_str(), run.start, run.len), ("emb.weight", row / 4, 4096));
    assert!(
        found[0].to_string().contains("tensor emb.weight: 4096 zeros in a row from element"),
        "{}",
        found[0]
    );
}

#[test]
fn zeros_of_tokens_without_text_are_not_warned_of() {
    let mut parts = Parts::of("v7");
    let emb = parts.get("emb.weight").bytes.len();
    let row = 2 * parts.get("emb.weight").shape[1];
    assert_eq!(warnings(0..0), []);
    assert_eq!(warnings(4 * row..4 * row + 8192 / row * row), []);
    assert_eq!(warnings(0..emb), []);
}

/// A warning belongs to files without checksums.
#[test]
fn honest_zeros_in_a_torch_file_are_not_warned_of() {
    let desk = Desk::new();
    let mut parts = Parts::of("v7");
    parts.get("emb.weight").bytes[50..50 + 8192].fill(0);
    desk.put(&parts.torch());
    assert_eq!(desk.try_convert(&options(DType::Int8)).unwrap().warnings, []);
}

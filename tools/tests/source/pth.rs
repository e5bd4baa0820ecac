//! Torch zip files as they occur: wrappers, prefixes, views of storages, element types, ranges.

use crate::common::{
    DTYPES, Folder, Random, assert_refused, counting, deflated_file, encode, open, pickle, read, spec,
    torch_file, torch_file_of, zip_file,
};
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter};
use rwkv_quantize::source::{Checkpoint, Container, SourceDType, detect};

/// A file with one float storage `0` that counts up to `elements`. The pickle describes its
/// tensors.
fn views(elements: usize, tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let body = pickle::whole(&pickle::dict(tensors));
    torch_file_of(&body, &[("0", &counting(SourceDType::F32, elements))])
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

#[test]
fn written_file_is_read_back_with_names_shapes_and_types() {
    let tensors = DTYPES.map(|dtype| spec(&dtype.to_string(), &[3, 1, 5], dtype));
    let file = open(&torch_file(&tensors)).unwrap();
    assert_eq!(file.container(), Container::TorchZip);
    for tensor in &tensors {
        let found = file.get(&tensor.name).unwrap();
        assert_eq!((&found.shape, found.dtype), (&tensor.shape, tensor.dtype));
        assert_eq!(read(&file, &tensor.name), (0..15).map(|n| n as f32).collect::<Vec<_>>());
    }
}

#[test]
fn any_range_of_any_type_is_the_slice_of_the_whole() {
    // More elements than one scratch buffer holds of the widest type.
    const ELEMENTS: usize = 70_001;
    let mut random = Random(7);
    let folder = Folder::new();
    for dtype in DTYPES {
        let values: Vec<f32> = (0..ELEMENTS).map(|_| (random.below(4001) as f32 - 2000.0) / 256.0).collect();
        let values: Vec<f32> = values.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        let mut writer = TorchWriter::new(Vec::new(), "x", &[spec("t", &[ELEMENTS], dtype)]).unwrap();
        for chunk in values.chunks(1000) {
            writer.write(&chunk.iter().flat_map(|&x| encode(dtype, x)).collect::<Vec<_>>()).unwrap();
        }
        let file = folder.open(&writer.finish().unwrap()).unwrap();
        let tensor = file.get("t").unwrap();
        let mut ranges = vec![(0, ELEMENTS), (0, 0), (ELEMENTS, 0), (ELEMENTS - 1, 1)];
        ranges.extend((0..40).map(|_| {
            let start = random.below(ELEMENTS);
            (start, random.below(ELEMENTS - start + 1))
        }));
        for (start, count) in ranges {
            let mut out = vec![f32::NAN; count];
            file.read(tensor, start, &mut out).unwrap();
            assert!(out == values[start..start + count], "{dtype} {start} {count}");
        }
    }
}

#[test]
fn ranges_outside_a_tensor_are_refused() {
    let file = open(&torch_file(&[spec("t", &[2, 3], SourceDType::F32)])).unwrap();
    let tensor = file.get("t").unwrap();
    for (start, count) in [(0, 7), (6, 1), (7, 0), (usize::MAX, 2)] {
        let message = file.read(tensor, start, &mut vec![0.0; count]).unwrap_err().to_string();
        assert!(message.contains("tensor t") && message.contains("6 elements"), "{message}");
    }
}

#[test]
fn several_threads_read_one_file() {
    const ROWS: usize = 64;
    const COLUMNS: usize = 5000;
    let folder = Folder::new();
    let mut writer =
        TorchWriter::new(Vec::new(), "x", &[spec("t", &[ROWS, COLUMNS], SourceDType::F32)]).unwrap();
    for n in 0..ROWS * COLUMNS {
        writer.write(&(n as f32).to_le_bytes()).unwrap();
    }
    let file = folder.open(&writer.finish().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let file = &file;
            scope.spawn(move || {
                let tensor = file.get("t").unwrap();
                let mut out = vec![0.0; COLUMNS];
                for row in (thread..ROWS).step_by(4).chain(0..ROWS) {
                    file.read(tensor, row * COLUMNS, &mut out).unwrap();
                    assert!(out.iter().enumerate().all(|(n, &x)| x == (row * COLUMNS + n) as f32));
                }
            });
        }
    });
}

/// A dict with an embedding of four floats.
fn embedding() -> Vec<u8> {
    pickle::dict(&[("emb.weight", pickle::vector("0", 4))])
}

fn file_of(body: &[u8]) -> Vec<u8> {
    torch_file_of(&pickle::whole(body), &[("0", &[0; 16])])
}

#[test]
fn the_dict_with_the_embedding_is_found_under_any_key() {
    for wrapper in ["state_dict", "model_state_dict", "weights", "params", "net", "ema", "checkpoint", "x y"]
    {
        let optimizer = pickle::dict(&[("exp_avg", pickle::vector("0", 4))]);
        let body = pickle::dict(&[
            ("epoch", pickle::int(3)),
            ("optimizer", optimizer),
            (wrapper, embedding()),
            ("lr", b"G\0\0\0\0\0\0\0\0".into()),
        ]);
        let file = open(&file_of(&body)).unwrap();
        assert_eq!(names(&file), ["emb.weight"], "{wrapper}");
        assert_eq!(file.other_entries(), ["epoch", "optimizer", "lr"]);
    }
}

#[test]
fn the_dict_with_the_embedding_is_found_inside_dicts_lists_and_tuples() {
    let in_list = [b"](".as_slice(), &pickle::int(1), &embedding(), b"e"].concat();
    let in_tuple = [b"(", &*in_list, b"Nt"].concat();
    let nested = pickle::dict(&[("a", pickle::dict(&[("b", in_tuple)]))]);
    assert_eq!(names(&open(&file_of(&nested)).unwrap()), ["emb.weight"]);
    let mut deep = embedding();
    for _ in 0..9 {
        deep = pickle::dict(&[("x", deep)]);
    }
    assert_refused(&file_of(&deep), &["holds no tensors", "\"x\""]);
}

#[test]
fn a_wrapped_tuned_state_is_told_from_the_tensors_of_an_optimizer() {
    let state = pickle::dict(&[("blocks.0.att.time_state", pickle::vector("0", 4))]);
    let moments = pickle::dict(&[("0", pickle::dict(&[("exp_avg", pickle::vector("0", 4))]))]);
    let optimizer = pickle::dict(&[("state", moments)]);
    let body = pickle::dict(&[("optimizer", optimizer), ("state_dict", state)]);
    assert_eq!(names(&open(&file_of(&body)).unwrap()), ["blocks.0.att.time_state"]);
}

#[test]
fn several_models_are_refused_with_their_keys_and_a_remedy() {
    let body = pickle::dict(&[("model", embedding()), ("ema", pickle::dict(&[("shadow", embedding())]))]);
    assert_refused(
        &file_of(&body),
        &["2 dicts", "[\"model\"]", "[\"ema\"][\"shadow\"]", "torch.save(torch.load"],
    );
    // One dict under two keys is one model.
    let shared = [b"}(", &*pickle::text("a"), &embedding(), b"q\x05", &pickle::text("b"), b"h\x05u"].concat();
    assert_eq!(names(&open(&file_of(&shared)).unwrap()), ["emb.weight"]);
}

#[test]
fn a_file_without_tensors_is_refused_with_its_keys() {
    let body = pickle::dict(&[("epoch", pickle::int(1)), ("esc\u{1b}", pickle::dict(&[]))]);
    assert_refused(&file_of(&body), &["holds no tensors", "\"epoch\"", "\"esc\\u{1b}\""]);
}

#[test]
fn a_tensor_called_model_is_no_wrapper() {
    let file = open(&views(4, &[("model", pickle::vector("0", 4)), ("x", pickle::vector("0", 4))])).unwrap();
    assert_eq!(names(&file), ["model", "x"]);
}

#[test]
fn optimizer_state_and_numbers_beside_the_weights_are_ignored_and_listed() {
    let optimizer = pickle::dict(&[("param_groups", [b"](", &*pickle::int(1), b"NeNa"].concat())]);
    let file = open(&views(
        4,
        &[
            ("w", pickle::vector("0", 4)),
            ("optimizer", optimizer),
            ("step", b"K\x07".into()),
            ("done", b"\x88".into()),
        ],
    ))
    .unwrap();
    assert_eq!(names(&file), ["w"]);
    assert_eq!(file.other_entries(), ["optimizer", "step", "done"]);
}

#[test]
fn what_stands_before_the_embedding_is_removed_everywhere() {
    for prefix in ["_forward_module.", "_fsdp_wrapped_module.", "base_model.model.", "rwkv.", "a.b.c.", ""] {
        let tensors = ["emb.weight", "blocks.0._orig_mod.x", "blocks.0._checkpoint_wrapped_module.ffn.y"];
        let mut tensors = tensors.map(|name| format!("{prefix}{name}")).to_vec();
        tensors.push("model.head.weight".to_owned());
        let tensors: Vec<_> = tensors.iter().map(|name| (name.as_str(), pickle::vector("0", 4))).collect();
        let file = open(&views(4, &tensors)).unwrap();
        assert_eq!(names(&file), ["blocks.0.ffn.y", "blocks.0.x", "emb.weight", "head.weight"], "{prefix}");
    }
    let file = open(&views(4, &[("model.x.blocks.3.att.time_state", pickle::vector("0", 4))])).unwrap();
    assert_eq!(names(&file), ["blocks.3.att.time_state"]);
}

#[test]
fn two_models_in_one_dict_and_names_that_meet_are_refused() {
    let twice = [("module.emb.weight", pickle::vector("0", 4)), ("emb.weight", pickle::vector("0", 4))];
    assert_refused(&views(4, &twice), &["2 models", "module.emb.weight"]);
    let twice = [("emb.weight", pickle::vector("0", 4)), ("_orig_mod.emb.weight", pickle::vector("0", 4))];
    assert_refused(&views(4, &twice), &["tensor emb.weight", "two"]);
    // An embedding beside the layers belongs to another part of the model.
    let parts = ["vision.emb.weight", "rwkv.emb.weight", "rwkv.blocks.0.x"];
    let file = open(&views(4, &parts.map(|name| (name, pickle::vector("0", 4))))).unwrap();
    assert_eq!(names(&file), ["blocks.0.x", "emb.weight", "vision.emb.weight"]);
}

#[test]
fn names_come_in_natural_order_whatever_the_order_in_the_file() {
    let mut tensors: Vec<TensorSpec> =
        (0..12).rev().map(|n| spec(&format!("blocks.{n}.x"), &[1], SourceDType::F32)).collect();
    tensors.insert(0, spec("head.weight", &[1], SourceDType::F32));
    tensors.insert(0, spec("emb.weight", &[1], SourceDType::F32));
    let file = open(&torch_file(&tensors)).unwrap();
    let mut expected: Vec<String> = (0..12).map(|n| format!("blocks.{n}.x")).collect();
    expected.extend(["emb.weight".to_owned(), "head.weight".to_owned()]);
    assert_eq!(names(&file), expected);
    assert!(expected.iter().all(|name| file.get(name).is_some()));
    assert!(file.get("blocks.12.x").is_none() && file.get("").is_none());
}

#[test]
fn adapters_are_refused_by_kind_with_the_command_that_merges_them() {
    for (key, parts) in [
        ("blocks.0.att.key.lora_A", ["LoRA or PiSSA", "no model", "--lora-alpha"]),
        ("base_model.model.blocks.0.ffn.key.lora_B.weight", ["LoRA or PiSSA", "no model", "--lora-alpha"]),
        ("model.blocks.0.ffn.key.init_lora_B", ["PiSSA", "no model", "--pissa-init"]),
        ("blocks.0.ffn.key.bone", ["MiSS (Bone, DiSHA)", "no model", "--merge"]),
        ("blocks.0.ffn.key.lora_magnitude_vector.weight", ["DoRA", "not merged", "program that trained"]),
    ] {
        let mut tensors = vec![(key, pickle::vector("0", 4))];
        let message = detect(&open(&views(4, &tensors)).unwrap()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{key}: {message}");
        tensors.push(("emb.weight", pickle::vector("0", 4)));
        let message = detect(&open(&views(4, &tensors)).unwrap()).unwrap_err().to_string();
        assert!(message.contains(parts[0]) && message.contains("lora") == key.contains("lora"), "{message}");
        assert!(message.contains("beside its weights") || parts[0] == "DoRA", "{message}");
    }
}

#[test]
fn tensors_share_a_storage() {
    let file = open(&views(
        12,
        &[
            ("all", pickle::view("0", 12, 0, &[3, 4], &[4, 1])),
            ("tail", pickle::view("0", 12, 8, &[4], &[1])),
            ("last", pickle::view("0", 12, 11, &[], &[])),
            ("flat", pickle::view("0", 12, 2, &[1, 1, 5], &[99, 77, 1])),
        ],
    ))
    .unwrap();
    assert_eq!(read(&file, "all"), (0..12).map(|n| n as f32).collect::<Vec<_>>());
    assert_eq!(read(&file, "tail"), [8.0, 9.0, 10.0, 11.0]);
    assert_eq!(read(&file, "last"), [11.0]);
    assert_eq!(read(&file, "flat"), [2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(file.get("flat").unwrap().shape, [1, 1, 5]);
}

#[test]
fn offsets_and_strides_count_elements_of_every_type() {
    for (class, dtype) in
        ["DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage"].into_iter().zip(DTYPES)
    {
        let view = [
            &*pickle::global("torch._utils", "_rebuild_tensor_v2"),
            b"(",
            &pickle::storage(class, "0", 20),
            b"K\x03",
            &pickle::tuple(&[3, 2]),
            &pickle::tuple(&[5, 1]),
            b"\x89",
            &pickle::hooks(),
            b"tR",
        ]
        .concat();
        let body = pickle::whole(&pickle::dict(&[("t", view)]));
        let file = open(&torch_file_of(&body, &[("0", &counting(dtype, 20))])).unwrap();
        assert_eq!(file.get("t").unwrap().dtype, dtype);
        assert_eq!(read(&file, "t"), [3.0, 4.0, 8.0, 9.0, 13.0, 14.0], "{dtype}");
    }
}

#[test]
fn rows_with_a_stride_are_read_across_their_gaps() {
    let file = open(&views(
        40,
        &[
            ("columns", pickle::view("0", 40, 2, &[4, 3], &[10, 1])),
            ("stack", pickle::view("0", 40, 1, &[2, 2, 3], &[20, 10, 1])),
            ("again", pickle::view("0", 40, 5, &[3, 4], &[0, 1])),
        ],
    ))
    .unwrap();
    let rows = |starts: &[usize], len: usize| -> Vec<f32> {
        starts.iter().flat_map(|&start| (start..start + len).map(|n| n as f32)).collect()
    };
    let columns = rows(&[2, 12, 22, 32], 3);
    assert_eq!(read(&file, "columns"), columns);
    assert_eq!(read(&file, "stack"), rows(&[1, 11, 21, 31], 3));
    assert_eq!(read(&file, "again"), rows(&[5, 5, 5], 4));
    for start in 0..12 {
        for count in 0..=12 - start {
            let mut out = vec![0.0; count];
            file.read(file.get("columns").unwrap(), start, &mut out).unwrap();
            assert_eq!(out, columns[start..start + count]);
        }
    }
}

#[test]
fn views_in_any_order_of_their_elements_are_read() {
    for (offset, size, stride) in [
        (0, vec![3, 4], vec![1, 3]),
        (5, vec![3, 4], vec![8, 2]),
        (1, vec![4, 1], vec![2, 1]),
        (7, vec![6], vec![9]),
        (0, vec![2, 3, 4], vec![12, 1, 3]),
        (2, vec![2, 3, 4], vec![1, 2, 6]),
        (0, vec![2, 2, 3], vec![12, 5, 1]),
        (3, vec![4, 2, 5], vec![0, 1, 2]),
        (3, vec![5, 4], vec![1, 0]),
    ] {
        let file = open(&views(80, &[("t", pickle::view("0", 80, offset, &size, &stride))])).unwrap();
        let mut expected = vec![offset];
        for (&n, &stride) in size.iter().zip(&stride) {
            expected = expected.iter().flat_map(|&at| (0..n).map(move |i| at + i * stride)).collect();
        }
        let expected: Vec<f32> = expected.into_iter().map(|at| at as f32).collect();
        assert_eq!(read(&file, "t"), expected, "{size:?} {stride:?}");
        for start in 0..expected.len() {
            let mut out = vec![0.0; expected.len() - start];
            file.read(file.get("t").unwrap(), start, &mut out).unwrap();
            assert_eq!(out, expected[start..], "{start} of {size:?} {stride:?}");
        }
    }
}

#[test]
fn a_large_transposed_matrix_is_read_a_panel_at_a_time() {
    const ROWS: usize = 1500;
    const COLUMNS: usize = 900;
    let bytes: Vec<u8> = (0..ROWS * COLUMNS).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let elements = bytes.len() as i64 / 4;
    let view = pickle::view("0", elements, 0, &[ROWS as i64, COLUMNS as i64], &[1, ROWS as i64]);
    let folder = Folder::new();
    let body = pickle::whole(&pickle::dict(&[("t", view)]));
    for zip in [torch_file_of(&body, &[("0", &bytes)]), deflated_file(&body, &[("0", &bytes)])] {
        let file = folder.open(&zip).unwrap();
        let mut out = vec![0.0; 3 * COLUMNS];
        for row in [0, 1163, 1164, ROWS - 3] {
            file.read(file.get("t").unwrap(), row * COLUMNS, &mut out).unwrap();
            let expected = |i: usize| (i % COLUMNS * ROWS + row + i / COLUMNS) as f32;
            assert!(out.iter().enumerate().all(|(i, &x)| x == expected(i)), "{row}");
        }
    }
}

#[test]
fn deflated_files_hold_the_same_tensors() {
    let tensors = [
        ("all", pickle::view("0", 30, 0, &[30], &[1])),
        ("rows", pickle::view("0", 30, 2, &[3, 2], &[5, 1])),
        ("turned", pickle::view("0", 30, 0, &[3, 4], &[1, 3])),
        ("other", pickle::vector("1", 3)),
    ];
    let body = pickle::whole(&pickle::dict(&tensors));
    let storages = [("0", &*counting(SourceDType::F32, 30)), ("1", &*counting(SourceDType::F32, 3))];
    let [stored, deflated] = [torch_file_of(&body, &storages), deflated_file(&body, &storages)];
    let [stored, deflated] = [stored, deflated].map(|bytes| open(&bytes).unwrap());
    for (name, _) in tensors {
        assert_eq!(read(&stored, name), read(&deflated, name), "{name}");
    }
}

#[test]
fn tensors_without_elements_have_nothing_to_read() {
    let file = open(&views(4, &[("none", pickle::view("0", 4, 4, &[0, 7], &[7, 1]))])).unwrap();
    assert_eq!(file.get("none").unwrap().shape, [0, 7]);
    assert!(read(&file, "none").is_empty());
}

#[test]
fn parameters_and_saved_state_dicts_are_read() {
    let parameter = [
        &*pickle::global("torch._utils", "_rebuild_parameter"),
        b"(",
        &pickle::vector("0", 4),
        b"\x88",
        &pickle::hooks(),
        b"tR",
    ]
    .concat();
    let metadata = pickle::dict(&[("_metadata", pickle::hooks())]);
    let body = [&*pickle::hooks(), b"(", &pickle::text("w"), &parameter, b"u", &metadata, b"b"].concat();
    let file = open(&torch_file_of(&pickle::whole(&body), &[("0", &counting(SourceDType::F32, 4))])).unwrap();
    assert_eq!(names(&file), ["w"]);
    assert_eq!(read(&file, "w"), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn memoised_objects_are_shared() {
    let tensor = pickle::vector("0", 2);
    let body = [
        b"}q\0(",
        &*pickle::text("a"),
        b"r\x01\0\0\0",
        &tensor,
        b"q\x02",
        &pickle::text("b"),
        b"h\x02",
        &pickle::text("c"),
        b"j\x02\0\0\0u",
    ]
    .concat();
    let file = open(&torch_file_of(&pickle::whole(&body), &[("0", &counting(SourceDType::F32, 2))])).unwrap();
    assert_eq!(names(&file), ["a", "b", "c"]);
    assert_eq!(read(&file, "c"), [0.0, 1.0]);
}

#[test]
fn files_without_a_top_folder_or_byte_order_are_read() {
    let body = pickle::whole(&pickle::dict(&[("w", pickle::vector("7", 2))]));
    let data = counting(SourceDType::F32, 2);
    let file = open(&zip_file(&[("data/7", &data), ("data.pkl", &body)])).unwrap();
    assert_eq!(read(&file, "w"), [0.0, 1.0]);
}

#[test]
fn more_entries_than_a_short_count_holds_use_zip64() {
    let tensors: Vec<_> = (0..66_000).map(|n| spec(&format!("t{n}"), &[1], SourceDType::BF16)).collect();
    let mut writer = TorchWriter::new(Vec::new(), "x", &tensors).unwrap();
    for n in 0..tensors.len() {
        writer.write(&encode(SourceDType::BF16, (n % 256) as f32)).unwrap();
    }
    let file = open(&writer.finish().unwrap()).unwrap();
    assert_eq!(file.tensors().len(), 66_000);
    for n in [0, 65_534, 65_535, 65_536, 65_999] {
        assert_eq!(read(&file, &format!("t{n}")), [(n % 256) as f32]);
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn data_beyond_four_gigabytes_is_found() {
    // A sparse file: the zeros of the first tensor take no space.
    use std::io::{Seek, SeekFrom, Write};
    struct Sparse(std::fs::File, Vec<u8>);
    impl Write for Sparse {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if bytes == self.1 {
                self.0.seek(SeekFrom::Current(bytes.len() as i64))?;
                return Ok(bytes.len());
            }
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    const BIG: usize = (4 << 30) + (1 << 20);
    let folder = Folder::new();
    let path = folder.path("big.pth");
    let tensors = [spec("a", &[BIG / 4], SourceDType::F32), spec("b", &[3], SourceDType::F32)];
    let zeros = vec![0; 1 << 20];
    let out = Sparse(std::fs::File::create(&path).unwrap(), zeros.clone());
    let mut writer = TorchWriter::new(out, "big", &tensors).unwrap();
    for _ in 0..BIG / zeros.len() {
        writer.write(&zeros).unwrap();
    }
    writer.write(&counting(SourceDType::F32, 3)).unwrap();
    drop(writer.finish().unwrap());
    let file = Checkpoint::open(&path).unwrap();
    assert!(file.file_len() > 4 << 30);
    assert_eq!(read(&file, "b"), [0.0, 1.0, 2.0]);
    let mut end = [1.0; 2];
    file.read(file.get("a").unwrap(), BIG / 4 - 2, &mut end).unwrap();
    assert_eq!(end, [0.0, 0.0]);
}

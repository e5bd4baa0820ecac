//! Torch zip files as they occur: wrappers, prefixes, views of storages, element types, ranges.

use crate::common::{
    DTYPES, Folder, Random, assert_refused, counting, encode, open, pickle, read, refusal, spec, torch_file,
    torch_file_of, zip_file,
};
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter};
use rwkv_quantize::source::{Checkpoint, Container, SourceDType};

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

#[test]
fn wrappers_of_trainers_are_opened() {
    let weights = pickle::dict(&[("emb.weight", pickle::vector("0", 4))]);
    for wrapper in ["state_dict", "model", "module"] {
        let body = pickle::dict(&[
            ("epoch", pickle::int(3)),
            (wrapper, weights.clone()),
            ("lr", b"G\0\0\0\0\0\0\0\0".into()),
        ]);
        let file = open(&torch_file_of(&pickle::whole(&body), &[("0", &[0; 16])])).unwrap();
        assert_eq!(names(&file), ["emb.weight"], "{wrapper}");
    }
    let nested = pickle::dict(&[("model", pickle::dict(&[("state_dict", weights)]))]);
    assert_eq!(
        names(&open(&torch_file_of(&pickle::whole(&nested), &[("0", &[0; 16])])).unwrap()),
        ["emb.weight"]
    );
}

#[test]
fn a_tensor_called_model_is_no_wrapper() {
    let file = open(&views(4, &[("model", pickle::vector("0", 4)), ("x", pickle::vector("0", 4))])).unwrap();
    assert_eq!(names(&file), ["model", "x"]);
}

#[test]
fn optimizer_state_and_numbers_beside_the_weights_are_ignored_and_listed() {
    let optimizer = pickle::dict(&[
        ("param_groups", [b"](", &*pickle::int(1), b"Ne"].concat()),
        ("lr", b"](\x88\x89ea".to_vec()),
    ]);
    // The second list appends a value to itself with APPEND. The value below is the dict's key, so
    // that is invalid.
    assert!(open(&views(4, &[("w", pickle::vector("0", 4)), ("optimizer", optimizer)])).is_err());
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
fn prefixes_are_removed_and_names_that_meet_are_refused() {
    let file = open(&views(
        4,
        &[
            ("_orig_mod.module.emb.weight", pickle::vector("0", 4)),
            ("model.head.weight", pickle::vector("0", 4)),
        ],
    ))
    .unwrap();
    assert_eq!(names(&file), ["emb.weight", "head.weight"]);
    let twice = [("module.emb.weight", pickle::vector("0", 4)), ("emb.weight", pickle::vector("0", 4))];
    assert_refused(&views(4, &twice), &["tensor emb.weight", "two"]);
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
fn lora_adapters_are_refused_with_the_advice_to_merge() {
    for key in ["blocks.0.att.key.lora_A", "model.blocks.0.ffn.key.lora_B.weight"] {
        assert_refused(&views(4, &[(key, pickle::vector("0", 4))]), &["lora_", "merge"]);
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
fn transposed_and_irregular_views_are_refused() {
    for (size, stride) in [([3, 4], [1, 3]), ([3, 4], [8, 2]), ([4, 1], [2, 1])] {
        let message = refusal(&views(40, &[("t", pickle::view("0", 40, 0, &size, &stride))]));
        assert!(message.contains("tensor t") && message.contains("contiguous"), "{message}");
    }
    let irregular = pickle::view("0", 40, 0, &[2, 2, 3], &[12, 5, 1]);
    assert_refused(&views(40, &[("t", irregular)]), &["contiguous"]);
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

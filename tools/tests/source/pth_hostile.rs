//! Attacks on the reader of torch zip files. Each must be refused with a message, without a panic.

use crate::common::pickle::{dict, global, hooks, int, storage, text, tuple, vector, view, whole};
use crate::common::{
    Folder, assert_every_cut_is_refused, assert_refused, deflated_file, refusal, spec, torch_file,
    torch_file_of, zip_file,
};
use rwkv_quantize::source::SourceDType;

/// A file with the given pickle and a storage `0` of four floats.
fn file(body: &[u8]) -> Vec<u8> {
    torch_file_of(&whole(body), &[("0", &[0; 16])])
}

fn file_of_tensor(tensor: Vec<u8>) -> Vec<u8> {
    file(&dict(&[("w", tensor)]))
}

fn small_file() -> Vec<u8> {
    torch_file(&[spec("emb.weight", &[3, 4], SourceDType::BF16), spec("x", &[5], SourceDType::F32)])
}

/// Sets a two-byte field of every central directory entry.
fn patch_central(bytes: &mut [u8], field: usize, value: u16) {
    let headers: Vec<usize> =
        (0..bytes.len() - 4).filter(|&at| bytes[at..].starts_with(b"PK\x01\x02")).collect();
    assert!(!headers.is_empty());
    for at in headers {
        bytes[at + field..at + field + 2].copy_from_slice(&value.to_le_bytes());
    }
}

const HOSTILE: [(&str, &str); 9] = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "exec"),
    ("subprocess", "Popen"),
    ("collections", "OrderedDict.__init__"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch.storage", "_load_from_bytes"),
    ("torch", "_utils._rebuild_tensor_v2"),
];

#[test]
fn hostile_globals_are_refused_by_name_where_the_model_should_be() {
    for (module, name) in HOSTILE {
        let call = [&*global(module, name), b"(", &text("echo"), b"tR"].concat();
        let parts = ["refusing pickle global", &*format!("{module}.{name}"), "state_dict()"];
        assert_refused(&file(&call), &parts);
        let class = [&*text(module), &text(name), b"\x93)\x81"].concat();
        assert_refused(&file(&class), &parts);
    }
    assert_refused(&file(&[&*global("src.model", "RWKV"), b")\x81}b"].concat()), &["src.model.RWKV"]);
}

#[test]
fn hostile_globals_beside_the_weights_are_skipped_and_do_nothing() {
    let folder = Folder::new();
    for (module, name) in HOSTILE {
        let command = format!("touch {}", folder.path("touched").display());
        let call = [&*global(module, name), b"(", &text(&command), b"tR"].concat();
        let items = [("w", vector("0", 4)), ("x", call.clone()), ("y", [b"](", &*call, b"e"].concat())];
        let checkpoint = folder.open(&file(&dict(&items))).unwrap();
        assert_eq!(checkpoint.other_entries(), ["y", "x"], "{module}.{name}");
        assert!(!folder.path("touched").exists());
    }
}

#[test]
fn opcodes_of_old_protocols_are_refused() {
    for opcode in *b"\x82\x83\x84o24FILPSVdgilp\x97\x98" {
        assert_refused(&file(&[opcode]), &["pickle opcode"]);
    }
}

#[test]
fn opaque_objects_nested_deeply_cost_no_stack() {
    // Memo slot 0 is the class, slot 1 the last object. Each object is an argument of the next one,
    // its state, or both.
    for level in [b"h\0h\x01\x85Rq\x01".as_slice(), b"h\0)\x81h\x01bq\x01", b"h\0h\x01\x85Rh\x01bq\x01"] {
        let mut object = [&*global("evil", "Thing"), b"q\0)Rq\x010"].concat();
        for _ in 0..100_000 {
            object.extend(level);
            object.push(b'0');
        }
        object.extend(b"h\x01");
        let nested = dict(&[("w", vector("0", 4)), ("x", object.clone())]);
        assert!(Folder::new().open(&file(&nested)).is_ok());
        assert_refused(&file(&object), &["evil.Thing"]);
    }
}

#[test]
fn attributes_and_items_of_opaque_objects_are_dropped() {
    let object = [&*global("evil", "Thing"), b")\x81"].concat();
    for tail in [b"}b".as_slice(), b"Na", b"(NNe", b"(NN\x90", b"NNs", b"(NNNNu", b"0N", b"(N1"] {
        let value = [&*object, tail].concat();
        let file = file(&dict(&[("w", vector("0", 4)), ("x", value)]));
        assert!(Folder::new().open(&file).is_ok(), "{tail:?}");
    }
}

#[test]
fn control_characters_in_a_global_do_not_reach_the_terminal() {
    let message = refusal(&file(b"cos\x1b[2J\nsys\rtem\n)R"));
    assert!(message.contains("os\\u{1b}[2J.sys\\rtem"), "{message}");
}

#[test]
fn reduce_is_no_call() {
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    for call in [
        [&*text("os.system"), b"(", &text("echo"), b"tR"].concat(),
        [b"N)R".as_slice()].concat(),
        [b"})R".as_slice()].concat(),
        [b"N)\x81".as_slice()].concat(),
        [&*global("collections", "OrderedDict"), b"]R"].concat(),
        [&*global("os", "system"), b"]R"].concat(),
        [&*rebuild, b")R"].concat(),
        [&*rebuild, b"(NNNNNNtR"].concat(),
        [&*rebuild, b"(", &storage("FloatStorage", "0", 4), &int(0), b"NN\x89NtR"].concat(),
        [&*global("torch._utils", "_rebuild_parameter"), b"(}\x88}tR"].concat(),
        [&*global("torch._utils", "_rebuild_parameter"), b")R"].concat(),
        [&*global("torch._utils", "_rebuild_tensor_v3"), b"(NNNNNNtR"].concat(),
        [&*global("torch._tensor", "_rebuild_from_type_v2"), b"(NNNNtR"].concat(),
    ] {
        assert_refused(&file(&call), &["damaged checkpoint"]);
    }
}

#[test]
fn build_sets_no_attributes_of_tensors_and_plain_values() {
    for target in
        [vector("0", 4), b"N".to_vec(), global("torch", "FloatStorage"), text("x"), b"K\x01".to_vec()]
    {
        assert_refused(&file(&[&*target, b"}b"].concat()), &["attributes"]);
    }
    assert_refused(&file(b"}b"), &["stack"]);
}

#[test]
fn persistent_ids_name_storages_only() {
    for id in [
        b"NQ".to_vec(),
        [&*text("storage"), b"Q"].concat(),
        [b"(", &*text("module"), &global("torch", "FloatStorage"), &text("0"), &text("cpu"), &int(4), b"tQ"]
            .concat(),
        [
            b"(",
            &*text("storage"),
            &global("collections", "OrderedDict"),
            &text("0"),
            &text("cpu"),
            &int(4),
            b"tQ",
        ]
        .concat(),
        storage("FloatStorage", "0", -1),
    ] {
        assert_refused(&file(&id), &["persistent id"]);
    }
}

#[test]
fn memo_bomb_is_refused() {
    assert_refused(&file(b"Nr\xff\xff\xff\xff"), &["memo"]);
    assert_refused(&file(b"j\xff\xff\xff\x7f"), &["memo"]);
    assert_refused(&file(b"h\x05"), &["memo"]);
}

#[test]
fn stack_bomb_is_refused() {
    assert_refused(&file(&vec![b'N'; 1 << 20]), &["stack"]);
}

#[test]
fn nesting_bomb_is_refused() {
    assert_refused(&file(&vec![b'('; 1 << 20]), &["nested"]);
}

#[test]
fn object_bomb_is_refused() {
    let body = [b"](".as_slice(), &b"))e(".repeat(2 << 20), b"e"].concat();
    assert_refused(&file(&body), &["more objects"]);
}

#[test]
fn item_bomb_is_refused() {
    let row = [b"(".as_slice(), &vec![b'N'; 60_000], b"t"].concat();
    assert_refused(&file(&row.repeat(100)), &["more values"]);
}

#[test]
fn tuples_of_doubling_size_cost_nothing() {
    let body = [b")q\0".as_slice(), &b"h\0\x86q\0h\0".repeat(30_000)].concat();
    assert!(refusal(&file(&body)).contains("damaged"));
    let deep = [b")".as_slice(), &vec![0x85; 500_000]].concat();
    assert_refused(&file(&deep), &["no tensors"]);
}

#[test]
fn containers_that_contain_themselves_are_survived() {
    assert_refused(&file(&[b"}q\0", &*text("model"), b"h\0s"].concat()), &["no tensors", "\"model\""]);
    assert_refused(&file(b"]q\0h\0a"), &["no tensors"]);
}

#[test]
fn string_bomb_is_refused() {
    assert_refused(&file(b"X\xff\xff\xff\xffabc"), &["cut off"]);
    assert_refused(&file(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"), &["cut off"]);
    assert_refused(&file(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc"), &["cut off"]);
    assert_refused(&file(b"\x8b\xff\xff\xff\xffabc"), &["cut off"]);
    assert_refused(&file(b"X\x00\x00\x10\x00abc"), &["cut off"]);
    assert_refused(&file(b"X\x02\0\0\0\xff\xfe"), &["UTF-8"]);
    assert_refused(&file(&[b"c".as_slice(), &vec![b'a'; 10_000]].concat()), &["does not end"]);
}

#[test]
fn oversized_pickle_is_refused_before_it_is_read() {
    let pickle = vec![b'N'; (16 << 20) + 1];
    assert_refused(&torch_file_of(&pickle, &[]), &["data.pkl", "limit"]);
}

#[test]
fn integers_beyond_64_bits_are_no_sizes() {
    let long = b"\x8a\x09\x01\0\0\0\0\0\0\0\x01";
    assert!(Folder::new().open(&file(&dict(&[("w", vector("0", 4)), ("n", long.to_vec())]))).is_ok());
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    let call = [&*rebuild, b"(", &storage("FloatStorage", "0", 4), long, b"))\x89NtR"].concat();
    assert_refused(&file_of_tensor(call), &["described wrongly"]);
}

#[test]
fn stack_underflow_is_refused() {
    for body in [
        b"R".as_slice(),
        b"\x86",
        b"u",
        b"t",
        b"s",
        b"NNs",
        b"e",
        b"Na",
        b"b",
        b"Q",
        b"N(\x85",
        b"NN(\x86t",
        b"(N(Nuu",
        b"",
    ] {
        assert!(refusal(&file(body)).contains("damaged"), "{body:?}");
    }
}

#[test]
fn dict_with_odd_items_is_refused() {
    assert_refused(&file(b"}(NNNu"), &["without a value"]);
    assert_refused(&file(b"](NNu"), &["no dict"]);
    assert_refused(&file(b"}(NNe"), &["no list"]);
}

#[test]
fn what_is_no_dict_of_tensors_is_refused() {
    for body in [b"N".to_vec(), vector("0", 4), text("x"), global("torch", "FloatStorage")] {
        assert_refused(&file(&body), &["no dict"]);
    }
    assert_refused(&file(b"}"), &["no tensors"]);
    assert_refused(&file(&dict(&[("a", int(1))])), &["no tensors"]);
}

#[test]
fn bytes_after_the_pickle_are_refused() {
    let trailing = [whole(&dict(&[("w", vector("0", 4))])), b"cos\nsystem\n".to_vec()].concat();
    assert_refused(&torch_file_of(&trailing, &[("0", &[0; 16])]), &["does not end"]);
}

#[test]
fn other_protocols_are_refused() {
    assert_refused(&torch_file_of(b"\x80\x06}.", &[]), &["protocol 6"]);
    assert_refused(&torch_file_of(b"\x80\x01}.", &[]), &["protocol 1"]);
    assert_refused(&torch_file_of(b"}.", &[]), &["protocol"]);
    assert_refused(&torch_file_of(b"", &[]), &["cut off"]);
}

#[test]
fn a_storage_that_is_not_all_of_its_entry_is_refused() {
    // Four floats read as half precision would be eight values, all wrong.
    let half = [
        &*global("torch._utils", "_rebuild_tensor_v2"),
        b"(",
        &storage("HalfStorage", "0", 4),
        &int(0),
        &tuple(&[4]),
        &tuple(&[1]),
        b"\x89",
        &hooks(),
        b"tR",
    ]
    .concat();
    for tensor in [half, vector("0", 3), vector("0", 5)] {
        assert_refused(&file_of_tensor(tensor), &["tensor w", "16 bytes"]);
    }
}

#[test]
fn storage_out_of_bounds_is_refused() {
    let too_long = file_of_tensor(view("0", 5, 0, &[5], &[1]));
    assert_refused(&too_long, &["tensor w", "16 bytes"]);
    let huge = file_of_tensor(view("0", i64::MAX, 0, &[4], &[1]));
    assert_refused(&huge, &["tensor w", "16 bytes"]);
    let missing = file_of_tensor(vector("../../etc/passwd", 4));
    assert_refused(&missing, &["no zip entry"]);
}

#[test]
fn views_out_of_bounds_are_refused() {
    for (offset, size, stride) in [
        (1, vec![4], vec![1]),
        (4, vec![1], vec![1]),
        (i64::MAX, vec![1], vec![1]),
        (0, vec![2, 2], vec![3, 1]),
        (0, vec![5], vec![0]),
        (0, vec![1 << 40, 1 << 40], vec![0, 0]),
        (0, vec![i64::MAX], vec![i64::MAX]),
        (i64::MAX, vec![2], vec![i64::MAX]),
        (0, vec![i64::MAX, i64::MAX, i64::MAX], vec![i64::MAX, i64::MAX, 1]),
        (5, vec![0], vec![1]),
    ] {
        let message = refusal(&file_of_tensor(view("0", 4, offset, &size, &stride)));
        assert!(message.contains("inside its storage"), "{offset} {size:?} {stride:?}: {message}");
    }
}

#[test]
fn negative_and_odd_geometry_is_refused() {
    for (offset, size, stride) in [
        (-1, vec![4], vec![1]),
        (0, vec![-4], vec![1]),
        (3, vec![4], vec![-1]),
        (0, vec![4], vec![]),
        (0, vec![], vec![1]),
        (0, vec![1; 9], vec![1; 9]),
        (0, vec![1; 4000], vec![1; 4000]),
    ] {
        let message = refusal(&file_of_tensor(view("0", 4, offset, &size, &stride)));
        assert!(message.contains("described wrongly"), "{offset} {size:?} {stride:?}: {message}");
    }
}

#[test]
fn short_negative_integers_stay_negative() {
    let minus_one = b"\x8a\x01\xff".as_slice();
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    let storage = storage("FloatStorage", "0", 300);
    let call =
        [&*rebuild, b"(", &storage, minus_one, &tuple(&[1]), &tuple(&[1]), b"\x89", &hooks(), b"tR"].concat();
    let bytes = torch_file_of(&whole(&dict(&[("w", call)])), &[("0", &[0; 1200])]);
    assert_refused(&bytes, &["described wrongly"]);
}

#[test]
fn sizes_that_are_no_integers_are_refused() {
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    for size in [b"(Nt".to_vec(), b"(\x88t".to_vec(), b"]".to_vec(), text("4")] {
        let call = [
            &*rebuild,
            b"(",
            &storage("FloatStorage", "0", 4),
            &int(0),
            &size,
            &tuple(&[1]),
            b"\x89",
            &hooks(),
            b"tR",
        ]
        .concat();
        assert_refused(&file_of_tensor(call), &["described wrongly"]);
    }
}

#[test]
fn long_and_empty_names_are_refused() {
    assert_refused(&file(&dict(&[(&"x".repeat(513), vector("0", 4))])), &["name"]);
    assert_refused(&file(&dict(&[("module.", vector("0", 4))])), &["name"]);
}

#[test]
fn entries_of_other_compressions_are_refused() {
    for method in [1, 9, 12, 14, 93, 999] {
        let mut bytes = small_file();
        patch_central(&mut bytes, 10, method);
        assert_refused(&bytes, &["compressed", "zip -0"]);
    }
}

#[test]
fn stored_bytes_that_are_said_to_be_deflated_are_refused() {
    let mut bytes = small_file();
    patch_central(&mut bytes, 10, 8);
    assert_refused(&bytes, &["damaged checkpoint", "deflated"]);
}

#[test]
fn deflated_entries_that_unpack_to_something_else_are_refused_when_read() {
    let body = whole(&dict(&[("w", vector("0", 4))]));
    let good = deflated_file(&body, &[("0", &[7; 16])]);
    let folder = Folder::new();
    let read = |bytes: &[u8]| -> Result<(), String> {
        let checkpoint = folder.open(bytes).map_err(|error| error.to_string())?;
        let tensor = checkpoint.get("w").unwrap();
        checkpoint.read(tensor, 0, &mut [0.0; 4]).map_err(|error| error.to_string())
    };
    read(&good).unwrap();
    let entry = central_entry(&good, "archive/data/0");
    let mut checksum = good.clone();
    checksum[entry + 16] ^= 1;
    assert!(read(&checksum).unwrap_err().contains("checksum of zip entry data/0"));
    // A bomb that says that it is as long as the tensor.
    let bomb = deflated_file(&body, &[("0", &vec![7; 1 << 20])]);
    let entry = central_entry(&bomb, "archive/data/0");
    let mut bytes = bomb.clone();
    bytes[entry + 24..entry + 28].copy_from_slice(&16u32.to_le_bytes());
    assert!(read(&bytes).unwrap_err().contains("unpacks to more bytes"));
    // A pickle that says nothing of its size.
    let pickle = deflated_file(&vec![b'N'; 1 << 20], &[]);
    let entry = central_entry(&pickle, "archive/data.pkl");
    let mut bytes = pickle.clone();
    bytes[entry + 24..entry + 28].copy_from_slice(&(1u32 << 30).to_le_bytes());
    assert!(read(&bytes).unwrap_err().contains("limit"));
    bytes[entry + 24..entry + 28].copy_from_slice(&100u32.to_le_bytes());
    assert!(read(&bytes).unwrap_err().contains("unpacks to more bytes"));
}

#[test]
fn strides_that_overflow_are_refused() {
    for (offset, size, stride) in [
        (0, vec![2, 2], vec![i64::MAX, 1]),
        (i64::MAX, vec![2, 2], vec![1, 2]),
        (0, vec![i64::MAX, 2], vec![0, i64::MAX]),
        (0, vec![3, 2], vec![1, 3]),
    ] {
        let message = refusal(&file_of_tensor(view("0", 4, offset, &size, &stride)));
        assert!(message.contains("inside its storage"), "{offset} {size:?} {stride:?}: {message}");
    }
}

#[test]
fn encrypted_entries_are_refused() {
    let mut bytes = small_file();
    patch_central(&mut bytes, 8, 0x0809);
    assert_refused(&bytes, &["encrypted"]);
}

#[test]
fn compressed_size_that_differs_is_refused() {
    let mut bytes = small_file();
    patch_central(&mut bytes, 24, 7);
    assert_refused(&bytes, &["compressed"]);
}

#[test]
fn two_pickles_are_refused() {
    let body = whole(b"}");
    assert_refused(&zip_file(&[("a/data.pkl", &body), ("b/data.pkl", &body)]), &["more than one data.pkl"]);
    assert_refused(&zip_file(&[("a/data.pkl", &body), ("a/data.pkl", &body)]), &["same name"]);
}

#[test]
fn zip_files_of_other_kinds_are_refused() {
    assert_refused(&zip_file(&[("word/document.xml", b"<a/>")]), &["no data.pkl"]);
    assert_refused(&zip_file(&[("mydata.pkl", b"x")]), &["no data.pkl"]);
    assert_refused(&zip_file(&[]), &["empty zip"]);
}

#[test]
fn big_endian_files_are_refused() {
    let body = whole(&dict(&[("w", vector("0", 4))]));
    for order in ["big", "", "middle"] {
        let bytes =
            zip_file(&[("a/data.pkl", &body), ("a/byteorder", order.as_bytes()), ("a/data/0", &[0; 16])]);
        assert_refused(&bytes, &["byte order"]);
    }
    let long = vec![b'x'; 1000];
    assert_refused(&zip_file(&[("a/data.pkl", &body), ("a/byteorder", &long)]), &["byteorder", "limit"]);
}

/// First byte of the central directory entry of the given name.
fn central_entry(bytes: &[u8], name: &str) -> usize {
    let header =
        |at: &usize| bytes[*at..].starts_with(b"PK\x01\x02") && bytes[at + 46..].starts_with(name.as_bytes());
    (0..bytes.len() - 46).find(header).unwrap()
}

#[test]
fn entries_that_reach_outside_the_data_are_refused() {
    let good = small_file();
    let directory = central_entry(&good, "archive/data.pkl");
    let fits = (directory - good.windows(14).position(|window| window == b"archive/data/1").unwrap()) as u32;
    for size in [fits, fits + 100, 0x7fff_ffff] {
        let mut bytes = good.clone();
        let entry = central_entry(&bytes, "archive/data/1");
        for field in [20, 24] {
            bytes[entry + field..entry + field + 4].copy_from_slice(&size.to_le_bytes());
        }
        assert_refused(&bytes, &["data/1 reaches outside"]);
    }
}

#[test]
fn entries_that_begin_outside_the_file_are_refused() {
    for name in ["archive/data.pkl", "archive/data/0"] {
        for start in [0x7fff_ffff_u32, 0xffff_fffe] {
            let mut bytes = small_file();
            let entry = central_entry(&bytes, name);
            bytes[entry + 42..entry + 46].copy_from_slice(&start.to_le_bytes());
            assert_refused(&bytes, &["ends before"]);
        }
    }
}

#[test]
fn local_header_that_is_none_is_refused() {
    let mut bytes = small_file();
    bytes[..4].copy_from_slice(b"PK\x03\x04");
    let second = bytes.windows(4).skip(1).position(|window| window == b"PK\x03\x04").unwrap() + 1;
    for at in (0..bytes.len() - 4).rev() {
        if at >= second && bytes[at..].starts_with(b"PK\x03\x04") {
            bytes[at] = b'Q';
        }
    }
    assert_refused(&bytes, &["no zip entry begins"]);
}

#[test]
fn zip_truncated_at_every_byte_is_refused() {
    let bytes = small_file();
    assert_every_cut_is_refused(&bytes);
}

#[test]
fn pickle_truncated_at_every_byte_is_refused() {
    let parameter =
        [&*global("torch._utils", "_rebuild_parameter"), b"(", &vector("0", 4), b"\x88", &hooks(), b"tR"]
            .concat();
    let inner =
        dict(&[("a", vector("0", 4)), ("b", parameter), ("n", b"M\x01\x01".into()), ("l", b"](NNe".into())]);
    let pickle = whole(&dict(&[("state_dict", inner), ("epoch", b"J\x01\0\0\0".into())]));
    let folder = Folder::new();
    assert!(folder.open(&torch_file_of(&pickle, &[("0", &[0; 16])])).is_ok());
    for len in 0..pickle.len() {
        let bytes = torch_file_of(&pickle[..len], &[("0", &[0; 16])]);
        assert!(folder.open(&bytes).is_err(), "{len} of {} bytes", pickle.len());
    }
}

#[test]
fn file_that_shrinks_after_opening_is_an_error() {
    let folder = Folder::new();
    let checkpoint = folder.open(&small_file()).unwrap();
    let path = folder.path("checkpoint");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    let tensor = checkpoint.get("x").unwrap();
    assert!(checkpoint.read(tensor, 0, &mut [0.0; 5]).unwrap_err().to_string().contains("ends before"));
}

//! The shipped model equals the conversion of the shipped checkpoint by our own converter.

use std::fs;

use crate::common::{convert, options, root};
use rwkv_edge::kernels::DType;
use rwkv_quantize::convert::Options;

/// The command of `models/README.md`.
#[test]
fn the_builtin_file_is_reproduced_byte_for_byte() {
    let options = Options {
        tokenizer: Some(root().join("models/fairy_vocab.txt")),
        start_tokens: vec![0],
        sampling: vec!["temperature=0.8".into(), "top-p=0.6".into()],
        ..options(DType::Int8)
    };
    let (_folder, path) = convert(&root().join("models/fairy7.pth"), &options);
    let made = fs::read(path).unwrap();
    let built_in = fs::read(root().join("models/fairy7-int8.rwkv")).unwrap();
    assert!(made == built_in, "run the command of models/README.md");
}

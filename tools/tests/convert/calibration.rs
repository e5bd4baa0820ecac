//! Files whose rounding depends on activations.

use std::fs;

use rwkv_edge::format::ModelFile;
use rwkv_edge::kernels::DType;
use rwkv_quantize::calibration::{CalibrationText, Effort};
use rwkv_quantize::convert::Options;
use rwkv_quantize::policy::QuantSpec;

use crate::common::{Desk, Parts, VERSIONS, options};

fn calibrated(calibration: CalibrationText, threads: usize) -> Options {
    Options { calibration, threads, ..options(DType::Int4n) }
}

/// A file in which a sentence of 18 bytes stands `times` times.
fn text(desk: &Desk, times: usize) -> CalibrationText {
    let path = desk.path("tales.txt");
    fs::write(&path, "Once upon a time. ".repeat(times)).unwrap();
    CalibrationText::File(path)
}

/// The bytes of the file.
fn converted(desk: &Desk, version: &str, options: &Options) -> Vec<u8> {
    desk.convert(&Parts::of(version), options);
    let file = fs::read(desk.output()).unwrap();
    fs::remove_file(desk.output()).unwrap();
    file
}

#[test]
fn activations_decide_how_weights_are_rounded_and_threads_do_not() {
    for version in VERSIONS {
        let desk = Desk::new();
        let plain = converted(&desk, version, &calibrated(CalibrationText::None, 1));
        let tale = text(&desk, 5);
        let measured = converted(&desk, version, &calibrated(tale.clone(), 1));
        assert!(plain != measured, "{version}");
        assert!(measured == converted(&desk, version, &calibrated(tale, 2)), "{version}");
    }
}

#[test]
fn error_feedback_gives_the_same_file_on_any_number_of_threads() {
    for (version, dtype) in VERSIONS.iter().flat_map(|v| [DType::Int4n, DType::Int4].map(|t| (v, t))) {
        let desk = Desk::new();
        let options = |threads| Options {
            effort: Effort::High,
            quant: QuantSpec::new(dtype),
            ..calibrated(text(&desk, 20), threads)
        };
        let plain = converted(&desk, version, &Options { effort: Effort::Normal, ..options(1) });
        let fed = converted(&desk, version, &options(1));
        assert!(plain != fed, "{version} {dtype}");
        assert!(fed == converted(&desk, version, &options(3)), "{version} {dtype}");
    }
}

#[test]
fn a_model_writes_the_same_text_of_its_own_every_time() {
    let desk = Desk::new();
    let of = |threads| converted(&desk, "v7", &calibrated(CalibrationText::Own, threads));
    assert!(of(1) == of(2));
}

#[test]
fn the_file_says_what_activations_were_measured_on() {
    let desk = Desk::new();
    for (calibration, name) in [
        (CalibrationText::BuiltIn, "built-in"),
        (CalibrationText::Own, "self"),
        (text(&desk, 300), "tales.txt"),
    ] {
        desk.convert(&Parts::of("v7"), &calibrated(calibration, 2));
        let file = ModelFile::open(&desk.output()).unwrap();
        let found = file.provenance().calibration.clone().unwrap();
        assert_eq!((found.text.as_str(), found.tokens), (name, 2048));
        assert_ne!(found.sha256, [0; 32]);
    }
    desk.convert(&Parts::of("v7"), &calibrated(CalibrationText::None, 1));
    assert_eq!(ModelFile::open(&desk.output()).unwrap().provenance().calibration, None);
}

#[test]
fn a_text_that_is_missing_or_empty_is_named_and_leaves_nothing() {
    let desk = Desk::new();
    let (missing, empty) = (desk.path("missing.txt"), desk.path("empty.txt"));
    fs::write(&empty, "").unwrap();
    for text in [missing, empty] {
        let name = text.file_name().unwrap().to_string_lossy().into_owned();
        desk.put(&Parts::of("v7").torch());
        let before = desk.files();
        let error = desk.try_convert(&calibrated(CalibrationText::File(text), 1)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(&name), "{error}");
        assert_eq!(desk.files(), before);
    }
}

//! Speed of reading, by hand:
//! `cargo test --release -p rwkv-quantize --test source throughput -- --ignored --nocapture`.

use std::time::Instant;

use crate::common::{DTYPES, Folder, spec};
use rwkv_quantize::source::torch_writer::TorchWriter;
use rwkv_quantize::source::{Checkpoint, SourceTensor};

const ROWS: usize = 4096;
const COLUMNS: usize = 16384;

/// Reads the tensor in pieces of `columns` values, and prints the speed of the fastest of three
/// passes. From [`COLUMNS`] on, a piece is one or more rows. Below, the pieces go down the rows of
/// one panel of columns after the other.
fn measure(checkpoint: &Checkpoint, tensor: &SourceTensor, what: &str, columns: usize) {
    let mut out = vec![0.0; columns.min(COLUMNS) * 16.max(columns / COLUMNS)];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        if columns >= COLUMNS {
            let out = &mut out[..columns];
            for at in (0..tensor.elements()).step_by(columns) {
                checkpoint.read(tensor, at, out).unwrap();
            }
        } else {
            for column in (0..COLUMNS).step_by(columns) {
                for row in 0..ROWS {
                    checkpoint.read(tensor, row * COLUMNS + column, &mut out[..columns]).unwrap();
                }
            }
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (elements, size) = (tensor.elements() as f64, tensor.dtype.size() as f64);
    println!(
        "{:5} {what:24} {:6.0} MB/s of the file, {:6.0} M elements/s",
        tensor.dtype,
        elements * size / best / 1e6,
        elements / best / 1e6
    );
}

#[test]
#[ignore = "a measurement"]
fn speed_from_the_page_cache() {
    let folder = Folder::new();
    for dtype in DTYPES {
        let path = folder.path("speed.pth");
        let tensors = [spec("t", &[ROWS, COLUMNS], dtype)];
        let mut writer = TorchWriter::new(std::fs::File::create(&path).unwrap(), "speed", &tensors).unwrap();
        let row: Vec<u8> = (0..COLUMNS * dtype.size()).map(|n| (n % 63) as u8).collect();
        for _ in 0..ROWS {
            writer.write(&row).unwrap();
        }
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensor = checkpoint.get("t").unwrap();
        measure(&checkpoint, tensor, "16 rows of 16384", 16 * COLUMNS);
        measure(&checkpoint, tensor, "panels of 2048 columns", 2048);
        measure(&checkpoint, tensor, "panels of 512 columns", 512);
    }
}

//! Checks on another machine what tests have shown on the one that made the models: for each file, every level of
//! kernels gives the same logits, however the prompt is cut, and text allocates nothing. Prints what to compare:
//! the file's name and the digests of the logits after 50 and after 200 tokens.
//!
//! ```text
//! board-check MODEL.rwkv...
//! ```

#[path = "../../../tests/common/allocations.rs"]
mod allocations;
#[path = "../../../tests/common/checks.rs"]
mod checks;

use std::path::Path;

/// Tokens that are written while allocations are counted.
const TOKENS: usize = 100;

fn main() {
    for path in std::env::args_os().skip(1) {
        let path = Path::new(&path);
        println!(
            "{} {} {}",
            path.file_stem().unwrap().display(),
            checks::digest(path, 50),
            checks::digest(path, 200)
        );
        checks::check_cuts(path, checks::levels(), &checks::CUTS[1..2], &[1, 3]);
        allocations::generate_without_allocating(&checks::open(path, None), TOKENS);
    }
}

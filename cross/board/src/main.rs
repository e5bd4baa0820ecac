//! Checks on another machine what tests have shown on the one that made the models: for each file, every level of
//! kernels gives the same logits, however the prompt is cut, and text allocates nothing. Prints what to compare:
//! the file's name, the digest of the logits after 50 tokens, and that after 200 by the best level.
//!
//! ```text
//! board-check MODEL.rwkv...
//! ```

#[path = "../../../tests/common/allocations.rs"]
mod allocations;
#[path = "../../../tests/common/checks.rs"]
mod checks;

use std::path::Path;

use checks::{CUTS, digest, levels};
use rwkv_edge::kernels::Isa;

/// Tokens that are written while allocations are counted.
const TOKENS: usize = 100;

fn main() {
    for path in std::env::args_os().skip(1) {
        let path = Path::new(&path);
        let name = path.file_stem().unwrap().display();
        println!("{name} {} {}", digest(path, 50, levels()), digest(path, 200, [Isa::detect()]));
        checks::check_cuts(path, levels(), &CUTS[1..2], &[1, 3]);
        allocations::generate_without_allocating(&checks::open(path, None), TOKENS);
    }
}

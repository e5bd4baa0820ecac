//! Checks on another machine what tests have shown on the one that made the models: for each file, the levels of
//! kernels give the same logits, however the prompt is cut, and text allocates nothing. Prints what to compare:
//! the file's name, the digest of the logits after 50 tokens, and that after 200 by the best level.
//!
//! ```text
//! board-check LEVEL,... MODEL.rwkv...
//! ```

mod allocations;
mod checks;

use std::path::Path;

use checks::{CUTS, digest};
use rwkv_edge::kernels::Isa;

/// Tokens that are written while allocations are counted.
const TOKENS: usize = 100;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let levels = args.next().expect("the first argument names levels").into_string().unwrap();
    let levels: Vec<Isa> = levels.split(',').map(|name| name.parse().unwrap()).collect();
    for path in args {
        let path = Path::new(&path);
        let name = path.file_stem().unwrap().display();
        let [short, long] = [digest(path, 50, levels.clone()), digest(path, 200, [Isa::detect()])];
        println!("{name} {short} {long}");
        checks::check_cuts(path, levels.clone(), &CUTS[1..2], &[1, 3]);
        allocations::generate_without_allocating(&checks::open(path, None), TOKENS);
    }
}

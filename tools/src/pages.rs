//! Shell completions and a man page. The program does not carry them: this test makes them, into the
//! folder of `RWKV_EDGE_PAGES` if that is set.

use std::fs;
use std::path::Path;

use clap_complete::{Shell, generate_to};

use crate::cli::options;

fn make(folder: &Path) {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut options(), "rwkv-quantize", folder).unwrap();
    }
    clap_mangen::generate_to(options(), folder).unwrap();
}

#[test]
fn completions_and_the_man_page_have_every_option() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let pages = [read("rwkv-quantize.bash"), read("_rwkv-quantize"), read("rwkv-quantize.fish")];
    let manual = read("rwkv-quantize.1");
    for long in options().get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(|arg| arg.get_long()) {
        assert!(manual.contains(&long.replace('-', "\\-")), "--{long} is not in {manual}");
        assert!(pages.iter().all(|page| page.contains(long)), "--{long}");
    }
    if let Some(folder) = std::env::var_os("RWKV_EDGE_PAGES") {
        fs::create_dir_all(&folder).unwrap();
        make(Path::new(&folder));
    }
}

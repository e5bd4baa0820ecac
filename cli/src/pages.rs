//! Shell completions and man pages. The program does not carry them: this test makes them, into the
//! folder of `RWKV_EDGE_PAGES` if that is set.
//!
//! ```text
//! RWKV_EDGE_PAGES=out cargo test -p rwkv-edge-cli pages
//! ```

use std::fs;
use std::path::Path;

use clap_complete::{Shell, generate_to};

use crate::options;

fn make(folder: &Path) {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut options(), "rwkv-edge", folder).unwrap();
    }
    clap_mangen::generate_to(options(), folder).unwrap();
}

#[test]
fn completions_and_man_pages_have_every_command_and_option() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let pages = [read("rwkv-edge.bash"), read("_rwkv-edge"), read("rwkv-edge.fish")];
    for command in options().get_subcommands() {
        let page = read(&format!("rwkv-edge-{}.1", command.get_name()));
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long() else { continue };
            assert!(page.contains(&long.replace('-', "\\-")), "--{long} is not in {page}");
            assert!(pages.iter().all(|page| page.contains(long)), "--{long}");
        }
    }
    if let Some(folder) = std::env::var_os("RWKV_EDGE_PAGES") {
        fs::create_dir_all(&folder).unwrap();
        make(Path::new(&folder));
    }
}

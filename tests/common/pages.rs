//! Shell completions and man pages of a program. It does not carry them: this test makes them, into
//! the folder of `RWKV_EDGE_PAGES` if that is set. The program's crate has all its options in
//! `options`.
//!
//! ```text
//! RWKV_EDGE_PAGES=$PWD/pages cargo test -p rwkv-edge-cli -p rwkv-quantize pages
//! ```

use std::fs;
use std::iter;
use std::path::Path;

use clap_complete::{Shell, generate_to};

use crate::options;

fn make(folder: &Path) {
    let program = options().get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut options(), &program, folder).unwrap();
    }
    clap_mangen::generate_to(options(), folder).unwrap();
}

#[test]
fn completions_and_man_pages_have_every_command_and_option() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let options = options();
    let program = options.get_name();
    let pages =
        ["PROGRAM.bash", "_PROGRAM", "PROGRAM.fish"].map(|name| read(&name.replace("PROGRAM", program)));
    let commands =
        options.get_subcommands().map(|command| (format!("{program}-{}.1", command.get_name()), command));
    for (page, command) in iter::once((format!("{program}.1"), &options)).chain(commands) {
        let page = read(&page);
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

//! Outputs on a disk and on a tmpfs, with and without names while they are written.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::header::MAGIC;
use super::{Output, Published, Replace, Target, temp_name};
use crate::error::{Error, ErrorKind};

/// Calls a test with folders on the available file systems, and with both kinds of names.
fn everywhere(test: impl Fn(&Desk)) {
    let places = [std::env::temp_dir(), "/dev/shm".into()];
    for place in places.iter().filter(|place| place.is_dir()) {
        for anonymous in [true, false] {
            test(&Desk { folder: tempfile::tempdir_in(place).unwrap(), anonymous });
        }
    }
}

struct Desk {
    folder: TempDir,
    anonymous: bool,
}

impl Desk {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.folder.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// An output for `path` with some bytes in it.
    fn begin(&self, path: &Path, replace: Replace) -> Output {
        let mut output = Output::create_as(Target::new(path, replace).unwrap(), 3, self.anonymous).unwrap();
        output.write_all(b"new").unwrap();
        output
    }

    fn write(&self, path: &Path, replace: Replace) {
        assert!(matches!(self.begin(path, replace).publish().unwrap(), Published::Durable));
        assert_eq!(fs::read(path).unwrap(), b"new");
    }

    /// The leftover of a run for `path` that died between naming the file and moving it.
    fn leftover(&self, path: &Path) -> fs::File {
        let (file, name) = temp_name::create(path).unwrap();
        std::mem::forget(name);
        file
    }
}

#[track_caller]
fn refusal(path: &Path, replace: Replace) -> String {
    let error = Target::new(path, replace).unwrap_err();
    assert_eq!(error.path(), Some(path));
    error.to_string()
}

#[test]
fn an_output_appears_whole_or_not_at_all() {
    everywhere(|desk| {
        let path = desk.path("m.rwkv");
        for old in [None, Some(b"old")] {
            old.inspect(|old| fs::write(&path, old).unwrap());
            let before = desk.names();
            drop(desk.begin(&path, Replace::Any));
            assert_eq!(desk.names(), before);
            let output = desk.begin(&path, Replace::Any);
            assert_eq!(fs::read(&path).ok().as_deref(), old.map(|old| old.as_slice()));
            output.publish().unwrap();
            assert_eq!((desk.names(), fs::read(&path).unwrap()), (vec!["m.rwkv".into()], b"new".to_vec()));
            fs::remove_file(&path).unwrap();
        }
    });
}

#[test]
fn a_table_replaces_only_tables_of_its_columns() {
    everywhere(|desk| {
        let (path, replace) = (desk.path("t.csv"), Replace::Tables("a,b\n"));
        for (old, replaced) in [(&b""[..], true), (b"a,b\n1,2\n", true), (b"a,b,c\n", false), (b"a,b", false)]
        {
            fs::write(&path, old).unwrap();
            match replaced {
                true => desk.write(&path, replace),
                false => assert!(refusal(&path, replace).contains("no rwkv-edge table")),
            }
        }
    });
}

#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn a_file_that_is_written_has_no_name_where_the_system_has_such_files() {
    everywhere(|desk| {
        let output = desk.begin(&desk.path("m.rwkv"), Replace::Models);
        assert_eq!(desk.names().len(), usize::from(!desk.anonymous));
        drop(output);
    });
}

#[test]
fn only_empty_files_and_models_are_replaced_unasked() {
    everywhere(|desk| {
        let path = desk.path("second.pth");
        for (old, replaced) in
            [(&b""[..], true), (&MAGIC, true), (&MAGIC[..7], false), (b"PK\x03\x04", false)]
        {
            fs::write(&path, old).unwrap();
            if replaced {
                desk.write(&path, Replace::Models);
                continue;
            }
            let error = Target::new(&path, Replace::Models).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NotReplaced { expected: "model" }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), old);
            desk.write(&path, Replace::Any);
        }
        assert_eq!(desk.names(), ["second.pth"]);
    });
}

#[test]
fn a_file_that_comes_into_being_meanwhile_is_treated_as_one_that_was_there() {
    everywhere(|desk| {
        let path = desk.path("m.rwkv");
        let output = desk.begin(&path, Replace::Models);
        fs::write(&path, MAGIC).unwrap();
        output.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        fs::remove_file(&path).unwrap();
        let output = desk.begin(&path, Replace::Models);
        fs::write(&path, "a letter").unwrap();
        let error = output.publish().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotReplaced { expected: "model" }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"a letter");
        assert_eq!(desk.names(), ["m.rwkv"]);
    });
}

#[test]
fn two_runs_for_one_output_do_not_disturb_each_other() {
    everywhere(|desk| {
        let path = desk.path("m.rwkv");
        fs::write(&path, MAGIC).unwrap();
        let (first, second) = (desk.begin(&path, Replace::Any), desk.begin(&path, Replace::Any));
        first.publish().unwrap();
        second.publish().unwrap();
        assert_eq!((desk.names(), fs::read(&path).unwrap()), (vec!["m.rwkv".into()], b"new".to_vec()));
    });
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_unless_it_is_still_written() {
    everywhere(|desk| {
        let path = desk.path("m.rwkv");
        let held = desk.leftover(&path);
        for _ in 0..3 {
            drop(desk.leftover(&path));
        }
        let others =
            [desk.path("n.rwkv"), desk.path("M.rwkv")].map(|other| drop(desk.leftover(&other))).len();
        desk.write(&path, Replace::Models);
        assert_eq!(desk.names().len(), 2 + others, "{:?}", desk.names());
        drop(held);
        desk.write(&path, Replace::Any);
        assert_eq!(desk.names().len(), 1 + others, "{:?}", desk.names());
    });
}

#[test]
fn an_error_names_the_output_and_never_the_temporary_name() {
    everywhere(|desk| {
        fs::create_dir(desk.path("folder")).unwrap();
        let path = desk.path("folder/m.rwkv");
        let output = desk.begin(&path, Replace::Models);
        fs::remove_dir_all(desk.path("folder")).unwrap();
        let error = output.publish().unwrap_err();
        assert_eq!(error.path(), Some(path.as_path()));
        let message = error.to_string();
        let rest = message.strip_prefix(&path.display().to_string()).unwrap();
        assert!(!rest.contains("m.rwkv"), "{message}");
    });
}

#[test]
fn names_as_long_as_the_file_system_has_them_are_written() {
    everywhere(|desk| {
        for name in ["n".repeat(241), "n".repeat(255), "é".repeat(127)] {
            let path = desk.path(&name);
            desk.write(&path, Replace::Models);
            desk.write(&path, Replace::Any);
            assert_eq!(desk.names(), [name]);
            fs::remove_file(path).unwrap();
        }
        refusal(&desk.path(&"n".repeat(256)), Replace::Any);
    });
}

#[test]
fn what_is_no_name_of_a_file_is_refused() {
    everywhere(|desk| {
        fs::write(desk.path("file"), "").unwrap();
        for name in ["", ".", "..", "missing/", "missing/.", "missing/..", "file/", "file/m.rwkv"] {
            refusal(&desk.path(name), Replace::Any);
        }
        assert!(refusal(desk.folder.path(), Replace::Any).contains("directory"));
        assert!(refusal(&desk.path("missing/m.rwkv"), Replace::Any).contains("no folder"));
        assert_eq!(desk.names(), ["file"]);
    });
    for name in ["", ".", "..", "/"] {
        refusal(Path::new(name), Replace::Any);
    }
}

#[test]
fn an_output_without_room_is_refused_before_its_first_byte() {
    if cfg!(any(not(target_os = "linux"), miri)) {
        return;
    }
    everywhere(|desk| {
        let path = desk.path("m.rwkv");
        let target = Target::new(&path, Replace::Models).unwrap();
        let error = Output::create_as(target, 1 << 60, desk.anonymous).unwrap_err();
        let ErrorKind::NoRoom { needed, available, .. } = *error.kind() else { panic!("{error}") };
        assert!(needed == 1 << 60 && available > 0 && available < needed, "{error}");
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        assert!(desk.names().is_empty());
    });
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn links_are_followed_to_a_file_or_to_where_none_is_yet() {
        everywhere(|desk| {
            fs::create_dir(desk.path("models")).unwrap();
            let file = desk.path("models/m.rwkv");
            symlink("models/m.rwkv", desk.path("relative")).unwrap();
            symlink(&file, desk.path("absolute")).unwrap();
            symlink("relative", desk.path("chain")).unwrap();
            for link in ["relative", "absolute", "chain"] {
                desk.write(&desk.path(link), Replace::Models);
                desk.write(&desk.path(link), Replace::Any);
                assert!(desk.path(link).is_symlink());
                assert_eq!(fs::read_dir(desk.path("models")).unwrap().count(), 1);
                assert!(fs::symlink_metadata(&file).unwrap().is_file());
                fs::remove_file(&file).unwrap();
            }
            symlink("loop", desk.path("loop")).unwrap();
            symlink("missing/m.rwkv", desk.path("nowhere")).unwrap();
            symlink("models", desk.path("folder")).unwrap();
            for link in ["loop", "nowhere", "folder"] {
                refusal(&desk.path(link), Replace::Any);
                assert!(desk.path(link).is_symlink());
            }
        });
    }

    #[test]
    fn devices_pipes_and_sockets_are_refused_also_behind_links() {
        everywhere(|desk| {
            let socket = desk.path("socket");
            let _listener = UnixListener::bind(&socket).unwrap();
            symlink("/dev/null", desk.path("null")).unwrap();
            symlink("socket", desk.path("link")).unwrap();
            for path in [socket, desk.path("link"), desk.path("null"), "/dev/null".into(), "/dev/zero".into()]
            {
                assert!(refusal(&path, Replace::Any).contains("not a regular file"));
            }
        });
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn an_open_file_of_a_process_is_refused_whatever_it_is() {
        use std::os::fd::AsRawFd;

        let file = tempfile::NamedTempFile::new().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        for fd in [file.as_raw_fd(), reader.as_raw_fd()] {
            for path in [format!("/dev/fd/{fd}"), format!("/proc/self/fd/{fd}")] {
                assert!(refusal(Path::new(&path), Replace::Any).contains("open file"), "{path}");
            }
        }
        assert!(Path::new("/dev/stdout").is_symlink());
        refusal(Path::new("/dev/stdout"), Replace::Any);
    }

    #[test]
    fn a_hard_link_is_the_same_file() {
        everywhere(|desk| {
            fs::write(desk.path("a"), "").unwrap();
            fs::write(desk.path("other"), "").unwrap();
            fs::hard_link(desk.path("a"), desk.path("b")).unwrap();
            let target = Target::new(&desk.path("b"), Replace::Models).unwrap();
            assert!(target.is(&desk.path("a")) && target.is(&desk.path("b")));
            assert!(!target.is(&desk.path("other")) && !target.is(&desk.path("none")));
        });
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        everywhere(|desk| {
            let path = desk.path("m.rwkv");
            for wanted in [0o600, 0o640, 0o444, 0o666] {
                fs::write(&path, MAGIC).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(wanted)).unwrap();
                let output = desk.begin(&path, Replace::Models);
                let others = output.file().metadata().unwrap().permissions().mode() & 0o077;
                assert_eq!(others, 0, "what replaces a private file is private from the start");
                output.publish().unwrap();
                assert_eq!(mode(&path), wanted);
                fs::remove_file(&path).unwrap();
            }
            // A new file has the default mode of new files.
            fs::write(desk.path("other"), "").unwrap();
            desk.write(&path, Replace::Models);
            assert_eq!(mode(&path), mode(&desk.path("other")));
        });
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn a_replaced_file_keeps_its_owner_where_that_is_allowed() {
        use std::os::unix::fs::{MetadataExt, chown};

        everywhere(|desk| {
            let path = desk.path("m.rwkv");
            fs::write(&path, MAGIC).unwrap();
            let owner = (12345, 23456);
            if chown(&path, Some(owner.0), Some(owner.1)).is_ok() {
                desk.write(&path, Replace::Models);
                let found = fs::metadata(&path).unwrap();
                assert_eq!((found.uid(), found.gid()), owner);
            }
        });
    }
}

#[test]
fn an_unsynchronized_folder_is_told_with_the_name_of_the_output() {
    let error = Error::from(std::io::Error::from(std::io::ErrorKind::PermissionDenied)).with_path("m.rwkv");
    assert!(Published::Unsynchronized(error).warning().unwrap().starts_with("m.rwkv: "));
    assert!(Published::Durable.warning().is_none());
}

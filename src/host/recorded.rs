//! CPU descriptions of boards, phones and servers, and the cores that are chosen from them.
//!
//! sbc-bench lists the clusters and clocks of the boards. The capacities are those that Linux
//! computes from device trees and clocks.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::topology::{CpuList, fast_cores, online_cpus};

const MOST: usize = 4;

/// A directory like `/sys/devices/system/cpu`.
struct Tree(tempfile::TempDir);

impl Tree {
    /// A tree with the directories and files that exist beside those of the CPUs.
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (file, text) in
            [("cpufreq/policy0/scaling_governor", "ondemand"), ("cpuidle/current_driver", "none")]
        {
            tree.write(file, text);
        }
        tree.write("possible", "0-127");
        tree
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// CPUs that are separate cores, with a file that states their speed.
    fn cores(self, cpus: Range<u32>, file: &str, figure: u64) -> Self {
        for cpu in cpus {
            self.write(&format!("cpu{cpu}/topology/thread_siblings_list"), &cpu.to_string());
            self.write(&format!("cpu{cpu}/{file}"), &figure.to_string());
        }
        self
    }

    fn capacity(self, cpus: Range<u32>, capacity: u64) -> Self {
        self.cores(cpus, "cpu_capacity", capacity)
    }

    fn top_frequency(self, cpus: Range<u32>, kilohertz: u64) -> Self {
        self.cores(cpus, "cpufreq/cpuinfo_max_freq", kilohertz)
    }

    fn offline(self, cpus: Range<u32>) -> Self {
        for cpu in cpus {
            fs::remove_dir_all(self.0.path().join(format!("cpu{cpu}/topology"))).unwrap();
            self.write(&format!("cpu{cpu}/online"), "0");
        }
        self
    }

    /// The fast cores for a process with this affinity mask.
    #[track_caller]
    fn fast(&self, allowed: &str) -> Vec<u32> {
        let allowed = CpuList::parse(allowed).unwrap();
        fast_cores(online_cpus(self.0.path(), Some(&allowed)), MOST).unwrap().numbers
    }

    /// The CPUs that threads are kept to.
    #[track_caller]
    fn apart(&self, allowed: &str) -> Option<Vec<u32>> {
        let allowed = CpuList::parse(allowed).unwrap();
        fast_cores(online_cpus(self.0.path(), Some(&allowed)), MOST).unwrap().apart
    }

    /// The figure by which they were chosen.
    fn basis(&self, allowed: &str) -> String {
        let allowed = CpuList::parse(allowed).unwrap();
        fast_cores(online_cpus(self.0.path(), Some(&allowed)), MOST).unwrap().to_string()
    }
}

/// Four equal cores of an ARM board. All have the largest capacity.
fn board_of_four(kilohertz: u64) -> Tree {
    Tree::new().capacity(0..4, 1024).top_frequency(0..4, kilohertz)
}

fn pi_4() -> Tree {
    board_of_four(1_800_000)
}

fn pi_5() -> Tree {
    board_of_four(2_400_000)
}

/// Four Cortex-A55 and four Cortex-A76. The A76 are in two clusters, and which one is faster
/// differs from chip to chip.
fn rk3588() -> Tree {
    let capacities = Tree::new().capacity(0..4, 405).capacity(4..6, 1003).capacity(6..8, 1024);
    capacities.top_frequency(0..4, 1_800_000).top_frequency(4..6, 2_304_000).top_frequency(6..8, 2_352_000)
}

/// Four small, three large and one largest core.
fn phone() -> Tree {
    Tree::new().capacity(0..4, 325).capacity(4..7, 850).capacity(7..8, 1024)
}

#[test]
fn boards_of_four_equal_cores_use_them_all() {
    let states_no_capacity = Tree::new().top_frequency(0..4, 1_500_000);
    for (board, figure) in [(pi_4(), "capacity"), (pi_5(), "capacity"), (states_no_capacity, "top frequency")]
    {
        assert_eq!(board.fast("0-3"), [0, 1, 2, 3]);
        assert_eq!(board.basis("0-3"), format!("usable CPUs: 4, fast cores by {figure}: 0,1,2,3"));
        assert_eq!(board.apart("0-3"), None);
        assert_eq!(board.fast("2"), [2]);
        assert_eq!(board.fast("0,3"), [0, 3]);
    }
}

#[test]
fn large_cores_come_before_small_ones() {
    let board = rk3588();
    assert_eq!(board.fast("0-7"), [4, 5, 6, 7]);
    assert_eq!(board.basis("0-7"), "usable CPUs: 8, fast cores by capacity: 4,5,6,7");
    assert_eq!(board.fast("4-5"), [4, 5]);
    assert_eq!(board.fast("6-7"), [6, 7]);
    assert_eq!(board.fast("3,4,6"), [4, 6]);
    let without_capacity = Tree::new()
        .top_frequency(0..4, 1_800_000)
        .top_frequency(4..6, 2_304_000)
        .top_frequency(6..8, 2_352_000);
    assert_eq!(without_capacity.basis("0-7"), "usable CPUs: 8, fast cores by top frequency: 4,5,6,7");
    assert_eq!(phone().fast("0-7"), [4, 5, 6, 7]);
    assert_eq!(phone().fast("0-5"), [4, 5]);
}

#[test]
fn threads_are_kept_to_large_cores_only_where_there_are_small_ones() {
    assert_eq!(rk3588().apart("0-7"), Some(vec![4, 5, 6, 7]));
    assert_eq!(phone().apart("0-7"), Some(vec![4, 5, 6, 7]));
    assert_eq!(phone().apart("3-5"), Some(vec![4, 5]));
    assert_eq!(phone().apart("0-3"), None);
    assert_eq!(phone().apart("4-7"), None);
    // More cores are fast enough than get threads.
    let board = Tree::new().capacity(0..2, 400).capacity(2..8, 1024);
    assert_eq!(board.fast("0-7"), [2, 3, 4, 5]);
    assert_eq!(board.apart("0-7"), Some(vec![2, 3, 4, 5, 6, 7]));
    assert_eq!(Tree::new().top_frequency(0..4, 1_800_000).apart("0-3"), None);
}

#[test]
fn small_cores_are_used_where_there_are_no_others() {
    assert_eq!(rk3588().fast("0-3"), [0, 1, 2, 3]);
    assert_eq!(phone().fast("0-3"), [0, 1, 2, 3]);
    assert_eq!(phone().fast("1-2"), [1, 2]);
}

#[test]
fn one_large_core_with_small_ones_works_alone() {
    assert_eq!(phone().fast("0-2,7"), [7]);
    assert_eq!(phone().fast("1-3,4"), [4]);
}

#[test]
fn half_as_fast_is_fast_enough_and_less_is_not() {
    let board = Tree::new().capacity(0..1, 511).capacity(1..2, 512).capacity(2..3, 1024);
    assert_eq!(board.fast("0-2"), [1, 2]);
    let odd = Tree::new().top_frequency(0..1, 500).top_frequency(1..2, 1001).top_frequency(2..3, 501);
    assert_eq!(odd.fast("0-2"), [1, 2]);
}

#[test]
fn cpus_that_are_offline_or_absent_do_not_count() {
    let board = rk3588().offline(5..8);
    assert_eq!(board.fast("0-7"), [4]);
    let all_large_offline = phone().offline(4..8);
    assert_eq!(all_large_offline.fast("0-127"), [0, 1, 2, 3]);
    let board = Tree::new().top_frequency(0..2, 1_800_000);
    assert_eq!(board.fast("0-255"), [0, 1]);
}

#[test]
fn hyper_threads_of_a_core_count_once() {
    let server = Tree::new().top_frequency(0..8, 3_500_000);
    for cpu in 0..4 {
        for sibling in [cpu, cpu + 4] {
            server
                .write(&format!("cpu{sibling}/topology/thread_siblings_list"), &format!("{cpu},{}", cpu + 4));
        }
    }
    assert_eq!(server.fast("0-7"), [0, 1, 2, 3]);
    assert_eq!(server.fast("1,5"), [1]);
    assert_eq!(server.fast("4-5"), [4, 5]);
    assert_eq!(server.fast("0,4-6"), [0, 5, 6]);
}

#[test]
fn a_figure_that_only_some_cpus_state_does_not_count() {
    let board = Tree::new().top_frequency(0..4, 2_000_000).capacity(0..2, 1024);
    assert_eq!(board.basis("0-3"), "usable CPUs: 4, fast cores by top frequency: 0,1,2,3");
    assert_eq!(board.basis("0-1"), "usable CPUs: 2, fast cores by capacity: 0,1");
    let none = Tree::new().capacity(0..1, 1024).cores(1..3, "crash_notes", 0);
    assert_eq!(none.basis("0-2"), "usable CPUs: 3, cores: 0,1,2");
    let nonsense = Tree::new().cores(0..2, "cpu_capacity", 0);
    assert_eq!(nonsense.basis("0-1"), "usable CPUs: 2, cores: 0,1");
}

#[test]
fn a_container_without_the_directory_or_a_mask_beside_it_gives_no_answer() {
    assert!(fast_cores(online_cpus(Path::new("/no/such/directory"), None), MOST).is_none());
    let empty = tempfile::tempdir().unwrap();
    assert!(fast_cores(online_cpus(empty.path(), None), MOST).is_none());
    let allowed = CpuList::parse("8-9").unwrap();
    assert!(fast_cores(online_cpus(rk3588().0.path(), Some(&allowed)), MOST).is_none());
}

#[test]
fn without_a_mask_all_cpus_are_usable() {
    assert_eq!(fast_cores(online_cpus(phone().0.path(), None), MOST).unwrap().numbers, [4, 5, 6, 7]);
}

#[test]
fn lists_of_cpus_that_are_none_are_not_guessed_at() {
    for list in ["", "-", "0-", "-3", "0,,2", "a", "0 1", "0-1-2", "4294967296"] {
        assert_eq!(CpuList::parse(list), None, "{list}");
    }
    assert_eq!(CpuList::parse(" 0-3,8\n"), CpuList::parse("0-3,8"));
    assert!(Tree::new().capacity(0..1, 9).fast("0-4294967295") == [0]);
}

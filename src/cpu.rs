//! Which cores to use, and how much memory the process has used, as the operating system tells.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

/// Most threads used without being asked for: decoding is bound by memory, not by cores.
const MAX_DEFAULT_THREADS: usize = 4;

/// Physical performance cores that this process may use, at most 4.
///
/// Cores count as performance cores when their capacity (or, where the kernel does not state it, their top
/// frequency) is at least half of the largest; of hyper-threads that share a core one counts. Limits by
/// affinity or control groups are honoured.
pub fn default_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, |n| n.get());
    let cores = performance_cores(Path::new("/sys/devices/system/cpu")).unwrap_or(allowed);
    cores.min(allowed).clamp(1, MAX_DEFAULT_THREADS)
}

/// Counts physical performance cores below a directory laid out as Linux's `/sys/devices/system/cpu`.
fn performance_cores(root: &Path) -> Option<usize> {
    let mut cores = Vec::new();
    for entry in fs::read_dir(root).ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        let is_cpu = name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
        if is_cpu {
            let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
            let speed = ["cpu_capacity", "cpufreq/cpuinfo_max_freq"]
                .iter()
                .find_map(|file| read(file)?.trim().parse::<u64>().ok())
                .unwrap_or(1);
            let core = read("topology/thread_siblings_list").unwrap_or(name);
            cores.push((speed, core));
        }
    }
    let fastest = cores.iter().map(|&(speed, _)| speed).max()?;
    let fast = cores.into_iter().filter(|&(speed, _)| 2 * speed >= fastest);
    Some(fast.map(|(_, core)| core).collect::<BTreeSet<_>>().len())
}

/// Largest resident set of this process so far, in bytes, mapped pages included; `None` where the system
/// does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    status_kib("VmHWM:").map(|kib| kib * 1024)
}

fn status_kib(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake `/sys/devices/system/cpu` with `(capacity, frequency, siblings)` per CPU.
    fn fake(cpus: &[(Option<u64>, Option<u64>, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cpufreq")).unwrap();
        for (i, (capacity, frequency, siblings)) in cpus.iter().enumerate() {
            let cpu = root.path().join(format!("cpu{i}"));
            fs::create_dir_all(cpu.join("topology")).unwrap();
            fs::create_dir_all(cpu.join("cpufreq")).unwrap();
            fs::write(cpu.join("topology/thread_siblings_list"), siblings).unwrap();
            if let Some(value) = capacity {
                fs::write(cpu.join("cpu_capacity"), format!("{value}\n")).unwrap();
            }
            if let Some(value) = frequency {
                fs::write(cpu.join("cpufreq/cpuinfo_max_freq"), format!("{value}\n")).unwrap();
            }
        }
        root
    }

    #[test]
    fn little_cores_do_not_count() {
        let little = |i| (Some(250), None, i);
        let big = |i| (Some(1024), None, i);
        let root = fake(&[little("0"), little("1"), little("2"), little("3"), big("4"), big("5")]);
        assert_eq!(performance_cores(root.path()), Some(2));
    }

    #[test]
    fn hyper_threads_of_one_core_count_once() {
        let cpu = |siblings| (None, Some(3_500_000), siblings);
        let root = fake(&[cpu("0,2"), cpu("1,3"), cpu("0,2"), cpu("1,3")]);
        assert_eq!(performance_cores(root.path()), Some(2));
    }

    #[test]
    fn equal_cores_without_any_figure_all_count() {
        let root = fake(&[(None, None, "0"), (None, None, "1"), (None, None, "2")]);
        assert_eq!(performance_cores(root.path()), Some(3));
    }

    #[test]
    fn a_missing_directory_is_no_answer() {
        assert_eq!(performance_cores(Path::new("/no/such/directory")), None);
    }

    #[test]
    fn the_default_is_between_one_and_four() {
        assert!((1..=4).contains(&default_threads()));
    }
}

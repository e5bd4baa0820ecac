//! Facts about this machine and process from the operating system: CPUs, fast cores, memory used.

mod affinity;
#[cfg(test)]
mod recorded;
mod topology;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use topology::{CpuList, FastCores};

/// Most threads by default: memory limits decoding, not cores.
const MAX_DEFAULT_THREADS: usize = 4;

/// The default number of threads, and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultThreads {
    /// At least 1.
    pub count: usize,
    /// The chosen cores; `None` if the system only tells how many threads may run.
    cores: Option<FastCores>,
}

/// The number of physical performance cores that this process may use, at most 4; see
/// [`DefaultThreads::detect`].
pub fn default_threads() -> usize {
    DefaultThreads::detect().count
}

impl DefaultThreads {
    /// One thread for each physical performance core that this process may use, at most 4.
    ///
    /// Only CPUs in the affinity mask count. A performance core has at least half the capacity of
    /// the largest one. If the kernel states no capacity, the top frequency decides. Hyper-threads
    /// of one core count once. The quota of a control group is honoured. If Linux does not show its
    /// CPUs, and on other systems, the count is the number of threads that may run, at most 4.
    pub fn detect() -> Self {
        let allowed = status_field("Cpus_allowed_list:").and_then(|list| CpuList::parse(&list));
        let cpus = topology::online_cpus(Path::new("/sys/devices/system/cpu"), allowed.as_ref());
        let may_run = thread::available_parallelism().map_or(1, |n| n.get());
        Self::new(topology::fast_cores(cpus, MAX_DEFAULT_THREADS), may_run)
    }

    /// Keeps the calling thread, and threads that it starts later, away from slower CPUs, if there
    /// are any. CPUs as fast as the chosen ones stay allowed. Otherwise fast cores would wait for a
    /// slow core's share of the work. Failure is ignored.
    pub fn keep_to_fast_cores(&self) {
        if let Some(cpus) = self.cores.as_ref().and_then(|cores| cores.apart.as_ref()) {
            let _ = affinity::bind(cpus);
        }
    }

    fn new(cores: Option<FastCores>, may_run: usize) -> Self {
        let count = cores.as_ref().map_or(MAX_DEFAULT_THREADS, |cores| cores.numbers.len());
        Self { count: count.min(may_run).max(1), cores }
    }
}

impl fmt::Display for DefaultThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cores {
            Some(cores) if self.count < cores.numbers.len() => {
                write!(f, "{} ({cores}, but a quota of {})", self.count, self.count)
            }
            Some(cores) => write!(f, "{} ({cores})", self.count),
            None => write!(f, "{} (as many as may run, at most {MAX_DEFAULT_THREADS})", self.count),
        }
    }
}

/// Largest resident set of this process so far, in bytes, mapped pages included. `None` if the
/// system does not tell. Linux counts per core and sums late, so a later answer may be a few pages
/// smaller.
pub fn peak_rss_bytes() -> Option<u64> {
    let peak = status_field("VmHWM:")?;
    let kib: u64 = peak.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes of this process' code, as the system has mapped it: the program, its libraries, and the
/// stack of the first thread. `None` if the system does not tell.
///
/// A part of them is never read, so fewer become resident.
pub fn program_bytes() -> Option<u64> {
    Some(mapped_code(&fs::read_to_string("/proc/self/maps").ok()?))
}

/// The stack of the first thread, with arguments and environment.
const FIRST_STACK_BYTES: u64 = 256 << 10;

/// Bytes of the files in `maps`, the text of `/proc/self/maps`, that have code, and of the stack.
fn mapped_code(maps: &str) -> u64 {
    let mappings = || {
        maps.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16));
            let (access, name) = (words.next()?, words.nth(3)?);
            Some((name, access, end.ok()?.checked_sub(start.ok()?)?))
        })
    };
    let code: BTreeSet<_> =
        mappings().filter(|(_, access, _)| access.contains('x')).map(|(name, ..)| name).collect();
    let code: u64 = mappings().filter(|(name, ..)| code.contains(name)).map(|(.., bytes)| bytes).sum();
    code + FIRST_STACK_BYTES
}

/// Drops the pages of a file from the page cache of the system, except those that a process has
/// mapped.
///
/// # Errors
/// If the file cannot be opened or its changes cannot be written, or the system has no such call.
pub fn drop_cached(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // A page that is not written yet stays.
    file.sync_all()?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Err(io::ErrorKind::Unsupported.into())
}

/// Most bytes that this process may lock in memory; `None` if there is no limit, or the system does
/// not tell.
pub(crate) fn lock_limit_bytes() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

/// A field of `/proc/self/status`.
pub(crate) fn status_field(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::topology::{Cpu, fast_cores};
    use super::*;

    #[test]
    fn of_the_mappings_those_of_files_with_code_and_the_stack_count() {
        let maps = "\
1000-3000 r--p 00000000 fe:00 1   /bin/program
3000-8000 r-xp 00002000 fe:00 1   /bin/program
8000-9000 rw-p 00000000 00:00 0   [heap]
9000-f000 r--s 00000000 fe:00 2   /tmp/model.rwkv
10000-18000 rw-p 00000000 00:00 0
20000-21000 r-xp 00000000 fe:00 3   /lib/libc.so
30000-32000 rw-p 00000000 00:00 0   [stack]
";
        assert_eq!(mapped_code(maps), 0x7000 + 0x1000 + FIRST_STACK_BYTES);
    }

    fn cores(count: u32) -> Option<FastCores> {
        let cpu =
            |number| Cpu { number, capacity: Some(1024), top_frequency: None, core: number.to_string() };
        fast_cores((0..count).map(cpu).collect(), MAX_DEFAULT_THREADS)
    }

    #[test]
    fn a_quota_limits_the_threads_and_is_named() {
        let threads = DefaultThreads::new(cores(4), 2);
        assert_eq!(threads.count, 2);
        let text = "2 (usable CPUs: 4, fast cores by capacity: 0,1,2,3, but a quota of 2)";
        assert_eq!(threads.to_string(), text);
        assert_eq!(DefaultThreads::new(cores(2), 8).count, 2);
    }

    #[test]
    fn without_a_view_of_the_cpus_it_is_what_may_run_up_to_four() {
        for (may_run, count) in [(0, 1), (1, 1), (3, 3), (64, 4)] {
            let threads = DefaultThreads::new(None, may_run);
            assert_eq!(threads.count, count);
            assert_eq!(threads.to_string(), format!("{count} (as many as may run, at most 4)"));
        }
    }

    #[test]
    fn the_default_is_between_one_and_four() {
        assert!((1..=4).contains(&default_threads()));
    }
}

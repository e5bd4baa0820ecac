//! Facts about this machine and process from the operating system: CPUs, fast cores, memory used.

mod affinity;
#[cfg(test)]
mod recorded;
mod topology;

use std::fmt;
use std::fs;
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

//! The CPUs that Linux shows, and which of them are fast.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

/// CPU numbers as Linux writes them: `0-3,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuList(Vec<RangeInclusive<u32>>);

impl CpuList {
    pub(super) fn parse(list: &str) -> Option<Self> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        list.trim().split(',').map(range).collect::<Option<Vec<_>>>().map(Self)
    }

    fn contains(&self, cpu: u32) -> bool {
        self.0.iter().any(|range| range.contains(&cpu))
    }
}

/// A CPU that can run threads.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub(super) number: u32,
    /// Speed relative to the fastest CPU of the machine, which has 1024.
    pub(super) capacity: Option<u64>,
    /// In kHz.
    pub(super) top_frequency: Option<u64>,
    /// Identifies the core: equal for hyper-threads of one core only.
    pub(super) core: String,
}

/// The allowed CPUs that are online, by rising number. `root` is laid out as
/// `/sys/devices/system/cpu`. The result is empty if it cannot be read.
pub(super) fn online_cpus(root: &Path, allowed: Option<&CpuList>) -> Vec<Cpu> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix("cpu")?.parse().ok();
    let mut cpus: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
        .filter(|(number, _)| allowed.is_none_or(|allowed| allowed.contains(*number)))
        .filter_map(|(number, path)| online_cpu(number, &path))
        .collect();
    cpus.sort_unstable_by_key(|cpu| cpu.number);
    cpus
}

fn online_cpu(number: u32, path: &Path) -> Option<Cpu> {
    let read = |file: &str| Some(fs::read_to_string(path.join(file)).ok()?.trim().to_owned());
    let figure = |file: &str| read(file)?.parse().ok().filter(|&figure: &u64| figure > 0);
    // The first CPU often has no such file, because it cannot be taken offline.
    if read("online").is_some_and(|online| online == "0") {
        return None;
    }
    Some(Cpu {
        number,
        capacity: figure("cpu_capacity"),
        top_frequency: figure("cpufreq/cpuinfo_max_freq"),
        core: read("topology/thread_siblings_list").unwrap_or_else(|| number.to_string()),
    })
}

/// The figure by which cores are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Capacity,
    TopFrequency,
    /// Neither figure is stated for all cores.
    None,
}

impl Figure {
    fn of(self, cpu: &Cpu) -> Option<u64> {
        match self {
            Self::Capacity => cpu.capacity,
            Self::TopFrequency => cpu.top_frequency,
            Self::None => Some(1),
        }
    }
}

/// The fastest cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FastCores {
    /// The first CPU of each core, sorted.
    pub(super) numbers: Vec<u32>,
    /// CPUs at least as fast as these, hyper-threads included; `None` if no CPU is slower.
    pub(super) apart: Option<Vec<u32>>,
    /// Number of CPUs they were chosen from.
    usable: usize,
    figure: Figure,
}

/// The physical cores that are at least half as fast as the fastest. If these are more than `most`,
/// the fastest of them.
pub(super) fn fast_cores(mut cpus: Vec<Cpu>, most: usize) -> Option<FastCores> {
    let usable = cpus.len();
    let figures = [Figure::Capacity, Figure::TopFrequency, Figure::None];
    let figure = figures.into_iter().find(|figure| cpus.iter().all(|cpu| figure.of(cpu).is_some()))?;
    let speed = |cpu: &Cpu| figure.of(cpu).unwrap_or(0);
    let fastest = cpus.iter().map(speed).max()?;
    let mut cores = cpus.clone();
    let mut seen = BTreeSet::new();
    cores.retain(|cpu| speed(cpu) >= fastest.div_ceil(2) && seen.insert(cpu.core.clone()));
    cores.sort_by_key(|cpu| (Reverse(speed(cpu)), cpu.number));
    cores.truncate(most);
    let slowest = cores.last().map_or(0, speed);
    cpus.retain(|cpu| speed(cpu) >= slowest);
    let apart = (cpus.len() < usable).then(|| cpus.iter().map(|cpu| cpu.number).collect());
    let mut numbers: Vec<_> = cores.iter().map(|cpu| cpu.number).collect();
    numbers.sort_unstable();
    Some(FastCores { numbers, apart, usable, figure })
}

impl fmt::Display for FastCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen = match self.figure {
            Figure::Capacity => "fast cores by capacity",
            Figure::TopFrequency => "fast cores by top frequency",
            Figure::None => "cores",
        };
        let numbers: Vec<_> = self.numbers.iter().map(u32::to_string).collect();
        write!(f, "usable CPUs: {}, {chosen}: {}", self.usable, numbers.join(","))
    }
}

//! The CPUs that a thread may run on.

use std::io;

/// Restricts the calling thread, and threads that it starts later, to these CPUs.
///
/// # Errors
/// The system refuses or has no such call, or a number is 1024 or more.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn bind(cpus: &[u32]) -> io::Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};

    let mut set = CpuSet::new();
    for &cpu in cpus {
        let cpu = cpu as usize;
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn bind(_cpus: &[u32]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, thread};

    use super::bind;

    #[test]
    fn a_bound_thread_and_those_it_starts_keep_to_their_cpus() {
        let allowed = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
            list.trim().to_owned()
        };
        let first = allowed().split([',', '-']).next().unwrap().to_owned();
        thread::spawn(move || {
            bind(&[first.parse().unwrap()]).unwrap();
            assert_eq!(allowed(), first);
            assert_eq!(thread::spawn(allowed).join().unwrap(), first);
        })
        .join()
        .unwrap();
        assert!(bind(&[]).is_err() && bind(&[1024]).is_err());
    }
}

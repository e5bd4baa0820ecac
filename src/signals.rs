//! Signals, as both programs treat them.
//!
//! A program [catches](catch) the signals that end it. The first one sets a flag, and the program
//! ends its work in good order. Then the process [dies by that signal](die_if_caught), so a script
//! sees why it ended. A second one ends the process at once. A signal that follows within
//! [`SECOND_AFTER`] counts as a copy of the first. A program that talks with a user takes an
//! interruption [back](take_interruption) and goes on, and a signal ends it at once while it
//! [waits](while_waiting) for the user. Signals that the parent ignores (`nohup`,
//! `trap ''`, a background job of a script) stay ignored.
//!
//! Process 1 of a container is different. Linux takes no default action for it, so an uncaught
//! signal does nothing. There the program catches all signals that end other processes, even if its
//! parent ignores them. It exits with the status that a shell gives for a death by signal.

use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

#[cfg(unix)]
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGIO, SIGPROF, SIGQUIT, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};

#[cfg(unix)]
use std::{io::Read, os::unix::net::UnixStream, thread, time::Instant};

use crate::host;

/// Signals by which a user, a terminal or a service manager stops a program.
#[cfg(unix)]
pub const STOPPING: &[i32] = &[SIGINT, SIGTERM, SIGHUP];
/// Signals by which a user, a terminal or a service manager stops a program.
#[cfg(not(unix))]
pub const STOPPING: &[i32] = &[SIGINT, SIGTERM];

/// Signals that end a process by default, come from outside and can be caught. SIGPIPE is not among
/// them: writing to a closed pipe is an error of that write. SIGXFSZ is not among them either:
/// [`prepare`] turns it into an error of the write.
#[cfg(unix)]
pub const ENDING: &[i32] =
    &[SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO];
/// Signals that end a process by default, come from outside and can be caught.
#[cfg(not(unix))]
pub const ENDING: &[i32] = STOPPING;

/// Time within which another signal counts as a copy of the first. `timeout` and closed terminals
/// send a signal both to the process and to its group.
pub const SECOND_AFTER: Duration = Duration::from_millis(200);

/// Whether a signal was caught.
static CAUGHT: AtomicBool = AtomicBool::new(false);
/// The last signal that was caught.
static SIGNAL: AtomicUsize = AtomicUsize::new(0);
/// How many interruptions were taken back.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Whether the program waits for its user.
static WAITING: AtomicBool = AtomicBool::new(false);
/// Whether a signal ends process 1 at once.
static AT_ONCE: AtomicBool = AtomicBool::new(true);

/// Prepares a program for signals; `main` calls it first. A write beyond the limit of a file's size
/// becomes an error. Process 1 ends by signals as other processes do.
///
/// # Errors
/// If the system refuses a handler.
pub fn prepare() -> io::Result<()> {
    #[cfg(unix)]
    {
        // The write returns only if the signal is ignored or caught.
        static REACHED: AtomicBool = AtomicBool::new(false);
        flag::register(SIGXFSZ, &REACHED)?;
    }
    if is_process_one() {
        for &signal in ENDING {
            flag::register_conditional_shutdown(signal, status(signal), &AT_ONCE)?;
        }
    }
    Ok(())
}

/// Catches `signals` except those that the parent ignores. The first one sets the returned flag.
///
/// # Errors
/// If the system refuses a handler.
pub fn catch(signals: &[i32]) -> io::Result<&'static AtomicBool> {
    let ignored = if is_process_one() { 0 } else { ignored_signals() };
    let is_taken = |signal: &&i32| ignored & (1 << (**signal - 1)) == 0;
    let signals: Vec<i32> = signals.iter().filter(is_taken).copied().collect();
    // Without the thread that waits for a second signal, every second one counts.
    let watcher = Watcher::start();
    AT_ONCE.store(false, Ordering::SeqCst);
    for &signal in &signals {
        if watcher.is_err() {
            end_if(signal, &CAUGHT)?;
            end_if(signal, &WAITING)?;
        }
        flag::register(signal, &CAUGHT)?;
        flag::register_usize(signal, &SIGNAL, signal as usize)?;
        if let Ok(watcher) = &watcher {
            watcher.tell_of(signal)?;
        }
    }
    Ok(&CAUGHT)
}

/// Takes back that a signal was [caught](catch), if it was an interruption (Ctrl-C): the next one is
/// the first again. Returns whether the program goes on. Any other signal still ends it.
pub fn take_interruption() -> bool {
    let is_interruption =
        SIGNAL.compare_exchange(SIGINT as usize, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if is_interruption {
        TAKEN.fetch_add(1, Ordering::SeqCst);
        // Another signal may have come in between.
        CAUGHT.store(false, Ordering::SeqCst);
        CAUGHT.fetch_or(SIGNAL.load(Ordering::SeqCst) != 0, Ordering::SeqCst);
    }
    !CAUGHT.load(Ordering::SeqCst)
}

/// Waits for the user. A [caught](catch) signal ends the process at once meanwhile, and leaves the
/// terminal as it was before.
pub fn while_waiting<T>(wait: impl FnOnce() -> T) -> T {
    terminal::remember();
    WAITING.store(true, Ordering::SeqCst);
    // The signal may have come before.
    die_if_caught();
    let result = wait();
    WAITING.store(false, Ordering::SeqCst);
    result
}

/// Ends the process by the signal that was [caught](catch), if there was one.
pub fn die_if_caught() {
    if CAUGHT.load(Ordering::SeqCst) {
        die();
    }
}

/// Ends the process by the last signal.
fn die() -> ! {
    let signal = match SIGNAL.load(Ordering::SeqCst) {
        // The signal came between the handlers of the two variables.
        0 => SIGTERM,
        signal => signal as i32,
    };
    if WAITING.load(Ordering::SeqCst) {
        terminal::restore();
    }
    if !is_process_one() {
        let _ = low_level::emulate_default_handler(signal);
    }
    process::exit(status(signal))
}

/// Lets a signal end the process at once if `condition` is true.
fn end_if(signal: i32, condition: &'static AtomicBool) -> io::Result<()> {
    if is_process_one() {
        flag::register_conditional_shutdown(signal, status(signal), condition)?;
    } else {
        flag::register_conditional_default(signal, condition)?;
    }
    Ok(())
}

/// A thread that ends the process at the second signal it is told of.
#[cfg(unix)]
struct Watcher(UnixStream);

#[cfg(unix)]
impl Watcher {
    const STACK_BYTES: usize = 64 * 1024;

    fn start() -> io::Result<Self> {
        let (mut arrivals, sender) = UnixStream::pair()?;
        thread::Builder::new().name("signals".into()).stack_size(Self::STACK_BYTES).spawn(move || {
            let mut first = (0, None);
            // The pipe carries one byte per signal.
            while arrivals.read_exact(&mut [0]).is_ok() {
                // The interruption may have been taken back before this thread ran.
                if !CAUGHT.load(Ordering::SeqCst) {
                    continue;
                }
                let taken = TAKEN.load(Ordering::SeqCst);
                if first.0 != taken {
                    first = (taken, None);
                }
                let is_second = first.1.get_or_insert_with(Instant::now).elapsed() >= SECOND_AFTER;
                if is_second || WAITING.load(Ordering::SeqCst) {
                    die();
                }
            }
        })?;
        Ok(Self(sender))
    }

    fn tell_of(&self, signal: i32) -> io::Result<()> {
        low_level::pipe::register(signal, self.0.try_clone()?).map(drop)
    }
}

/// The mode of the terminal, which line editors change while they wait.
#[cfg(unix)]
mod terminal {
    use std::io;
    use std::sync::OnceLock;

    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

    static MODE: OnceLock<Termios> = OnceLock::new();

    pub(super) fn remember() {
        if let (None, Ok(mode)) = (MODE.get(), tcgetattr(io::stdin())) {
            let _ = MODE.set(mode);
        }
    }

    pub(super) fn restore() {
        if let Some(mode) = MODE.get() {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, mode);
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    pub(super) fn remember() {}
    pub(super) fn restore() {}
}

#[cfg(not(unix))]
struct Watcher;

#[cfg(not(unix))]
impl Watcher {
    fn start() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn tell_of(&self, _signal: i32) -> io::Result<()> {
        Ok(())
    }
}

/// The exit status that a shell gives for a death by `signal`.
fn status(signal: i32) -> i32 {
    128 + signal
}

fn is_process_one() -> bool {
    process::id() == 1
}

/// The signals that this process was started to ignore, signal 1 in the lowest bit. 0 if Linux does
/// not tell (without `/proc`) and on other systems.
fn ignored_signals() -> u64 {
    host::status_field("SigIgn:").map_or(0, |mask| parse_mask(&mask))
}

fn parse_mask(mask: &str) -> u64 {
    u64::from_str_radix(mask, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_bit_for_each_signal() {
        assert_eq!(parse_mask("0000000000001003"), 1 << 12 | 3);
        assert_eq!(parse_mask("no number"), 0);
    }

    #[test]
    fn an_interruption_is_taken_back_and_another_signal_is_not() {
        for (signal, goes_on) in [(SIGINT, true), (SIGTERM, false)] {
            SIGNAL.store(signal as usize, Ordering::SeqCst);
            CAUGHT.store(true, Ordering::SeqCst);
            assert_eq!(take_interruption(), goes_on);
            assert_eq!(CAUGHT.load(Ordering::SeqCst), !goes_on);
        }
        SIGNAL.store(0, Ordering::SeqCst);
        CAUGHT.store(false, Ordering::SeqCst);
        assert!(take_interruption());
    }

    #[test]
    fn what_stops_a_program_ends_it() {
        assert!(STOPPING.iter().all(|signal| ENDING.contains(signal)));
    }

    #[cfg(unix)]
    #[test]
    fn signals_that_report_a_fault_of_the_program_are_not_caught() {
        use signal_hook::consts::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGTRAP};
        let faults = [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGTRAP];
        assert!(faults.iter().all(|signal| !ENDING.contains(signal)));
    }
}

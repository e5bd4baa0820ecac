//! The floating-point environment of a thread: rounding mode, flushing of subnormal numbers, traps.
#![allow(unsafe_code, reason = "registers that only assembly reaches")]

use core::marker::PhantomData;

/// Puts the calling thread into the environment of the numeric contract: rounding to nearest even,
/// subnormal numbers kept, no traps. Rust assumes the same one. Dropping the result restores the
/// environment of before.
///
/// Programs in other languages change the environment, for speed (flushing to zero, often by a
/// compiler's option) or for interval arithmetic, and threads inherit it. The call is cheap if
/// there is nothing to change.
pub fn default_float_environment() -> FloatEnvironment {
    FloatEnvironment::enter(control::DEFAULT)
}

/// The environment to restore; see [`default_float_environment`].
#[must_use = "dropping this restores the environment of before"]
#[derive(Debug)]
pub struct FloatEnvironment {
    before: control::Word,
    changed: bool,
    /// Belongs to the thread.
    not_send: PhantomData<*const ()>,
}

impl FloatEnvironment {
    fn enter(word: control::Word) -> Self {
        let before = control::get();
        let changed = before != word;
        if changed {
            control::set(word);
        }
        Self { before, changed, not_send: PhantomData }
    }

    /// Rounds down, and flushes subnormal numbers where the processor can. For tests.
    ///
    /// # Safety
    /// Rust assumes the default environment: no float arithmetic until the result is dropped, but
    /// behind [`default_float_environment`].
    #[doc(hidden)]
    pub unsafe fn unusual() -> Self {
        Self::enter(control::UNUSUAL)
    }

    /// The control bits of the calling thread. For tests.
    #[doc(hidden)]
    pub fn bits() -> impl PartialEq + core::fmt::Debug {
        control::get()
    }
}

impl Drop for FloatEnvironment {
    fn drop(&mut self) {
        if self.changed {
            control::set(self.before);
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_arch = "x86_64", not(miri)))] {
        /// MXCSR. The flags of exceptions that occurred are left as they are.
        mod control {
            use core::arch::asm;

            pub(super) type Word = u32;

            const FLAGS: u32 = 0x3f;
            /// All exceptions masked.
            pub(super) const DEFAULT: u32 = 0x1f80;
            pub(super) const UNUSUAL: u32 = DEFAULT | 1 << 15 | 1 << 13 | 1 << 6;

            fn read() -> u32 {
                let mut word = 0u32;
                // SAFETY: stores the register, in four bytes.
                unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
                word
            }

            pub(super) fn get() -> Word {
                read() & !FLAGS
            }

            pub(super) fn set(word: Word) {
                let word = word | read() & FLAGS;
                // SAFETY: loads the register, from four bytes that it had before or that Rust
                // assumes.
                unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
            }
        }
    } else if #[cfg(all(target_arch = "aarch64", not(miri)))] {
        /// FPCR.
        mod control {
            use core::arch::asm;

            pub(super) type Word = u64;

            pub(super) const DEFAULT: u64 = 0;
            pub(super) const UNUSUAL: u64 = 1 << 24 | 2 << 22;

            pub(super) fn get() -> Word {
                let word;
                // SAFETY: reads the register.
                unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
                word
            }

            pub(super) fn set(word: Word) {
                // SAFETY: writes the value of before or the one that Rust assumes.
                unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
            }
        }
    } else if #[cfg(all(
        target_arch = "arm",
        not(miri),
        any(all(target_os = "linux", target_abi = "eabihf"), target_os = "android")
    ))] {
        /// FPSCR. The flags of comparisons and of exceptions that occurred are left as they are.
        mod control {
            use core::arch::asm;

            pub(super) type Word = u32;

            const FLAGS: u32 = !0x07f7_9f00;
            pub(super) const DEFAULT: u32 = 0;
            pub(super) const UNUSUAL: u32 = 1 << 24 | 2 << 22;

            fn read() -> u32 {
                let word;
                // SAFETY: reads the register.
                unsafe { asm!("vmrs {}, fpscr", out(reg) word, options(nostack, preserves_flags)) };
                word
            }

            pub(super) fn get() -> Word {
                read() & !FLAGS
            }

            pub(super) fn set(word: Word) {
                let word = word | read() & FLAGS;
                // SAFETY: writes the value of before or the one that Rust assumes.
                unsafe { asm!("vmsr fpscr, {}", in(reg) word, options(nostack, preserves_flags)) };
            }
        }
    } else {
        /// No control register is known for this target.
        mod control {
            pub(super) type Word = u32;

            pub(super) const DEFAULT: u32 = 0;
            pub(super) const UNUSUAL: u32 = 0;

            pub(super) fn get() -> Word {
                DEFAULT
            }

            pub(super) fn set(_: Word) {}
        }
    }
}

//! `libunwind.a` for Android, in place of the NDK's: the functions `_Unwind_*` that the standard
//! library links.
#![no_std]

#[cfg(target_arch = "arm")]
mod arm;

#[cfg(target_arch = "aarch64")]
extern crate unwinding as _;

unsafe extern "C" {
    safe fn abort() -> !;
}

/// A failed assertion of the unwinder itself. The standard library's handler is out of reach here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    abort()
}

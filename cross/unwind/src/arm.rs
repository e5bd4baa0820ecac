//! 32-bit ARM, for which `unwinding` has no code. A program that aborts on a panic never unwinds: it
//! only asks for a backtrace.

use core::ffi::{c_int, c_void};

use crate::abort;

/// `_URC_END_OF_STACK` of the ARM exception handling ABI.
const END_OF_STACK: c_int = 5;

/// Reports a stack without frames: `RUST_BACKTRACE=1` prints the message and an empty backtrace.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_visit: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

/// What only an unwinder calls, or what it calls back. The callers' arguments do not matter.
macro_rules! aborting {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> ! {
                abort()
            }
        )*
    };
}

aborting! {
    __gnu_unwind_frame
    _Unwind_GetDataRelBase
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_VRS_Get
    _Unwind_VRS_Set
}

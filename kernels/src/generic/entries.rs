//! Entries of the tables: functions without target features.

/// Defines the module `$entry` of functions that a table can point to. Each calls the function of
/// its name in `$module`. That function has target features, so a safe function pointer cannot hold
/// its address.
macro_rules! entries {
    ($entry:ident: $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $module:ident;)*) => {
        mod $entry {
            use super::*;

            $(#[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? {
                // SAFETY: only tables of levels with the features that the function asks for point
                // here, and `Kernels::for_isa` hands a table out only if the processor has its
                // level.
                unsafe { super::$module::$name($($arg),*) }
            })*
        }
    };
}
pub(crate) use entries;

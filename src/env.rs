//! The environment variables that the library and the programs read.

use std::env::{self, VarError};

use crate::error::{Error, Result};

/// Forces the kernels of one instruction set. The value is a name that `rwkv-edge info` prints.
pub const ISA: &str = "RWKV_EDGE_ISA";

/// The value of [`ISA`], if it is set and not empty.
pub(crate) fn isa() -> Result<Option<String>> {
    match env::var(ISA) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Error::invalid(format!("{ISA} is not UTF-8"))),
    }
}

/// Whether `NO_COLOR` is set and not empty (<https://no-color.org>).
#[cfg(feature = "programs")]
pub(crate) fn no_color() -> bool {
    env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Whether the terminal has no control sequences.
#[cfg(feature = "programs")]
pub(crate) fn terminal_is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|value| value == "dumb")
}

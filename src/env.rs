//! The environment variables that the library reads.

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

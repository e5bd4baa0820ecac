//! Models that have the tensors of an architecture and another arithmetic.

use std::fmt;
use std::str::FromStr;

use super::Version;
use super::chat::by_name;
use crate::error::{Error, ErrorKind, Result};

/// The arithmetic of a model, which its tensors do not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As the architecture says
    #[default]
    Plain = 0,
    /// RWKV-7 of RWKV_Othello's `*_extended` models: learning rates up to 2, scaled by the decay
    OthelloExtended = 1,
    /// RWKV-6 of Sudoku-RWKV and RWKV-15Puzzle: keys are scaled by the decay of their channel
    Puzzle = 2,
}

impl Variant {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Plain, Self::OthelloExtended, Self::Puzzle];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::OthelloExtended => "othello-extended",
            Self::Puzzle => "puzzle",
        }
    }

    /// The number that stands for the variant in a file.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The variant a number stands for.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if this build does not know the number.
    pub(super) fn from_code(code: u32) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|variant| variant.code() == code);
        known.ok_or_else(|| ErrorKind::Unsupported(format!("variant {code} is not known here")).into())
    }

    /// Whether models of `version` exist in this variant.
    pub fn exists_for(self, version: Version) -> bool {
        match self {
            Self::Plain => true,
            Self::OthelloExtended => version == Version::V7,
            Self::Puzzle => version == Version::V6,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(&Self::ALL, name)
    }
}

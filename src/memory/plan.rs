//! The memory plan: every buffer with its size, known from the model's header alone.

use std::fmt;

use super::Buffers;
use super::arena::lines_bytes;
use crate::error::{ErrorKind, Result};
use crate::format::MappingKind;

/// A named buffer of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the buffer holds.
    pub name: &'static str,
    /// Bytes, padded to whole 64-byte lines.
    pub bytes: usize,
}

/// The memory of an engine, its texts and its model file, in bytes. Nothing more is allocated once
/// they exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Buffers of the engine's arena. Buffers of the same name are one entry.
    pub regions: Vec<Region>,
    /// The states of the texts.
    pub state_bytes: usize,
    /// Counts of the samplers.
    pub sampler_bytes: usize,
    /// Where the bytes of the model file are: those of the next three fields.
    pub file: MappingKind,
    /// Weights that every token reads.
    pub weights_bytes: u64,
    /// Embedding rows. Only rows of tokens that occur become resident, unless the file is in
    /// memory.
    pub embedding_bytes: u64,
    /// Tokenizer tables and headers.
    pub tables_bytes: u64,
    /// Stacks of the worker threads. They are reserved; a few KiB of each become resident.
    pub stack_bytes: usize,
}

impl MemoryPlan {
    /// Bytes of the arena: the one allocation of an engine.
    pub fn arena_bytes(&self) -> usize {
        self.regions.iter().fold(0, |sum: usize, region| sum.saturating_add(region.bytes))
    }

    /// Memory that must stay resident for steady speed: weights, tables, buffers, states and
    /// stacks. If the file is in memory, the embedding counts too.
    pub fn resident_bytes(&self) -> u64 {
        let embedding = if self.file == MappingKind::Memory { self.embedding_bytes } else { 0 };
        embedding
            + self.weights_bytes
            + self.tables_bytes
            + [self.arena_bytes(), self.state_bytes, self.sampler_bytes, self.stack_bytes]
                .into_iter()
                .map(|bytes| bytes as u64)
                .sum::<u64>()
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, bytes: u64, note: fmt::Arguments<'_>| {
            writeln!(f, "  {name:<24} {:>14} B  {}  {note}", bytes, Mib(bytes))
        };
        let (place, resident) = match self.file {
            MappingKind::Mapped => ("mapped", "everything but the embedding"),
            MappingKind::BuiltIn => ("built in", "everything but the embedding"),
            MappingKind::Memory => ("in memory", "everything"),
        };
        row("weights", self.weights_bytes, format_args!("{place}, read by every token"))?;
        row("embedding", self.embedding_bytes, format_args!("{place}, one row per token"))?;
        row("tokenizer and header", self.tables_bytes, format_args!("{place}"))?;
        row("state", self.state_bytes as u64, format_args!("one text"))?;
        row("sampler", self.sampler_bytes as u64, format_args!("counts for penalties"))?;
        for region in &self.regions {
            row(region.name, region.bytes as u64, format_args!("arena"))?;
        }
        row("worker stacks", self.stack_bytes as u64, format_args!("reserved"))?;
        row("arena in total", self.arena_bytes() as u64, format_args!("one allocation"))?;
        row("resident", self.resident_bytes(), format_args!("{resident}"))
    }
}

/// Bytes shown in MiB.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.2} MiB", self.0 as f64 / (1 << 20) as f64)
    }
}

/// Adds up the sizes of requested buffers without allocating them.
pub(crate) struct Measure {
    regions: Vec<Region>,
    /// Bytes left; `None` if a buffer did not fit.
    left: Option<usize>,
    address_space: usize,
}

impl Default for Measure {
    /// Has room for the largest possible allocation.
    fn default() -> Self {
        Self::within(isize::MAX as usize)
    }
}

impl Measure {
    /// Has room for `address_space` bytes.
    pub(crate) fn within(address_space: usize) -> Self {
        Self { regions: Vec::new(), left: Some(address_space), address_space }
    }

    /// The buffers requested so far.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if they are too large to be addressed.
    pub(crate) fn into_regions(self) -> Result<Vec<Region>> {
        match self.left {
            Some(_) => Ok(self.regions),
            None => Err(ErrorKind::Unsupported(format!(
                "an engine for this model needs more than {} bytes of buffers, the most that this program can address",
                self.address_space
            ))
            .into()),
        }
    }

    fn add<'a, T>(&mut self, name: &'static str, len: usize) -> &'a mut [T] {
        let bytes = lines_bytes::<T>(len);
        self.left = self.left.zip(bytes).and_then(|(left, bytes)| left.checked_sub(bytes));
        // If it does not fit, the sizes are never used.
        let bytes = bytes.filter(|_| self.left.is_some()).unwrap_or(0);
        match self.regions.iter_mut().find(|region| region.name == name) {
            Some(region) => region.bytes += bytes,
            None => self.regions.push(Region { name, bytes }),
        }
        &mut []
    }
}

impl<'a> Buffers<'a> for Measure {
    fn f32s(&mut self, name: &'static str, len: usize) -> &'a mut [f32] {
        self.add(name, len)
    }

    fn u32s(&mut self, name: &'static str, len: usize) -> &'a mut [u32] {
        self.add(name, len)
    }

    fn i32s(&mut self, name: &'static str, len: usize) -> &'a mut [i32] {
        self.add(name, len)
    }

    fn i8s(&mut self, name: &'static str, len: usize) -> &'a mut [i8] {
        self.add(name, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_is_resident_whole_and_the_plan_says_so() {
        let mapped = MemoryPlan {
            weights_bytes: 1000,
            embedding_bytes: 500,
            tables_bytes: 70,
            ..MemoryPlan::default()
        };
        let memory = MemoryPlan { file: MappingKind::Memory, ..mapped.clone() };
        assert_eq!((mapped.resident_bytes(), memory.resident_bytes()), (1070, 1570));
        assert!(mapped.to_string().contains("mapped, read by every token"));
        let text = memory.to_string();
        assert!(text.contains("in memory, one row per token") && !text.contains("mapped"), "{text}");
        assert!(text.trim_end().ends_with("  everything"), "{text}");
    }
}

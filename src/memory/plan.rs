//! The memory plan: every buffer with its size, known from the model's header alone.

use std::fmt;

use super::Buffers;
use super::arena::lines_bytes;
use crate::error::{ErrorKind, Result};
use crate::format::MappingKind;

/// A named buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the buffer holds.
    pub name: &'static str,
    /// Bytes. Buffers of the arena are padded to whole 64-byte lines.
    pub bytes: usize,
}

/// The memory of an engine, its texts and its model file, in bytes. Nothing more is allocated once
/// they exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Buffers of the engine's arena. Buffers of the same name are one entry.
    pub regions: Vec<Region>,
    /// Number of texts.
    pub sessions: usize,
    /// The states of the texts.
    pub state_bytes: usize,
    /// Counts of the samplers.
    pub sampler_bytes: usize,
    /// Where the bytes of the model file are: those of the next three fields.
    pub file: MappingKind,
    /// Weights that every token reads.
    pub weights_bytes: u64,
    /// The embedding, and in RWKV-7a the tables of DeepEmbed. A mapped file never maps them: the system
    /// reads the rows of a token.
    pub embedding_bytes: u64,
    /// Tokenizer tables and headers.
    pub tables_bytes: u64,
    /// The rows of these tables that a token reads, one of each.
    pub row_bytes: u64,
    /// Names, places and types of the tensors, and small things.
    pub heap_bytes: usize,
    /// Stacks of the worker threads. They are reserved; a few KiB of each become resident.
    pub stack_bytes: usize,
    /// Buffers that the program has besides, such as a prompt.
    pub buffers: Vec<Region>,
    /// Code of the program and of its libraries, and the stack of its first thread. It is 0 unless
    /// the program tells.
    pub program_bytes: u64,
}

/// An entry of a [`MemoryPlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What the bytes hold.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// Of these, bytes that become resident.
    pub resident: u64,
    /// Where they are.
    pub note: &'static str,
}

/// Of a worker's stack, at most one part of so many becomes resident: kernels use 40 KiB of 256.
const RESIDENT_STACK: usize = 4;

/// Bytes per second of an SD card, for times that are computed.
const SD_CARD: u64 = 40_000_000;

impl MemoryPlan {
    /// Bytes of the arena: the one allocation of an engine.
    pub fn arena_bytes(&self) -> usize {
        self.regions.iter().fold(0, |sum: usize, region| sum.saturating_add(region.bytes))
    }

    /// All entries, with the file first.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let (place, rows, embedding) = match self.file {
            MappingKind::Mapped => ("mapped, read by every token", "in the file, read row by row", 0),
            MappingKind::BuiltIn => ("built in, read by every token", "built in", self.embedding_bytes),
            MappingKind::Memory => ("in memory, read by every token", "in memory", self.embedding_bytes),
        };
        fn part(name: &'static str, bytes: u64, note: &'static str) -> Part {
            Part { name, bytes, resident: bytes, note }
        }
        fn memory(name: &'static str, bytes: usize, note: &'static str) -> Part {
            part(name, bytes as u64, note)
        }
        let file = [
            part("weights", self.weights_bytes, place),
            Part { name: "embedding", bytes: self.embedding_bytes, resident: embedding, note: rows },
            part("tokenizer and header", self.tables_bytes, "read at the start"),
        ];
        let texts = [
            memory("state", self.state_bytes, if self.sessions == 1 { "one text" } else { "all texts" }),
            memory("sampler", self.sampler_bytes, "counts for penalties"),
        ];
        let process = [
            memory("tensor names and places", self.heap_bytes, "and small things"),
            Part {
                resident: (self.stack_bytes / RESIDENT_STACK) as u64,
                ..memory("worker stacks", self.stack_bytes, "reserved; a quarter may become resident")
            },
            part("program", self.program_bytes, "code, libraries and first stack"),
        ];
        let arena = self.regions.iter().map(move |region| memory(region.name, region.bytes, "arena"));
        let buffers = self.buffers.iter().map(move |region| memory(region.name, region.bytes, ""));
        let parts = file.into_iter().chain(texts).chain(arena).chain(buffers).chain(process);
        parts.filter(|part| part.bytes > 0)
    }

    /// The largest resident set: weights, tables, buffers, states, stacks and the program. The
    /// embedding counts unless the file is mapped. Linux reports the figure as `VmHWM`.
    ///
    /// It is an upper bound. A program that draws from a few of the largest logits does not read
    /// all rows of the head's second plane.
    pub fn resident_bytes(&self) -> u64 {
        self.parts().fold(0, |sum: u64, part| sum.saturating_add(part.resident))
    }

    /// Bytes of address space, reserved stacks included. A process whose address space is limited
    /// needs as much if the file is in memory.
    pub fn address_space_bytes(&self) -> u64 {
        self.parts().fold(0, |sum: u64, part| sum.saturating_add(part.bytes))
    }

    /// Most bytes of the file that a token reads.
    pub fn token_bytes(&self) -> u64 {
        self.weights_bytes + self.row_bytes
    }

    /// Seconds until everything that the first token needs has been read from an SD card of 40
    /// MB/s: computed, not measured.
    pub fn sd_card_seconds(&self) -> f64 {
        let bytes = match self.file {
            MappingKind::Mapped => self.tables_bytes + self.weights_bytes,
            MappingKind::BuiltIn | MappingKind::Memory => {
                self.tables_bytes + self.weights_bytes + self.embedding_bytes
            }
        };
        bytes as f64 / SD_CARD as f64
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, bytes: u64, note: &str| {
            let line = format!("  {name:<24} {bytes:>14} B  {}  {note}", Mib(bytes));
            writeln!(f, "{}", line.trim_end())
        };
        for part in self.parts() {
            row(f, part.name, part.bytes, part.note)?;
        }
        row(f, "arena in total", self.arena_bytes() as u64, "one allocation")?;
        row(f, "read per token", self.token_bytes(), "at most, of the file")?;
        let without = if self.file == MappingKind::Mapped { ", without the embedding" } else { "" };
        row(f, "resident", self.resident_bytes(), &format!("at most{without}"))
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
    fn the_embedding_is_resident_unless_the_file_is_mapped() {
        let mapped = MemoryPlan {
            weights_bytes: 1000,
            embedding_bytes: 500,
            tables_bytes: 70,
            program_bytes: 7,
            ..MemoryPlan::default()
        };
        let of = |file| MemoryPlan { file, ..mapped.clone() };
        let (built_in, memory) = (of(MappingKind::BuiltIn), of(MappingKind::Memory));
        assert_eq!([&mapped, &built_in, &memory].map(MemoryPlan::resident_bytes), [1077, 1577, 1577]);
        let (text, mapped) = (memory.to_string(), mapped.to_string());
        assert!(mapped.contains("mapped, read by every token") && mapped.contains("without the embedding"));
        assert!(text.contains("in memory") && !text.contains("mapped"), "{text}");
        assert!(text.trim_end().ends_with("  at most"), "{text}");
    }

    #[test]
    fn every_buffer_is_an_entry_and_counts() {
        let region = |name, bytes| Region { name, bytes };
        let plan = MemoryPlan {
            regions: vec![region("logits", 64), region("sampling", 128)],
            buffers: vec![region("prompt", 1000)],
            sessions: 2,
            state_bytes: 4,
            sampler_bytes: 5,
            heap_bytes: 6,
            stack_bytes: 7,
            ..MemoryPlan::default()
        };
        let names: Vec<_> = plan.parts().map(|part| part.name).collect();
        let process = ["tensor names and places", "worker stacks"];
        assert_eq!(names, ["state", "sampler", "logits", "sampling", "prompt", process[0], process[1]]);
        assert_eq!((plan.arena_bytes(), plan.resident_bytes()), (192, 1208));
        assert_eq!(plan.address_space_bytes(), 1214);
    }

    #[test]
    fn the_time_of_an_sd_card_is_that_of_what_is_read() {
        let plan = MemoryPlan {
            weights_bytes: 70_000_000,
            tables_bytes: 10_000_000,
            embedding_bytes: 40_000_000,
            ..MemoryPlan::default()
        };
        assert_eq!(plan.sd_card_seconds(), 2.0);
        assert_eq!(MemoryPlan { file: MappingKind::Memory, ..plan }.sd_card_seconds(), 3.0);
    }
}

//! The memory of a command: how the model file comes to it, and its limit.

use std::cmp::Reverse;
use std::iter;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Error, Result, bail};
use clap::{Args, ValueEnum};
use rwkv_edge::format::{ElementType, Load, MappingKind, ModelHeader, TensorInfo};
use rwkv_edge::kernels::Isa;
use rwkv_edge::memory::Region;
use rwkv_edge::model::choose_kernels;
use rwkv_edge::tokenizer::Kind;
use rwkv_edge::{EngineOptions, MemoryPlan, Model, PlanOptions, default_prompt_chunk, host, input};

use crate::args::{builtin_bytes, model_name};

/// How the model file comes to memory, and how much there may be.
#[derive(Args)]
pub(crate) struct MemoryArgs {
    /// Map the model file, or copy it into memory [default: map, or copy if the file system has no
    /// mappings]. The built-in model is a part of the program
    #[arg(long, value_enum, value_name = "HOW")]
    load: Option<LoadArg>,
    /// Lock weights, buffers and states in memory, so that the system never drops or swaps them
    #[arg(long)]
    pub(crate) mlock: bool,
    /// Refuse a model that needs more memory than this, such as 350M or 1.5G; `plan` shows what it
    /// needs
    #[arg(long = "memory-limit", value_name = "SIZE")]
    limit: Option<Size>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LoadArg {
    /// The pages of the file, which all processes share
    Mmap,
    /// A copy in memory of this process
    Copy,
}

/// A number of bytes. K, M and G are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a size is a number with K, M or G behind it, such as 350M";
        let text = text.trim().trim_end_matches("iB").trim_end_matches('B');
        let shift = match text.chars().last().map(|unit| unit.to_ascii_uppercase()) {
            Some('K') => 10,
            Some('M') => 20,
            Some('G') => 30,
            _ => 0,
        };
        let number = if shift > 0 { &text[..text.len() - 1] } else { text };
        let number: f64 = number.trim().parse().map_err(|_| WRONG)?;
        let bytes = number * (1u64 << shift) as f64;
        if !(1.0..=i64::MAX as f64).contains(&bytes) {
            return Err(WRONG);
        }
        Ok(Self(bytes as u64))
    }
}

/// What a command does with a model.
pub(crate) struct Demand {
    pub(crate) engine: EngineOptions,
    /// Number of texts, with a state and a sampler each.
    pub(crate) sessions: usize,
    /// Whether it reads the weights. If not, only the header and the tokenizer become resident.
    pub(crate) reads_weights: bool,
    /// Buffers besides those of the engine and the texts.
    pub(crate) buffers: Vec<Region>,
    /// Bytes for each byte of a text, besides the text and its tokens.
    pub(crate) per_text_byte: u64,
}

impl Demand {
    /// One text.
    pub(crate) fn new(engine: EngineOptions) -> Self {
        Self { engine, sessions: 1, reads_weights: true, buffers: Vec::new(), per_text_byte: 0 }
    }

    /// Header and tokenizer only.
    pub(crate) fn header() -> Self {
        let engine = EngineOptions { threads: Some(1), prompt_chunk: Some(1), ..EngineOptions::default() };
        Self { reads_weights: false, ..Self::new(engine) }
    }
}

impl MemoryArgs {
    /// How to load a model file. With a limit, it is not copied unless the user asks for that.
    pub(crate) fn load(&self) -> Load {
        match (self.load, self.limit) {
            (Some(LoadArg::Copy), _) => Load::Copy,
            (Some(LoadArg::Mmap), _) | (None, Some(_)) => Load::Map,
            (None, None) => Load::MapOrCopy,
        }
    }

    /// The memory that a model will take, which is not loaded; without a path, the built-in model.
    pub(crate) fn plan(&self, path: Option<&Path>, isa: Option<Isa>, demand: &Demand) -> Result<MemoryPlan> {
        let (header, file) = self.header(path)?;
        plan(&header, &options(file, isa, demand), demand)
    }

    /// The memory of a model that is loaded.
    pub(crate) fn plan_loaded(&self, model: &Model, demand: &Demand) -> Result<MemoryPlan> {
        let (file, isa) = (model.file(), Some(model.kernels().isa()));
        plan(file.header(), &options(file.mapping().kind(), isa, demand), demand)
    }

    /// Refuses a model that exceeds the limit, before it is loaded.
    pub(crate) fn check(&self, path: Option<&Path>, isa: Option<Isa>, demand: &Demand) -> Result<()> {
        let Some(Size(limit)) = self.limit else { return Ok(()) };
        let (header, file) = self.header(path)?;
        let options = options(file, isa, demand);
        if plan(&header, &options, demand)?.resident_bytes() <= limit {
            return Ok(());
        }
        bail!("{}: {}", model_name(path), refusal(&header, &options, demand, limit)?)
    }

    /// Most bytes of a text that fit beside what `demand` takes.
    pub(crate) fn text_limit(&self, model: &Model, demand: &Demand) -> Result<u64> {
        let Some(Size(limit)) = self.limit else { return Ok(input::MAX_TEXT) };
        let room = limit.saturating_sub(self.plan_loaded(model, demand)?.resident_bytes());
        // A byte of text is at worst a token of four bytes. Merging a long word takes more.
        let bytes = if model.tokenizer().kind() == Kind::Bpe { 72 } else { 5 };
        Ok(input::MAX_TEXT.min(room / (bytes + demand.per_text_byte)))
    }

    /// The header of a model file, and where its bytes will be.
    fn header(&self, path: Option<&Path>) -> Result<(ModelHeader, MappingKind)> {
        let header = match path {
            Some(path) => ModelHeader::open(path)?,
            None => ModelHeader::of_bytes(builtin_bytes()?)?,
        };
        let kind = match (self.load(), path) {
            (_, None) => MappingKind::BuiltIn,
            (Load::Copy, Some(_)) => MappingKind::Memory,
            (_, Some(_)) => MappingKind::Mapped,
        };
        Ok((header, kind))
    }
}

fn options(file: MappingKind, isa: Option<Isa>, demand: &Demand) -> PlanOptions {
    PlanOptions { engine: demand.engine, isa, sessions: demand.sessions, file }
}

/// The memory of this program with a model.
fn plan(header: &ModelHeader, options: &PlanOptions, demand: &Demand) -> Result<MemoryPlan> {
    let mut plan = MemoryPlan::new(header, options)?;
    plan.buffers.clone_from(&demand.buffers);
    // The built-in model is a part of the program, but has entries of its own.
    let built_in = builtin_bytes().map_or(0, |bytes| bytes.len() as u64);
    plan.program_bytes = host::program_bytes().map_or(0, |bytes| bytes.saturating_sub(built_in));
    if !demand.reads_weights && options.file != MappingKind::Memory {
        (plan.weights_bytes, plan.embedding_bytes) = (0, 0);
    }
    Ok(plan)
}

/// Why a model does not fit `limit` bytes, and what to change.
fn refusal(header: &ModelHeader, options: &PlanOptions, demand: &Demand, limit: u64) -> Result<String> {
    let needed = plan(header, options, demand)?;
    let mut parts: Vec<_> = needed.parts().filter(|part| part.resident > 0).collect();
    parts.sort_by_key(|part| Reverse(part.resident));
    let parts: Vec<_> =
        parts.iter().take(4).map(|part| format!("{} {}", part.name, mib(part.resident))).collect();
    let advice =
        match smaller(options, |options| Ok(plan(header, options, demand)?.resident_bytes() <= limit))? {
            Some(flags) => format!("it fits with {flags}"),
            None if header.tensors().iter().any(is_wide) => {
                "a file of `rwkv-quantize --type int4` is smaller".into()
            }
            None => "a smaller model is needed".into(),
        };
    Ok(format!(
        "needs {} MiB of memory, more than the limit of {} MiB: {} MiB among others; {advice}",
        mib(needed.resident_bytes()),
        mib(limit),
        parts.join(", ")
    ))
}

/// The options that make a model fit, with the least change.
fn smaller(options: &PlanOptions, fits: impl Fn(&PlanOptions) -> Result<bool>) -> Result<Option<String>> {
    let mut options = *options;
    let mut flags = Vec::new();
    if options.file == MappingKind::Memory {
        options.file = MappingKind::Mapped;
        flags.push("--load mmap".into());
        if fits(&options)? {
            return Ok(Some(flags.join(" ")));
        }
    }
    let chunk = options.engine.prompt_chunk;
    let chunk =
        chunk.map_or_else(|| Ok(default_prompt_chunk(choose_kernels(options.isa)?.isa())), Ok::<_, Error>)?;
    let chunks = iter::successors(Some(chunk / 2), |chunk| Some(chunk / 2)).take_while(|&chunk| chunk > 0);
    for chunk in chunks.clone() {
        options.engine.prompt_chunk = Some(chunk);
        if fits(&options)? {
            flags.push(format!("--prompt-chunk {chunk}"));
            return Ok(Some(flags.join(" ")));
        }
    }
    if chunk > 1 {
        flags.push("--prompt-chunk 1".into());
    }
    for sessions in (1..options.sessions).rev() {
        options.sessions = sessions;
        if fits(&options)? {
            flags.push(format!("--sessions {sessions}"));
            return Ok(Some(flags.join(" ")));
        }
    }
    Ok(None)
}

/// Whether the type of a tensor shows that the file is not int4. Some tensors of an int4 file have
/// other types.
fn is_wide(tensor: &TensorInfo) -> bool {
    tensor.name.ends_with(".ffn.key.weight")
        && !matches!(tensor.dtype, ElementType::Int4 | ElementType::Int4n)
}

/// MiB with a decimal.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_powers_of_1024_and_nonsense_is_refused() {
        let bytes = |text: &str| text.parse::<Size>().map(|Size(bytes)| bytes);
        for (text, expected) in
            [("512", 512), ("1k", 1024), ("350M", 350 << 20), ("350MiB", 350 << 20), ("1.5G", 3 << 29)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "-1M", "0", "1T", "nan", "inf", "1e30G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_advice_is_the_smallest_change_that_fits() {
        let options = PlanOptions {
            engine: EngineOptions { prompt_chunk: Some(32), ..EngineOptions::default() },
            sessions: 3,
            ..PlanOptions::default()
        };
        let fits = |most: usize| {
            move |options: &PlanOptions| {
                let copy = if options.file == MappingKind::Memory { 1000 } else { 0 };
                Ok(copy + 100 * options.sessions + options.engine.prompt_chunk.unwrap() <= most)
            }
        };
        let advice = |options, most| smaller(options, fits(most)).unwrap();
        assert_eq!(advice(&options, 310).unwrap(), "--prompt-chunk 8");
        assert_eq!(advice(&options, 202).unwrap(), "--prompt-chunk 1 --sessions 2");
        assert_eq!(advice(&options, 100), None);
        let copied = PlanOptions { file: MappingKind::Memory, ..options };
        assert_eq!(advice(&copied, 400).unwrap(), "--load mmap");
        assert_eq!(advice(&copied, 316).unwrap(), "--load mmap --prompt-chunk 16");
    }
}

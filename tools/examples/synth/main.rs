//! Writes a synthetic RWKV checkpoint with seeded random weights, of any size and in constant memory.
//!
//! For benchmarks and for tests of the converter with sizes whose real weights are not at hand, from a few kilobytes to
//! the 28 GB of a 14B model. The model says nothing sensible, but its numbers behave like a trained one's: activations
//! neither vanish nor explode over the layers, decays cover slow and fast channels, and the squared relu of channel
//! mixing yields the share of zeros that `--sparsity` asks for.
//!
//! ```text
//! cargo run --release -p rwkv-quantize --example synth -- OUT.pth --version 7 --n-layer 24 --n-embd 2048
//! ```
//!
//! The extension of the output decides between a torch zip file and safetensors. The same arguments give the same
//! file on every machine. Names and shapes are those of the released checkpoints, and so are the sizes that are not
//! given.

mod fill;
mod model;
mod output;
mod sizes;
mod time_mix;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use rwkv_quantize::source::SourceDType;
use rwkv_quantize::source::torch_writer::TensorSpec;

use fill::Elements;
use output::Output;
use sizes::Sizes;

/// Write a synthetic RWKV checkpoint.
#[derive(Parser, Debug)]
struct Options {
    /// Output, .pth or .safetensors
    output: PathBuf,
    /// RWKV version
    #[arg(long, value_enum, default_value = "4")]
    version: Version,
    /// Layers
    #[arg(long)]
    n_layer: usize,
    /// Embedding width
    #[arg(long)]
    n_embd: usize,
    /// Vocabulary [default: 50277 for version 4, 65536 for the others]
    #[arg(long)]
    n_vocab: Option<usize>,
    /// Channel-mix width [default: 4 times the embedding width; 3.5 times, rounded down to 32, for 5.1, 5.2 and 6]
    #[arg(long)]
    n_ffn: Option<usize>,
    /// Channels of a head; not for version 4
    #[arg(long, default_value_t = 64)]
    head_size: usize,
    /// Low-rank sizes: mix,decay for version 6; w,a,v,g for version 7 [default: as released for the embedding width]
    #[arg(long, value_delimiter = ',')]
    ranks: Option<Vec<usize>>,
    /// Seed of all weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Element type
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DType,
    /// Share of the squared-relu inputs below zero, 0.01 to 0.99
    #[arg(long, default_value_t = 0.88)]
    sparsity: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Version {
    #[value(name = "4")]
    V4,
    #[value(name = "5.0")]
    V5_0,
    #[value(name = "5.1")]
    V5_1,
    #[value(name = "5.2")]
    V5_2,
    #[value(name = "6")]
    V6,
    #[value(name = "7")]
    V7,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DType {
    Bf16,
    F16,
    F32,
}

impl From<DType> for SourceDType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::Bf16 => Self::BF16,
            DType::F16 => Self::F16,
            DType::F32 => Self::F32,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!((0.01..=0.99).contains(&options.sparsity), "--sparsity must be 0.01 to 0.99");
    let start = Instant::now();
    let sizes = Sizes::new(&options)?;
    let plans = model::plans(&sizes, options.dtype.into(), options.sparsity);
    let specs: Vec<_> = plans.iter().map(|plan| plan.spec.clone()).collect();
    let show = || options.output.display().to_string();
    let mut output = Output::create(&options.output, &specs).with_context(show)?;
    for plan in &plans {
        let elements = Elements::new(plan, options.seed, sizes.width);
        output.tensor(&plan.spec, elements).with_context(show)?;
    }
    output.finish().with_context(show)?;
    let parameters: u64 = specs.iter().map(TensorSpec::elements).sum();
    let megabytes = specs.iter().map(TensorSpec::bytes).sum::<u64>() as f64 / 1e6;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {} tensors, {:.1} M parameters, {megabytes:.1} MB in {seconds:.1} s ({:.0} MB/s)",
        show(),
        specs.len(),
        parameters as f64 / 1e6,
        megabytes / seconds
    );
    Ok(())
}

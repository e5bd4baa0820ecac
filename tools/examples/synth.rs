//! Writes a synthetic RWKV checkpoint with seeded random weights, of any size and in constant memory.
//!
//! For benchmarks and for tests of the converter with sizes whose real weights are not at hand, from a few kilobytes to
//! the 28 GB of a 14B model. The model says nothing sensible, but its numbers behave like a trained one's: activations
//! neither vanish nor explode over the layers, decays cover slow and fast channels, and the squared relu of channel
//! mixing yields the share of zeros that `--sparsity` asks for.
//!
//! ```text
//! cargo run --release -p rwkv-quantize --example synth -- OUT.pth --n-layer 24 --n-embd 2048 --n-vocab 50277
//! ```
//!
//! The extension of the output decides between a torch zip file and safetensors. The same arguments give the same
//! file on every machine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use half::{bf16, f16};
use rwkv_quantize::source::SourceDType;
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter};

/// Elements generated at once.
const BLOCK: usize = 1 << 15;

/// Largest absolute value in the pattern of `ln2.bias`, which carries the shift of `ffn.key`.
const PATTERN: f32 = 0.5;

/// Root mean square of what channel mixing adds to the residual stream.
const FFN_RMS: f64 = 0.35;

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
    /// Vocabulary
    #[arg(long)]
    n_vocab: usize,
    /// Channel-mix width [default: four times the embedding width]
    #[arg(long)]
    n_ffn: Option<usize>,
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

/// How the elements of a tensor are made.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Normal {
        mean: f32,
        std: f32,
    },
    Uniform {
        from: f32,
        to: f32,
    },
    /// From `from` to `to` over the tensor, with noise.
    Ramp {
        from: f32,
        to: f32,
        noise: f32,
    },
    /// Signs of a layer's pattern times a constant.
    Pattern {
        layer: usize,
        scale: f32,
    },
    /// Rows of normal values minus the layer's pattern.
    AgainstPattern {
        layer: usize,
        std: f32,
        scale: f32,
    },
}

/// A tensor and its elements.
struct Plan {
    spec: TensorSpec,
    fill: Fill,
}

/// Sizes of the model, and the list of tensors in the making.
struct Model<'o> {
    options: &'o Options,
    plans: Vec<Plan>,
}

impl Model<'_> {
    fn add(&mut self, name: String, shape: &[usize], fill: Fill) {
        let spec = TensorSpec { name, shape: shape.to_vec(), dtype: self.options.dtype.into() };
        self.plans.push(Plan { spec, fill });
    }

    /// A matrix whose product with inputs of unit variance has standard deviation `gain`.
    fn matrix(&mut self, name: String, rows: usize, columns: usize, gain: f64) {
        let std = (gain / (columns as f64).sqrt()) as f32;
        self.add(name, &[rows, columns], Fill::Normal { mean: 0.0, std });
    }

    fn layer_norm(&mut self, name: &str) {
        let width = self.options.n_embd;
        self.add(format!("{name}.weight"), &[width], Fill::Normal { mean: 1.0, std: 0.05 });
        self.add(format!("{name}.bias"), &[width], Fill::Normal { mean: 0.0, std: 0.02 });
    }

    fn mixes(&mut self, prefix: &str, letters: &str) {
        for letter in letters.chars() {
            let shape = [1, 1, self.options.n_embd];
            self.add(format!("{prefix}{letter}"), &shape, Fill::Uniform { from: 0.0, to: 1.0 });
        }
    }
}

/// The tensors of an RWKV-4 model, in the order of BlinkDL's files.
fn rwkv4(options: &Options) -> Vec<Plan> {
    let width = options.n_embd;
    let mut model = Model { options, plans: Vec::new() };
    model.add("emb.weight".into(), &[options.n_vocab, width], Fill::Normal { mean: 0.0, std: 0.5 });
    for layer in 0..options.n_layer {
        let block = format!("blocks.{layer}");
        model.layer_norm(&format!("{block}.ln1"));
        let bias = Fill::Pattern { layer, scale: PATTERN };
        model.add(format!("{block}.ln2.weight"), &[width], Fill::Normal { mean: 1.0, std: 0.05 });
        model.add(format!("{block}.ln2.bias"), &[width], bias);
        if layer == 0 {
            model.layer_norm(&format!("{block}.ln0"));
        }
        model.add(
            format!("{block}.att.time_decay"),
            &[width],
            Fill::Ramp { from: -6.0, to: 3.0, noise: 0.3 },
        );
        model.add(format!("{block}.att.time_first"), &[width], Fill::Normal { mean: 0.0, std: 0.5 });
        model.mixes(&format!("{block}.att.time_mix_"), "kvr");
        for (name, gain) in [("key", 1.0), ("value", 1.0), ("receptance", 1.0), ("output", 1.5)] {
            model.matrix(format!("{block}.att.{name}.weight"), width, width, gain);
        }
        model.mixes(&format!("{block}.ffn.time_mix_"), "kr");
        relu2_ffn(&mut model, layer);
        model.matrix(format!("{block}.ffn.receptance.weight"), width, width, 1.0);
    }
    model.layer_norm("ln_out");
    model.matrix("head.weight".into(), options.n_vocab, width, 1.5);
    model.plans
}

/// `ffn.key` and `ffn.value` of a squared-relu network with the sparsity that was asked for.
///
/// Each row of the key has a component against the pattern of `ln2.bias`, which token shift leaves alone. It shifts
/// every input of the relu by the same amount; the value is scaled so that its output keeps its size.
fn relu2_ffn(model: &mut Model<'_>, layer: usize) {
    let width = model.options.n_embd;
    let ffn = model.options.n_ffn.unwrap_or(4 * width);
    // Variance per element of a mixed input: two tokens of unit variance, partly alike, and the pattern.
    let input_std = (0.78 + f64::from(PATTERN).powi(2)).sqrt();
    let threshold = normal_quantile(model.options.sparsity);
    let key_std = 1.0 / (width as f64).sqrt();
    let scale = threshold * input_std / (f64::from(PATTERN) * width as f64);
    let fill = Fill::AgainstPattern { layer, std: key_std as f32, scale: scale as f32 };
    model.add(format!("blocks.{layer}.ffn.key.weight"), &[ffn, width], fill);
    let relu2_rms = input_std.powi(2) * relu_fourth_moment(threshold).sqrt();
    // The receptance halves the output on average.
    model.matrix(format!("blocks.{layer}.ffn.value.weight"), width, ffn, 2.0 * FFN_RMS / relu2_rms);
}

/// `P(z > t)` for a standard normal `z`.
fn normal_tail(t: f64) -> f64 {
    0.5 * libm::erfc(t / std::f64::consts::SQRT_2)
}

/// The value below which a standard normal is with probability `p`.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        *(if 1.0 - normal_tail(middle) < p { &mut low } else { &mut high }) = middle;
    }
    0.5 * (low + high)
}

/// `E[max(z - t, 0)^4]` for a standard normal `z`.
fn relu_fourth_moment(t: f64) -> f64 {
    let density = libm::exp(-0.5 * t * t) / (2.0 * std::f64::consts::PI).sqrt();
    (t.powi(4) + 6.0 * t * t + 3.0) * normal_tail(t) - (t.powi(3) + 5.0 * t) * density
}

/// SplitMix64: a step and three mixing rounds per number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal, unit variance: the sum of four uniform numbers, so never beyond 3.5.
    fn normal(&mut self) -> f32 {
        let x = self.next();
        let sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
        (sum as i32 - 2 * 0xffff) as f32 * (1.732_050_8 / 65536.0)
    }
}

/// Produces the elements of one tensor in order.
struct Elements {
    fill: Fill,
    random: Random,
    /// Signs of the layer's pattern, one per column.
    signs: Vec<f32>,
    count: u64,
    at: u64,
}

impl Elements {
    fn new(plan: &Plan, options: &Options) -> Self {
        let name_hash =
            plan.spec.name.bytes().fold(options.seed, |hash, byte| Random(hash ^ u64::from(byte)).next());
        let signs = match plan.fill {
            Fill::Pattern { layer, .. } | Fill::AgainstPattern { layer, .. } => {
                let mut random = Random(options.seed ^ (layer as u64 + 1) << 32);
                (0..options.n_embd).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect()
            }
            _ => Vec::new(),
        };
        Self { fill: plan.fill, random: Random(name_hash), signs, count: plan.spec.elements(), at: 0 }
    }

    /// Fills a block. Blocks of tensors with a pattern hold whole rows.
    fn fill(&mut self, out: &mut [f32]) {
        let random = &mut self.random;
        match self.fill {
            Fill::Normal { mean, std } => out.iter_mut().for_each(|x| *x = random.normal() * std + mean),
            Fill::Uniform { from, to } => {
                out.iter_mut().for_each(|x| *x = random.uniform() * (to - from) + from)
            }
            Fill::Ramp { from, to, noise } => {
                let step = (to - from) / self.count.max(2).saturating_sub(1) as f32;
                for (index, x) in (self.at..).zip(&mut *out) {
                    *x = (from + step * index as f32 + noise * random.normal()).clamp(from, to);
                }
            }
            Fill::Pattern { scale, .. } => {
                out.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x = scale * sign)
            }
            Fill::AgainstPattern { std, scale, .. } => {
                for row in out.chunks_mut(self.signs.len()) {
                    for (x, sign) in row.iter_mut().zip(&self.signs) {
                        *x = random.normal() * std - scale * sign;
                    }
                }
            }
        }
        self.at += out.len() as u64;
    }

    /// Elements per block.
    fn block(&self) -> usize {
        match self.signs.len() {
            0 => BLOCK,
            row => row * (BLOCK / row).max(1),
        }
    }
}

/// The file being written.
enum Output {
    Torch(TorchWriter<BufWriter<File>>),
    Safetensors(BufWriter<File>),
}

impl Output {
    fn create(path: &Path, tensors: &[TensorSpec]) -> anyhow::Result<Self> {
        let create = || File::create(path).map(|file| BufWriter::with_capacity(1 << 20, file));
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pth") => {
                let top = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("archive");
                Ok(Self::Torch(TorchWriter::new(create()?, top, tensors)?))
            }
            Some("safetensors") => {
                let mut out = create()?;
                out.write_all(&safetensors_header(tensors))?;
                Ok(Self::Safetensors(out))
            }
            _ => bail!("the output must end in .pth or .safetensors"),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Torch(out) => out.write(bytes),
            Self::Safetensors(out) => out.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Torch(out) => out.finish().map(drop),
            Self::Safetensors(mut out) => out.flush(),
        }
    }
}

/// Length and JSON header, padded with spaces so that the data is aligned.
fn safetensors_header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [at, end],
        });
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
}

fn encode(dtype: SourceDType, values: &[f32], out: &mut Vec<u8>) {
    out.clear();
    match dtype {
        SourceDType::BF16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        SourceDType::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        SourceDType::F32 => out.extend(values.iter().flat_map(|&x| x.to_le_bytes())),
        SourceDType::F64 => out.extend(values.iter().flat_map(|&x| f64::from(x).to_le_bytes())),
    }
}

fn write_tensor(output: &mut Output, plan: &Plan, options: &Options) -> io::Result<()> {
    let mut elements = Elements::new(plan, options);
    let mut values = vec![0.0; elements.block()];
    let mut bytes = Vec::new();
    let mut left = elements.count;
    while left > 0 {
        let count = left.min(values.len() as u64) as usize;
        elements.fill(&mut values[..count]);
        encode(plan.spec.dtype, &values[..count], &mut bytes);
        output.write(&bytes)?;
        left -= count as u64;
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!((0.01..=0.99).contains(&options.sparsity), "--sparsity must be 0.01 to 0.99");
    ensure!(options.n_layer > 0 && options.n_embd > 0 && options.n_vocab > 0, "all sizes must be positive");
    let start = Instant::now();
    let plans = match options.version {
        Version::V4 => rwkv4(&options),
    };
    let specs: Vec<_> = plans.iter().map(|plan| plan.spec.clone()).collect();
    let show = || options.output.display().to_string();
    let mut output = Output::create(&options.output, &specs).with_context(show)?;
    for plan in &plans {
        write_tensor(&mut output, plan, &options).with_context(show)?;
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

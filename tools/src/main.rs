//! `rwkv-quantize`: convert a checkpoint to one quantized `.rwkv` file.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rwkv_edge::kernels::DType;
use rwkv_edge::{console, cpu};
use rwkv_quantize::chat::Template;
use rwkv_quantize::convert::{Conversion, Options, Progress};
use rwkv_quantize::policy::Wanted;
use rwkv_quantize::source::Checkpoint;
use rwkv_quantize::{dims, report};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Convert an RWKV checkpoint (.pth, .safetensors, rwkv.cpp .bin) to one quantized .rwkv file
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Checkpoint to read
    input: PathBuf,
    /// File to write; it appears under this name when it is complete
    #[arg(required_unless_present = "inspect")]
    output: Option<PathBuf>,
    /// Type of the projections; head and embedding have 8 bits in int4 files, vectors are always f32
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = Type::Int8)]
    dtype: Type,
    /// Keep an int8 head in one plane, instead of two of int4 of which decoding reads the second only in part
    #[arg(long)]
    plain_head: bool,
    /// Vocabulary: World format (`id literal length` lines) or tokenizer.json of a byte-level BPE
    /// [default: World for 65536 tokens, bytes for 256]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Chat template [default: world for models of 65536 tokens, none otherwise]
    #[arg(long, value_enum)]
    chat: Option<Template>,
    /// Token fed before any text; may be given several times
    #[arg(long = "start-token", value_name = "ID")]
    start_tokens: Vec<u32>,
    /// Sampling defaults, such as temperature=0.8,top-p=0.5
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    sampling: Vec<String>,
    /// State-tuned model: file with the `time_state` tensors, if they are not in the checkpoint
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Epsilon of the group norm of RWKV-5 to 7, for checkpoints that were made with another than BlinkDL's
    #[arg(long, value_name = "EPS", default_value_t = dims::GROUP_NORM_EPS)]
    group_norm_eps: f32,
    /// Threads [default: the physical performance cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Print what the checkpoint holds and what would be written, and convert nothing
    #[arg(long)]
    inspect: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    Int8,
    Int4,
    F16,
    F32,
}

impl From<Type> for DType {
    fn from(dtype: Type) -> Self {
        match dtype {
            Type::Int8 => DType::Int8,
            Type::Int4 => DType::Int4,
            Type::F16 => DType::F16,
            Type::F32 => DType::F32,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if console::is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("rwkv-quantize: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let options = Options {
        wanted: Wanted { dtype: cli.dtype.into(), plain_head: cli.plain_head },
        tokenizer: cli.tokenizer.clone(),
        template: cli.chat,
        start_tokens: cli.start_tokens.clone(),
        sampling: cli.sampling.clone(),
        state: cli.state.clone(),
        group_norm_eps: cli.group_norm_eps,
        threads: cli.threads.map_or_else(cpu::default_threads, usize::from),
    };
    if cli.inspect {
        return inspect(cli, &options);
    }
    let conversion = Conversion::prepare(&cli.input, &options)?;
    let output = cli.output.as_ref().context("no output file")?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let source_bytes = conversion.checkpoint().file_len();
    let started = Instant::now();
    let mut progress = Meter::new();
    let report = conversion.run(output, &mut progress, &interrupted);
    progress.end();
    let report = report?;
    let seconds = started.elapsed().as_secs_f64();
    console::say(format_args!("{report}"));
    let speed = source_bytes as f64 / 1e6 / seconds;
    console::say(format_args!("{seconds:.1} s, {speed:.0} MB/s of input, peak RSS {}", console::peak_rss()));
    Ok(())
}

fn inspect(cli: &Cli, options: &Options) -> Result<()> {
    let (conversion, tokenizer_error) = Conversion::of(Checkpoint::open(&cli.input)?, options)?;
    let out = &mut io::stdout().lock();
    let checkpoint = conversion.checkpoint();
    let config = &conversion.plan().contents().config;
    writeln!(out, "{}: {}, {} bytes", checkpoint.file_name(), checkpoint.container(), checkpoint.file_len())?;
    writeln!(
        out,
        "{}: {} layers, n_embd {}, n_att {}, n_ffn {}, n_vocab {}",
        config.version, config.n_layer, config.n_embd, config.n_att, config.n_ffn, config.n_vocab
    )?;
    writeln!(out, "tensors in the checkpoint:")?;
    for tensor in checkpoint.tensors() {
        writeln!(out, "  {:<36} {:?} {}", tensor.name, tensor.shape, tensor.dtype)?;
    }
    let size = conversion.plan().file_len();
    match tokenizer_error {
        None => writeln!(out, "would write {size} bytes:")?,
        Some(error) => writeln!(out, "would write {size} bytes and a tokenizer, but {error:#}:")?,
    }
    write!(out, "{}", report::tensor_list(conversion.plan()))?;
    Ok(())
}

/// A progress bar on a terminal; elsewhere a line for every tenth.
enum Meter {
    Bar(ProgressBar),
    Lines { tenths: u64, shown: Instant },
}

impl Meter {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Meter::Lines { tenths: 0, shown: Instant::now() };
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} % {eta:>4} {msg:36}") {
            bar.set_style(style);
        }
        Meter::Bar(bar)
    }

    fn end(&self) {
        if let Meter::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Meter {
    fn update(&mut self, done: u64, total: u64, tensor: &str) {
        match self {
            Meter::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(tensor.to_owned());
            }
            Meter::Lines { tenths, shown } => {
                let now = 10 * done / total.max(1);
                if now > *tenths && (shown.elapsed() > Duration::from_secs(1) || now == 10) {
                    console::say(format_args!("{} % {tensor}", 10 * now));
                    *tenths = now;
                    *shown = Instant::now();
                }
            }
        }
    }
}

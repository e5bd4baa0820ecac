//! `rwkv-quantize`: convert a checkpoint to one quantized `.rwkv` file.

mod cli;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rwkv_edge::{console, signals};
use rwkv_quantize::convert::{Conversion, Options, Progress};
use rwkv_quantize::report;
use rwkv_quantize::synth::{self, Recipe};

fn main() -> ExitCode {
    match run(cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::report("rwkv-quantize", &*error),
    }
}

fn run(task: cli::Task) -> Result<()> {
    signals::prepare()?;
    match task {
        cli::Task::Inspect(source, options) => inspect(&source, &options),
        cli::Task::Convert(source, options, output) => convert(&source, &options, &output),
        cli::Task::Synthesize(recipe, output) => synthesize(&recipe, &output),
    }
}

fn convert(source: &cli::Source, options: &Options, output: &Path) -> Result<()> {
    let (conversion, tokenizer_error) = Conversion::of(source.open()?, options)?;
    if let Some(error) = tokenizer_error {
        return Err(error);
    }
    if conversion.has_byte_tokens() {
        let n_vocab = conversion.plan().contents().config.n_vocab;
        console::say(format_args!(
            "no built-in vocabulary has {n_vocab} tokens: the model gets bytes as tokens"
        ));
    }
    let source_bytes = conversion.checkpoint().file_len();
    let (report, seconds) = timed(|progress, interrupted| conversion.run(output, progress, interrupted))?;
    console::say(format_args!("{report}"));
    let speed = source_bytes as f64 / 1e6 / seconds;
    console::say(format_args!("{seconds:.1} s, {speed:.0} MB/s of input, peak RSS {}", console::peak_rss()));
    Ok(())
}

fn synthesize(recipe: &Recipe, output: &Path) -> Result<()> {
    let (bytes, seconds) =
        timed(|progress, interrupted| synth::write(recipe, output, progress, interrupted))?;
    let speed = bytes as f64 / 1e6 / seconds;
    console::say(format_args!("{recipe}: {bytes} bytes, {seconds:.1} s, {speed:.0} MB/s"));
    Ok(())
}

/// Runs a job that shows its progress and ends on signals; returns how many seconds it took.
fn timed<T>(job: impl FnOnce(&mut Meter, &AtomicBool) -> Result<T>) -> Result<(T, f64)> {
    let interrupted = signals::catch(signals::ENDING)?;
    let started = Instant::now();
    let mut progress = Meter::new();
    let result = job(&mut progress, interrupted);
    progress.end();
    Ok((result?, started.elapsed().as_secs_f64()))
}

fn inspect(source: &cli::Source, options: &Options) -> Result<()> {
    let (conversion, tokenizer_error) = Conversion::of(source.open()?, options)?;
    let out = &mut io::stdout().lock();
    let checkpoint = conversion.checkpoint();
    let config = &conversion.plan().contents().config;
    writeln!(
        out,
        "{}: {}, {} bytes",
        checkpoint.file_name(),
        conversion.plan().contents().provenance.source_format,
        checkpoint.file_len()
    )?;
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

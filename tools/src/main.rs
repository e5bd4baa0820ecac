//! `rwkv-quantize`: convert a checkpoint to one quantized `.rwkv` file.

mod cli;
#[cfg(test)]
#[path = "../../tests/common/pages.rs"]
mod pages;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use rwkv_edge::printable::Printable;
use rwkv_edge::stdio::StatusLine;
use rwkv_edge::{signals, stdio};
use rwkv_quantize::convert::{Conversion, Options};
use rwkv_quantize::digest;
use rwkv_quantize::job::{Job, Progress};
use rwkv_quantize::report;
use rwkv_quantize::synth::{self, Recipe};
use rwkv_quantize::tuned::TunedState;

#[cfg(test)]
use cli::options;

fn main() -> ExitCode {
    match run(cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => stdio::report("rwkv-quantize", &*error),
    }
}

fn run(task: cli::Task) -> Result<()> {
    signals::prepare()?;
    match task {
        cli::Task::Inspect(source, options) => inspect(&source, &options),
        cli::Task::Convert(source, options, output) => convert(&source, &options, &output),
        cli::Task::Synthesize(recipe, output) => synthesize(&recipe, &output),
        cli::Task::Tune(state, output) => tune(&state, &output),
    }
}

fn convert(source: &cli::Source, options: &Options, output: &cli::Output) -> Result<()> {
    let checkpoint = source.open(options.naming)?;
    let target = output.target()?;
    let (conversion, tokenizer_error) = Conversion::of(checkpoint, options)?;
    if let Some(error) = tokenizer_error {
        return Err(error);
    }
    if conversion.has_byte_tokens() {
        let n_vocab = conversion.layout().contents().config.n_vocab;
        stdio::eprint_line(format_args!(
            "no built-in vocabulary has {n_vocab} tokens: the model gets bytes as tokens"
        ));
    }
    conversion.notes().iter().for_each(|note| stdio::eprint_line(format_args!("{}", Printable(note))));
    let source_bytes = conversion.checkpoint().file_len();
    let ((report, published), seconds) = timed(|job| conversion.run(target, job))?;
    report.warnings.iter().for_each(|warning| warn(warning));
    published.warning().iter().for_each(|warning| warn(warning));
    report.to_string().lines().for_each(|line| stdio::eprint_line(format_args!("{line}")));
    if output.is_default {
        stdio::eprint_line(format_args!("wrote {}", Printable(output.path().display())));
    }
    let speed = source_bytes as f64 / 1e6 / seconds;
    stdio::eprint_line(format_args!(
        "{seconds:.1} s, {speed:.0} MB/s of input, peak RSS {}",
        stdio::peak_rss()
    ));
    Ok(())
}

fn synthesize(recipe: &Recipe, output: &cli::Output) -> Result<()> {
    let target = output.target()?;
    let ((bytes, published), seconds) = timed(|job| synth::write(recipe, target, job))?;
    published.warning().iter().for_each(|warning| warn(warning));
    let speed = bytes as f64 / 1e6 / seconds;
    stdio::eprint_line(format_args!("{recipe}: {bytes} bytes, {seconds:.1} s, {speed:.0} MB/s"));
    Ok(())
}

fn tune(state: &TunedState, output: &cli::Output) -> Result<()> {
    let target = output.state_target()?;
    let interrupted = signals::catch(signals::ENDING)?;
    let (warnings, published) = state.write(target, interrupted)?;
    warnings.iter().for_each(|warning| warn(warning));
    published.warning().iter().for_each(|warning| warn(warning));
    Ok(())
}

/// Says what a user should know about a file that was written.
fn warn(warning: &dyn Display) {
    stdio::eprint_line(format_args!("rwkv-quantize: warning: {warning}"));
}

/// Runs a job that shows its progress and ends on signals; returns how many seconds it took.
fn timed<T>(work: impl FnOnce(Job<'_>) -> Result<T>) -> Result<(T, f64)> {
    let interrupted = signals::catch(signals::ENDING)?;
    let started = Instant::now();
    let mut progress = Meter::new();
    let result = work(Job::new(&mut progress, interrupted));
    drop(progress);
    Ok((result?, started.elapsed().as_secs_f64()))
}

fn inspect(source: &cli::Source, options: &Options) -> Result<()> {
    let (conversion, tokenizer_error) = Conversion::of(source.open(options.naming)?, options)?;
    let out = &mut stdio::stdout();
    let checkpoint = conversion.checkpoint();
    let config = &conversion.layout().contents().config;
    writeln!(
        out,
        "{}: {}, {} bytes",
        Printable(checkpoint.file_name()),
        conversion.layout().contents().provenance.source_format,
        checkpoint.file_len()
    )?;
    writeln!(
        out,
        "{}: {} layers, n_embd {}, n_att {}, n_ffn {}, n_vocab {}",
        config.version(),
        config.n_layer,
        config.n_embd,
        config.n_att,
        config.n_ffn,
        config.n_vocab
    )?;
    for path in checkpoint.paths() {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        writeln!(out, "sha256 {}  {}", digest::sha256_hex(path)?, Printable(name))?;
    }
    for note in conversion.notes() {
        writeln!(out, "{}", Printable(note))?;
    }
    writeln!(out, "tensors in the checkpoint:")?;
    for tensor in checkpoint.tensors() {
        let name = Printable(&tensor.name).to_string();
        writeln!(out, "  {name:<36} {:?} {}", tensor.shape, tensor.dtype)?;
    }
    if !checkpoint.other_entries().is_empty() {
        writeln!(out, "not read: {}", Printable(checkpoint.other_entries().join(", ")))?;
    }
    let size = conversion.layout().file_len();
    match tokenizer_error {
        None => writeln!(out, "would write {size} bytes:")?,
        Some(error) => writeln!(
            out,
            "would write {size} bytes and a tokenizer, but {}:",
            Printable(format_args!("{error:#}"))
        )?,
    }
    write!(out, "{}", report::tensor_list(conversion.layout()))?;
    Ok(out.flush()?)
}

/// Progress on standard error: a line that is rewritten on a terminal, one for every tenth
/// elsewhere.
struct Meter {
    started: Instant,
    shown: Instant,
    tenths: u64,
    /// Name of the part of the job, before its figures.
    part: String,
    terminal: Option<StatusLine>,
}

impl Meter {
    /// Between two tenths; the last one is always shown.
    const INTERVAL: Duration = Duration::from_secs(1);

    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, shown: now, tenths: 0, part: String::new(), terminal: StatusLine::on_terminal() }
    }
}

impl Progress for Meter {
    fn begin(&mut self, part: &str) {
        (self.started, self.tenths) = (Instant::now(), 0);
        self.part = if part.is_empty() { String::new() } else { format!("{part}: ") };
    }

    fn update(&mut self, done: u64, total: u64, tensor: &str) {
        let share = done as f64 / total.max(1) as f64;
        match &mut self.terminal {
            Some(line) => line.show(|| {
                let percent = 100.0 * share;
                let left = self.started.elapsed().as_secs_f64() * (1.0 / share - 1.0);
                // The first weights say little about the time of the rest.
                let left = if share < 0.01 { String::new() } else { format!("{left:.0} s left  ") };
                format!("{}{percent:>3.0} %  {left}{tensor}", self.part)
            }),
            None => {
                let tenths = 10 * done / total.max(1);
                let is_due = self.shown.elapsed() > Self::INTERVAL || tenths == 10;
                if tenths > self.tenths && is_due {
                    stdio::eprint_line(format_args!("{}{} % {tensor}", self.part, 10 * tenths));
                    self.tenths = tenths;
                    self.shown = Instant::now();
                }
            }
        }
    }
}

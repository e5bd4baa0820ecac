//! The command line of `rwkv-quantize`.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use rwkv_edge::format::{Replace, Target, Template, Variant};
use rwkv_edge::kernels::DType;
use rwkv_edge::{host, stdio};
use rwkv_quantize::calibration::{self, CalibrationText};
use rwkv_quantize::convert::Options;
use rwkv_quantize::policy::QuantSpec;
use rwkv_quantize::shapes::{RELEASED, Shape};
use rwkv_quantize::source::{Checkpoint, ENDINGS, Merge, Naming, SourceError};
use rwkv_quantize::synth::{self, Recipe};
use rwkv_quantize::tuned::TunedState;

const USAGE: &str = "rwkv-quantize [OPTIONS] <INPUT> [OUTPUT]
       rwkv-quantize [OPTIONS] --synth <SHAPE> <OUTPUT>
       rwkv-quantize --state-only <INPUT> <OUTPUT> --for <MODEL>
       rwkv-quantize [OPTIONS] --inspect <INPUT>";

/// Options of a model that do not apply to a checkpoint, by the names of their fields.
const MODEL_OPTIONS: [&str; 15] = [
    "dtype",
    "codes",
    "plain_head",
    "calibration",
    "effort",
    "naming",
    "variant",
    "tokenizer",
    "allow_unused_ids",
    "chat",
    "start_tokens",
    "sampling",
    "state",
    "adapter",
    "group_norm_eps",
];

/// Convert an RWKV checkpoint (.pth, .safetensors, GGUF, rwkv.cpp .bin) to one quantized .rwkv file
#[derive(Parser)]
#[command(version, max_term_width = 100, override_usage = USAGE)]
struct Cli {
    /// Checkpoint to read: a file, or a folder of Hugging Face's layout; with --synth there is none
    #[arg(value_name = "INPUT")]
    first: Option<PathBuf>,
    /// File to write; it appears under this name when it is complete [default: NAME-TYPE.rwkv
    /// beside INPUT]
    #[arg(value_name = "OUTPUT")]
    second: Option<PathBuf>,
    /// Type of the projections; head and embedding have 8 bits in int4 files, the first att.output
    /// f16 in quantized ones, and vectors are always f32
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = Type::Int8)]
    dtype: Type,
    /// With --type int4: what the 4 bits of a weight mean. A table has 0.7 times the squared error of
    /// linear codes; prompts are slower on AVX2 and 32-bit ARM
    #[arg(long, value_name = "CODES", value_enum)]
    codes: Option<Codes>,
    /// Text to measure activations on, which decide how weights of --codes table are rounded: a file,
    /// self (the model writes it) or none [default: a built-in text of 38 languages for vocabularies
    /// of World and Pile, else self; none with --synth]
    #[arg(long = "calib", value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// How weights of int4 are rounded. With high, later weights make up for the errors of those
    /// before, which needs activations
    #[arg(long, value_enum, default_value_t = Effort::Normal)]
    effort: Effort,
    /// Keep an int8 head in one plane, instead of two of int4 of which decoding reads the second
    /// only in part
    #[arg(long)]
    plain_head: bool,
    /// Who wrote a safetensors file of RWKV-7 whose low-rank factors are all square
    #[arg(long, value_enum)]
    naming: Option<Writer>,
    /// Arithmetic of a model that has the tensors of another: plain, othello-extended (RWKV-7 of
    /// RWKV_Othello) or puzzle (RWKV-6 of Sudoku-RWKV and RWKV-15Puzzle)
    #[arg(long, value_name = "VARIANT", default_value = "plain")]
    variant: Variant,
    /// Vocabulary: World format (`id literal length` lines, or web-rwkv's JSON) or tokenizer.json of
    /// a byte-level BPE or of words [default: that of a folder or of a GGUF file;
    /// else World for 65536 tokens, bytes for 256, and with --synth for any other number]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Take a vocabulary that has far fewer tokens than the model
    #[arg(long)]
    allow_unused_ids: bool,
    /// Chat template: world, think, flower, raven or none [default: that of a folder or
    /// of a GGUF file; else world for models of 65536 tokens, none otherwise]
    #[arg(long, value_name = "TEMPLATE")]
    chat: Option<Template>,
    /// Token fed before any text; may be given several times [default: that of a folder]
    #[arg(long = "start-token", value_name = "ID")]
    start_tokens: Vec<u32>,
    /// Sampling defaults, such as temperature=0.8,top-p=0.5
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    sampling: Vec<String>,
    /// State-tuned model: file with the `time_state` tensors, if they are not in the checkpoint
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Adapter to merge into the weights: LoRA, PiSSA or MiSS (Bone, DiSHA)
    #[arg(long = "merge", value_name = "FILE", conflicts_with = "synth")]
    adapter: Option<PathBuf>,
    /// With --merge: alpha of a LoRA adapter, as it was trained with
    #[arg(long, value_name = "ALPHA", requires = "adapter", conflicts_with = "pissa_init")]
    lora_alpha: Option<f64>,
    /// With --merge: the factors that a PiSSA adapter began with (init_pissa.pth)
    #[arg(long, value_name = "FILE", requires = "adapter")]
    pissa_init: Option<PathBuf>,
    /// Turn a checkpoint that has nothing but `time_state` tensors into a state file (.rwstate) for
    /// the model of --for; run it with `rwkv-edge run --state`
    #[arg(long, requires = "model", conflicts_with_all = ["synth", "inspect"])]
    state_only: bool,
    /// With --state-only: the model file (.rwkv) that the state was tuned for
    #[arg(long = "for", value_name = "MODEL", requires = "state_only")]
    model: Option<PathBuf>,
    /// Epsilon of the group norm of RWKV-5 to 7 [default: as config.json beside INPUT says, else
    /// BlinkDL's 0.00064]
    #[arg(long, value_name = "EPS")]
    group_norm_eps: Option<f32>,
    /// Make a model of a released shape with random weights, to measure speed without a download;
    /// if OUTPUT ends in .safetensors, its checkpoint
    #[arg(long, value_name = "SHAPE", value_parser = shape_parser())]
    synth: Option<&'static Shape>,
    /// With --synth: share of exact zeros after the squared relu of channel mixing, 0.01 to 0.99
    #[arg(long, value_name = "SHARE", requires = "synth", default_value_t = synth::DENSE)]
    ffn_sparsity: f64,
    /// With --synth: how many times as large as the others one channel of the input of att.output
    /// is in layer 0, as in released models of RWKV-7, 1 to 10000
    #[arg(long, value_name = "FACTOR", requires = "synth")]
    outlier: Option<f64>,
    /// With --synth: seed of the weights
    #[arg(long, value_name = "N", requires = "synth", default_value_t = 0)]
    seed: u64,
    /// Threads [default: the physical performance cores, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Replace OUTPUT even if it is neither empty nor a .rwkv file
    #[arg(long)]
    force: bool,
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

#[derive(Clone, Copy, clap::ValueEnum)]
enum Codes {
    /// Numbers of a table, shifted in each group [default]
    Table,
    /// The integers from -8 to 7
    Linear,
}

impl Type {
    /// As on the command line.
    fn name(self) -> &'static str {
        match self {
            Type::Int8 => "int8",
            Type::Int4 => "int4",
            Type::F16 => "f16",
            Type::F32 => "f32",
        }
    }
}

/// The type of the projections.
fn projections(dtype: Type, codes: Option<Codes>) -> DType {
    match (dtype, codes) {
        (Type::Int8, _) => DType::Int8,
        (Type::Int4, Some(Codes::Table) | None) => DType::Int4n,
        (Type::Int4, Some(Codes::Linear)) => DType::Int4,
        (Type::F16, _) => DType::F16,
        (Type::F32, _) => DType::F32,
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Effort {
    Normal,
    High,
}

impl From<Effort> for calibration::Effort {
    fn from(effort: Effort) -> Self {
        match effort {
            Effort::Normal => Self::Normal,
            Effort::High => Self::High,
        }
    }
}

/// The text of `--calib`. A file with the name of another choice has a path, such as `./none`.
fn calibration_text(given: Option<PathBuf>) -> CalibrationText {
    match given {
        None => CalibrationText::Auto,
        Some(name) if name.as_os_str() == "none" => CalibrationText::None,
        Some(name) if name.as_os_str() == "self" => CalibrationText::Own,
        Some(path) => CalibrationText::File(path),
    }
}

/// Programs whose checkpoints may look the same.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Writer {
    #[value(name = "blinkdl")]
    BlinkDl,
    WebRwkv,
}

impl From<Writer> for Naming {
    fn from(writer: Writer) -> Self {
        match writer {
            Writer::BlinkDl => Self::BlinkDl,
            Writer::WebRwkv => Self::WebRwkv,
        }
    }
}

/// The task that the command line gives.
pub(crate) enum Task {
    /// Print what would be done.
    Inspect(Source, Options),
    /// Write a model.
    Convert(Source, Options, Output),
    /// Write a synthetic checkpoint.
    Synthesize(Recipe, Output),
    /// Write a state file.
    Tune(TunedState, Output),
}

/// The file to write.
pub(crate) struct Output {
    path: PathBuf,
    force: bool,
    /// Whether the program chose the path.
    pub(crate) is_default: bool,
}

impl Output {
    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The target, after checking that it may be written.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        self.target_of(Replace::Models)
    }

    /// As [`target`](Self::target), for a state file.
    pub(crate) fn state_target(&self) -> anyhow::Result<Target> {
        self.target_of(Replace::States)
    }

    fn target_of(&self, kind: Replace) -> anyhow::Result<Target> {
        let Self { path, force, .. } = self;
        ensure!(path.as_os_str() != "-", "-: the output must be a file; ./- is a file of this name");
        let replace = if *force { Replace::Any } else { kind };
        Target::new(path, replace).map_err(|error| match error.kind() {
            rwkv_edge::ErrorKind::NotReplaced { .. } => anyhow!("{error}; --force replaces it"),
            _ => error.into(),
        })
    }
}

/// Where weights come from.
pub(crate) enum Source {
    File(PathBuf),
    Synthetic(Recipe),
}

impl Source {
    pub(crate) fn open(&self, naming: Option<Naming>) -> Result<Checkpoint, SourceError> {
        match self {
            Self::File(path) => Checkpoint::open_as(path, naming),
            Self::Synthetic(recipe) => synth::checkpoint(recipe),
        }
    }
}

/// All options.
#[cfg(test)]
pub(crate) fn options() -> clap::Command {
    Cli::command()
}

/// Returns the task. Wrong usage ends the process with a message.
pub(crate) fn parse() -> Task {
    let task = |matches| Cli::from_arg_matches(&matches).and_then(|cli| cli.task(&matches));
    Cli::command().try_get_matches().and_then(task).unwrap_or_else(|error| match error.use_stderr() {
        true => stdio::wrong_usage(&error.format(&mut Cli::command()).render().to_string()),
        false => error.exit(),
    })
}

/// Knows the released shapes by their names.
fn shape_parser() -> impl TypedValueParser<Value = &'static Shape> {
    let names = PossibleValuesParser::new(RELEASED.map(|shape| shape.name));
    names.try_map(|name| Shape::find(&name).ok_or("no such shape"))
}

impl Cli {
    fn task(self, matches: &ArgMatches) -> Result<Task, clap::Error> {
        if self.codes.is_some() && !matches!(self.dtype, Type::Int4) {
            return usage(ErrorKind::ArgumentConflict, "--codes is for --type int4");
        }
        let (source, output) = match (self.synth, &self.first, &self.second) {
            (None, None, _) => return usage(ErrorKind::MissingRequiredArgument, "INPUT is missing"),
            (None, Some(input), output) => (Source::File(input.clone()), output),
            (Some(shape), output, None) => (Source::Synthetic(self.recipe(shape)), output),
            (Some(_), ..) => {
                return usage(ErrorKind::ArgumentConflict, "--synth reads no INPUT: give the OUTPUT alone");
            }
        };
        let given = output.clone().map(|path| (path, false));
        let by_default = || match &source {
            Source::File(input) if !self.state_only => {
                default_output(input, self.dtype).map(|path| (path, true))
            }
            _ => None,
        };
        let output = given.or_else(by_default);
        let output = output.map(|(path, is_default)| Output { path, force: self.force, is_default });
        match (source, output) {
            (source, _) if self.inspect => Ok(Task::Inspect(source, self.options())),
            (_, None) => usage(ErrorKind::MissingRequiredArgument, "OUTPUT is missing"),
            (Source::Synthetic(recipe), Some(output)) if is_safetensors(&output.path) => {
                without_model_options(matches, ".safetensors a checkpoint")?;
                Ok(Task::Synthesize(recipe, output))
            }
            (Source::File(checkpoint), Some(output)) if self.state_only => {
                without_model_options(matches, "a state file belongs to one that exists")?;
                Ok(Task::Tune(TunedState { checkpoint, model: self.model.unwrap_or_default() }, output))
            }
            (source, Some(output)) => Ok(Task::Convert(source, self.options(), output)),
        }
    }

    fn recipe(&self, shape: &Shape) -> Recipe {
        let (name, config) = (shape.name.to_owned(), shape.config());
        Recipe { name, config, ffn_sparsity: self.ffn_sparsity, outlier: self.outlier, seed: self.seed }
    }

    fn options(self) -> Options {
        let (alpha, pissa_init) = (self.lora_alpha, self.pissa_init);
        Options {
            merge: self.adapter.map(|adapter| Merge { adapter, alpha, pissa_init }),
            quant: QuantSpec {
                plain_head: self.plain_head,
                ..QuantSpec::new(projections(self.dtype, self.codes))
            },
            naming: self.naming.map(Naming::from),
            variant: self.variant,
            tokenizer: self.tokenizer,
            allow_unused_ids: self.allow_unused_ids,
            template: self.chat,
            start_tokens: self.start_tokens,
            sampling: self.sampling,
            state: self.state,
            group_norm_eps: self.group_norm_eps,
            effort: self.effort.into(),
            calibration: calibration_text(self.calibration),
            threads: self.threads.map_or_else(host::default_threads, usize::from),
        }
    }
}

/// Refuses options of a new model. `because` tells what is written instead.
fn without_model_options(matches: &ArgMatches, because: &str) -> Result<(), clap::Error> {
    let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    match MODEL_OPTIONS.into_iter().find(given) {
        None => Ok(()),
        Some(id) => usage(ErrorKind::ArgumentConflict, &format!("{} is for models, and {because}", flag(id)))
            .map(drop),
    }
}

fn usage(kind: ErrorKind, message: &str) -> Result<Task, clap::Error> {
    Err(clap::Error::raw(kind, message))
}

/// `NAME-TYPE.rwkv` beside the input, without the ending of a file with weights. `None` if the input
/// has no name.
fn default_output(input: &Path, dtype: Type) -> Option<PathBuf> {
    // A folder such as `.` has a name elsewhere.
    let whole = if input.file_name().is_none() { input.canonicalize().ok()? } else { input.to_owned() };
    let name = whole.file_name()?.to_string_lossy().into_owned();
    let lower = name.to_ascii_lowercase();
    let ending = if input.is_dir() {
        None
    } else {
        let endings = ENDINGS.into_iter().chain(["ckpt"]);
        let stems = endings.filter_map(|ending| lower.strip_suffix(ending)?.strip_suffix('.'));
        stems.map(str::len).find(|len| *len > 0)
    };
    let stem = &name[..ending.unwrap_or(name.len())];
    // An index is `model.safetensors.index.json`.
    let stem = stem.strip_suffix(".safetensors").unwrap_or(stem);
    Some(whole.with_file_name(format!("{stem}-{}.rwkv", dtype.name())))
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
}

/// The spelling of the option with this field.
fn flag(id: &str) -> String {
    let command = Cli::command();
    let long = command.get_arguments().find(|arg| arg.get_id() == id).and_then(|arg| arg.get_long());
    format!("--{}", long.unwrap_or(id))
}

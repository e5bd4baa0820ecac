//! From a checkpoint to a `.rwkv` file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rwkv_edge::format::{
    self, Config, FileContents, FileLayout, ModelFile, ModelWriter, Provenance, Published, SelfTest, Target,
    Template, Variant,
};
use rwkv_edge::kernels::{DType, Isa, default_float_environment};
use rwkv_edge::model::choose_kernels;
use rwkv_edge::model::names::{self, ModelTensor};
use rwkv_edge::{Model, Tokenizer, self_test};
use sha2::{Digest, Sha256};

use crate::calibration::{CalibrationText, Effort};
use crate::chat;
use crate::companions::Companions;
use crate::config;
use crate::encode::Encoder;
use crate::job::{self, Job, Stop};
use crate::origin::{Input, Origin, Sources, Stored};
use crate::planned::{Planned, Reference, sparing};
use crate::policy::QuantSpec;
use crate::puzzles;
use crate::report::{Report, Warning};
use crate::source::{self, Checkpoint, Container, LN0, Merge, Naming, SourceDType};
use crate::vocab::{self, VocabError};

/// Most ids that a model's vocabulary may have beyond the tokenizer's. Released models are padded
/// by up to 50. A tokenizer with far fewer tokens belongs to another model.
fn max_unused_ids(n_vocab: usize) -> usize {
    (n_vocab / 16).min(256)
}

/// Options of a conversion.
#[derive(Clone, Debug)]
pub struct Options {
    /// Types of the weights.
    pub quant: QuantSpec,
    /// Who wrote the tensors, where they do not tell.
    pub naming: Option<Naming>,
    /// The arithmetic, which the tensors do not tell.
    pub variant: Variant,
    /// Vocabulary file; `None` takes that of a GGUF file or of the checkpoint's folder, or the one
    /// that the vocabulary size implies.
    pub tokenizer: Option<PathBuf>,
    /// Whether the model may have any number of ids that the tokenizer does not have.
    pub allow_unused_ids: bool,
    /// Chat template; `None` takes that of a GGUF file or of the checkpoint's folder, or the one that
    /// the vocabulary size implies.
    pub template: Option<Template>,
    /// Tokens fed before any text; none takes those of the checkpoint's folder.
    pub start_tokens: Vec<u32>,
    /// Sampling defaults as `key=value`.
    pub sampling: Vec<String>,
    /// A state-tuned model's states, if they are in a file of their own.
    pub state: Option<PathBuf>,
    /// An adapter to merge into the weights.
    pub merge: Option<Merge>,
    /// Epsilon of the group norm of RWKV-5 to 7; `None` takes that of the `config.json` beside the
    /// checkpoint, or BlinkDL's.
    pub group_norm_eps: Option<f32>,
    /// What activations are measured on, for types whose rounding depends on them.
    pub calibration: CalibrationText,
    /// How much work the rounding may take.
    pub effort: Effort,
    /// Threads that quantize.
    pub threads: usize,
}

impl Options {
    /// Weights of type `dtype`, one thread, and defaults that the checkpoint's shapes imply.
    pub fn new(dtype: DType) -> Self {
        Self {
            quant: QuantSpec::new(dtype),
            naming: None,
            variant: Variant::Plain,
            tokenizer: None,
            allow_unused_ids: false,
            template: None,
            start_tokens: vec![],
            sampling: vec![],
            state: None,
            merge: None,
            group_norm_eps: None,
            calibration: CalibrationText::None,
            effort: Effort::Normal,
            threads: 1,
        }
    }
}

/// A checkpoint that passed all checks, and the file that it would become.
pub struct Conversion {
    checkpoint: Checkpoint,
    /// The file of a tuned state.
    state: Option<Checkpoint>,
    tokenizer: Option<PathBuf>,
    byte_tokens: bool,
    notes: Vec<String>,
    file: Planned,
    /// The file of int8 whose model reads the text of the calibration.
    reference: Option<Planned>,
    calibration: CalibrationText,
    effort: Effort,
    quant: QuantSpec,
    threads: usize,
}

impl Conversion {
    /// Opens `input`, checks every name and shape, and lays out the file. Reads no weights.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, is of an unsupported kind, or does not have exactly the
    /// tensors that its version has; or if the tokenizer is missing or another model's.
    pub fn prepare(input: &Path, options: &Options) -> Result<Self> {
        match Self::of(Checkpoint::open_as(input, options.naming)?, options)? {
            (conversion, None) => Ok(conversion),
            (_, Some(error)) => Err(error),
        }
    }

    /// As [`prepare`](Self::prepare) for an opened checkpoint, but a missing or wrong tokenizer is
    /// no failure. The error comes back with a layout that has byte tokens instead.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), apart from the tokenizer.
    pub fn of(checkpoint: Checkpoint, options: &Options) -> Result<(Self, Option<anyhow::Error>)> {
        let checkpoint = match &options.merge {
            Some(merge) => merge.into_checkpoint(checkpoint)?,
            None => checkpoint,
        };
        let input = checkpoint.path();
        let with_path = || input.display().to_string();
        let version = source::detect(&checkpoint)?;
        let config = config::read(&checkpoint, version, options.group_norm_eps, options.variant)
            .with_context(with_path)?;
        let mut notes = checkpoint.notes().to_vec();
        notes.extend(checkpoint.config_json().map(|json| {
            json.applied(config.layer_norm_eps, config.heads().map(|heads| heads.group_norm_eps))
        }));
        let (options, stored) = with_companions(&checkpoint, options, config.n_vocab, &mut notes)?;
        let options = &options;
        let state = options.state.as_deref().map(Checkpoint::open).transpose()?;
        let tensors = model_tensors(sources(&checkpoint, &state), &config, options.quant)?;
        let (tokenizer, error) = match tokenizer(&checkpoint, options, stored, config.n_vocab) {
            Ok(tokenizer) => (tokenizer, None),
            Err(error) => (rwkv_edge::tokenizer::compile::bytes(), Some(error)),
        };
        // Random weights write no text, whatever their tokens stand for.
        let byte_tokens = error.is_some() && checkpoint.is_synthetic() && options.tokenizer.is_none();
        let error = error.filter(|_| !byte_tokens);
        if options.variant == Variant::Plain {
            notes.extend(puzzles::advice(&Tokenizer::parse(&tokenizer)?, version));
        }
        let stop_tokens = stop_tokens(&tokenizer)?;
        let stored_template = || checkpoint.chat_template().and_then(chat::recognise);
        let template = options.template.or_else(stored_template);
        let template = template.unwrap_or_else(|| Template::for_vocab(config.n_vocab));
        let mut contents = FileContents {
            chat: chat::chat(template, options.start_tokens.clone(), stop_tokens, &options.sampling)?,
            provenance: provenance(&checkpoint, options, &config),
            self_test: SelfTest {
                tokens: self_test_tokens(&config, &options.start_tokens),
                logits_sha256: [0; 32],
            },
            tensors: Vec::new(),
            tokenizer,
            config,
        };
        let calibration = match (options.quant.dtype, options.effort) {
            (DType::Int4n, _) => options.calibration.clone(),
            (dtype, Effort::High) if dtype.is_quantized() => options.calibration.clone(),
            _ => CalibrationText::None,
        };
        let calibration = match calibration {
            CalibrationText::Auto if checkpoint.is_synthetic() => CalibrationText::None,
            CalibrationText::Auto => CalibrationText::for_vocab(contents.config.n_vocab),
            given => given,
        };
        let reference = match calibration {
            CalibrationText::None => None,
            _ => {
                let quant = QuantSpec::new(DType::Int8);
                let tensors = model_tensors(sources(&checkpoint, &state), &contents.config, quant)?;
                Some(Planned::new(tensors, quant, contents.clone())?)
            }
        };
        contents.provenance.calibration = calibration
            .name()
            .map(|text| format::Calibration { text: printable(&text), ..format::Calibration::default() });
        let (tokenizer, threads) = (options.tokenizer.clone(), options.threads.max(1));
        let file = Planned::new(tensors, options.quant, contents)?;
        let conversion = Self {
            checkpoint,
            state,
            tokenizer,
            byte_tokens,
            notes,
            file,
            reference,
            calibration,
            effort: options.effort,
            quant: options.quant,
            threads,
        };
        Ok((conversion, error))
    }

    /// Whether the model gets byte tokens because no built-in vocabulary has its size. That happens
    /// with synthetic checkpoints only.
    pub fn has_byte_tokens(&self) -> bool {
        self.byte_tokens
    }

    /// What was taken from files beside the checkpoint, or was not; a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The file that [`run`](Self::run) would write.
    pub fn layout(&self) -> &FileLayout {
        &self.file.layout
    }

    /// Writes the file. It appears under its name when it is complete; on an error, or when `job`
    /// is interrupted, nothing is left behind.
    ///
    /// # Errors
    /// Before a weight is read: if `output` is an input file, `RWKV_EDGE_ISA` is wrong or there is
    /// no room. Later: if reading or writing fails, a weight is not finite or too large, or the run
    /// was interrupted.
    pub fn run(self, output: Target, job: Job<'_>) -> Result<(Report, Published)> {
        // Threads that start from here on inherit it.
        let _environment = default_float_environment();
        let isa = choose_kernels(None)?.isa();
        self.check_output(&output)?;
        let Self { checkpoint, state, file, reference, calibration: text, effort, quant, threads, .. } = self;
        let sources = sources(&checkpoint, &state);
        let FileContents { mut provenance, mut self_test, config, .. } = file.layout.contents().clone();
        let mut writer = ModelWriter::create(output.clone(), file.layout.clone())?;
        let mut reference = reference.map(|planned| Reference::create(planned, output)).transpose()?;
        let Job { progress, interrupted } = job;
        let (errors, contents) = while_reading(sources, threads, interrupted, |stop| {
            let encoder = || Encoder::new(sources.checkpoint, config.layer_norm_eps, threads, stop);
            let mut calibrate = |reference: &mut Reference| {
                let calibrated = reference.calibrate(
                    sources,
                    encoder()?,
                    (&text, effort),
                    file.targets(),
                    (isa, threads),
                    (&mut *progress, stop),
                )?;
                calibrated.describe(&mut provenance);
                anyhow::Ok(calibrated)
            };
            let calibration = reference.as_mut().map(&mut calibrate).transpose()?;
            file.write(sources, &mut writer, (encoder()?, calibration), (progress, stop))
        })?;
        drop(reference);
        provenance.source_sha256 = contents.sha256;
        provenance.rel_error = errors.total.relative() as f32;
        let uncalibrated = quant.dtype == DType::Int4n && text == CalibrationText::None;
        let uncalibrated = uncalibrated && !checkpoint.is_synthetic();
        let warnings = uncalibrated.then_some(Warning::NoCalibration).into_iter();
        let warnings = warnings.chain(coarse(&checkpoint)).chain(contents.warnings).collect();
        let report = Report::new(writer.layout(), &errors.each, provenance.rel_error, warnings);
        writer.finish_data()?;
        self_test.logits_sha256 = logits_digest(writer.model_file()?, isa, &self_test.tokens, threads)?;
        job::check(&[interrupted])?;
        Ok((report, writer.finish(provenance, self_test)?))
    }

    /// Refuses an output that would replace an input file.
    fn check_output(&self, output: &Target) -> Result<()> {
        let files = [Some(&self.checkpoint), self.state.as_ref()].into_iter().flatten();
        let files = files.chain(self.checkpoint.adapters());
        let files = files.filter(|checkpoint| !checkpoint.is_synthetic());
        let read = files.flat_map(|checkpoint| checkpoint.paths().chain([checkpoint.path()]));
        for path in read.chain(self.tokenizer.as_deref()) {
            ensure!(
                !output.is(path),
                "{}: this file is read and must not be replaced",
                output.path().display()
            );
        }
        Ok(())
    }
}

/// The warning that the checkpoint was quantized so coarsely that another file gives a better
/// model.
fn coarse(checkpoint: &Checkpoint) -> Option<Warning> {
    let is_coarse = |dtype: &SourceDType| matches!(dtype, SourceDType::Block(block) if block.is_coarse());
    let types: Vec<_> = checkpoint.dtypes().into_iter().filter(is_coarse).collect();
    (!types.is_empty()).then(|| Warning::Coarse { file: checkpoint.path().to_owned(), types })
}

fn sources<'a>(checkpoint: &'a Checkpoint, state: &'a Option<Checkpoint>) -> Sources<'a> {
    let input = |checkpoint: &'a Checkpoint| Input { path: checkpoint.path(), checkpoint };
    Sources { checkpoint: input(checkpoint), state: state.as_ref().map(input) }
}

/// The tensors of the file and their origins. Checks that the checkpoint has each tensor in the
/// right shape. [`source::detect`] has checked that it has no others.
fn model_tensors(
    sources: Sources<'_>,
    config: &Config,
    quant: QuantSpec,
) -> Result<Vec<(ModelTensor, Origin)>> {
    sources.check_state(config)?;
    let is_normed = sources.checkpoint.checkpoint.has_normed_embedding();
    let is_there = |tensor: &ModelTensor| !(is_normed && LN0.contains(&tensor.name.as_str()));
    for tensor in source::folded(config).iter().filter(|tensor| is_there(tensor)) {
        Stored::find(sources, config, tensor)?;
    }
    let tensors = names::tensors(config, quant.optional_tensors(sources.has_state())).into_iter();
    tensors.map(|tensor| Ok((tensor.clone(), Origin::find(sources, config, &tensor)?))).collect()
}

/// The provenance, without the fields that only the run can fill in.
fn provenance(checkpoint: &Checkpoint, options: &Options, config: &Config) -> Provenance {
    Provenance {
        source_name: printable(&checkpoint.file_name()),
        source_format: source_format(checkpoint),
        source_bytes: checkpoint.file_len(),
        converter: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
        settings: settings(options, config),
        ..Provenance::default()
    }
}

/// The container. A GGUF file may have been quantized before, so its element types follow.
fn source_format(checkpoint: &Checkpoint) -> String {
    match checkpoint.container() {
        _ if checkpoint.is_synthetic() => "synthetic".into(),
        Container::Gguf => {
            let types: Vec<_> = checkpoint.dtypes().iter().map(SourceDType::to_string).collect();
            format!("{} ({})", Container::Gguf, types.join(", "))
        }
        container => container.to_string(),
    }
}

/// The options that change weights, as on the command line.
fn settings(options: &Options, config: &Config) -> String {
    let mut settings = match options.quant.dtype {
        DType::Int4n => "--type int4 --codes table".to_owned(),
        DType::Int4 => "--type int4 --codes linear".to_owned(),
        dtype => format!("--type {dtype}"),
    };
    if options.effort == Effort::High {
        settings += " --effort high";
    }
    if options.quant.plain_head {
        settings += " --plain-head";
    }
    if let Some(heads) = config.heads() {
        settings += &format!(" --group-norm-eps {:e}", heads.group_norm_eps);
    }
    if config.variant != Variant::Plain {
        settings += &format!(" --variant {}", config.variant);
    }
    if let Some(name) = options.state.as_ref().and_then(|path| path.file_name()) {
        settings += &format!(" --state {}", printable(&name.to_string_lossy()));
    }
    if let Some(Merge { adapter, alpha, pissa_init }) = &options.merge {
        let name = |path: &Path| printable(&path.file_name().unwrap_or_default().to_string_lossy());
        settings += &format!(" --merge {}", name(adapter));
        settings += &alpha.map_or_else(String::new, |alpha| format!(" --lora-alpha {alpha}"));
        settings +=
            &pissa_init.as_deref().map_or_else(String::new, |path| format!(" --pissa-init {}", name(path)));
    }
    settings
}

/// A file name as it may stand in the file: one line, without directories.
fn printable(name: &str) -> String {
    name.replace(|c: char| c.is_control() || ['/', '\\'].contains(&c), "_")
}

/// Results of reading the input from beginning to end.
struct Contents {
    sha256: [u8; 32],
    warnings: Vec<Warning>,
}

/// Does `work`, and reads the input from beginning to end. Both run at the same time if several
/// threads are allowed and another one starts; otherwise the input is read first. If one fails, the
/// other stops.
fn while_reading<T>(
    sources: Sources<'_>,
    threads: usize,
    interrupted: &AtomicBool,
    work: impl FnOnce(Stop<'_>) -> Result<T>,
) -> Result<(T, Contents)> {
    let [reading_failed, work_failed] = [const { AtomicBool::new(false) }; 2];
    let read = || {
        let contents = read_contents(sources, [interrupted, &work_failed]);
        reading_failed.store(contents.is_err(), Ordering::Relaxed);
        contents
    };
    thread::scope(|scope| {
        let thread = (threads > 1).then(|| thread::Builder::new().spawn_scoped(scope, read).ok()).flatten();
        let Some(thread) = thread else {
            let contents = read()?;
            return Ok((work([interrupted, &reading_failed])?, contents));
        };
        let done = work([interrupted, &reading_failed]);
        let work_failed_first = done.is_err() && !reading_failed.load(Ordering::Relaxed);
        work_failed.store(done.is_err(), Ordering::Relaxed);
        let contents = thread.join().map_err(|_| anyhow!("the thread that reads the input panicked"))?;
        if work_failed_first { Ok((done?, contents?)) } else { contents.and_then(|c| Ok((done?, c))) }
    })
}

/// Hashes the files with the tensors, one after the other, and looks for damage in their bytes.
fn read_contents(sources: Sources<'_>, stop: Stop<'_>) -> Result<Contents> {
    let mut warnings = Vec::new();
    let mut read_through = |checkpoint: &Checkpoint, digest: &mut Sha256| {
        let runs = checkpoint.read_through(|block| {
            job::check(&stop)?;
            digest.update(block);
            anyhow::Ok(())
        })?;
        let warning = |run| Warning::ZeroRun { file: checkpoint.path().to_owned(), run };
        warnings.extend(runs.into_iter().map(warning));
        anyhow::Ok(())
    };
    let mut digest = Sha256::new();
    let checkpoint = sources.checkpoint.checkpoint;
    read_through(checkpoint, &mut digest)?;
    for beside in sources.state.map(|state| state.checkpoint).into_iter().chain(checkpoint.adapters()) {
        read_through(beside, &mut Sha256::new())?;
    }
    Ok(Contents { sha256: digest.finalize().into(), warnings })
}

/// The options, where those that are not given come from the checkpoint's folder, and the tokenizer
/// if it does.
fn with_companions(
    checkpoint: &Checkpoint,
    options: &Options,
    n_vocab: usize,
    notes: &mut Vec<String>,
) -> Result<(Options, Option<Vec<u8>>)> {
    let mut options = options.clone();
    let Some(folder) = checkpoint.folder() else { return Ok((options, None)) };
    let mut found = Companions::of(folder)?;
    let tokenizer = match options.tokenizer {
        Some(_) => None,
        None => found.read_tokenizer(n_vocab)?,
    };
    notes.push(found.line(folder));
    options.tokenizer = options.tokenizer.or(found.tokenizer);
    options.template = options.template.or(found.template);
    if options.start_tokens.is_empty() {
        options.start_tokens = found.start_tokens;
    }
    Ok((options, tokenizer))
}

/// The compiled tokenizer for a model of `n_vocab` tokens: that of the file, of the checkpoint, or
/// a built-in one. `read` is that of the file, if it has been read.
fn tokenizer(
    checkpoint: &Checkpoint,
    options: &Options,
    read: Option<Vec<u8>>,
    n_vocab: usize,
) -> Result<Vec<u8>> {
    let path = options.tokenizer.as_deref();
    if let (None, Some(vocabulary)) = (path, checkpoint.vocabulary()?) {
        let with_path = || checkpoint.path().display().to_string();
        let section = vocab::stored(&vocabulary).with_context(with_path)?;
        return fitting(section, checkpoint.path(), n_vocab, options.allow_unused_ids);
    }
    let section = match (path, n_vocab) {
        (Some(path), _) => read.map_or_else(|| vocab::load(path), Ok).map_err(|error| match error {
            VocabError::File(_) => anyhow!(error),
            _ => anyhow!(error).context(path.display().to_string()),
        })?,
        (None, 65_536) => vocab::world_builtin(),
        (None, 256) => rwkv_edge::tokenizer::compile::bytes(),
        (None, 50_277 | 50_304) => bail!(
            "the model has {n_vocab} tokens, as Pile and Raven models have: pass their tokenizer with \
             --tokenizer 20B_tokenizer.json"
        ),
        (None, _) => bail!(
            "the model has {n_vocab} tokens, which no built-in tokenizer has: pass its vocabulary with \
             --tokenizer FILE (World-format .txt, or tokenizer.json of a byte-level BPE)"
        ),
    };
    fitting(section, path.unwrap_or(Path::new("built-in")), n_vocab, options.allow_unused_ids)
}

/// The tokenizer from `path`, if it has as many tokens as the model, or `allow_unused` and it has
/// fewer.
fn fitting(section: Vec<u8>, path: &Path, n_vocab: usize, allow_unused: bool) -> Result<Vec<u8>> {
    let n_tokens = Tokenizer::parse(&section)?.n_tokens();
    let few_unused = allow_unused || n_vocab - n_tokens.min(n_vocab) <= max_unused_ids(n_vocab);
    let advice = if n_tokens < n_vocab { "; --allow-unused-ids takes it all the same" } else { "" };
    ensure!(
        n_tokens <= n_vocab && few_unused,
        "{}: the tokenizer has {n_tokens} tokens, the model {n_vocab}: this is another model's tokenizer{advice}",
        path.display()
    );
    Ok(section)
}

/// Token 0 ends a document in every vocabulary where it stands for no text.
fn stop_tokens(tokenizer: &[u8]) -> Result<Vec<u32>> {
    let end_of_text: &[&[u8]] = &[b"", b"<|endoftext|>"];
    let tokenizer = Tokenizer::parse(tokenizer)?;
    Ok(if end_of_text.contains(&tokenizer.token(0)) { vec![0] } else { Vec::new() })
}

/// A few tokens spread over the vocabulary, after the start tokens.
fn self_test_tokens(config: &Config, start_tokens: &[u32]) -> Vec<u32> {
    let n_vocab = config.n_vocab as u64;
    let spread = (1..=4u64).map(|i| (i * 2_654_435_761 % n_vocab) as u32);
    start_tokens.iter().copied().chain(spread).collect()
}

/// Digest of the logits that the finished file computes. Gives back pages on the way, so that
/// memory stays bounded.
fn logits_digest(file: ModelFile, isa: Isa, tokens: &[u32], threads: usize) -> Result<[u8; 32]> {
    let model = Model::load(file, &sparing(isa))?;
    // One thread computes the same where others cannot start.
    let digest = self_test::logits_digest(&model, tokens, Some(threads));
    Ok(digest.or_else(|_| self_test::logits_digest(&model, tokens, Some(1)))?)
}

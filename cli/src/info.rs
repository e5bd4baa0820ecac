//! `rwkv-edge info`: everything in the header, the memory plan, and the kernels that would run.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use rwkv_edge::format::{Calibration, Chat, ElementType, ModelFile, Think, Variant};
use rwkv_edge::host::DefaultThreads;
use rwkv_edge::kernels::Isa;
use rwkv_edge::printable::Printable;
use rwkv_edge::{MemoryPlan, Model, Verify, self_test, stdio};

use crate::args::ModelArgs;
use crate::json::{Object, array, number};
use crate::memory::{Demand, mib};
use crate::plan;

#[derive(Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Check every byte, and that this machine computes the recorded logits
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InfoArgs) -> Result<()> {
    let compute = &args.model.compute;
    // Detected before threads are restricted to the cores that this finds.
    let default_threads = DefaultThreads::detect();
    let demand = Demand { reads_weights: args.verify, ..Demand::new(compute.engine_options()) };
    let model = args.model.load(Verify::Never, &demand)?;
    let out = &mut stdio::stdout();
    if args.json {
        if args.verify {
            verify(&model, demand.engine.threads)?;
        }
        let plan = compute.kernels.memory.plan_loaded(&model, &Demand::new(demand.engine))?;
        writeln!(out, "{}", json(args, &model, &plan, demand.engine.thread_count()))?;
        return Ok(out.flush()?);
    }
    writeln!(out, "model             {}", args.model.name())?;
    header(out, model.file())?;
    chat(out, model.chat())?;
    if args.tensors {
        tensors(out, model.file())?;
    }
    let plan = compute.kernels.memory.plan_loaded(&model, &Demand::new(demand.engine))?;
    let threads = demand.engine.threads;
    writeln!(
        out,
        "memory            {} MiB at most; `rwkv-edge plan` lists the buffers",
        mib(plan.resident_bytes())
    )?;
    let available: Vec<_> = Isa::ALL.iter().filter(|isa| isa.is_available()).map(|isa| isa.name()).collect();
    writeln!(out, "kernels           {} (this CPU has: {})", model.kernels().isa(), available.join(", "))?;
    match threads {
        Some(threads) => writeln!(out, "threads           {threads} (--threads)")?,
        None => writeln!(out, "threads           {default_threads}")?,
    }
    out.flush()?;
    if args.verify {
        verify(&model, threads)?;
        writeln!(out, "checksums         ok")?;
        writeln!(out, "self-test         ok")?;
    }
    Ok(out.flush()?)
}

/// Checks every byte and the arithmetic.
fn verify(model: &Arc<Model>, threads: Option<usize>) -> Result<()> {
    model.file().verify_all()?;
    model.file().verify_embedding()?;
    Ok(self_test::run(model, threads)?)
}

/// The header, the plan and the kernels as a JSON object.
fn json(args: &InfoArgs, model: &Model, plan: &MemoryPlan, threads: usize) -> String {
    let (file, config, chat) = (model.file(), model.config(), model.chat());
    let (major, minor) = file.format_version();
    let mut object = Object::new()
        .text("model", args.model.name())
        .text("format", format_args!("{major}.{minor}"))
        .raw("file_bytes", file.file_len())
        .text("id", format_args!("{:016x}", file.model_id()))
        .text("version", config.version())
        .text("variant", config.variant)
        .raw("n_layer", config.n_layer)
        .raw("n_embd", config.n_embd)
        .raw("n_att", config.n_att)
        .raw("n_ffn", config.n_ffn)
        .raw("n_vocab", config.n_vocab);
    if let Some(heads) = config.heads() {
        object = object.raw("n_head", heads.n_head).raw("head_size", heads.head_size);
    }
    let source = file.provenance();
    if let Some(Calibration { text, tokens, sha256 }) = &source.calibration {
        object = object
            .text("calibration_text", text)
            .raw("calibration_tokens", tokens)
            .text("calibration_sha256", hex(sha256));
    }
    object = object
        .text("source", &source.source_name)
        .text("source_sha256", hex(&source.source_sha256))
        .text("converter", &source.converter)
        .text("settings", &source.settings)
        .raw("weight_error", number(source.rel_error))
        .text("chat_template", &chat.name)
        .raw("start_tokens", array(&chat.start_tokens))
        .raw("stop_tokens", array(&chat.stop_tokens))
        .text("isa", model.kernels().isa().name())
        .raw("threads", threads);
    if args.tensors {
        let tensors = file.tensors().iter().map(|tensor| {
            let object = Object::new().text("name", &tensor.name).text("type", tensor.dtype);
            let object = object.text("layout", tensor.layout).raw("shape", array(tensor.shape));
            object.raw("bytes", tensor.len).raw("offset", tensor.offset).end()
        });
        object = object.raw("tensors", array(tensors));
    }
    if args.verify {
        object = object.raw("verified", true);
    }
    plan::json(object, plan).end()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(out: &mut impl Write, file: &ModelFile) -> io::Result<()> {
    let config = file.config();
    let (major, minor) = file.format_version();
    writeln!(
        out,
        "format            {major}.{minor}, {} bytes, id {:016x}",
        file.file_len(),
        file.model_id()
    )?;
    writeln!(out, "version           {}", config.version())?;
    if config.variant != Variant::Plain {
        writeln!(out, "variant           {}", config.variant)?;
    }
    writeln!(out, "layers            {}", config.n_layer)?;
    writeln!(out, "n_embd            {}", config.n_embd)?;
    writeln!(out, "n_att             {}", config.n_att)?;
    writeln!(out, "n_ffn             {}", config.n_ffn)?;
    writeln!(out, "n_vocab           {}", config.n_vocab)?;
    writeln!(out, "layer norm eps    {:e}", config.layer_norm_eps)?;
    if let Some(heads) = config.heads() {
        writeln!(out, "heads             {} of {}", heads.n_head, heads.head_size)?;
        writeln!(out, "group norm eps    {:e}", heads.group_norm_eps)?;
    }
    for (name, rank) in config.arch.ranks() {
        writeln!(out, "{:<18}{rank}", name.replace('_', " "))?;
    }
    let source = file.provenance();
    writeln!(
        out,
        "source            {} ({}, {} bytes)",
        Printable(&source.source_name),
        Printable(&source.source_format),
        source.source_bytes
    )?;
    writeln!(out, "source SHA-256    {}", hex(&source.source_sha256))?;
    let (converter, settings) = (Printable(&source.converter), Printable(&source.settings));
    writeln!(out, "converter         {converter}, {settings}")?;
    if let Some(Calibration { text, tokens, sha256 }) = &source.calibration {
        let (text, sha256) = (Printable(text), hex(sha256));
        writeln!(out, "calibration       {text}, {tokens} tokens, SHA-256 {sha256}")?;
    } else if file.tensors().iter().any(|tensor| tensor.dtype == ElementType::Int4n) {
        writeln!(out, "calibration       none; with activations the same bytes give a better model")?;
    }
    writeln!(out, "weight error      {:.5} (relative rms over all quantized tensors)", source.rel_error)
}

fn chat(out: &mut impl Write, chat: &Chat) -> io::Result<()> {
    let name = if chat.name.is_empty() { "none" } else { &chat.name };
    writeln!(out, "chat template     {}", Printable(name))?;
    for (name, text) in [("  system", &chat.system), ("  user", &chat.user), ("  assistant", &chat.assistant)]
    {
        if let Some(text) = text {
            writeln!(out, "{name:<18}{text:?}")?;
        }
    }
    if let Some(think) = &chat.think {
        let Think { open, fast, close, mode, .. } = think;
        writeln!(out, "  think           {open:?}, {fast:?} ... {close:?}; {mode}")?;
    }
    if let Some(fill) = &chat.fill {
        writeln!(out, "  fill            {:?}", fill.prompt)?;
    }
    writeln!(out, "start tokens      {:?}", chat.start_tokens)?;
    writeln!(out, "stop tokens       {:?}", chat.stop_tokens)?;
    writeln!(out, "stop texts        {:?}", chat.stop_texts)?;
    let s = &chat.sampling;
    writeln!(
        out,
        "sampling          temperature {}, top-p {}, top-k {}, presence {}, frequency {}, decay {}",
        s.temperature, s.top_p, s.top_k, s.presence_penalty, s.frequency_penalty, s.penalty_decay
    )
}

fn tensors(out: &mut impl Write, file: &ModelFile) -> io::Result<()> {
    writeln!(out, "tensors")?;
    for tensor in file.tensors() {
        let [rows, cols] = tensor.shape;
        writeln!(
            out,
            "  {:<36} {:<5} {:<12} [{rows}, {cols}] {} bytes at {}, error {:.5}",
            Printable(&tensor.name).to_string(),
            tensor.dtype.to_string(),
            tensor.layout.to_string(),
            tensor.len,
            tensor.offset,
            tensor.rel_error
        )?;
    }
    Ok(())
}

//! Prints file size and memory plan of every released RWKV, from hyperparameters alone. The planner
//! is that of `rwkv-quantize` and `rwkv-edge`, so the figures are exact for files with the built-in
//! World tokenizer.
//!
//! ```text
//! cargo run --release -p rwkv-quantize --example sizes
//! ```

use anyhow::Result;
use rwkv_edge::format::{Config, FileContents, FileLayout, Provenance, SelfTest, Template};
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names;
use rwkv_edge::{Engine, EngineOptions, Sampler, State};
use rwkv_quantize::chat;
use rwkv_quantize::policy::{self, QuantSpec};
use rwkv_quantize::shapes::RELEASED;
use rwkv_quantize::vocab;

fn layout(config: Config, dtype: DType) -> Result<FileLayout> {
    let quant = QuantSpec::new(dtype);
    let tensors = names::tensors(&config, quant.optional_tensors(false));
    let chat = chat::chat(Template::World, vec![], vec![0], &[])?;
    Ok(FileLayout::new(FileContents {
        tokenizer: vocab::world_builtin(),
        chat,
        provenance: Provenance {
            source_name: "model.pth".into(),
            source_format: "pth".into(),
            converter: "rwkv-quantize".into(),
            settings: format!("--type {dtype}"),
            ..Provenance::default()
        },
        self_test: SelfTest { tokens: vec![1, 2, 3, 4], ..SelfTest::default() },
        tensors: tensors.iter().map(|tensor| policy::spec(tensor, quant)).collect(),
        config,
    })?)
}

fn main() -> Result<()> {
    println!(
        "| version | model | `--synth` | weights | int4 file MB | int4 memory MB | int8 file MB | int8 memory MB | state MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for shape in RELEASED {
        let config = shape.config();
        let options = EngineOptions { threads: Some(4), ..EngineOptions::default() };
        let engine = Engine::plan(&config, &options)?;
        let text = State::bytes(&config) + Sampler::bytes(config.n_vocab);
        let memory = (engine.arena_bytes() + engine.stack_bytes + text) as u64;
        let mut row = String::new();
        let mut weights = 0;
        for dtype in [DType::Int4, DType::Int8] {
            let layout = layout(config.clone(), dtype)?;
            let tensors = layout.tensors();
            // The residual of a nested head holds the head's weights again. Bounds and checksums
            // are no weights.
            let own = tensors.iter().filter(|t| t.dtype.weight().is_some() && !names::is_derived(&t.name));
            weights = own.map(|t| (t.shape[0] * t.shape[1]) as u64).sum::<u64>();
            let embedding: u64 = tensors.iter().filter(|t| t.checked_by_record).map(|t| t.len).sum();
            let resident = layout.file_len() - embedding + memory;
            row += &format!(" {:.0} | {:.0} |", layout.file_len() as f64 / 1e6, resident as f64 / 1e6);
        }
        let state = State::bytes(&config);
        let (weights, state) = (weights as f64 / 1e6, state as f64 / 1e6);
        let (version, models, name) = (shape.version, shape.models, shape.name);
        println!("| {version} | {models} | {name} | {weights:.0} M |{row} {state:.2} |");
    }
    Ok(())
}

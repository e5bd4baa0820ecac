//! Prints file size and memory plan of every released RWKV, from hyperparameters alone: the planner is the one that
//! `rwkv-quantize` and `rwkv-edge` use, so the figures are exact for files with the built-in World tokenizer.
//!
//! ```text
//! cargo run --release -p rwkv-quantize --example sizes
//! ```

use anyhow::Result;
use rwkv_edge::format::{Config, FileContents, FilePlan, Heads, Provenance, SelfTest, Version};
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names::{self, Extras};
use rwkv_edge::{Session, SessionOptions};
use rwkv_quantize::chat::{self, Template};
use rwkv_quantize::policy::{self, Wanted};
use rwkv_quantize::{dims, vocab};

/// Name, version, layers, width, vocabulary.
const RELEASED: [(&str, Version, usize, usize, usize); 27] = [
    ("Pile 169M", Version::V4, 12, 768, 50277),
    ("Pile 430M", Version::V4, 24, 1024, 50277),
    ("Pile, Raven 1.5B", Version::V4, 24, 2048, 50277),
    ("Pile, Raven 3B", Version::V4, 32, 2560, 50277),
    ("Pile, Raven 7B", Version::V4, 32, 4096, 50277),
    ("Pile, Raven 14B", Version::V4, 40, 5120, 50277),
    ("World 0.1B", Version::V4, 12, 768, 65536),
    ("World 0.4B", Version::V4, 24, 1024, 65536),
    ("World 1.5B", Version::V4, 24, 2048, 65536),
    ("World 3B", Version::V4, 32, 2560, 65536),
    ("World 7B", Version::V4, 32, 4096, 65536),
    ("World 0.1B", Version::V5_0, 12, 768, 65536),
    ("Music", Version::V5_1, 24, 1024, 65536),
    ("World 0.4B", Version::V5_2, 24, 1024, 65536),
    ("World 1.5B", Version::V5_2, 24, 2048, 65536),
    ("World 3B", Version::V5_2, 32, 2560, 65536),
    ("World 7B", Version::V5_2, 32, 4096, 65536),
    ("World 1.6B", Version::V6, 24, 2048, 65536),
    ("World 3B", Version::V6, 32, 2560, 65536),
    ("World 7B", Version::V6, 32, 4096, 65536),
    ("World 14B", Version::V6, 61, 4096, 65536),
    ("World, G1 0.1B", Version::V7, 12, 768, 65536),
    ("World, G1 0.4B", Version::V7, 24, 1024, 65536),
    ("World, G1 1.5B", Version::V7, 24, 2048, 65536),
    ("World, G1 2.9B", Version::V7, 32, 2560, 65536),
    ("World, G1 7.2B", Version::V7, 32, 4096, 65536),
    ("World, G1 13.3B", Version::V7, 61, 4096, 65536),
];

fn config(version: Version, n_layer: usize, n_embd: usize, n_vocab: usize) -> Config {
    let short_ffn = matches!(version, Version::V5_1 | Version::V5_2 | Version::V6);
    let mut config = Config {
        version,
        n_layer,
        n_embd,
        n_att: n_embd,
        n_ffn: if short_ffn { n_embd * 7 / 2 / 32 * 32 } else { 4 * n_embd },
        n_vocab,
        layer_norm_eps: 1e-5,
        heads: None,
        mix_rank: None,
        decay_rank: None,
        iclr_rank: None,
        value_rank: None,
        gate_rank: None,
    };
    if version != Version::V4 {
        let group_norm_eps = dims::GROUP_NORM_EPS;
        config.heads = Some(Heads { n_head: n_embd / 64, head_size: 64, group_norm_eps });
    }
    if version == Version::V6 {
        let (mix, decay) = if n_embd < 4096 { (32, 64) } else { (64, 128) };
        (config.mix_rank, config.decay_rank) = (Some(mix), Some(decay));
    }
    if version == Version::V7 {
        let [decay, iclr, value, gate] = match n_embd {
            768 | 1024 => [64, 64, 32, 128],
            2048 => [96, 96, 64, 256],
            2560 => [96, 96, 64, 320],
            _ => [128, 128, 96, 480],
        };
        (config.decay_rank, config.iclr_rank) = (Some(decay), Some(iclr));
        (config.value_rank, config.gate_rank) = (Some(value), Some(gate));
    }
    config
}

fn plan(config: Config, dtype: DType) -> Result<FilePlan> {
    let wanted = Wanted { dtype, plain_head: false };
    let tensors = names::tensors(&config, Extras { nested_head: true, ..Extras::default() })?;
    let chat = chat::chat(Template::World, vec![], vec![0], &[])?;
    Ok(FilePlan::new(FileContents {
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
        tensors: tensors.iter().map(|tensor| policy::spec(tensor, wanted)).collect(),
        config,
    })?)
}

fn main() -> Result<()> {
    println!(
        "| version | model | weights | int4 file MB | int4 memory MB | int8 file MB | int8 memory MB | state MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, version, n_layer, n_embd, n_vocab) in RELEASED {
        let config = config(version, n_layer, n_embd, n_vocab);
        let options = SessionOptions { threads: Some(4), ..SessionOptions::default() };
        let arena = Session::arena_plan(&config, &options);
        let memory = (arena.arena_bytes() + arena.stack_bytes) as u64;
        let mut row = String::new();
        let mut weights = 0;
        for dtype in [DType::Int4, DType::Int8] {
            let plan = plan(config.clone(), dtype)?;
            let tensors = plan.tensors();
            weights = tensors.iter().map(|t| (t.shape[0] * t.shape[1]) as u64).sum::<u64>() - n_vocab as u64;
            let embedding: u64 = tensors.iter().filter(|t| t.checked_by_record).map(|t| t.len).sum();
            let resident = plan.file_len() - embedding + memory;
            row += &format!(" {:.0} | {:.0} |", plan.file_len() as f64 / 1e6, resident as f64 / 1e6);
        }
        let state = 4 * rwkv_edge::model::state_len(&config);
        let (weights, state) = (weights as f64 / 1e6, state as f64 / 1e6);
        println!("| {version} | {name} | {weights:.0} M |{row} {state:.2} |");
    }
    Ok(())
}

//! The tensors of each RWKV version: names, shapes and roles, in execution order.
//!
//! The converter writes this list and the loader expects it, so the two cannot disagree. Names are
//! those of BlinkDL's checkpoints. Some tensors store a transformed value; `docs/FORMAT.md` gives
//! the meaning of each [`ModelTensor::name`].

use rwkv_edge_kernels::GROUP_SIZE;

use crate::format::{Arch, Config, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7};

/// The purpose of a tensor, which determines its precision and layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Per-channel parameters: always f32.
    Vector,
    /// A projection, read whole for every token.
    Matrix,
    /// `att.output` of layer 0. In some models of RWKV-7 one channel of its input is thousands of
    /// times as large as the others, so rounding the column of that channel ruins all outputs.
    FirstOutput,
    /// `ffn.value`: only the columns with a non-zero input are read.
    SparseMatrix,
    /// The largest scale of each group of rows of a quantized `ffn.value`, which bounds their
    /// products: f32.
    ScaleBound,
    /// A factor of a low-rank matrix of RWKV-6 and 7: small, and sensitive to rounding to few bits.
    LowRank,
    /// The recurrent state before the first token, of a state-tuned model: f32.
    State,
    /// The output head, read whole for every token. In a nested head, the first of the two planes.
    Head,
    /// The rounding error of a nested head's first plane, one record per token. Only the records of
    /// candidate tokens are read.
    HeadResidual,
    /// The norm of each row of the residual, which bounds its contribution to a logit: f32.
    HeadBound,
    /// The embedding: one row is read per token. `ln0` is folded in.
    Embedding,
    /// A table of DeepEmbed in a layer of RWKV-7a: one row is read per token. The product of the
    /// embedding with `ffn.s_emb_x` is folded in.
    DeepEmbedding,
}

/// The dynamic mixes of RWKV-6 in the order of `time_maa_w1`'s rows and `time_maa_w2`'s slices.
pub const V6_MIXES: [&str; 5] = ["w", "k", "v", "r", "g"];

/// A tensor of a model with a given [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTensor {
    /// Name in the checkpoint and in the file.
    pub name: String,
    /// `[out, in]`; vectors are `[n, 1]`.
    pub shape: [usize; 2],
    /// Its purpose.
    pub role: Role,
}

/// The output head, `[n_vocab, n_embd]`.
pub const HEAD: &str = "head.weight";

/// Rows that are added to those of an int4 head, `[n_vocab, n_embd]`.
pub const HEAD_RESIDUAL: &str = "head.residual";

/// Upper bounds of the Euclidean norms of the residual's rows, `[n_vocab]`.
pub const HEAD_BOUND: &str = "head.bound";

/// End of the names of the second matrices of channel mixing.
const VALUE: &str = "ffn.value.weight";

/// End of the names of the bounds of `ffn.value`.
const VALUE_BOUND: &str = "ffn.value.bound";

/// Name of the bounds of the scales of `ffn.value` in `layer`, `[ceil(n_embd / 32)]`.
pub fn value_bound(layer: usize) -> String {
    format!("blocks.{layer}.{VALUE_BOUND}")
}

/// The tensor whose rounding or size the tensor `name` bounds; `None` if `name` has no bounds.
pub fn bounded_by(name: &str) -> Option<String> {
    match name {
        HEAD_BOUND => Some(HEAD_RESIDUAL.to_owned()),
        _ => name.strip_suffix(VALUE_BOUND).map(|layer| format!("{layer}{VALUE}")),
    }
}

/// Whether a tensor is derived from other tensors of the file and has no weights of the model.
pub fn is_derived(name: &str) -> bool {
    name == HEAD_RESIDUAL || bounded_by(name).is_some()
}

/// Tensors that only some models of a version have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionalTensors {
    /// The initial state of a state-tuned model.
    pub tuned_state: bool,
    /// The residual of a head in two planes, and its bound.
    pub nested_head: bool,
    /// Bounds of the scales of every `ffn.value`; quantized ones have them.
    pub value_bound: bool,
}

/// Tensors of the layers and of the model, in the order in which a token uses them. Tables of which
/// a token needs one row come last, so they lie in a range of their own.
///
/// `config` must be valid.
pub fn tensors(config: &Config, optional: OptionalTensors) -> Vec<ModelTensor> {
    let mut list = List { config, optional, layer: 0, block: String::new(), specs: Vec::new() };
    for layer in 0..config.n_layer {
        list.layer = layer;
        list.block = format!("blocks.{layer}.");
        list.norm("ln1", config.n_embd);
        match &config.arch {
            Arch::V4 => list.time_mix_v4(),
            Arch::V5(arch) => list.time_mix_v5(arch),
            Arch::V6(arch) => list.time_mix_v6(arch),
            Arch::V7(arch) => list.time_mix_v7(arch),
        }
        list.norm("ln2", config.n_embd);
        list.channel_mix();
    }
    list.block.clear();
    list.norm("ln_out", config.n_embd);
    list.add(HEAD, [config.n_vocab, config.n_embd], Role::Head);
    if optional.nested_head {
        list.add(HEAD_RESIDUAL, [config.n_vocab, config.n_embd], Role::HeadResidual);
        list.add(HEAD_BOUND, [config.n_vocab, 1], Role::HeadBound);
    }
    if let (true, Some(heads)) = (optional.tuned_state, config.heads()) {
        for layer in 0..config.n_layer {
            list.add(&initial_state(layer), [config.n_att * heads.head_size, 1], Role::State);
        }
    }
    list.add("emb.weight", [config.n_vocab, config.n_embd], Role::Embedding);
    if let Arch::V7(Rwkv7 { deep_rank: Some(rank), .. }) = config.arch {
        for layer in 0..config.n_layer {
            list.add(&deep_embedding(layer), [config.n_vocab, rank * rank], Role::DeepEmbedding);
        }
    }
    list.specs
}

/// Name of the WKV state of `layer` before the first token,
/// `[n_head, head_size keys, head_size values]`.
pub fn initial_state(layer: usize) -> String {
    format!("blocks.{layer}.att.time_state")
}

/// Name of the table of DeepEmbed in `layer`, `[n_vocab, deep_rank^2]`.
pub fn deep_embedding(layer: usize) -> String {
    format!("blocks.{layer}.ffn.s_emb.weight")
}

struct List<'a> {
    config: &'a Config,
    optional: OptionalTensors,
    layer: usize,
    /// Prefix of the names.
    block: String,
    specs: Vec<ModelTensor>,
}

impl List<'_> {
    fn add(&mut self, name: &str, shape: [usize; 2], role: Role) {
        self.specs.push(ModelTensor { name: format!("{}{name}", self.block), shape, role });
    }

    fn vectors(&mut self, prefix: &str, names: &[&str], len: usize) {
        for name in names {
            self.add(&format!("{prefix}{name}"), [len, 1], Role::Vector);
        }
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.vectors(name, &[".weight", ".bias"], len);
    }

    /// Projections of time mixing into its `n_att` channels.
    fn projections(&mut self, names: &[&str]) {
        let Config { n_embd, n_att, .. } = *self.config;
        for name in names {
            self.add(&format!("att.{name}.weight"), [n_att, n_embd], Role::Matrix);
        }
    }

    /// The projection out of time mixing.
    fn output(&mut self) {
        let Config { n_embd, n_att, .. } = *self.config;
        let role = if self.layer == 0 { Role::FirstOutput } else { Role::Matrix };
        self.add("att.output.weight", [n_embd, n_att], role);
    }

    /// Both factors of a low-rank matrix: `[rank, n_embd]`, then `[n_out, rank]`.
    fn low_rank(&mut self, names: [&str; 2], rank: usize, n_out: usize) {
        self.add(names[0], [rank, self.config.n_embd], Role::LowRank);
        self.add(names[1], [n_out, rank], Role::LowRank);
    }

    fn time_mix_v4(&mut self) {
        let Config { n_embd, n_att, .. } = *self.config;
        self.vectors("att.", &["time_mix_k", "time_mix_v", "time_mix_r"], n_embd);
        self.vectors("att.", &["time_decay", "time_first"], n_att);
        self.projections(&["key", "value", "receptance"]);
        self.output();
    }

    fn time_mix_v5(&mut self, arch: &Rwkv5) {
        let Config { n_embd, n_att, .. } = *self.config;
        let gated = arch.variant != Rwkv5Variant::V5_0;
        self.vectors("att.", &["time_mix_k", "time_mix_v", "time_mix_r"], n_embd);
        if gated {
            self.vectors("att.", &["time_mix_g"], n_embd);
        }
        self.vectors("att.", &["time_decay", "time_faaaa"], n_att);
        self.norm("att.ln_x", n_att);
        self.projections(&["key", "value", "receptance"]);
        if gated {
            self.projections(&["gate"]);
        }
        self.output();
    }

    fn time_mix_v6(&mut self, arch: &Rwkv6) {
        let Config { n_embd, n_att, .. } = *self.config;
        let Rwkv6 { mix_rank, decay_rank, .. } = *arch;
        self.vectors("att.time_maa_", &["x", "w", "k", "v", "r", "g"], n_embd);
        self.vectors("att.", &["time_decay", "time_faaaa"], n_att);
        self.norm("att.ln_x", n_att);
        self.add("att.time_maa_w1", [5 * mix_rank, n_embd], Role::LowRank);
        for name in V6_MIXES {
            self.add(&format!("att.time_maa_w2.{name}"), [n_embd, mix_rank], Role::LowRank);
        }
        self.low_rank(["att.time_decay_w1", "att.time_decay_w2"], decay_rank, n_att);
        self.projections(&["key", "value", "receptance", "gate"]);
        self.output();
    }

    fn time_mix_v7(&mut self, arch: &Rwkv7) {
        let Config { n_embd, n_att, .. } = *self.config;
        let Rwkv7 { decay_rank, iclr_rank, value_rank, gate_rank, .. } = *arch;
        self.vectors("att.x_", &["r", "w", "k", "v", "a", "g"], n_embd);
        self.vectors("att.", &["w0", "a0", "k_k", "k_a", "r_k"], n_att);
        self.norm("att.ln_x", n_att);
        self.low_rank(["att.w1", "att.w2"], decay_rank, n_att);
        self.low_rank(["att.a1", "att.a2"], iclr_rank, n_att);
        if let (1.., Some(value_rank)) = (self.layer, value_rank) {
            self.vectors("att.", &["v0"], n_att);
            self.low_rank(["att.v1", "att.v2"], value_rank, n_att);
        }
        self.low_rank(["att.g1", "att.g2"], gate_rank, n_att);
        self.projections(&["receptance", "key", "value"]);
        self.output();
    }

    fn channel_mix(&mut self) {
        let Config { n_embd, n_ffn, arch, .. } = *self.config;
        let mixes: &[&str] = match arch {
            Arch::V4 | Arch::V5(_) => &["time_mix_k", "time_mix_r"],
            Arch::V6(_) => &["time_maa_k", "time_maa_r"],
            Arch::V7(_) => &["x_k"],
        };
        self.vectors("ffn.", mixes, n_embd);
        self.add("ffn.key.weight", [n_ffn, n_embd], Role::Matrix);
        match arch {
            Arch::V4 | Arch::V5(_) | Arch::V6(_) => {
                self.add("ffn.receptance.weight", [n_embd, n_embd], Role::Matrix);
            }
            Arch::V7(Rwkv7 { deep_rank: Some(rank), .. }) => {
                self.low_rank(["ffn.s1", "ffn.s2"], rank, n_ffn);
                self.vectors("ffn.", &["s0"], n_ffn);
            }
            Arch::V7(_) => {}
        }
        self.add(VALUE, [n_embd, n_ffn], Role::SparseMatrix);
        if self.optional.value_bound {
            self.add(VALUE_BOUND, [n_embd.div_ceil(GROUP_SIZE), 1], Role::ScaleBound);
        }
    }
}

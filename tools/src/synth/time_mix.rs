//! The tensors of time mixing, version by version.
//!
//! Gains are such that a layer adds about a third of a unit to the residual stream, as channel mixing does, and that every
//! gate, decay and low-rank part is in its working range.

use rwkv_edge::format::{Arch, Config, Heads, Rwkv5, Rwkv5Variant, Rwkv6, Rwkv7};
use rwkv_edge::model::names::V6_MIXES;

use super::fill::Distribution;
use super::model::Model;

const MIX: Distribution = Distribution::Uniform { from: 0.0, to: 1.0 };

/// Adds the tensors of a layer.
pub(super) fn add(model: &mut Model<'_>, layer: usize) {
    let att = format!("blocks.{layer}.att");
    match &model.config.arch {
        Arch::V4 => rwkv4(model, &att),
        Arch::V5(arch) => rwkv5(model, arch, &att),
        Arch::V6(arch) => rwkv6(model, arch, &att),
        Arch::V7(arch) => rwkv7(model, arch, &att, layer),
    }
}

/// The matrices into the channels of time mixing, and the one out of them.
fn projections(model: &mut Model<'_>, att: &str, gains: &[(&str, f64)], output: f64) {
    let Config { n_embd, n_att, .. } = *model.config;
    for (name, gain) in gains {
        model.matrix(format!("{att}.{name}.weight"), n_att, n_embd, *gain);
    }
    model.matrix(format!("{att}.output.weight"), n_embd, n_att, output);
}

fn group_norm(model: &mut Model<'_>, att: &str) {
    let n_att = model.config.n_att;
    model.normal(format!("{att}.ln_x.weight"), &[n_att], 0.6, 0.1);
    model.normal(format!("{att}.ln_x.bias"), &[n_att], 0.0, 0.05);
}

fn rwkv4(model: &mut Model<'_>, att: &str) {
    let n_att = model.config.n_att;
    model.decays(format!("{att}.time_decay"), &[n_att], -6.0, 3.0, n_att);
    model.normal(format!("{att}.time_first"), &[n_att], 0.0, 0.5);
    model.mixes(&format!("{att}.time_mix_"), "kvr", MIX);
    projections(model, att, &[("key", 1.0), ("value", 1.0), ("receptance", 1.0)], 1.5);
}

fn rwkv5(model: &mut Model<'_>, arch: &Rwkv5, att: &str) {
    let Heads { n_head, head_size: size, .. } = arch.heads;
    let gated = arch.variant != Rwkv5Variant::V5_0;
    model.mixes(&format!("{att}.time_mix_"), if gated { "kvrg" } else { "kvr" }, MIX);
    if arch.variant == Rwkv5Variant::V5_2 {
        model.decays(format!("{att}.time_decay"), &[n_head, size], -6.5, 2.0, size);
        model.normal(format!("{att}.time_faaaa"), &[n_head, size], 0.0, 0.5);
    } else {
        model.decays(format!("{att}.time_decay"), &[n_head], -6.5, 1.0, n_head);
        model.normal(format!("{att}.time_first"), &[n_head], 0.0, 0.5);
    }
    let gains = [("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("gate", 1.0)];
    // The gate halves what it lets through.
    let (gains, output) = if gated { (&gains[..], 1.0) } else { (&gains[..3], 0.6) };
    projections(model, att, gains, output);
    group_norm(model, att);
}

fn rwkv6(model: &mut Model<'_>, arch: &Rwkv6, att: &str) {
    let Config { n_embd, n_att, .. } = *model.config;
    let Rwkv6 { heads: Heads { n_head, head_size: size, .. }, mix_rank: mix, decay_rank: decay } = *arch;
    model.mixes(&format!("{att}.time_maa_"), "xwkvrg", MIX);
    model.factor(format!("{att}.time_maa_w1"), &[n_embd, V6_MIXES.len() * mix], n_embd, 0.6);
    model.factor(format!("{att}.time_maa_w2"), &[V6_MIXES.len(), mix, n_embd], mix, 0.3);
    model.decays(format!("{att}.time_decay"), &[1, 1, n_att], -6.5, 2.0, size);
    model.factor(format!("{att}.time_decay_w1"), &[n_embd, decay], n_embd, 0.6);
    model.factor(format!("{att}.time_decay_w2"), &[decay, n_att], decay, 1.0);
    model.normal(format!("{att}.time_faaaa"), &[n_head, size], 0.0, 0.5);
    let gains = [("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("gate", 1.0)];
    projections(model, att, &gains, 1.0);
    group_norm(model, att);
}

fn rwkv7(model: &mut Model<'_>, arch: &Rwkv7, att: &str, layer: usize) {
    let n_att = model.config.n_att;
    let Rwkv7 { heads, decay_rank, iclr_rank, value_rank, gate_rank } = *arch;
    let Heads { n_head, head_size: size, .. } = heads;
    let vector = [1, 1, n_att];
    model.mixes(&format!("{att}.x_"), "rwkvag", MIX);
    model.decays(format!("{att}.w0"), &vector, -6.5, 2.0, size);
    low_rank(model, att, 'w', decay_rank, 1.0);
    model.normal(format!("{att}.a0"), &vector, 0.0, 0.5);
    low_rank(model, att, 'a', iclr_rank, 0.5);
    if let (1.., Some(value_rank)) = (layer, value_rank) {
        model.normal(format!("{att}.v0"), &vector, 0.5, 0.3);
        low_rank(model, att, 'v', value_rank, 0.5);
    }
    low_rank(model, att, 'g', gate_rank, 1.2);
    model.normal(format!("{att}.k_k"), &vector, 0.85, 0.1);
    model.normal(format!("{att}.k_a"), &vector, 1.0, 0.1);
    model.normal(format!("{att}.r_k"), &[n_head, size], 0.0, 0.1);
    projections(model, att, &[("receptance", 0.5), ("key", 0.5), ("value", 1.0)], 0.8);
    group_norm(model, att);
}

/// The two factors that bring a token's values to `rank` and on to the channels.
fn low_rank(model: &mut Model<'_>, att: &str, letter: char, rank: usize, gain: f64) {
    let Config { n_embd, n_att, .. } = *model.config;
    model.factor(format!("{att}.{letter}1"), &[n_embd, rank], n_embd, 1.0);
    model.factor(format!("{att}.{letter}2"), &[rank, n_att], rank, gain);
}

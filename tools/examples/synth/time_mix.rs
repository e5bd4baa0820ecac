//! The tensors of time mixing, version by version.
//!
//! Gains are such that a layer adds about a third of a unit to the residual stream, as channel mixing does, and that every
//! gate, decay and low-rank part is in its working range.

use crate::fill::Fill;
use crate::model::Model;
use crate::sizes::{Kind, Ranks6, Ranks7};

/// Adds the tensors of a layer.
pub(crate) fn add(model: &mut Model<'_>, layer: usize) {
    let att = format!("blocks.{layer}.att");
    match &model.sizes.kind {
        Kind::V4 => rwkv4(model, &att),
        &Kind::V5 { gate, decay_per_channel } => rwkv5(model, &att, gate, decay_per_channel),
        Kind::V6(ranks) => rwkv6(model, &att, ranks),
        Kind::V7(ranks) => rwkv7(model, &att, ranks, layer),
    }
}

/// Decays from slow to fast within each `period`.
fn decays(from: f32, to: f32, period: usize) -> Fill {
    Fill::Ramp { from, to, noise: 0.3, period }
}

fn projections(model: &mut Model<'_>, att: &str, gains: &[(&str, f64)]) {
    let width = model.sizes.width;
    for (name, gain) in gains {
        model.matrix(format!("{att}.{name}.weight"), width, width, *gain);
    }
}

fn group_norm(model: &mut Model<'_>, att: &str) {
    let width = model.sizes.width;
    model.normal(format!("{att}.ln_x.weight"), &[width], 0.6, 0.1);
    model.normal(format!("{att}.ln_x.bias"), &[width], 0.0, 0.05);
}

fn rwkv4(model: &mut Model<'_>, att: &str) {
    let width = model.sizes.width;
    model.add(format!("{att}.time_decay"), &[width], decays(-6.0, 3.0, width));
    model.normal(format!("{att}.time_first"), &[width], 0.0, 0.5);
    model.mixes(&format!("{att}.time_mix_"), "kvr");
    projections(model, att, &[("key", 1.0), ("value", 1.0), ("receptance", 1.0), ("output", 1.5)]);
}

fn rwkv5(model: &mut Model<'_>, att: &str, gate: bool, decay_per_channel: bool) {
    let (heads, size) = (model.sizes.heads, model.sizes.head_size);
    model.mixes(&format!("{att}.time_mix_"), if gate { "kvrg" } else { "kvr" });
    if decay_per_channel {
        model.add(format!("{att}.time_decay"), &[heads, size], decays(-6.5, 2.0, size));
        model.normal(format!("{att}.time_faaaa"), &[heads, size], 0.0, 0.5);
    } else {
        model.add(format!("{att}.time_decay"), &[heads], decays(-6.5, 1.0, heads));
        model.normal(format!("{att}.time_first"), &[heads], 0.0, 0.5);
    }
    // The gate halves what it lets through.
    let output = if gate { 1.0 } else { 0.6 };
    projections(model, att, &[("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("output", output)]);
    if gate {
        projections(model, att, &[("gate", 1.0)]);
    }
    group_norm(model, att);
}

fn rwkv6(model: &mut Model<'_>, att: &str, ranks: &Ranks6) {
    let (width, heads, size) = (model.sizes.width, model.sizes.heads, model.sizes.head_size);
    model.mixes(&format!("{att}.time_maa_"), "xwkvrg");
    model.factor(format!("{att}.time_maa_w1"), &[width, 5 * ranks.mix], width, 0.6);
    model.factor(format!("{att}.time_maa_w2"), &[5, ranks.mix, width], ranks.mix, 0.3);
    model.add(format!("{att}.time_decay"), &[1, 1, width], decays(-6.5, 2.0, size));
    model.factor(format!("{att}.time_decay_w1"), &[width, ranks.decay], width, 0.6);
    model.factor(format!("{att}.time_decay_w2"), &[ranks.decay, width], ranks.decay, 1.0);
    model.normal(format!("{att}.time_faaaa"), &[heads, size], 0.0, 0.5);
    let gains = [("receptance", 0.5), ("key", 1.0), ("value", 1.0), ("output", 1.0), ("gate", 1.0)];
    projections(model, att, &gains);
    group_norm(model, att);
}

fn rwkv7(model: &mut Model<'_>, att: &str, ranks: &Ranks7, layer: usize) {
    let (width, heads, size) = (model.sizes.width, model.sizes.heads, model.sizes.head_size);
    let vector = [1, 1, width];
    model.mixes(&format!("{att}.x_"), "rwkvag");
    model.add(format!("{att}.w0"), &vector, decays(-6.5, 2.0, size));
    low_rank(model, att, 'w', ranks.decay, 1.0);
    model.normal(format!("{att}.a0"), &vector, 0.0, 0.5);
    low_rank(model, att, 'a', ranks.iclr, 0.5);
    if layer > 0 {
        model.normal(format!("{att}.v0"), &vector, 0.5, 0.3);
        low_rank(model, att, 'v', ranks.value, 0.5);
    }
    low_rank(model, att, 'g', ranks.gate, 1.2);
    model.normal(format!("{att}.k_k"), &vector, 0.85, 0.1);
    model.normal(format!("{att}.k_a"), &vector, 1.0, 0.1);
    model.normal(format!("{att}.r_k"), &[heads, size], 0.0, 0.1);
    projections(model, att, &[("receptance", 0.5), ("key", 0.5), ("value", 1.0), ("output", 0.8)]);
    group_norm(model, att);
}

/// The two factors that bring `width` values to `rank` and back.
fn low_rank(model: &mut Model<'_>, att: &str, letter: char, rank: usize, gain: f64) {
    let width = model.sizes.width;
    model.factor(format!("{att}.{letter}1"), &[width, rank], width, 1.0);
    model.factor(format!("{att}.{letter}2"), &[rank, width], rank, gain);
}

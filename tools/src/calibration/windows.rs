//! The tokens to measure activations on, in windows that each begin anew.

use std::iter;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rwkv_edge::{Engine, EngineOptions, Model, Sampler, SamplingParams, Sequence, State, input};

use super::{CalibrationText, text};
use crate::job::{self, Stop};

/// Texts that the model writes together.
const TOGETHER: usize = 8;

/// Largest text that is read: far more than the tokens need.
const MAX_BYTES: u64 = 16 << 20;

/// About `tokens` tokens in windows of at most `window`, each after the model's start tokens. Fewer
/// if the text has no more.
///
/// # Errors
/// If the file cannot be read or has no text, or the model's tokenizer cannot write it.
pub(super) fn of(
    model: &Arc<Model>,
    text: &CalibrationText,
    [tokens, window]: [usize; 2],
    means: (usize, Stop<'_>),
) -> Result<Vec<Vec<u32>>> {
    match text {
        CalibrationText::None | CalibrationText::Auto => Ok(Vec::new()),
        CalibrationText::BuiltIn => {
            cut(model, text::passages(text::TEXT).map(str::as_bytes), [tokens, window])
        }
        CalibrationText::Own => written(model, [tokens, window], means),
        CalibrationText::File(path) => {
            let text = input::read_text(path, MAX_BYTES)?;
            let windows = cut(model, iter::once(&text[..]), [tokens, window])?;
            ensure!(!windows.is_empty(), "{}: there is no text to measure activations on", path.display());
            Ok(windows)
        }
    }
}

/// Passages as windows. A passage that is longer than a window becomes several.
fn cut<'t>(
    model: &Model,
    passages: impl Iterator<Item = &'t [u8]>,
    [tokens, window]: [usize; 2],
) -> Result<Vec<Vec<u32>>> {
    let (tokenizer, start) = (model.tokenizer(), &model.chat().start_tokens);
    let (mut windows, mut total) = (Vec::new(), 0);
    for passage in passages {
        let mut ids = Vec::new();
        tokenizer.encode(passage, &mut ids)?;
        for ids in ids.chunks(window) {
            let ids = &ids[..ids.len().min(tokens - total)];
            if ids.is_empty() {
                return Ok(windows);
            }
            total += ids.len();
            windows.push([start, ids].concat());
        }
    }
    Ok(windows)
}

/// Texts that the model writes at temperature 1. Their first tokens are spread over the vocabulary,
/// and so over its scripts.
fn written(
    model: &Arc<Model>,
    [tokens, window]: [usize; 2],
    (threads, stop): (usize, Stop<'_>),
) -> Result<Vec<Vec<u32>>> {
    let n_vocab = model.config().n_vocab;
    let options = EngineOptions { threads: Some(threads), head_batch: TOGETHER, ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::clone(model), &options)?;
    let params = SamplingParams { temperature: 1.0, top_p: 1.0, top_k: 0, ..SamplingParams::default() };
    let count = tokens.div_ceil(window) as u64;
    let first = |i: u64| ((i + 1) * 2_654_435_761 % n_vocab as u64) as u32;
    let mut windows: Vec<Vec<u32>> =
        (0..count).map(|i| [&model.chat().start_tokens[..], &[first(i)]].concat()).collect();
    for (batch, windows) in windows.chunks_mut(TOGETHER).enumerate() {
        let mut states: Vec<State> =
            windows.iter().map(|_| model.initial_state()).collect::<Result<_, _>>()?;
        let seeds = (batch * TOGETHER) as u64..;
        let samplers = seeds.zip(&*windows).map(|(seed, _)| Sampler::new(params, n_vocab, seed));
        let mut samplers: Vec<Sampler> = samplers.collect::<Result<_, _>>()?;
        let mut next = vec![0; windows.len()];
        let mut unread: Vec<usize> = vec![0; windows.len()];
        for _ in 1..window {
            job::check(&stop)?;
            let pairs = states.iter_mut().zip(&*windows).zip(&mut unread);
            let mut sequences: Vec<Sequence<'_>> = pairs
                .map(|((state, text), unread)| {
                    let tokens = &text[std::mem::replace(unread, text.len())..];
                    Sequence::new(state, tokens)
                })
                .collect();
            engine.feed_batch(&mut sequences)?;
            let mut texts: Vec<_> = states.iter().zip(&mut samplers).collect();
            engine.sample_batch(&mut texts, &mut next).context("the model cannot write a text of its own")?;
            windows.iter_mut().zip(&next).for_each(|(text, &token)| text.push(token));
        }
    }
    Ok(windows)
}

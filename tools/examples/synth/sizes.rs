//! The dimensions of a model: what was asked for, and the released ones for the rest.

use anyhow::{Result, ensure};

use crate::{Options, Version};

/// Low-rank sizes of RWKV-6.
pub(crate) struct Ranks6 {
    pub(crate) mix: usize,
    pub(crate) decay: usize,
}

/// Low-rank sizes of RWKV-7.
pub(crate) struct Ranks7 {
    pub(crate) decay: usize,
    pub(crate) iclr: usize,
    pub(crate) value: usize,
    pub(crate) gate: usize,
}

/// Time mixing of a version, with its dimensions.
pub(crate) enum Kind {
    V4,
    V5 { gate: bool, decay_per_channel: bool },
    V6(Ranks6),
    V7(Ranks7),
}

/// Every dimension of a model.
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) vocab: usize,
    pub(crate) ffn: usize,
    /// Not used by RWKV-4.
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    pub(crate) kind: Kind,
}

impl Sizes {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let width = options.n_embd;
        let (ffn, vocab) = match options.version {
            Version::V4 => (4 * width, 50277),
            Version::V5_0 | Version::V7 => (4 * width, 65536),
            Version::V5_1 | Version::V5_2 | Version::V6 => (7 * width / 2 / 32 * 32, 65536),
        };
        let kind = kind(options.version, width, options.ranks.as_deref())?;
        let sizes = Self {
            layers: options.n_layer,
            width,
            vocab: options.n_vocab.unwrap_or(vocab),
            ffn: options.n_ffn.unwrap_or(ffn),
            heads: width.checked_div(options.head_size).unwrap_or(0),
            head_size: options.head_size,
            kind,
        };
        let dimensions = [sizes.layers, width, sizes.vocab, sizes.ffn, sizes.head_size];
        ensure!(dimensions.iter().all(|&size| size > 0), "all sizes must be positive");
        let heads_fit = matches!(sizes.kind, Kind::V4) || sizes.heads * sizes.head_size == width;
        ensure!(heads_fit, "--n-embd {width} is not a multiple of --head-size {}", sizes.head_size);
        Ok(sizes)
    }
}

fn kind(version: Version, width: usize, ranks: Option<&[usize]>) -> Result<Kind> {
    let positive = ranks.is_none_or(|ranks| ranks.iter().all(|&rank| rank > 0));
    ensure!(positive, "--ranks must be positive");
    Ok(match version {
        Version::V6 => {
            let released = if width < 4096 { [32, 64] } else { [64, 128] };
            let [mix, decay] = ranks_or(ranks, released, "mix,decay")?;
            Kind::V6(Ranks6 { mix, decay })
        }
        Version::V7 => {
            let [decay, iclr, value, gate] = ranks_or(ranks, released_v7(width), "w,a,v,g")?;
            Kind::V7(Ranks7 { decay, iclr, value, gate })
        }
        _ => {
            ensure!(ranks.is_none(), "this version has no --ranks");
            match version {
                Version::V4 => Kind::V4,
                _ => Kind::V5 {
                    gate: !matches!(version, Version::V5_0),
                    decay_per_channel: matches!(version, Version::V5_2),
                },
            }
        }
    })
}

fn released_v7(width: usize) -> [usize; 4] {
    match width {
        0..=1024 => [64, 64, 32, 128],
        1025..=2048 => [96, 96, 64, 256],
        2049..=2560 => [96, 96, 64, 320],
        _ => [128, 128, 96, 480],
    }
}

fn ranks_or<const N: usize>(
    asked: Option<&[usize]>,
    released: [usize; N],
    names: &str,
) -> Result<[usize; N]> {
    let Some(asked) = asked else { return Ok(released) };
    asked.try_into().map_err(|_| anyhow::anyhow!("--ranks must be {N} numbers for this version: {names}"))
}

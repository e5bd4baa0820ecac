//! Options that say how tokens are drawn.

use clap::Args;
use rwkv_edge::{Result, Sampler, SamplingParams};

/// How tokens are drawn. What is not given is the saved text's or the model's.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// Randomness: 0 always takes the likeliest token [default: the saved text's or the model's,
    /// like the next five]
    #[arg(long, alias = "temp")]
    temperature: Option<f32>,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, alias = "top_p")]
    top_p: Option<f32>,
    /// Keep at most this many tokens; 0 means all
    #[arg(long, alias = "top_k")]
    top_k: Option<u32>,
    /// Subtracted from the logit of a token that occurred
    #[arg(long)]
    presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it occurred
    #[arg(long)]
    frequency_penalty: Option<f32>,
    /// Factor by which occurrences fade with every token
    #[arg(long)]
    penalty_decay: Option<f32>,
    /// Seed of the random numbers; the same seed gives the same text on every machine [default: the
    /// saved text's numbers go on; otherwise the clock]
    #[arg(short, long)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The parameters. `base` has those that are not given.
    pub(crate) fn over(&self, base: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_p: self.top_p.unwrap_or(base.top_p),
            top_k: self.top_k.unwrap_or(base.top_k),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            penalty_decay: self.penalty_decay.unwrap_or(base.penalty_decay),
        }
    }

    /// Applies what is given to the sampler of a saved text.
    pub(crate) fn apply(&self, sampler: &mut Sampler) -> Result<()> {
        sampler.set_params(self.over(*sampler.params()))?;
        self.seed.into_iter().for_each(|seed| sampler.set_seed(seed));
        Ok(())
    }

    /// The seed, or one of the clock.
    pub(crate) fn seed_or_clock(&self) -> u64 {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.seed.unwrap_or_else(|| now().map_or(0, |time| time.as_nanos() as u64))
    }
}

//! Counters: bytes read, and time spent in each phase.

use std::ops::Sub;
use std::time::Instant;

/// Bytes of weights and states that an engine has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of weights read: matrices, active columns of sparse matrices, requested rows of the
    /// head's residual, vectors, and embedding rows.
    pub weight_bytes: u64,
    /// Bytes of recurrent state read. The engine wrote as many.
    pub state_bytes: u64,
    /// Columns of `ffn.value` read: those whose input was not zero.
    pub active_columns: u64,
    /// All columns of `ffn.value`.
    pub columns: u64,
    /// Rows of the head's residual that were read.
    pub residual_rows: u64,
    /// All rows of the head's residual, once for each token whose logits or successor were
    /// requested.
    pub head_rows: u64,
}

impl Traffic {
    /// Bytes of weights and state.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.state_bytes
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    /// The difference since `before`.
    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            weight_bytes: self.weight_bytes - before.weight_bytes,
            state_bytes: self.state_bytes - before.state_bytes,
            active_columns: self.active_columns - before.active_columns,
            columns: self.columns - before.columns,
            residual_rows: self.residual_rows - before.residual_rows,
            head_rows: self.head_rows - before.head_rows,
        }
    }
}

/// A part of the work on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Embedding row, norms, token shifts, and their quantization.
    Mix,
    /// The first matrices of time mixing.
    TimeMixIn,
    /// The recurrence and the work around it, low-rank matrices included.
    Wkv,
    /// The output matrix of time mixing.
    TimeMixOut,
    /// `ffn.key` and `ffn.receptance`.
    ChannelMixKey,
    /// `ffn.value`.
    ChannelMixValue,
    /// The output head.
    Head,
    /// Choosing the next token, including the rows of the head's residual that this needs.
    Sample,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 8] = [
        Phase::Mix,
        Phase::TimeMixIn,
        Phase::Wkv,
        Phase::TimeMixOut,
        Phase::ChannelMixKey,
        Phase::ChannelMixValue,
        Phase::Head,
        Phase::Sample,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Mix => "norms and token shift",
            Phase::TimeMixIn => "time_mix in",
            Phase::Wkv => "wkv",
            Phase::TimeMixOut => "time_mix out",
            Phase::ChannelMixKey => "channel_mix key",
            Phase::ChannelMixValue => "channel_mix value",
            Phase::Head => "head",
            Phase::Sample => "sample",
        }
    }
}

/// Nanoseconds spent in each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    nanos: [u64; Phase::ALL.len()],
}

impl Profile {
    /// Nanoseconds spent in `phase`.
    pub fn nanos(&self, phase: Phase) -> u64 {
        self.nanos[phase as usize]
    }

    /// Nanoseconds spent in all phases.
    pub fn total(&self) -> u64 {
        self.nanos.iter().sum()
    }
}

impl Sub for Profile {
    type Output = Self;

    /// The time since an earlier profile.
    fn sub(self, earlier: Self) -> Self {
        Self { nanos: std::array::from_fn(|i| self.nanos[i] - earlier.nanos[i]) }
    }
}

/// Counts traffic always, and time if asked to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) traffic: Traffic,
    pub(crate) profile: Profile,
    /// The end of the phase before; `None` while time is not measured.
    last: Option<Instant>,
}

impl Meter {
    /// Turns the measurement of time on or off.
    pub(crate) fn measure_time(&mut self, on: bool) {
        self.last = on.then(Instant::now);
    }

    /// Begins a phase that does not follow another.
    pub(crate) fn start(&mut self) {
        if self.last.is_some() {
            self.last = Some(Instant::now());
        }
    }

    /// Ends `phase`: the time since the last call belongs to it.
    pub(crate) fn end(&mut self, phase: Phase) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.profile.nanos[phase as usize] += (now - *last).as_nanos() as u64;
            *last = now;
        }
    }
}

//! Hyperparameters: the CONF section.

use std::fmt;

use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use crate::error::{Error, ErrorKind, Result};

const MAX_LAYERS: usize = 1024;
/// Bound of every other dimension, far above any released model.
const MAX_DIM: usize = 1 << 20;
/// Far above the 64 of released models: a state grows with it, weights do not.
const MAX_HEAD_SIZE: usize = 1024;
/// Most bytes of a layer's state for each byte of its weights. Released models have less than one.
const MAX_STATE_RATIO: u64 = 64;
/// Bound of the inner size of a low-rank matrix, which the converter turns in memory.
const MAX_RANK: usize = 8192;

const VERSION: FieldSpec = FieldSpec::required_to_read(1, "version", FieldType::U32);
const N_LAYER: FieldSpec = FieldSpec::required_to_read(2, "n_layer", FieldType::U32);
const N_EMBD: FieldSpec = FieldSpec::required_to_read(3, "n_embd", FieldType::U32);
const N_ATT: FieldSpec = FieldSpec::required_to_read(4, "n_att", FieldType::U32);
const N_FFN: FieldSpec = FieldSpec::required_to_read(5, "n_ffn", FieldType::U32);
const N_VOCAB: FieldSpec = FieldSpec::required_to_read(6, "n_vocab", FieldType::U32);
const LAYER_NORM_EPS: FieldSpec = FieldSpec::required_to_read(7, "layer_norm_eps", FieldType::F32);
const N_HEAD: FieldSpec = FieldSpec::required_to_read(8, "n_head", FieldType::U32);
const HEAD_SIZE: FieldSpec = FieldSpec::required_to_read(9, "head_size", FieldType::U32);
const GROUP_NORM_EPS: FieldSpec = FieldSpec::required_to_read(10, "group_norm_eps", FieldType::F32);
const MIX_RANK: FieldSpec = FieldSpec::required_to_read(11, "mix_rank", FieldType::U32);
const DECAY_RANK: FieldSpec = FieldSpec::required_to_read(12, "decay_rank", FieldType::U32);
const ICLR_RANK: FieldSpec = FieldSpec::required_to_read(13, "iclr_rank", FieldType::U32);
const VALUE_RANK: FieldSpec = FieldSpec::required_to_read(14, "value_rank", FieldType::U32);
const GATE_RANK: FieldSpec = FieldSpec::required_to_read(15, "gate_rank", FieldType::U32);
const SCHEMA: [FieldSpec; 15] = [
    VERSION,
    N_LAYER,
    N_EMBD,
    N_ATT,
    N_FFN,
    N_VOCAB,
    LAYER_NORM_EPS,
    N_HEAD,
    HEAD_SIZE,
    GROUP_NORM_EPS,
    MIX_RANK,
    DECAY_RANK,
    ICLR_RANK,
    VALUE_RANK,
    GATE_RANK,
];

/// Architecture of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RWKV-4.
    V4,
    /// RWKV-5.0: decay per head, no gate.
    V5_0,
    /// RWKV-5.1: decay per head, gate.
    V5_1,
    /// RWKV-5.2: decay per channel, gate.
    V5_2,
    /// RWKV-6.
    V6,
    /// RWKV-7.
    V7,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 6] =
        [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

    /// The number that stands for the version in a file.
    pub const fn code(self) -> u32 {
        match self {
            Version::V4 => 40,
            Version::V5_0 => 50,
            Version::V5_1 => 51,
            Version::V5_2 => 52,
            Version::V6 => 60,
            Version::V7 => 70,
        }
    }

    /// The version a number stands for.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.code() == code)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V4 => "RWKV-4",
            Version::V5_0 => "RWKV-5.0",
            Version::V5_1 => "RWKV-5.1",
            Version::V5_2 => "RWKV-5.2",
            Version::V6 => "RWKV-6",
            Version::V7 => "RWKV-7",
        })
    }
}

/// Every hyperparameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Architecture.
    pub version: Version,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of time mixing: rows of `att.key.weight`.
    pub n_att: usize,
    /// Width of channel mixing: rows of `ffn.key.weight`.
    pub n_ffn: usize,
    /// Rows of `emb.weight` and `head.weight`.
    pub n_vocab: usize,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f32,
    /// Heads of time mixing; none in RWKV-4.
    pub heads: Option<Heads>,
    /// Inner size of each of the five dynamic mixes: RWKV-6.
    pub mix_rank: Option<usize>,
    /// Inner size of the low-rank decay: RWKV-6 and RWKV-7.
    pub decay_rank: Option<usize>,
    /// Inner size of the low-rank in-context learning rate: RWKV-7.
    pub iclr_rank: Option<usize>,
    /// Inner size of the low-rank value residual: RWKV-7 with more than one layer.
    pub value_rank: Option<usize>,
    /// Inner size of the low-rank gate: RWKV-7.
    pub gate_rank: Option<usize>,
}

/// Heads of time mixing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Number of heads.
    pub n_head: usize,
    /// Channels of one head; `n_head * head_size` is `n_att`.
    pub head_size: usize,
    /// Epsilon of the group norm `ln_x`.
    pub group_norm_eps: f32,
}

impl Config {
    /// Checks that every dimension is in bounds and that exactly the version's fields are there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check_dim("n_layer", self.n_layer, MAX_LAYERS)?;
        let dims = [
            ("n_embd", self.n_embd),
            ("n_att", self.n_att),
            ("n_ffn", self.n_ffn),
            ("n_vocab", self.n_vocab),
        ];
        for (name, value) in dims {
            check_dim(name, value, MAX_DIM)?;
        }
        check_eps("layer_norm_eps", self.layer_norm_eps)?;
        self.check_heads()?;
        let version = self.version;
        let (v6, v7) = (version == Version::V6, version == Version::V7);
        for (name, value, wanted) in [
            ("mix_rank", self.mix_rank, v6),
            ("decay_rank", self.decay_rank, v6 || v7),
            ("iclr_rank", self.iclr_rank, v7),
            ("value_rank", self.value_rank, v7 && self.n_layer > 1),
            ("gate_rank", self.gate_rank, v7),
        ] {
            check_presence(version, name, value.is_some(), wanted)?;
            value.map_or(Ok(()), |value| check_dim(name, value, MAX_RANK))?;
        }
        self.check_state()
    }

    /// So that a small file cannot ask for all memory there is.
    fn check_state(&self) -> Result<()> {
        let [d, a, f] = [self.n_embd, self.n_att, self.n_ffn].map(|dim| dim as u64);
        let state = 4 * (2 * d + a * self.heads.map_or(3, |heads| heads.head_size as u64));
        // Matrices that all versions have, in int4.
        let weights = (4 * a * d + 2 * f * d) / 2;
        if state <= MAX_STATE_RATIO * weights {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a layer's state has {state} bytes; it must be at most {MAX_STATE_RATIO} times its weights of {weights}"
        )))
    }

    fn check_heads(&self) -> Result<()> {
        check_presence(self.version, "n_head", self.heads.is_some(), self.version != Version::V4)?;
        let Some(heads) = &self.heads else { return Ok(()) };
        check_dim("n_head", heads.n_head, MAX_DIM)?;
        check_dim("head_size", heads.head_size, MAX_HEAD_SIZE)?;
        check_eps("group_norm_eps", heads.group_norm_eps)?;
        if heads.n_head.checked_mul(heads.head_size) != Some(self.n_att) {
            let (n, size, n_att) = (heads.n_head, heads.head_size, self.n_att);
            return Err(Error::invalid(format!("{n} heads of {size} channels do not make n_att = {n_att}")));
        }
        Ok(())
    }

    /// The CONF section. The configuration must be valid.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.u32(&VERSION, self.version.code());
        let (heads, size) = (self.heads.map(|h| h.n_head), self.heads.map(|h| h.head_size));
        for (spec, value) in [
            (N_LAYER, Some(self.n_layer)),
            (N_EMBD, Some(self.n_embd)),
            (N_ATT, Some(self.n_att)),
            (N_FFN, Some(self.n_ffn)),
            (N_VOCAB, Some(self.n_vocab)),
            (N_HEAD, heads),
            (HEAD_SIZE, size),
            (MIX_RANK, self.mix_rank),
            (DECAY_RANK, self.decay_rank),
            (ICLR_RANK, self.iclr_rank),
            (VALUE_RANK, self.value_rank),
            (GATE_RANK, self.gate_rank),
        ] {
            if let Some(value) = value {
                out.u32(&spec, value as u32);
            }
        }
        out.f32(&LAYER_NORM_EPS, self.layer_norm_eps);
        if let Some(heads) = self.heads {
            out.f32(&GROUP_NORM_EPS, heads.group_norm_eps);
        }
        out.finish()
    }

    /// Reads and validates the CONF section.
    pub(super) fn parse(section: &[u8]) -> Result<Self> {
        let fields = Fields::parse("CONF", section, &SCHEMA)?;
        let code = fields.u32(&VERSION)?;
        let version = Version::from_code(code)
            .ok_or_else(|| ErrorKind::Unsupported(format!("architecture {code} is not known here")))?;
        let size = |spec| fields.u32(spec).map(|value| value as usize);
        let rank = |spec| fields.find_u32(spec).map(|value| value as usize);
        let config = Self {
            version,
            n_layer: size(&N_LAYER)?,
            n_embd: size(&N_EMBD)?,
            n_att: size(&N_ATT)?,
            n_ffn: size(&N_FFN)?,
            n_vocab: size(&N_VOCAB)?,
            layer_norm_eps: fields.f32(&LAYER_NORM_EPS)?,
            heads: parse_heads(&fields)?,
            mix_rank: rank(&MIX_RANK),
            decay_rank: rank(&DECAY_RANK),
            iclr_rank: rank(&ICLR_RANK),
            value_rank: rank(&VALUE_RANK),
            gate_rank: rank(&GATE_RANK),
        };
        config.validate().map_err(|error| Error::malformed(format!("CONF: {error}")))?;
        Ok(config)
    }
}

/// The three head fields, of which either all or none must be there.
fn parse_heads(fields: &Fields<'_>) -> Result<Option<Heads>> {
    let (n_head, head_size) = (fields.find_u32(&N_HEAD), fields.find_u32(&HEAD_SIZE));
    match (n_head, head_size, fields.find_f32(&GROUP_NORM_EPS)) {
        (None, None, None) => Ok(None),
        (Some(n_head), Some(head_size), Some(group_norm_eps)) => {
            Ok(Some(Heads { n_head: n_head as usize, head_size: head_size as usize, group_norm_eps }))
        }
        _ => Err(Error::malformed("CONF: n_head, head_size and group_norm_eps go together")),
    }
}

fn check_dim(name: &str, value: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{name} is {value}; it must be in 1..={max}")))
}

fn check_eps(name: &str, value: f32) -> Result<()> {
    if value.is_normal() && value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("{name} is {value}; it must be above 0 and at most 1")))
}

fn check_presence(version: Version, name: &str, present: bool, wanted: bool) -> Result<()> {
    match (present, wanted) {
        (false, true) => Err(Error::invalid(format!("{version} needs {name}"))),
        (true, false) => Err(Error::invalid(format!("{version} of this depth has no {name}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(version: Version) -> Config {
        let (v6, v7) = (version == Version::V6, version == Version::V7);
        Config {
            version,
            n_layer: 2,
            n_embd: 64,
            n_att: 64,
            n_ffn: 224,
            n_vocab: 256,
            layer_norm_eps: 1e-5,
            heads: (version != Version::V4).then_some(Heads {
                n_head: 8,
                head_size: 8,
                group_norm_eps: 64e-5,
            }),
            mix_rank: v6.then_some(32),
            decay_rank: (v6 || v7).then_some(64),
            iclr_rank: v7.then_some(64),
            value_rank: v7.then_some(32),
            gate_rank: v7.then_some(128),
        }
    }

    #[test]
    fn every_version_round_trips() {
        for version in Version::ALL {
            let config = config(version);
            config.validate().unwrap();
            assert_eq!(Config::parse(&config.emit()).unwrap(), config, "{version}");
            assert_eq!(Version::from_code(version.code()), Some(version));
        }
    }

    #[test]
    fn missing_and_foreign_fields_are_refused_per_version() {
        let edits: [fn(&mut Config); 5] = [
            |c| c.heads = if c.heads.is_some() { None } else { config(Version::V7).heads },
            |c| c.mix_rank = c.mix_rank.xor(Some(32)),
            |c| c.decay_rank = c.decay_rank.xor(Some(32)),
            |c| c.value_rank = c.value_rank.xor(Some(32)),
            |c| c.gate_rank = c.gate_rank.xor(Some(32)),
        ];
        for version in Version::ALL {
            for (i, edit) in edits.iter().enumerate() {
                let mut config = config(version);
                edit(&mut config);
                assert!(config.validate().is_err(), "{version}, edit {i}");
                assert!(Config::parse(&config.emit()).is_err(), "{version}, edit {i}");
            }
        }
    }

    #[test]
    fn a_single_layer_of_rwkv_7_has_no_value_rank() {
        let mut config = config(Version::V7);
        config.n_layer = 1;
        assert!(config.validate().is_err());
        config.value_rank = None;
        config.validate().unwrap();
    }

    #[test]
    fn zero_huge_and_inconsistent_dimensions_are_refused() {
        let edits: [fn(&mut Config); 9] = [
            |c| c.n_layer = 0,
            |c| c.n_layer = 1025,
            |c| c.n_embd = 0,
            |c| c.n_ffn = (1 << 20) + 1,
            |c| c.n_vocab = 0,
            |c| c.n_att = 65,
            |c| c.layer_norm_eps = f32::NAN,
            |c| c.layer_norm_eps = 0.0,
            |c| c.heads.as_mut().unwrap().group_norm_eps = f32::INFINITY,
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut config = config(Version::V5_2);
            edit(&mut config);
            assert!(config.validate().is_err(), "edit {i}");
        }
    }

    #[test]
    fn states_that_are_large_for_their_weights_are_refused() {
        let heads = |n_embd, n_head, head_size| {
            let mut config = config(Version::V5_2);
            (config.n_embd, config.n_att, config.n_ffn) = (n_embd, n_head * head_size, 32);
            config.heads = Some(Heads { n_head, head_size, group_norm_eps: 64e-5 });
            config.validate()
        };
        heads(1024, 1, 1024).unwrap();
        let error = heads(2048, 1, 1025).unwrap_err().to_string();
        assert_eq!(error, "head_size is 1025; it must be in 1..=1024");
        // 4 * (16 + 512 * 1024) bytes of state, (4 * 512 * 1024 * 8 + 2 * 32 * 8) / 2 of weights.
        heads(32, 512, 1024).unwrap();
        let error = heads(8, 512, 1024).unwrap_err().to_string();
        assert!(
            error.contains("state has 2147483712 bytes; it must be at most 64 times its weights"),
            "{error}"
        );
    }

    #[test]
    fn ranks_above_8192_are_refused() {
        let ranks: [fn(&mut Config) -> &mut Option<usize>; 4] =
            [|c| &mut c.decay_rank, |c| &mut c.iclr_rank, |c| &mut c.value_rank, |c| &mut c.gate_rank];
        for rank in ranks {
            let mut config = config(Version::V7);
            *rank(&mut config) = Some(8192);
            config.validate().unwrap();
            *rank(&mut config) = Some(8193);
            assert!(config.validate().is_err() && Config::parse(&config.emit()).is_err());
        }
        let mut config = config(Version::V6);
        config.mix_rank = Some(8193);
        assert!(config.validate().is_err());
    }

    #[test]
    fn unknown_architecture_is_unsupported_rather_than_damaged() {
        let mut bytes = config(Version::V4).emit();
        bytes[8] = 80;
        assert!(matches!(Config::parse(&bytes).unwrap_err().kind(), ErrorKind::Unsupported(_)));
    }

    #[test]
    fn versions_print_as_users_know_them() {
        assert_eq!(Version::V4.to_string(), "RWKV-4");
        assert_eq!(Version::V5_2.to_string(), "RWKV-5.2");
    }
}

//! Hyperparameters: the CONF section.

use std::fmt;

use super::Variant;
use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use crate::error::{Error, ErrorKind, Result};

const MAX_LAYERS: usize = 1024;
/// Bound of every other dimension, far above any released model.
const MAX_DIM: usize = 1 << 20;
/// Bound of the head size, far above the 64 of released models. The state grows with the head size,
/// the weights do not.
const MAX_HEAD_SIZE: usize = 1024;
/// Most bytes of a layer's state for each byte of its weights. Released models have less than one.
const MAX_STATE_RATIO: u64 = 64;
/// Bound of the inner size of a low-rank matrix. The converter transposes these matrices in memory.
const MAX_RANK: usize = 8192;

/// Bound of the inner size of DeepEmbed. Released models have 32.
const MAX_DEEP_RANK: usize = 256;
/// Floats of a cache line.
const DEEP_RANK_STEP: usize = 16;

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
const VARIANT: FieldSpec = FieldSpec::required_to_read(16, "variant", FieldType::U32);
const DEEP_RANK: FieldSpec = FieldSpec::required_to_read(17, "deep_rank", FieldType::U32);
const SCHEMA: [FieldSpec; 17] = [
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
    VARIANT,
    DEEP_RANK,
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
    /// RWKV-7a: RWKV-7 with DeepEmbed.
    V7a,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 7] =
        [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7, Version::V7a];

    /// The number that stands for the version in a file.
    pub const fn code(self) -> u32 {
        match self {
            Version::V4 => 40,
            Version::V5_0 => 50,
            Version::V5_1 => 51,
            Version::V5_2 => 52,
            Version::V6 => 60,
            Version::V7 => 70,
            Version::V7a => 71,
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
            Version::V7a => "RWKV-7a",
        })
    }
}

/// Every hyperparameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// The architecture, with its own hyperparameters.
    pub arch: Arch,
    /// The arithmetic, which the tensors do not tell.
    pub variant: Variant,
}

/// An architecture and its own hyperparameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arch {
    /// RWKV-4.
    V4,
    /// RWKV-5.0, 5.1 or 5.2.
    V5(Rwkv5),
    /// RWKV-6.
    V6(Rwkv6),
    /// RWKV-7 or 7a.
    V7(Rwkv7),
}

/// Hyperparameters of RWKV-5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rwkv5 {
    /// Which RWKV-5 it is.
    pub variant: Rwkv5Variant,
    /// Heads of time mixing.
    pub heads: Heads,
}

/// The three architectures called RWKV-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rwkv5Variant {
    /// 5.0: decay per head, no gate.
    V5_0,
    /// 5.1: decay per head, gate.
    V5_1,
    /// 5.2: decay per channel, gate.
    V5_2,
}

/// Hyperparameters of RWKV-6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rwkv6 {
    /// Heads of time mixing.
    pub heads: Heads,
    /// Inner size of each of the five dynamic mixes.
    pub mix_rank: usize,
    /// Inner size of the low-rank decay.
    pub decay_rank: usize,
}

/// Hyperparameters of RWKV-7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rwkv7 {
    /// Heads of time mixing.
    pub heads: Heads,
    /// Inner size of the low-rank decay.
    pub decay_rank: usize,
    /// Inner size of the low-rank in-context learning rate.
    pub iclr_rank: usize,
    /// Inner size of the low-rank value residual. Every layer but the first has one.
    pub value_rank: Option<usize>,
    /// Inner size of the low-rank gate.
    pub gate_rank: usize,
    /// Inner size of DeepEmbed, which makes it an RWKV-7a: a multiple of 16.
    pub deep_rank: Option<usize>,
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

impl Arch {
    /// The architecture's name.
    pub fn version(&self) -> Version {
        match self {
            Arch::V4 => Version::V4,
            Arch::V5(Rwkv5 { variant: Rwkv5Variant::V5_0, .. }) => Version::V5_0,
            Arch::V5(Rwkv5 { variant: Rwkv5Variant::V5_1, .. }) => Version::V5_1,
            Arch::V5(Rwkv5 { variant: Rwkv5Variant::V5_2, .. }) => Version::V5_2,
            Arch::V6(_) => Version::V6,
            Arch::V7(Rwkv7 { deep_rank: None, .. }) => Version::V7,
            Arch::V7(Rwkv7 { deep_rank: Some(_), .. }) => Version::V7a,
        }
    }

    /// Heads of time mixing; RWKV-4 has none.
    pub fn heads(&self) -> Option<&Heads> {
        match self {
            Arch::V4 => None,
            Arch::V5(Rwkv5 { heads, .. }) | Arch::V6(Rwkv6 { heads, .. }) | Arch::V7(Rwkv7 { heads, .. }) => {
                Some(heads)
            }
        }
    }

    /// Names and inner sizes of the low-rank matrices.
    pub fn ranks(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.rank_fields().into_iter().map(|(spec, rank)| (spec.name, rank))
    }

    /// The same, in the order of the fields in the file.
    fn rank_fields(&self) -> Vec<(FieldSpec, usize)> {
        match *self {
            Arch::V4 | Arch::V5(_) => vec![],
            Arch::V6(Rwkv6 { mix_rank, decay_rank, .. }) => {
                vec![(MIX_RANK, mix_rank), (DECAY_RANK, decay_rank)]
            }
            Arch::V7(Rwkv7 { decay_rank, iclr_rank, value_rank, gate_rank, deep_rank, .. }) => {
                let value = value_rank.map(|value_rank| (VALUE_RANK, value_rank));
                let before = [(DECAY_RANK, decay_rank), (ICLR_RANK, iclr_rank)];
                let deep = deep_rank.map(|deep_rank| (DEEP_RANK, deep_rank));
                before.into_iter().chain(value).chain([(GATE_RANK, gate_rank)]).chain(deep).collect()
            }
        }
    }

    /// Reads the fields of `version`, and refuses those of other versions.
    fn parse(fields: &Fields<'_>, version: Version) -> Result<Self> {
        let missing = |spec: FieldSpec| Error::malformed(format!("CONF: {version} needs {}", spec.name));
        let found = |spec| fields.find_u32(&spec).map(|value| value as usize);
        let rank = |spec| found(spec).ok_or_else(|| missing(spec));
        let heads = parse_heads(fields)?;
        let heads = || heads.ok_or_else(|| missing(N_HEAD));
        let v5 = |variant| Ok::<_, Error>(Arch::V5(Rwkv5 { variant, heads: heads()? }));
        let arch = match version {
            Version::V4 => Arch::V4,
            Version::V5_0 => v5(Rwkv5Variant::V5_0)?,
            Version::V5_1 => v5(Rwkv5Variant::V5_1)?,
            Version::V5_2 => v5(Rwkv5Variant::V5_2)?,
            Version::V6 => {
                Arch::V6(Rwkv6 { heads: heads()?, mix_rank: rank(MIX_RANK)?, decay_rank: rank(DECAY_RANK)? })
            }
            Version::V7 | Version::V7a => Arch::V7(Rwkv7 {
                heads: heads()?,
                decay_rank: rank(DECAY_RANK)?,
                iclr_rank: rank(ICLR_RANK)?,
                value_rank: found(VALUE_RANK),
                gate_rank: rank(GATE_RANK)?,
                deep_rank: (version == Version::V7a).then(|| rank(DEEP_RANK)).transpose()?,
            }),
        };
        let heads = arch.heads().map(|_| N_HEAD.id);
        let own: Vec<u16> = arch.rank_fields().iter().map(|(spec, _)| spec.id).chain(heads).collect();
        let foreign = |spec: &FieldSpec| found(*spec).is_some() && !own.contains(&spec.id);
        let all = [N_HEAD, MIX_RANK, DECAY_RANK, ICLR_RANK, VALUE_RANK, GATE_RANK, DEEP_RANK];
        match all.into_iter().find(foreign) {
            None => Ok(arch),
            Some(spec) => Err(Error::malformed(format!("CONF: {}", has_no(version, spec.name)))),
        }
    }
}

impl Config {
    /// The architecture's name.
    pub fn version(&self) -> Version {
        self.arch.version()
    }

    /// Heads of time mixing; RWKV-4 has none.
    pub fn heads(&self) -> Option<&Heads> {
        self.arch.heads()
    }

    /// Checks that every dimension is in bounds.
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
        self.heads().map_or(Ok(()), |heads| self.check_heads(heads))?;
        self.check_variant()?;
        self.check_value_rank()?;
        self.check_deep_rank()?;
        for (name, rank) in self.arch.ranks() {
            check_dim(name, rank, MAX_RANK)?;
        }
        self.check_state()
    }

    fn check_heads(&self, heads: &Heads) -> Result<()> {
        check_dim("n_head", heads.n_head, MAX_DIM)?;
        check_dim("head_size", heads.head_size, MAX_HEAD_SIZE)?;
        check_eps("group_norm_eps", heads.group_norm_eps)?;
        if heads.n_head.checked_mul(heads.head_size) != Some(self.n_att) {
            let (n, size, n_att) = (heads.n_head, heads.head_size, self.n_att);
            return Err(Error::invalid(format!("{n} heads of {size} channels do not make n_att = {n_att}")));
        }
        Ok(())
    }

    fn check_variant(&self) -> Result<()> {
        let (variant, version) = (self.variant, self.version());
        if variant.exists_for(version) {
            return Ok(());
        }
        Err(Error::invalid(format!("{version} has no variant {variant}")))
    }

    /// Layer 0 has no value residual, so a model of one layer has no rank of it.
    fn check_value_rank(&self) -> Result<()> {
        let Arch::V7(Rwkv7 { value_rank, .. }) = self.arch else { return Ok(()) };
        let (version, name) = (self.version(), VALUE_RANK.name);
        match (value_rank, self.n_layer > 1) {
            (None, true) => Err(Error::invalid(format!("{version} needs {name}"))),
            (Some(_), false) => Err(Error::invalid(has_no(version, name))),
            _ => Ok(()),
        }
    }

    /// A table of DeepEmbed has `deep_rank` records of `deep_rank` floats for each token. Whole cache
    /// lines let a kernel read them where they are.
    fn check_deep_rank(&self) -> Result<()> {
        let Arch::V7(Rwkv7 { deep_rank: Some(rank), .. }) = self.arch else { return Ok(()) };
        if rank.is_multiple_of(DEEP_RANK_STEP) && (1..=MAX_DEEP_RANK).contains(&rank) {
            return Ok(());
        }
        let name = DEEP_RANK.name;
        Err(Error::invalid(format!(
            "{name} is {rank}; it must be a multiple of {DEEP_RANK_STEP} in 1..={MAX_DEEP_RANK}"
        )))
    }

    /// A small file must not ask for all memory.
    fn check_state(&self) -> Result<()> {
        let [d, a, f] = [self.n_embd, self.n_att, self.n_ffn].map(|dim| dim as u64);
        let state = 4 * (2 * d + a * self.heads().map_or(3, |heads| heads.head_size as u64));
        // Matrices that all versions have, in int4.
        let weights = (4 * a * d + 2 * f * d) / 2;
        if state <= MAX_STATE_RATIO * weights {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a layer's state has {state} bytes; it must be at most {MAX_STATE_RATIO} times its weights of {weights}"
        )))
    }

    /// The CONF section. The configuration must be valid.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.u32(&VERSION, self.version().code());
        let dims = [
            (N_LAYER, self.n_layer),
            (N_EMBD, self.n_embd),
            (N_ATT, self.n_att),
            (N_FFN, self.n_ffn),
            (N_VOCAB, self.n_vocab),
        ];
        let heads = self.heads().map(|heads| [(N_HEAD, heads.n_head), (HEAD_SIZE, heads.head_size)]);
        for (spec, value) in
            dims.into_iter().chain(heads.into_iter().flatten()).chain(self.arch.rank_fields())
        {
            out.u32(&spec, value as u32);
        }
        out.f32(&LAYER_NORM_EPS, self.layer_norm_eps);
        if let Some(heads) = self.heads() {
            out.f32(&GROUP_NORM_EPS, heads.group_norm_eps);
        }
        if self.variant != Variant::Plain {
            out.u32(&VARIANT, self.variant.code());
        }
        out.finish()
    }

    /// The minor version of the format that has all of these fields.
    pub(super) fn minor_version(&self) -> u16 {
        u16::from(self.variant != Variant::Plain || self.version() == Version::V7a)
    }

    /// Reads and validates the CONF section.
    pub(super) fn parse(section: &[u8]) -> Result<Self> {
        let fields = Fields::parse("CONF", section, &SCHEMA)?;
        let code = fields.u32(&VERSION)?;
        let version = Version::from_code(code)
            .ok_or_else(|| ErrorKind::Unsupported(format!("architecture {code} is not known here")))?;
        let size = |spec| fields.u32(spec).map(|value| value as usize);
        let config = Self {
            n_layer: size(&N_LAYER)?,
            n_embd: size(&N_EMBD)?,
            n_att: size(&N_ATT)?,
            n_ffn: size(&N_FFN)?,
            n_vocab: size(&N_VOCAB)?,
            layer_norm_eps: fields.f32(&LAYER_NORM_EPS)?,
            arch: Arch::parse(&fields, version)?,
            variant: fields.find_u32(&VARIANT).map_or(Ok(Variant::Plain), Variant::from_code)?,
        };
        config.validate().map_err(|error| Error::malformed(format!("CONF: {error}")))?;
        Ok(config)
    }
}

/// The three head fields. Either all or none must be present.
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

fn has_no(version: Version, name: &str) -> String {
    format!("{version} of this depth has no {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { n_head: 8, head_size: 8, group_norm_eps: 64e-5 };

    fn config(version: Version) -> Config {
        let v5 = |variant| Arch::V5(Rwkv5 { variant, heads: HEADS });
        let arch = match version {
            Version::V4 => Arch::V4,
            Version::V5_0 => v5(Rwkv5Variant::V5_0),
            Version::V5_1 => v5(Rwkv5Variant::V5_1),
            Version::V5_2 => v5(Rwkv5Variant::V5_2),
            Version::V6 => Arch::V6(Rwkv6 { heads: HEADS, mix_rank: 32, decay_rank: 64 }),
            Version::V7 => Arch::V7(V7),
            Version::V7a => Arch::V7(Rwkv7 { deep_rank: Some(16), ..V7 }),
        };
        let (n_layer, n_embd, n_att, n_ffn, n_vocab) = (2, 64, 64, 224, 256);
        Config { n_layer, n_embd, n_att, n_ffn, n_vocab, layer_norm_eps: 1e-5, arch, variant: Variant::Plain }
    }

    const V7: Rwkv7 = Rwkv7 {
        heads: HEADS,
        decay_rank: 64,
        iclr_rank: 64,
        value_rank: Some(32),
        gate_rank: 128,
        deep_rank: None,
    };

    /// The error of a CONF section with the fields of a `version`. The field `spec` is removed if
    /// it is among them, and added otherwise.
    fn error_without_or_with(version: Version, spec: &FieldSpec) -> String {
        let section = config(version).emit();
        let fields = Fields::parse("CONF", &section, &SCHEMA).unwrap();
        let mut out = FieldWriter::default();
        for field in &SCHEMA {
            match (field.kind, fields.find_u32(field).is_some() != (field.id == spec.id)) {
                (_, false) => {}
                (FieldType::F32, true) => out.f32(field, fields.find_f32(field).unwrap_or(1.0)),
                (_, true) => out.u32(field, fields.find_u32(field).unwrap_or(32)),
            }
        }
        Config::parse(&out.finish()).unwrap_err().to_string()
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
        let ranks = [
            (MIX_RANK, [true, false, false]),
            (DECAY_RANK, [true, true, true]),
            (ICLR_RANK, [false, true, true]),
            (VALUE_RANK, [false, true, true]),
            (GATE_RANK, [false, true, true]),
            (DEEP_RANK, [false, false, true]),
        ];
        for version in Version::ALL {
            for (spec, [v6, v7, v7a]) in ranks {
                let has = match version {
                    Version::V6 => v6,
                    Version::V7 => v7,
                    Version::V7a => v7a,
                    _ => false,
                };
                let text = if has { "needs" } else { "of this depth has no" };
                let expected = format!("CONF: {version} {text} {}", spec.name);
                let error = error_without_or_with(version, &spec);
                assert!(error.contains(&expected), "{error}");
            }
        }
    }

    #[test]
    fn the_three_fields_of_heads_go_together_and_rwkv_4_has_none() {
        for version in Version::ALL {
            for spec in [N_HEAD, HEAD_SIZE, GROUP_NORM_EPS] {
                let error = error_without_or_with(version, &spec);
                assert!(error.contains("n_head, head_size and group_norm_eps go together"), "{error}");
            }
        }
        let (v4, v5) = (config(Version::V4).emit(), config(Version::V5_0).emit());
        let code = |section: &[u8], version: Version| {
            let mut section = section.to_vec();
            section[8..12].copy_from_slice(&version.code().to_le_bytes());
            Config::parse(&section).unwrap_err().to_string()
        };
        let error = code(&v4, Version::V5_0);
        assert!(error.contains("CONF: RWKV-5.0 needs n_head"), "{error}");
        let error = code(&v5, Version::V4);
        assert!(error.contains("CONF: RWKV-4 of this depth has no n_head"), "{error}");
    }

    #[test]
    fn a_single_layer_of_rwkv_7_has_no_value_rank() {
        let mut config = config(Version::V7);
        config.n_layer = 1;
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("RWKV-7 of this depth has no value_rank"), "{error}");
        config.arch = Arch::V7(Rwkv7 { value_rank: None, ..V7 });
        config.validate().unwrap();
        config.n_layer = 2;
        assert!(config.validate().unwrap_err().to_string().contains("RWKV-7 needs value_rank"));
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
            |c| {
                let heads = Heads { group_norm_eps: f32::INFINITY, ..HEADS };
                c.arch = Arch::V5(Rwkv5 { variant: Rwkv5Variant::V5_2, heads });
            },
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
            let heads = Heads { n_head, head_size, ..HEADS };
            config.arch = Arch::V5(Rwkv5 { variant: Rwkv5Variant::V5_2, heads });
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
        let v7: [fn(usize) -> Rwkv7; 4] = [
            |decay_rank| Rwkv7 { decay_rank, ..V7 },
            |iclr_rank| Rwkv7 { iclr_rank, ..V7 },
            |value_rank| Rwkv7 { value_rank: Some(value_rank), ..V7 },
            |gate_rank| Rwkv7 { gate_rank, ..V7 },
        ];
        for with_rank in v7 {
            let mut config = config(Version::V7);
            config.arch = Arch::V7(with_rank(8192));
            config.validate().unwrap();
            config.arch = Arch::V7(with_rank(8193));
            assert!(config.validate().is_err() && Config::parse(&config.emit()).is_err());
        }
        let mut config = config(Version::V6);
        config.arch = Arch::V6(Rwkv6 { heads: HEADS, mix_rank: 8193, decay_rank: 64 });
        assert!(config.validate().is_err());
    }

    #[test]
    fn a_deep_rank_that_is_no_whole_number_of_cache_lines_is_refused() {
        let with_rank = |deep_rank| {
            let arch = Arch::V7(Rwkv7 { deep_rank: Some(deep_rank), ..V7 });
            Config { arch, ..config(Version::V7a) }.validate()
        };
        with_rank(32).unwrap();
        with_rank(256).unwrap();
        for rank in [0, 8, 33, 272] {
            let error = with_rank(rank).unwrap_err().to_string();
            assert!(error.contains("multiple of 16 in 1..=256"), "{error}");
        }
    }

    #[test]
    fn unknown_architecture_is_unsupported_rather_than_damaged() {
        let mut bytes = config(Version::V4).emit();
        bytes[8] = 80;
        assert!(matches!(Config::parse(&bytes).unwrap_err().kind(), ErrorKind::Unsupported(_)));
    }

    #[test]
    fn variants_round_trip_and_plain_is_the_format_before_them() {
        for version in Version::ALL {
            for variant in Variant::ALL {
                let config = Config { variant, ..config(version) };
                if !variant.exists_for(version) {
                    let error = config.validate().unwrap_err().to_string();
                    assert_eq!(error, format!("{version} has no variant {variant}"));
                    assert!(Config::parse(&config.emit()).unwrap_err().to_string().contains(&error));
                    continue;
                }
                assert_eq!(Config::parse(&config.emit()).unwrap(), config, "{version}");
                let is_new = variant != Variant::Plain || version == Version::V7a;
                assert_eq!(config.minor_version(), u16::from(is_new));
            }
        }
        let mut section = config(Version::V7).emit();
        assert!(!section.windows(4).any(|field| field == [16, 0, 1, 1]));
        section.extend([16, 0, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Config::parse(&section).unwrap().variant, Variant::Plain);
    }

    #[test]
    fn an_unknown_variant_is_unsupported_rather_than_damaged() {
        let mut section = Config { variant: Variant::Puzzle, ..config(Version::V6) }.emit();
        let at = section.len() - 4;
        section[at] = 3;
        let error = Config::parse(&section).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
        assert!(error.to_string().contains("variant 3 is not known here"), "{error}");
    }

    #[test]
    fn versions_print_as_users_know_them() {
        assert_eq!(Version::V4.to_string(), "RWKV-4");
        assert_eq!(Version::V5_2.to_string(), "RWKV-5.2");
    }
}

//! Origin of the weights and self-test: the PROV and TEST sections.

use super::fields::{FieldSpec, FieldType, FieldWriter, Fields};
use crate::error::{Error, Result};

/// Longest name, source, converter or settings text, in bytes.
const MAX_LINE: usize = 4096;
/// Most tokens in any list of tokens.
const MAX_TOKENS: usize = 1 << 16;

/// Where the weights come from and how they were converted.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Provenance {
    /// File name of the checkpoint, without directories.
    pub source_name: String,
    /// Container of the checkpoint, such as `pth`.
    pub source_format: String,
    /// Size of the checkpoint.
    pub source_bytes: u64,
    /// SHA-256 of the checkpoint.
    pub source_sha256: [u8; 32],
    /// Name and version of the converter.
    pub converter: String,
    /// Settings of the converter that change the file.
    pub settings: String,
    /// Relative error of all weights together: the square root of the squared error over the
    /// squared norm.
    pub rel_error: f32,
    /// What activations were measured on, if they were.
    pub calibration: Option<Calibration>,
}

/// What the activations were measured on that decided how the weights were rounded.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Calibration {
    /// The text: `built-in`, `self` (the model wrote it) or the name of a file.
    pub text: String,
    /// Number of tokens read.
    pub tokens: u32,
    /// SHA-256 of the tokens, as little-endian u32 in the order in which they were read.
    pub sha256: [u8; 32],
}

const SOURCE_NAME: FieldSpec = FieldSpec::optional(1, "source_name", FieldType::Text);
const SOURCE_FORMAT: FieldSpec = FieldSpec::optional(2, "source_format", FieldType::Text);
const SOURCE_BYTES: FieldSpec = FieldSpec::optional(3, "source_bytes", FieldType::Bytes);
const SOURCE_SHA256: FieldSpec = FieldSpec::optional(4, "source_sha256", FieldType::Bytes);
const CONVERTER: FieldSpec = FieldSpec::optional(5, "converter", FieldType::Text);
const SETTINGS: FieldSpec = FieldSpec::optional(6, "settings", FieldType::Text);
const REL_ERROR: FieldSpec = FieldSpec::optional(7, "rel_error", FieldType::F32);
const CALIBRATION_TEXT: FieldSpec = FieldSpec::optional(8, "calibration_text", FieldType::Text);
const CALIBRATION_TOKENS: FieldSpec = FieldSpec::optional(9, "calibration_tokens", FieldType::U32);
const CALIBRATION_SHA256: FieldSpec = FieldSpec::optional(10, "calibration_sha256", FieldType::Bytes);
const PROV_SCHEMA: [FieldSpec; 10] = [
    SOURCE_NAME,
    SOURCE_FORMAT,
    SOURCE_BYTES,
    SOURCE_SHA256,
    CONVERTER,
    SETTINGS,
    REL_ERROR,
    CALIBRATION_TEXT,
    CALIBRATION_TOKENS,
    CALIBRATION_SHA256,
];

impl Provenance {
    /// Checks the texts, that the source has no directories, and the error.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming the field.
    pub fn validate(&self) -> Result<()> {
        check_line("source_name", &self.source_name)?;
        check_line("source_format", &self.source_format)?;
        check_line("converter", &self.converter)?;
        check_line("settings", &self.settings)?;
        if self.source_name.contains(['/', '\\']) {
            return Err(Error::invalid("source_name contains a directory; give the file name alone"));
        }
        if let Some(calibration) = &self.calibration {
            check_line("calibration_text", &calibration.text)?;
        }
        check_rel_error(self.rel_error)
    }

    /// The minor version of the format that has all of these fields.
    pub(super) fn minor_version(&self) -> u16 {
        u16::from(self.calibration.is_some())
    }

    /// The PROV section; its length depends only on the texts.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.text(&SOURCE_NAME, &self.source_name);
        out.text(&SOURCE_FORMAT, &self.source_format);
        out.bytes(&SOURCE_BYTES, &self.source_bytes.to_le_bytes());
        out.bytes(&SOURCE_SHA256, &self.source_sha256);
        out.text(&CONVERTER, &self.converter);
        out.text(&SETTINGS, &self.settings);
        out.f32(&REL_ERROR, self.rel_error);
        if let Some(calibration) = &self.calibration {
            out.text(&CALIBRATION_TEXT, &calibration.text);
            out.u32(&CALIBRATION_TOKENS, calibration.tokens);
            out.bytes(&CALIBRATION_SHA256, &calibration.sha256);
        }
        out.finish()
    }

    /// Reads and validates the PROV section.
    pub(super) fn parse(section: &[u8]) -> Result<Self> {
        let fields = Fields::parse("PROV", section, &PROV_SCHEMA)?;
        let provenance = Self {
            source_name: fields.text(&SOURCE_NAME)?,
            source_format: fields.text(&SOURCE_FORMAT)?,
            source_bytes: u64::from_le_bytes(fields.array(&SOURCE_BYTES)?),
            source_sha256: fields.array(&SOURCE_SHA256)?,
            converter: fields.text(&CONVERTER)?,
            settings: fields.text(&SETTINGS)?,
            rel_error: fields.f32(&REL_ERROR)?,
            calibration: match fields.has(&CALIBRATION_TEXT) {
                false => None,
                true => Some(Calibration {
                    text: fields.text(&CALIBRATION_TEXT)?,
                    tokens: fields.u32(&CALIBRATION_TOKENS)?,
                    sha256: fields.array(&CALIBRATION_SHA256)?,
                }),
            },
        };
        provenance.validate().map_err(|error| Error::malformed(format!("PROV: {error}")))?;
        Ok(provenance)
    }
}

/// Tokens to run through the model from its start state, and the digest of the resulting logits.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SelfTest {
    /// The tokens, at least one.
    pub tokens: Vec<u32>,
    /// SHA-256 of the logits after the last token: `n_vocab` little-endian f32.
    pub logits_sha256: [u8; 32],
}

const TEST_TOKENS: FieldSpec = FieldSpec::optional(1, "tokens", FieldType::U32List);
const LOGITS_SHA256: FieldSpec = FieldSpec::optional(2, "logits_sha256", FieldType::Bytes);
const TEST_SCHEMA: [FieldSpec; 2] = [TEST_TOKENS, LOGITS_SHA256];

impl SelfTest {
    /// Checks that there are tokens and that all are below `n_vocab`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid).
    pub fn validate(&self, n_vocab: usize) -> Result<()> {
        if self.tokens.is_empty() {
            return Err(Error::invalid("the self-test has no tokens"));
        }
        check_tokens("tokens", &self.tokens, n_vocab)
    }

    /// The TEST section; its length depends only on the number of tokens.
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.u32_list(&TEST_TOKENS, &self.tokens);
        out.bytes(&LOGITS_SHA256, &self.logits_sha256);
        out.finish()
    }

    /// Reads and validates the TEST section.
    pub(super) fn parse(section: &[u8], n_vocab: usize) -> Result<Self> {
        let fields = Fields::parse("TEST", section, &TEST_SCHEMA)?;
        let test =
            Self { tokens: fields.u32_list(&TEST_TOKENS)?, logits_sha256: fields.array(&LOGITS_SHA256)? };
        test.validate(n_vocab).map_err(|error| Error::malformed(format!("TEST: {error}")))?;
        Ok(test)
    }
}

/// A relative error is a finite number from zero up.
pub(super) fn check_rel_error(value: f32) -> Result<()> {
    if value.is_finite() && value >= 0.0 && !(value == 0.0 && value.is_sign_negative()) {
        return Ok(());
    }
    Err(Error::invalid(format!("the relative error is {value}")))
}

/// A line is printed to terminals, so it has no control characters.
pub(super) fn check_line(name: &str, text: &str) -> Result<()> {
    if text.len() > MAX_LINE {
        return Err(Error::invalid(format!("{name} is longer than {MAX_LINE} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{name} contains control characters")));
    }
    Ok(())
}

/// Tokens are rows of the embedding.
pub(super) fn check_tokens(name: &str, tokens: &[u32], n_vocab: usize) -> Result<()> {
    if tokens.len() > MAX_TOKENS {
        return Err(Error::invalid(format!("{name} has more than {MAX_TOKENS} tokens")));
    }
    match tokens.iter().find(|&&token| token as usize >= n_vocab) {
        Some(token) => Err(Error::invalid(format!("{name}: token {token} is not below {n_vocab}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        Provenance {
            source_name: "RWKV-4-World-0.1B.pth".into(),
            source_format: "pth".into(),
            source_bytes: 0x1_2345_6789,
            source_sha256: [0xab; 32],
            converter: "rwkv-quantize 0.1.0".into(),
            settings: "int8".into(),
            rel_error: 0.0125,
            calibration: None,
        }
    }

    #[test]
    fn provenance_and_self_test_round_trip() {
        let provenance = provenance();
        assert_eq!(Provenance::parse(&provenance.emit()).unwrap(), provenance);
        let calibration = Calibration { text: "built-in".into(), tokens: 2048, sha256: [9; 32] };
        let calibrated = Provenance { calibration: Some(calibration), ..provenance };
        assert_eq!(Provenance::parse(&calibrated.emit()).unwrap(), calibrated);
        assert_eq!(calibrated.minor_version(), 1);
        let test = SelfTest { tokens: vec![3, 1, 2], logits_sha256: [7; 32] };
        assert_eq!(SelfTest::parse(&test.emit(), 4).unwrap(), test);
    }

    #[test]
    fn lengths_do_not_depend_on_what_is_known_only_at_the_end() {
        let early = Provenance { source_bytes: 0, source_sha256: [0; 32], rel_error: 0.0, ..provenance() };
        assert_eq!(early.emit().len(), provenance().emit().len());
        let test = |digest| SelfTest { tokens: vec![1], logits_sha256: digest };
        assert_eq!(test([0; 32]).emit().len(), test([255; 32]).emit().len());
    }

    #[test]
    fn a_source_name_with_a_directory_is_refused() {
        for name in ["/home/me/model.pth", "models/model.pth", "C:\\model.pth"] {
            let provenance = Provenance { source_name: name.into(), ..provenance() };
            assert!(provenance.validate().is_err(), "{name}");
            assert!(Provenance::parse(&provenance.emit()).is_err(), "{name}");
        }
    }

    #[test]
    fn control_characters_and_impossible_errors_are_refused() {
        assert!(Provenance { settings: "a\nb".into(), ..provenance() }.validate().is_err());
        assert!(Provenance { converter: "x".repeat(4097), ..provenance() }.validate().is_err());
        for rel_error in [f32::NAN, f32::INFINITY, -0.5, -0.0] {
            assert!(Provenance { rel_error, ..provenance() }.validate().is_err(), "{rel_error}");
        }
    }

    #[test]
    fn a_self_test_needs_tokens_of_the_vocabulary_and_a_whole_digest() {
        let test = |tokens| SelfTest { tokens, logits_sha256: [0; 32] };
        assert!(SelfTest::parse(&test(vec![]).emit(), 4).is_err());
        assert!(SelfTest::parse(&test(vec![4]).emit(), 4).is_err());
        let mut fields = FieldWriter::default();
        fields.u32_list(&TEST_TOKENS, &[1]);
        fields.bytes(&LOGITS_SHA256, &[0; 31]);
        assert!(SelfTest::parse(&fields.finish(), 4).is_err());
    }
}

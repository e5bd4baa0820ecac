//! The settings that PEFT writes beside an adapter.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rwkv_edge::input;
use serde::Deserialize;
use serde_json::Value;

use super::super::adapter;
use super::super::checkpoint::Checkpoint;
use super::super::error::SourceError;
use super::super::tensor::SourceTensor;

/// Name of the file, and its longest length.
const NAME: &str = "adapter_config.json";
const MAX_LEN: u64 = 1 << 20;

/// Kinds of adapters that are merged.
const KINDS: [&str; 3] = ["LORA", "MISS", "BONE"];

/// Beginnings of LoRA's factors that do not depend on the weights.
const STARTS: [&str; 4] = ["gaussian", "true", "orthogonal", "eva"];

/// The alpha of LoRA, and whether it is divided by the square root of the rank.
#[derive(Clone, Copy)]
pub(super) struct Alpha {
    pub(super) alpha: f64,
    pub(super) by_root: bool,
}

#[derive(Deserialize)]
struct Settings {
    peft_type: String,
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    alpha_pattern: Option<BTreeMap<String, Value>>,
    init_lora_weights: Option<Value>,
}

/// The alpha of a LoRA adapter, from the `option` or PEFT's settings.
///
/// # Errors
/// If the settings cannot be read, are those of an adapter that is not merged, or contradict the
/// option.
pub(super) fn alpha(option: Option<f64>, adapter: &Checkpoint) -> Result<Option<Alpha>, SourceError> {
    if option.is_some_and(|alpha| !alpha.is_finite()) {
        return Err(adapter.source.unsupported("--lora-alpha must be a finite number"));
    }
    let by_option = option.map(|alpha| Alpha { alpha, by_root: false });
    let Some(file) = beside(adapter) else { return Ok(by_option) };
    let refuse = |what: String| Err(SourceError::Unsupported { file: file.clone(), what });
    let text = input::read_file(&file, MAX_LEN).ok();
    let Some(settings) = text.and_then(|text| serde_json::from_slice::<Settings>(&text).ok()) else {
        return refuse("these are no settings of a PEFT adapter".to_owned());
    };
    if let Some(what) = settings.unknown() {
        return refuse(format!("{what}; merge the adapter with PEFT"));
    }
    match (settings.lora_alpha, option) {
        (Some(alpha), Some(option)) if alpha != option => {
            refuse(format!("lora_alpha is {alpha} there, and --lora-alpha is {option}"))
        }
        (Some(alpha), _) => Ok(Some(Alpha { alpha, by_root: settings.use_rslora })),
        (None, _) => Ok(by_option),
    }
}

/// The file beside an adapter that PEFT saved.
fn beside(adapter: &Checkpoint) -> Option<PathBuf> {
    let is_peft =
        |tensor: &SourceTensor| adapter::part(&tensor.name).is_some() && tensor.name.ends_with(".weight");
    let file = adapter.path().with_file_name(NAME);
    (adapter.tensors().iter().any(is_peft) && file.is_file()).then_some(file)
}

impl Settings {
    /// What an adapter has that is not merged.
    fn unknown(&self) -> Option<&'static str> {
        let starts = self.init_lora_weights.as_ref().and_then(Value::as_str);
        let unknown = [
            (!KINDS.contains(&self.peft_type.as_str()), "a kind of adapter that is not merged"),
            (self.use_dora, "DoRA"),
            (self.fan_in_fan_out, "weights that are transposed (fan_in_fan_out)"),
            (
                self.alpha_pattern.as_ref().is_some_and(|pattern| !pattern.is_empty()),
                "an alpha of its own for some layers",
            ),
            (
                starts.is_some_and(|starts| !STARTS.contains(&starts)),
                "factors that were taken from the weights (init_lora_weights)",
            ),
        ];
        unknown.into_iter().find_map(|(is_set, what)| is_set.then_some(what))
    }
}

//! The `config.json` beside a checkpoint. Hugging Face keeps there what the tensors do not tell:
//! epsilons, and whether the embedding is already normalised.

use std::path::{Path, PathBuf};

use rwkv_edge::input;
use serde_json::{Map, Value};

use super::error::SourceError;
use super::names::{self, find};
use super::tensor::SourceTensor;

/// Name of the file.
const NAME: &str = "config.json";

/// Longest file.
const MAX_CONFIG: u64 = 1 << 20;

/// Names of the squared relu, which every RWKV has in channel mixing.
const SQUARED_RELU: [&str; 4] = ["sqrelu", "relu2", "relu_squared", "squared_relu"];

/// Epsilon of the group norm as BlinkDL trains it, for a divisor of 1.
const GROUP_NORM_EPS: f64 = 1e-5;

/// Keys that state a dimension which the tensors state too.
const SIZES: [&str; 3] = ["hidden_size", "num_hidden_layers", "vocab_size"];

/// What `config.json` says about the arithmetic of an RWKV model.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigJson {
    file: PathBuf,
    layer_norm_eps: Option<f32>,
    group_norm: GroupNorm,
    head_size: Option<usize>,
    rescale_every: Option<u64>,
    has_normed_embedding: bool,
}

/// The keys that give the epsilon of the group norm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum GroupNorm {
    /// None of them.
    Unsaid,
    /// `group_norm_epsilon`.
    Eps(f64),
    /// `norm_eps` of flash-linear-attention, times the head size.
    PerChannel(f64),
    /// `head_size_divisor` of the ports of RWKV-5 and 6: they divide before a norm of 1e-5.
    Divisor(f64),
}

/// A `config.json` and the checkpoint that it lies beside.
pub(super) enum Beside {
    /// There is none, or nothing that it could describe.
    Nothing,
    /// It describes the checkpoint.
    Config(ConfigJson),
    /// It is another model's; says so in one line.
    Other(String),
}

/// Reads the `config.json` beside the file `path` with these tensors.
///
/// # Errors
/// If it cannot be read, is no JSON object, or asks for another arithmetic than RWKV's.
pub(super) fn beside(path: &Path, tensors: &[SourceTensor]) -> Result<Beside, SourceError> {
    let file = path.with_file_name(NAME);
    let (Some(emb), true) = (find(tensors, "emb.weight"), file.exists()) else {
        return Ok(Beside::Nothing);
    };
    let json = input::read_file(&file, MAX_CONFIG).map_err(SourceError::Beside)?;
    let root = parse(&file, &json)?;
    let layers = names::layers(tensors.iter().map(|tensor| tensor.name.as_str()));
    let found = [emb.shape.get(1).copied(), Some(layers), emb.shape.first().copied()];
    match misfit(&root, found) {
        None => Keys { file: &file, root: &root }.read().map(Beside::Config),
        Some(why) => Ok(Beside::Other(format!("{}: not used: {why}", file.display()))),
    }
}

fn parse(file: &Path, json: &[u8]) -> Result<Map<String, Value>, SourceError> {
    serde_json::from_slice(input::without_byte_order_mark(json)).map_err(|error| SourceError::Config {
        file: file.to_owned(),
        what: format!("no JSON object ({error})"),
    })
}

/// Why the file does not describe a model of these sizes.
fn misfit(root: &Map<String, Value>, found: [Option<usize>; 3]) -> Option<String> {
    let architectures = root.get("architectures").and_then(Value::as_array).into_iter().flatten();
    let mut names = architectures.chain(root.get("model_type")).filter_map(Value::as_str);
    if !names.any(|name| name.to_ascii_lowercase().contains("rwkv")) {
        return Some("neither model_type nor architectures name RWKV".to_owned());
    }
    let differs = |(key, found): (&&str, Option<usize>)| {
        let (said, found) = (root.get(*key)?.as_u64()?, found?);
        (said != found as u64).then(|| format!("its {key} is {said}, the checkpoint has {found}"))
    };
    SIZES.iter().zip(found).find_map(differs)
}

/// The keys of a file.
struct Keys<'a> {
    file: &'a Path,
    root: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn read(&self) -> Result<ConfigJson, SourceError> {
        if let Some(act) = self.get("hidden_act").filter(|act| !is_squared_relu(act)) {
            return Err(self.refuse("hidden_act", "sqrelu", act));
        }
        let norm_eps = self.positive("norm_eps")?;
        let layer_norm_eps = match (norm_eps, self.positive("layer_norm_epsilon")?) {
            (Some(a), Some(b)) if a != b => {
                return Err(self.error(format!("norm_eps is {a:e} and layer_norm_epsilon is {b:e}")));
            }
            (a, b) => a.or(b),
        };
        let group_norm = [
            self.positive("group_norm_epsilon")?.map(GroupNorm::Eps),
            norm_eps.map(GroupNorm::PerChannel),
            self.positive("head_size_divisor")?.map(GroupNorm::Divisor),
        ];
        let [head_dim, head_size] = ["head_dim", "head_size"].map(|key| self.whole(key));
        let fused = "embedding_layer_norm_fused";
        Ok(ConfigJson {
            file: self.file.to_owned(),
            layer_norm_eps: layer_norm_eps.map(|eps| eps as f32),
            group_norm: group_norm.into_iter().flatten().next().unwrap_or(GroupNorm::Unsaid),
            head_size: head_dim?.or(head_size?).map(|size| size as usize),
            rescale_every: self.whole("rescale_every")?,
            has_normed_embedding: match self.get(fused) {
                None => false,
                Some(value) => value.as_bool().ok_or_else(|| self.refuse(fused, "true or false", value))?,
            },
        })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, SourceError> {
        let positive = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        self.checked(key, "a number above 0", positive)
    }

    fn whole(&self, key: &str) -> Result<Option<u64>, SourceError> {
        self.checked(key, "a whole number", Value::as_u64)
    }

    fn checked<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, SourceError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.refuse(key, expected, value))).transpose()
    }

    fn refuse(&self, key: &str, expected: &str, found: &Value) -> SourceError {
        let found: String = found.to_string().chars().take(40).collect();
        self.error(format!("{key}: expected {expected}, found {}", found.replace(char::is_control, "?")))
    }

    fn error(&self, what: String) -> SourceError {
        SourceError::Config { file: self.file.to_owned(), what }
    }
}

fn is_squared_relu(act: &Value) -> bool {
    act.as_str().is_some_and(|act| SQUARED_RELU.contains(&act))
}

impl ConfigJson {
    /// Epsilon of the layer norms: `norm_eps` or `layer_norm_epsilon`.
    pub fn layer_norm_eps(&self) -> Option<f32> {
        self.layer_norm_eps
    }

    /// Epsilon of the group norm of heads of `head_size` channels.
    ///
    /// # Errors
    /// If the file has another head size.
    pub fn group_norm_eps(&self, head_size: usize) -> Result<Option<f32>, SourceError> {
        if let Some(said) = self.head_size.filter(|said| *said != head_size) {
            let what = format!("its head size is {said}, the checkpoint has {head_size}");
            return Err(SourceError::Config { file: self.file.clone(), what });
        }
        Ok(match self.group_norm {
            GroupNorm::Unsaid => None,
            GroupNorm::Eps(eps) => Some(eps as f32),
            GroupNorm::PerChannel(eps) => Some((head_size as f64 * eps) as f32),
            GroupNorm::Divisor(divisor) => Some((GROUP_NORM_EPS * divisor * divisor) as f32),
        })
    }

    /// Whether the embedding in the checkpoint is normalised already, and `ln0` left out.
    pub fn has_normed_embedding(&self) -> bool {
        self.has_normed_embedding
    }

    /// Refuses a file that contradicts the checkpoint about `ln0`.
    pub(super) fn check_ln0(&self, has_ln0: bool) -> Result<(), SourceError> {
        if self.has_normed_embedding && has_ln0 {
            let what = "embedding_layer_norm_fused is true, and the checkpoint has the norm all the same";
            return Err(SourceError::Config { file: self.file.clone(), what: what.to_owned() });
        }
        Ok(())
    }

    /// The file, and its values of which the tensors do not tell: one line.
    pub fn applied(&self, layer_norm_eps: f32, group_norm_eps: Option<f32>) -> String {
        let mut line = format!("{}: layer norm epsilon {layer_norm_eps:e}", self.file.display());
        if let Some(eps) = group_norm_eps {
            line += &format!(", group norm epsilon {eps:e}");
        }
        if self.has_normed_embedding {
            line += ", embedding normalised already";
        }
        if let Some(layers) = self.rescale_every.filter(|layers| *layers > 0) {
            line += &format!(", rescale_every {layers} not applied: weights are stored unscaled");
        }
        line
    }
}

//! A writer of GGUF files, after the specification of the format, and llama.cpp's form of RWKV-6 and
//! 7, after its converter.

#![allow(dead_code)] // every test binary uses a part of this

use half::{bf16, f16};

/// A value of the metadata.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// The number of a type, and bytes.
    Raw(u32, Vec<u8>),
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// The number of its type, and its bytes.
    fn encoded(&self) -> (u32, Vec<u8>) {
        let list = |kind: u32, len: usize| [kind.to_le_bytes().to_vec(), (len as u64).to_le_bytes().to_vec()];
        match self {
            Self::U16(n) => (2, n.to_le_bytes().to_vec()),
            Self::U32(n) => (4, n.to_le_bytes().to_vec()),
            Self::I32(n) => (5, n.to_le_bytes().to_vec()),
            Self::F32(n) => (6, n.to_le_bytes().to_vec()),
            Self::Text(text) => (8, counted(text)),
            Self::Texts(texts) => {
                let items: Vec<u8> = texts.iter().flat_map(|text| counted(text)).collect();
                (9, [list(8, texts.len()).concat(), items].concat())
            }
            Self::I32s(numbers) => {
                let items: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                (9, [list(5, numbers.len()).concat(), items].concat())
            }
            Self::Raw(kind, bytes) => (*kind, bytes.clone()),
        }
    }
}

/// A text behind its length.
pub(crate) fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A tensor of a file; the shape is row-major, as tests think of it.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
    /// Number of the element type.
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// Where the list says that the data are, if not where they are.
    pub(crate) offset: Option<u64>,
}

impl Tensor {
    pub(crate) fn new(name: &str, shape: &[u64], kind: u32, data: Vec<u8>) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), kind, data, offset: None }
    }
}

/// The contents of a file.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: u64,
}

impl Gguf {
    pub(crate) fn new(keys: Vec<(String, Value)>, tensors: Vec<Tensor>) -> Self {
        Self { version: 3, keys, tensors, alignment: 32 }
    }

    /// The same with another value of a key, or without it.
    pub(crate) fn with(&self, key: &str, value: impl Into<Option<Value>>) -> Self {
        let mut changed = self.clone();
        changed.keys.retain(|(name, _)| name != key);
        changed.keys.extend(value.into().map(|value| (key.to_owned(), value)));
        changed
    }

    #[track_caller]
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The file up to the data.
    pub(crate) fn front(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            let (kind, bytes) = value.encoded();
            out.extend([counted(key), kind.to_le_bytes().to_vec(), bytes].concat());
        }
        let mut at = 0;
        for Tensor { name, shape, kind, data, offset } in &self.tensors {
            out.extend(counted(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|n| n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.unwrap_or(at).to_le_bytes());
            at = (at + data.len() as u64).next_multiple_of(self.alignment);
        }
        out
    }

    /// The whole file. Nothing follows the last tensor.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.front();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
            out.extend(&tensor.data);
        }
        out
    }

    /// The file in parts of at most `tensors` tensors, as `gguf-split` makes them.
    pub(crate) fn parts(&self, tensors: usize) -> Vec<Gguf> {
        let count = self.tensors.len().div_ceil(tensors);
        let part = |(number, chunk): (usize, &[Tensor])| {
            let mut keys = if number == 0 { self.keys.clone() } else { Vec::new() };
            keys.push(("split.no".into(), Value::U16(number as u16)));
            keys.push(("split.count".into(), Value::U16(count as u16)));
            keys.push(("split.tensors.count".into(), Value::I32(self.tensors.len() as i32)));
            Gguf { keys, tensors: chunk.to_vec(), ..*self }
        };
        self.tensors.chunks(tensors).enumerate().map(part).collect()
    }
}

/// The name of a part, counted from 1.
pub(crate) fn part_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{number:05}-of-{count:05}.gguf")
}

/// An element type that the tests write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q8_0,
}

impl Kind {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Self::Q8_0 => values
                .chunks(32)
                .flat_map(|block| {
                    let (scale, integers) = q8_0(block);
                    let integers: Vec<u8> = integers.iter().map(|&q| q as u8).collect();
                    [scale.to_le_bytes().to_vec(), integers].concat()
                })
                .collect(),
        }
    }

    /// The values that a file of this type stands for.
    pub(crate) fn rounded(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::F32 => values.to_vec(),
            Self::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
            Self::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
            Self::Q8_0 => values
                .chunks(32)
                .flat_map(|block| {
                    let (scale, integers) = q8_0(block);
                    integers.into_iter().map(move |q| scale.to_f32() * f32::from(q))
                })
                .collect(),
        }
    }
}

fn q8_0(block: &[f32]) -> (f16, Vec<i8>) {
    assert_eq!(block.len(), 32);
    let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let integer = |&x: &f32| if scale == 0.0 { 0 } else { (x / scale).round() as i8 };
    (f16::from_f32(scale), block.iter().map(integer).collect())
}

/// A tensor in BlinkDL's form.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// How a converter writes a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Type of the matrices whose rows fill blocks; vectors and small factors are F32, others F16.
    pub(crate) kind: Kind,
    /// The mixes of a layer lie in one tensor.
    pub(crate) fused: bool,
    /// RWKV-6: layers after which two matrices are halved once more.
    pub(crate) rescale: usize,
    pub(crate) head_size: usize,
}

/// The type that a style gives a tensor of llama.cpp's name.
pub(crate) fn kind_of(style: Style, name: &str, shape: &[usize]) -> Kind {
    let is_small = shape.len() < 2
        || ["lerp", "time_mix_w", "time_mix_decay", "time_mix_first"].iter().any(|part| name.contains(part));
    match style.kind {
        _ if is_small => Kind::F32,
        Kind::Q8_0 if !shape[shape.len() - 1].is_multiple_of(32) => Kind::F16,
        kind => kind,
    }
}

/// How often llama.cpp halves a tensor of RWKV-6.
pub(crate) fn halvings(name: &str, rescale: usize) -> i32 {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match layer {
        Some(layer) if rescale > 0 && (name.contains("mix_output") || name.contains("channel_mix_value")) => {
            (layer / rescale) as i32
        }
        _ => 0,
    }
}

/// A model as llama.cpp's converters write it.
pub(crate) fn llama_cpp(arch: &str, model: &[Weights], style: Style) -> Gguf {
    let mut written: Vec<Weights> = Vec::new();
    for weights in model {
        let Weights { name, shape, values } = to_llama_cpp(arch, weights);
        let factor = 2f32.powi(-halvings(&name, style.rescale));
        let values: Vec<f32> = values.iter().map(|x| x * factor).collect();
        // The converter copies these for layer 0, which has no value residual.
        if name.starts_with("blk.0.time_mix_a") {
            let name = name.replace("time_mix_a", "time_mix_v");
            written.retain(|other| other.name != name);
            written.push(Weights { name, shape: shape.clone(), values: values.clone() });
        }
        if written.iter().all(|other| other.name != name) {
            written.push(Weights { name, shape, values });
        }
    }
    if style.fused {
        written = fuse(arch, written);
    }
    let size = |name: &str, dimension: usize| {
        model.iter().find(|weights| weights.name == name).map_or(0, |weights| weights.shape[dimension] as u32)
    };
    let layers = model.iter().filter(|weights| weights.name.ends_with(".ln1.weight")).count() as u32;
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::text(arch)),
        ("general.name".to_owned(), Value::text("a model of a test")),
        (format!("{arch}.context_length"), Value::U32(1_048_576)),
        (format!("{arch}.embedding_length"), Value::U32(size("emb.weight", 1))),
        (format!("{arch}.block_count"), Value::U32(layers)),
        (format!("{arch}.attention.layer_norm_epsilon"), Value::F32(1e-5)),
        (format!("{arch}.wkv.head_size"), Value::U32(style.head_size as u32)),
        (format!("{arch}.feed_forward_length"), Value::U32(size("blocks.0.ffn.key.weight", 0))),
        (format!("{arch}.attention.head_count"), Value::U32(0)),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    if arch == "rwkv6" {
        keys.push((format!("{arch}.rescale_every_n_layers"), Value::U32(style.rescale as u32)));
    }
    let tensor = |Weights { name, shape, values }: Weights| {
        let kind = kind_of(style, &name, &shape);
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        Tensor::new(&name, &shape, kind.number(), kind.encode(&values))
    };
    Gguf::new(keys, written.into_iter().map(tensor).collect())
}

/// One tensor under llama.cpp's name: factors are transposed, dimensions of 1 are gone.
fn to_llama_cpp(arch: &str, weights: &Weights) -> Weights {
    let Weights { name, .. } = weights;
    let (layer, local) = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((layer, local)) => (Some(layer), local),
        None => (None, name.as_str()),
    };
    let is_factor = |names: &[&str]| {
        ["1", "2"].iter().any(|digit| names.iter().any(|name| local == format!("att.{name}{digit}")))
    };
    let turned = is_factor(&["time_maa_w", "time_decay_w", "w", "a", "v", "g"]);
    let Weights { mut shape, values, .. } = if turned { transposed(weights) } else { weights.clone() };
    if local != "att.time_faaaa" {
        shape.retain(|&n| n != 1);
    }
    if local == "att.r_k" {
        shape = vec![values.len()];
    }
    Weights { name: llama_cpp_name(arch, layer, local), shape, values }
}

fn llama_cpp_name(arch: &str, layer: Option<&str>, local: &str) -> String {
    let plain = match (layer, local) {
        (None, "emb.weight") => "token_embd.weight".to_owned(),
        (None, "head.weight") => "output.weight".to_owned(),
        (None, ln_out) => ln_out.replace("ln_out", "output_norm"),
        (Some("0"), ln0) if ln0.starts_with("ln0") => ln0.replace("ln0", "token_embd_norm"),
        (Some(layer), local) => {
            let local = match local {
                "ffn.x_k" | "ffn.time_maa_k" => "channel_mix_lerp_k".to_owned(),
                "ffn.time_maa_r" => "channel_mix_lerp_r".to_owned(),
                "att.time_maa_w1" => "time_mix_w1".to_owned(),
                "att.time_maa_w2" => "time_mix_w2".to_owned(),
                "att.time_faaaa" => "time_mix_first".to_owned(),
                other => other
                    .replace("ln1", "attn_norm")
                    .replace("ln2", "attn_norm_2")
                    .replace("att.ln_x", "time_mix_ln")
                    .replace("att.time_maa_", "time_mix_lerp_")
                    .replace("att.time_decay", "time_mix_decay")
                    .replace("att.x_", "time_mix_lerp_")
                    .replace("att.", "time_mix_")
                    .replace("ffn.", "channel_mix_"),
            };
            format!("blk.{layer}.{local}")
        }
    };
    assert!(arch == "rwkv6" || arch == "rwkv7", "{arch}");
    if plain.ends_with(".weight") || plain.ends_with(".bias") { plain } else { plain + ".weight" }
}

/// The last two dimensions swapped.
pub(crate) fn transposed(weights: &Weights) -> Weights {
    let [batch @ .., rows, cols] = &weights.shape[..] else { panic!("{} is no matrix", weights.name) };
    let slices = weights.values.chunks(rows * cols);
    let turned = slices.flat_map(|slice| (0..rows * cols).map(|i| slice[i % rows * cols + i / rows]));
    Weights { name: weights.name.clone(), shape: [batch, &[*cols, *rows]].concat(), values: turned.collect() }
}

/// Stacks the mixes of every layer.
fn fuse(arch: &str, written: Vec<Weights>) -> Vec<Weights> {
    let order: &[&str] = match arch {
        "rwkv6" => &["w", "k", "v", "r", "g"],
        _ => &["r", "w", "k", "v", "a", "g"],
    };
    let is_mix = |name: &str| name.contains("time_mix_lerp_") && !name.ends_with("lerp_x.weight");
    let mut fused: Vec<Weights> = Vec::new();
    for weights in &written {
        if !is_mix(&weights.name) {
            fused.push(weights.clone());
            continue;
        }
        let layer = weights.name.split('.').nth(1).unwrap();
        let name = format!("blk.{layer}.time_mix_lerp_fused.weight");
        if fused.iter().any(|other| other.name == name) {
            continue;
        }
        let mix = |letter: &&str| {
            let name = format!("blk.{layer}.time_mix_lerp_{letter}.weight");
            written.iter().find(|other| other.name == name).unwrap().values.clone()
        };
        let values: Vec<f32> = order.iter().flat_map(mix).collect();
        let shape = vec![order.len(), 1, 1, values.len() / order.len()];
        fused.push(Weights { name, shape, values });
    }
    fused
}

//! The file being written: a torch zip file or safetensors.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::bail;
use half::{bf16, f16};
use rwkv_quantize::source::SourceDType;
use rwkv_quantize::source::torch_writer::{TensorSpec, TorchWriter};

use crate::fill::Elements;

/// The file being written.
pub(crate) enum Output {
    Torch(TorchWriter<BufWriter<File>>),
    Safetensors(BufWriter<File>),
}

impl Output {
    /// Begins the file; its extension decides the format.
    pub(crate) fn create(path: &Path, tensors: &[TensorSpec]) -> anyhow::Result<Self> {
        let create = || File::create(path).map(|file| BufWriter::with_capacity(1 << 20, file));
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pth") => {
                let top = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("archive");
                Ok(Self::Torch(TorchWriter::new(create()?, top, tensors)?))
            }
            Some("safetensors") => {
                let mut out = create()?;
                out.write_all(&safetensors_header(tensors))?;
                Ok(Self::Safetensors(out))
            }
            _ => bail!("the output must end in .pth or .safetensors"),
        }
    }

    /// Appends the next tensor, which holds `elements`.
    pub(crate) fn tensor(&mut self, spec: &TensorSpec, mut elements: Elements) -> io::Result<()> {
        let mut values = vec![0.0; elements.block()];
        let mut bytes = Vec::new();
        let mut left = spec.elements();
        while left > 0 {
            let count = left.min(values.len() as u64) as usize;
            elements.fill(&mut values[..count]);
            encode(spec.dtype, &values[..count], &mut bytes);
            self.write(&bytes)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Torch(out) => out.write(bytes),
            Self::Safetensors(out) => out.write_all(bytes),
        }
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self {
            Self::Torch(out) => out.finish().map(drop),
            Self::Safetensors(mut out) => out.flush(),
        }
    }
}

/// Length and JSON header, padded with spaces so that the data is aligned.
fn safetensors_header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [at, end],
        });
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
}

fn encode(dtype: SourceDType, values: &[f32], out: &mut Vec<u8>) {
    out.clear();
    match dtype {
        SourceDType::BF16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        SourceDType::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        SourceDType::F32 => out.extend(values.iter().flat_map(|&x| x.to_le_bytes())),
        SourceDType::F64 => out.extend(values.iter().flat_map(|&x| f64::from(x).to_le_bytes())),
    }
}

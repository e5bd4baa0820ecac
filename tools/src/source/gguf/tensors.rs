//! The list of the tensors of one GGUF file, and where their data are.

use super::super::error::SourceError;
use super::super::file::Source;
use super::super::location::{Location, Overlap, overlap};
use super::super::names::{MAX_STORED_NAME, check_count};
use super::super::tensor::{SourceDType, SourceTensor};
use super::blocks::BlockType;
use super::bytes::Bytes;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;

/// Alignment of the data of files that do not name another one.
const ALIGNMENT: usize = 32;

/// The types that are not read, by number.
const OTHER_TYPES: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];

/// The element type of a number, or the name of one that is not read.
fn dtype(number: u32) -> Result<SourceDType, String> {
    let block = match number {
        0 => return Ok(SourceDType::F32),
        1 => return Ok(SourceDType::F16),
        28 => return Ok(SourceDType::F64),
        30 => return Ok(SourceDType::BF16),
        2 => BlockType::Q4_0,
        3 => BlockType::Q4_1,
        6 => BlockType::Q5_0,
        7 => BlockType::Q5_1,
        8 => BlockType::Q8_0,
        12 => BlockType::Q4K,
        13 => BlockType::Q5K,
        14 => BlockType::Q6K,
        20 => BlockType::Iq4Nl,
        23 => BlockType::Iq4Xs,
        _ => {
            let name = OTHER_TYPES.iter().find(|(other, _)| *other == number);
            return Err(name.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_owned()));
        }
    };
    Ok(SourceDType::Block(block))
}

/// A tensor as the list describes it.
struct Info {
    name: String,
    /// Row-major: the file has the fastest dimension first.
    shape: Vec<u64>,
    dtype: SourceDType,
    /// First byte, from the beginning of the data.
    offset: u64,
}

/// Reads the list of `count` tensors, which ends before the data.
pub(super) fn read(
    bytes: &mut Bytes<'_>,
    source: &Source,
    count: u64,
    alignment: Option<usize>,
) -> Result<Vec<SourceTensor>, SourceError> {
    check_count(source, usize::try_from(count).unwrap_or(usize::MAX))?;
    let alignment = alignment.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(source.malformed(format!("an alignment of {alignment} bytes, which is no power of two")));
    }
    let mut infos = Vec::new();
    for _ in 0..count {
        infos.push(info(bytes, source)?);
    }
    let data_start = bytes.at().checked_next_multiple_of(alignment as u64).unwrap_or(u64::MAX);
    let data = Data { source, start: data_start, len: source.len().saturating_sub(data_start), alignment };
    let mut ends = Vec::new();
    let mut tensors = Vec::new();
    for info in infos {
        let (tensor, end) = data.locate(info)?;
        ends.push(end);
        tensors.push(tensor);
    }
    let ranges = tensors.iter().zip(ends).map(|(tensor, end)| (tensor.location.offset, end, &*tensor.name));
    match overlap(ranges) {
        None => Ok(tensors),
        Some(Overlap { end, begin, name }) => Err(source.tensor(
            name,
            format!("data from byte {end} of the file on"),
            format!("data from byte {begin}, inside the tensor before"),
        )),
    }
}

fn info(bytes: &mut Bytes<'_>, source: &Source) -> Result<Info, SourceError> {
    let name = bytes.text(MAX_STORED_NAME, "a tensor name")?;
    let dimensions = bytes.u32()?;
    if dimensions as usize > MAX_DIMENSIONS {
        let expected = format!("at most {MAX_DIMENSIONS} dimensions");
        return Err(source.tensor(&name, expected, dimensions.to_string()));
    }
    let mut shape = (0..dimensions).map(|_| bytes.u64()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let dtype = dtype(bytes.u32()?).map_err(|kind| {
        source.unsupported(format!(
            "tensor {} has elements of {kind}; convert a file of F16, BF16 or Q8_0, or the original checkpoint",
            name.escape_debug()
        ))
    })?;
    Ok(Info { name, shape, dtype, offset: bytes.u64()? })
}

/// The part of the file behind the list.
struct Data<'a> {
    source: &'a Source,
    start: u64,
    len: u64,
    alignment: usize,
}

impl Data<'_> {
    /// The tensor, and where its data end in the file.
    fn locate(&self, info: Info) -> Result<(SourceTensor, u64), SourceError> {
        let Info { name, shape, dtype, offset } = info;
        let Self { source, start, len, alignment } = *self;
        let block = dtype.block_len() as u64;
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(block) {
            return Err(source.tensor(
                &name,
                format!("rows of whole blocks of {block}"),
                format!("{shape:?}"),
            ));
        }
        if !offset.is_multiple_of(alignment as u64) {
            let expected = format!("data at a multiple of {alignment}");
            return Err(source.tensor(&name, expected, format!("data from byte {offset}")));
        }
        let elements = shape.iter().try_fold(1, |product: u64, &n| product.checked_mul(n));
        let bytes = elements.and_then(|elements| (elements / block).checked_mul(dtype.size() as u64));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|&end| end <= len);
        let Some(end) = end else {
            return Err(source.tensor(
                &name,
                format!("data for shape {shape:?} of {dtype}; the file may be cut off"),
                format!("{} bytes until the file ends", len.saturating_sub(offset)),
            ));
        };
        let sizes = shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>();
        let (Some(shape), Some(elements)) = (sizes, elements.and_then(|n| usize::try_from(n).ok())) else {
            return Err(source.tensor(&name, "a size this machine can address", format!("{shape:?}")));
        };
        let location = Location::contiguous(start + offset, elements);
        Ok((SourceTensor { name, shape, dtype, transposed: false, location }, start + end))
    }
}

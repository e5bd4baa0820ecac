//! rwkv.cpp files, version 100 and 101: a header of six integers, then one record per tensor until
//! the file ends.

use byteorder::{ByteOrder, LittleEndian};

use super::error::SourceError;
use super::file::Source;
use super::location::Location;
use super::names::{self, MAX_NAME};
use super::tensor::{Index, SourceDType, SourceTensor};

/// Bytes of the header: magic, version, vocabulary, width, layers, element type.
const HEADER: u64 = 24;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;

/// Longest fixed part of a record: dimension count, name length, element type, dimensions.
const MAX_RECORD: usize = 12 + 4 * MAX_DIMENSIONS;

/// Element types by number. `None` marks the quantized ones.
const TYPES: [(&str, Option<SourceDType>); 10] = [
    ("FP32", Some(SourceDType::F32)),
    ("FP16", Some(SourceDType::F16)),
    ("Q4_0", None),
    ("Q4_1", None),
    ("Q4_1_O", None),
    ("Q4_2", None),
    ("Q4_3", None),
    ("Q5_0", None),
    ("Q5_1", None),
    ("Q8_0", None),
];

/// The header's fields that are checked against the tensors.
struct Header {
    n_vocab: usize,
    n_embed: usize,
    n_layer: usize,
}

/// Reads the index of an rwkv.cpp file.
pub(super) fn index(source: &Source) -> Result<Index, SourceError> {
    let header = header(source)?;
    let mut tensors = Vec::new();
    let mut at = HEADER;
    while at < source.len() {
        let (tensor, end) = record(source, at)?;
        tensors.push(tensor);
        names::check_count(source, tensors.len())?;
        at = end;
    }
    check_header(source, &header, &tensors)?;
    Ok(Index { tensors, ..Index::default() })
}

fn header(source: &Source) -> Result<Header, SourceError> {
    let mut bytes = [0; HEADER as usize];
    source.read_at(&mut bytes, 0)?;
    let mut fields = [0; 6];
    LittleEndian::read_i32_into(&bytes, &mut fields);
    let [_magic, version, n_vocab, n_embed, n_layer, data_type] = fields;
    if version != 100 && version != 101 {
        return Err(
            source.unsupported(format!("rwkv.cpp file version {version}; versions 100 and 101 are read"))
        );
    }
    dtype(data_type).map_err(|what| source.unsupported(format!("this rwkv.cpp file {what}")))?;
    let positive = |value: i32, what: &str| match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(source.malformed(format!("its header gives {value} as {what}"))),
    };
    Ok(Header {
        n_vocab: positive(n_vocab, "size of the vocabulary")?,
        n_embed: positive(n_embed, "embedding width")?,
        n_layer: positive(n_layer, "number of layers")?,
    })
}

fn dtype(number: i32) -> Result<SourceDType, String> {
    let known = usize::try_from(number).ok().and_then(|number| TYPES.get(number));
    match known {
        Some((_, Some(dtype))) => Ok(*dtype),
        Some((name, None)) => {
            Err(format!("is quantized ({name}); convert the original checkpoint, or an FP16 or FP32 file"))
        }
        None => Err(format!("has element type {number}; FP32 (0) and FP16 (1) are read")),
    }
}

/// Reads the record at byte `at`; returns its tensor and the first byte after it.
fn record(source: &Source, at: u64) -> Result<(SourceTensor, u64), SourceError> {
    let mut bytes = [0; MAX_RECORD];
    source.read_at(&mut bytes[..12], at)?;
    let mut fields = [0; 3];
    LittleEndian::read_i32_into(&bytes[..12], &mut fields);
    let [dimensions, name_len, data_type] = fields;
    let damaged = |what: String| source.malformed(format!("{what} in the record at byte {at}"));
    let dimensions = usize::try_from(dimensions)
        .ok()
        .filter(|&n| n <= MAX_DIMENSIONS)
        .ok_or_else(|| damaged(format!("{dimensions} dimensions")))?;
    let name_len = usize::try_from(name_len)
        .ok()
        .filter(|&n| (1..=MAX_NAME).contains(&n))
        .ok_or_else(|| damaged(format!("a name of {name_len} bytes")))?;

    let sizes = &mut bytes[12..12 + 4 * dimensions];
    source.read_at(sizes, at + 12)?;
    // Stored with the fastest dimension first.
    let shape = sizes.as_chunks::<4>().0.iter().rev().map(|&n| usize::try_from(i32::from_le_bytes(n)).ok());
    let shape: Vec<usize> =
        shape.collect::<Option<_>>().ok_or_else(|| damaged("a negative dimension".to_owned()))?;

    let name_at = at + 12 + 4 * dimensions as u64;
    let mut name = vec![0; name_len];
    source.read_at(&mut name, name_at)?;
    let name = String::from_utf8(name).map_err(|_| damaged("a name that is not UTF-8".to_owned()))?;
    let dtype = dtype(data_type)
        .map_err(|what| source.unsupported(format!("tensor {} {what}", name.escape_debug())))?;

    let elements = shape.iter().try_fold(1, |product: usize, &n| product.checked_mul(n));
    let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
    let offset = name_at + name_len as u64;
    let end = bytes.and_then(|bytes| offset.checked_add(bytes as u64)).filter(|&end| end <= source.len());
    let (Some(row_len), Some(end)) = (elements, end) else {
        return Err(source.tensor(
            &name,
            format!("data for shape {shape:?} of {dtype}"),
            format!("{} bytes until the file ends", source.len().saturating_sub(offset)),
        ));
    };
    let location = Location::contiguous(offset, row_len);
    Ok((SourceTensor { name, shape, dtype, transposed: false, location }, end))
}

/// A file that was cut off between two records shows here.
fn check_header(source: &Source, header: &Header, tensors: &[SourceTensor]) -> Result<(), SourceError> {
    let Header { n_vocab, n_embed, n_layer } = *header;
    for name in ["emb.weight", "head.weight"] {
        let found = tensors.iter().find(|tensor| tensor.name == name);
        if found.is_none_or(|tensor| tensor.shape != [n_vocab, n_embed]) {
            let found = found.map_or("none".to_owned(), |tensor| format!("{:?}", tensor.shape));
            return Err(source.tensor(
                name,
                format!("[{n_vocab}, {n_embed}] as in the file's header"),
                found,
            ));
        }
    }
    let layers = names::layers(tensors.iter().map(|tensor| tensor.name.as_str()));
    if layers != n_layer {
        return Err(source.malformed(format!("its header says {n_layer} layers, its tensors make {layers}")));
    }
    Ok(())
}

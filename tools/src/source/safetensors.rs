//! Safetensors files: a JSON header with byte ranges, then the data.

use std::fmt;

use byteorder::{ByteOrder, LittleEndian};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::SourceError;
use super::file::Source;
use super::location::{Location, Overlap, overlap};
use super::names::{MAX_DIMENSIONS, MAX_ENTRIES, MAX_STORED_NAME};
use super::tensor::{Index, SourceDType, SourceTensor};

/// Largest header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes before the header: its length.
const PREFIX: u64 = 8;

/// Whether a file's first bytes give the header a possible length.
pub(super) fn plausible_header(head: &[u8]) -> bool {
    head.len() >= PREFIX as usize && LittleEndian::read_u64(head) <= MAX_HEADER
}

/// One tensor as the header describes it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads a shape, and stops where it has more dimensions than a tensor may have.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct ShapeVisitor;

    impl<'de> Visitor<'de> for ShapeVisitor {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_DIMENSIONS} sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(size) = list.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(A::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
                }
                shape.push(size);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(ShapeVisitor)
}

/// The header's entries in file order; a map would hide names that occur twice.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else if name.len() > MAX_STORED_NAME {
                return Err(A::Error::custom(format_args!("a tensor name of {} bytes", name.len())));
            } else if entries.len() == MAX_ENTRIES {
                return Err(A::Error::custom(format_args!("more than {MAX_ENTRIES} tensors")));
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Header(entries))
    }
}

/// Reads the index of a safetensors file.
pub(super) fn index(source: &Source) -> Result<Index, SourceError> {
    let mut prefix = [0; PREFIX as usize];
    source.read_at(&mut prefix, 0)?;
    let header_len = LittleEndian::read_u64(&prefix);
    if header_len > MAX_HEADER {
        return Err(source.malformed(format!("a header of {header_len} bytes, the limit is {MAX_HEADER}")));
    }
    let data_start = PREFIX + header_len;
    if data_start > source.len() {
        return Err(source.malformed(format!("it ends before byte {data_start}, inside the header")));
    }
    let mut json = vec![0; header_len as usize];
    source.read_at(&mut json, PREFIX)?;
    let Header(entries) = serde_json::from_slice(&json)
        .map_err(|error| source.malformed(format!("the header is no valid JSON description ({error})")))?;
    let ranges =
        entries.iter().map(|(name, Entry { data_offsets: (begin, end), .. })| (*begin, *end, &**name));
    if let Some(Overlap { end, begin, name }) = overlap(ranges) {
        return Err(source.tensor(
            name,
            format!("data after byte {end} of the data area"),
            format!("data from byte {begin}, inside the tensor before"),
        ));
    }
    let tensors = entries
        .into_iter()
        .map(|(name, entry)| locate(source, name, &entry, data_start))
        .collect::<Result<Vec<_>, _>>()?;
    if tensors.is_empty() {
        return Err(source.not_a_checkpoint("the safetensors file holds no tensors"));
    }
    Ok(Index { tensors, ..Index::default() })
}

fn locate(
    source: &Source,
    name: String,
    entry: &Entry,
    data_start: u64,
) -> Result<SourceTensor, SourceError> {
    let dtype = match entry.dtype.as_str() {
        "BF16" => SourceDType::BF16,
        "F16" => SourceDType::F16,
        "F32" => SourceDType::F32,
        "F64" => SourceDType::F64,
        other => return Err(source.tensor(&name, "BF16, F16, F32 or F64", other.escape_debug().to_string())),
    };
    let (begin, end) = entry.data_offsets;
    let elements = entry.shape.iter().try_fold(1, |product: u64, &n| product.checked_mul(n));
    let bytes = elements.and_then(|elements| elements.checked_mul(dtype.size() as u64));
    if bytes.is_none() || bytes != end.checked_sub(begin) {
        return Err(source.tensor(
            &name,
            format!("data for shape {:?} of {dtype}", entry.shape),
            format!("bytes {begin}..{end} of the data area"),
        ));
    }
    let data_len = source.len() - data_start;
    if end > data_len {
        return Err(source.tensor(
            &name,
            format!("data inside the {data_len} bytes of the data area; the file may be cut off"),
            format!("bytes {begin}..{end}"),
        ));
    }
    let shape = entry.shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>();
    let (Some(shape), Some(row_len)) = (shape, elements.and_then(|n| usize::try_from(n).ok())) else {
        return Err(source.tensor(&name, "a size this machine can address", format!("{:?}", entry.shape)));
    };
    let location = Location::contiguous(data_start + begin, row_len);
    Ok(SourceTensor { name, shape, dtype, transposed: false, location })
}

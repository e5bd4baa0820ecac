//! One tensor: element type, layout, size and place.

use std::fmt;

use rwkv_edge_kernels::layout::{self, DType};

use super::metadata::check_rel_error;
use super::{LARGE_TENSOR_BYTES, LINE_ALIGN, PAGE_ALIGN};
use crate::error::{Error, Result};

/// Longest name, in bytes.
const MAX_NAME: usize = 255;

/// Type of a tensor's elements; the number is the one in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE single precision.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// 8-bit codes with group scales.
    Int8 = 2,
    /// 4-bit codes with group scales.
    Int4 = 3,
    /// Unsigned integers; not weights.
    U32 = 4,
    /// 4-bit codes of a table that the group scale shifts.
    Int4n = 5,
}

impl ElementType {
    const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Int8, Self::Int4, Self::U32, Self::Int4n];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&dtype| dtype as u8 == code)
    }

    /// The minor version of the format that has this type.
    pub(super) fn minor_version(self) -> u16 {
        u16::from(self == Self::Int4n)
    }

    /// The weight type, or `None` for integers that are not weights.
    pub const fn weight(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Int8 => Some(DType::Int8),
            Self::Int4 => Some(DType::Int4),
            Self::Int4n => Some(DType::Int4n),
            Self::U32 => None,
        }
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::Int8 => Self::Int8,
            DType::Int4 => Self::Int4,
            DType::Int4n => Self::Int4n,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.weight().map_or("u32", DType::name))
    }
}

/// Arrangement of a tensor's bytes; the number is the one in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorLayout {
    /// `[n, 1]`: n plain f32 or u32.
    Vector = 0,
    /// `[rows, cols]`: blocks of a [`Matrix`](layout::Matrix).
    Interleaved = 1,
    /// `[rows, cols]`: `rows` records of `cols` values, see [`Records`](layout::Records).
    RowRecords = 2,
    /// `[out, in]`: `in` records of `out` values, one for each column.
    ColumnRecords = 3,
}

impl TensorLayout {
    const ALL: [Self; 4] = [Self::Vector, Self::Interleaved, Self::RowRecords, Self::ColumnRecords];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&layout| layout as u8 == code)
    }

    /// Number of records, and number of values in each, for a logical shape. `None` for layouts
    /// without records.
    pub(super) fn records(self, shape: [usize; 2]) -> Option<(usize, usize)> {
        match self {
            Self::RowRecords => Some((shape[0], shape[1])),
            Self::ColumnRecords => Some((shape[1], shape[0])),
            Self::Vector | Self::Interleaved => None,
        }
    }
}

impl fmt::Display for TensorLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vector => "vector",
            Self::Interleaved => "interleaved",
            Self::RowRecords => "row records",
            Self::ColumnRecords => "column records",
        })
    }
}

/// Bytes of a tensor. `None` if the layout does not fit the type or shape, or the size overflows.
pub(super) fn byte_len(dtype: ElementType, layout: TensorLayout, shape: [usize; 2]) -> Option<u64> {
    let bytes = match (layout, dtype.weight()) {
        (TensorLayout::Vector, Some(DType::F32) | None) if shape[0] > 0 && shape[1] == 1 => {
            shape[0].checked_mul(4)?
        }
        (TensorLayout::Vector, _) => return None,
        (TensorLayout::Interleaved, dtype) => layout::matrix_bytes(dtype?, shape[0], shape[1])?,
        (TensorLayout::RowRecords | TensorLayout::ColumnRecords, dtype) => {
            let (count, len) = layout.records(shape)?;
            layout::records_bytes(dtype?, count, len)?
        }
    };
    u64::try_from(bytes).ok()
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name: printable ASCII, unique in the file.
    pub name: String,
    /// Type of the elements.
    pub dtype: ElementType,
    /// Arrangement of the bytes.
    pub layout: TensorLayout,
    /// Logical shape `[out, in]`; `[n, 1]` for vectors.
    pub shape: [usize; 2],
    /// Power of two that scales all weights; 1 for types without group scales.
    pub scale: f32,
    /// Relative error of the stored weights against the checkpoint's.
    pub rel_error: f32,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// CRC-32 of the bytes; 0 if each record has its own.
    pub crc32: u32,
    /// Whether the u32 vector `<name>.crc32` holds a checksum for each record.
    pub checked_by_record: bool,
}

impl TensorInfo {
    /// First byte after the tensor.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Name of the vector with this tensor's record checksums.
    pub fn record_crc_name(&self) -> String {
        format!("{}.crc32", self.name)
    }

    /// Alignment of a tensor with this layout and size.
    pub(super) fn align(&self) -> u64 {
        let own_pages = self.len >= LARGE_TENSOR_BYTES || self.layout == TensorLayout::RowRecords;
        if own_pages { PAGE_ALIGN } else { LINE_ALIGN }
    }

    /// Type, layout and shape, as messages show them.
    pub(super) fn describe(&self) -> String {
        describe(self.dtype, self.layout, self.shape)
    }

    /// Checks everything about the tensor that does not depend on other tensors.
    pub(super) fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(Error::malformed(format!("tensor {}: {what}", self.name.escape_debug())));
        if self.name.is_empty()
            || self.name.len() > MAX_NAME
            || !self.name.bytes().all(|b| b.is_ascii_graphic())
        {
            return fail("the name is empty, too long or not printable ASCII");
        }
        if self.shape.iter().any(|&n| u32::try_from(n).is_err()) {
            return fail("a dimension is too large");
        }
        match byte_len(self.dtype, self.layout, self.shape) {
            None => return fail(&format!("{} cannot be stored", self.describe())),
            Some(len) if len != self.len => {
                return fail(&format!("{} takes {len} bytes, not {}", self.describe(), self.len));
            }
            Some(_) => {}
        }
        if !scale_fits(self.dtype, self.scale) {
            return fail(&format!("scale {} does not go with {}", self.scale, self.dtype));
        }
        if check_rel_error(self.rel_error).is_err() {
            return fail(&format!("relative error {}", self.rel_error));
        }
        if self.checked_by_record && (self.layout != TensorLayout::RowRecords || self.crc32 != 0) {
            return fail("only row records may be checked one by one, and then have no other checksum");
        }
        if !self.offset.is_multiple_of(self.align()) {
            return fail("the data is not aligned");
        }
        Ok(())
    }
}

/// Type, layout and shape, as messages show them: `int8 interleaved [256, 512]`.
pub(super) fn describe(dtype: ElementType, layout: TensorLayout, shape: [usize; 2]) -> String {
    format!("{dtype} {layout} [{}, {}]", shape[0], shape[1])
}

/// Types with group scales require a positive, normal power of two. The others require exactly 1.
pub(super) fn scale_fits(dtype: ElementType, scale: f32) -> bool {
    let power_of_two = scale.is_normal() && scale > 0.0 && scale.to_bits() & 0x007f_ffff == 0;
    match dtype.weight() {
        Some(dtype) if dtype.is_quantized() => power_of_two,
        _ => scale == 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor() -> TensorInfo {
        TensorInfo {
            name: "a.weight".into(),
            dtype: ElementType::Int8,
            layout: TensorLayout::Interleaved,
            shape: [17, 65],
            scale: 0.5,
            rel_error: 0.01,
            offset: 128,
            len: 4 * 1088,
            crc32: 1,
            checked_by_record: false,
        }
    }

    #[test]
    fn sizes_are_those_of_the_block_layouts() {
        use ElementType::*;
        use TensorLayout::*;
        assert_eq!(byte_len(F32, Vector, [5, 1]), Some(20));
        assert_eq!(byte_len(U32, Vector, [5, 1]), Some(20));
        assert_eq!(byte_len(Int4, Interleaved, [17, 64]), Some(2 * 576));
        assert_eq!(byte_len(Int4n, Interleaved, [17, 64]), Some(2 * 576));
        assert_eq!(byte_len(Int8, RowRecords, [3, 40]), Some(3 * 128));
        assert_eq!(byte_len(Int8, ColumnRecords, [40, 3]), Some(3 * 128));
    }

    #[test]
    fn layouts_refuse_types_and_shapes_that_they_cannot_hold() {
        use ElementType::*;
        use TensorLayout::*;
        for (dtype, layout, shape) in [
            (F16, Vector, [5, 1]),
            (Int8, Vector, [5, 1]),
            (F32, Vector, [5, 2]),
            (F32, Vector, [0, 1]),
            (U32, Interleaved, [16, 64]),
            (U32, RowRecords, [16, 64]),
            (F32, Interleaved, [0, 64]),
            (F32, ColumnRecords, [16, 0]),
            (F32, Vector, [usize::MAX, 1]),
            (F32, Interleaved, [usize::MAX, usize::MAX]),
            (F32, RowRecords, [usize::MAX, 1 << 20]),
        ] {
            assert_eq!(byte_len(dtype, layout, shape), None, "{}", describe(dtype, layout, shape));
        }
    }

    #[test]
    fn only_quantized_tensors_have_a_scale_and_it_is_a_power_of_two() {
        for good in [1.0, 1.0 / 1024.0, f32::MIN_POSITIVE, f32::from_bits(0x7f00_0000)] {
            assert!(scale_fits(ElementType::Int8, good), "{good}");
            assert!(scale_fits(ElementType::Int4n, good), "{good}");
        }
        for bad in [0.0, -1.0, 3.0, f32::NAN, f32::INFINITY, f32::from_bits(1), 1.0 + f32::EPSILON] {
            assert!(!scale_fits(ElementType::Int4, bad), "{bad}");
        }
        assert!(scale_fits(ElementType::F16, 1.0));
        assert!(!scale_fits(ElementType::F32, 2.0));
        assert!(!scale_fits(ElementType::U32, 0.5));
    }

    #[test]
    fn each_broken_property_is_refused() {
        tensor().check().unwrap();
        let edits: [fn(&mut TensorInfo); 11] = [
            |t| t.name.clear(),
            |t| t.name = "a b".into(),
            |t| t.name = "ä".into(),
            |t| t.name = "x".repeat(256),
            |t| t.shape = [17, 64],
            |t| t.dtype = ElementType::Int4,
            |t| t.len += 1,
            |t| t.scale = f32::NAN,
            |t| t.rel_error = -1.0,
            |t| t.offset = 96,
            |t| t.checked_by_record = true,
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut tensor = tensor();
            edit(&mut tensor);
            assert!(tensor.check().is_err(), "edit {i}");
        }
    }

    #[test]
    fn large_tensors_and_the_embedding_start_on_pages() {
        let small = tensor();
        assert_eq!(small.align(), LINE_ALIGN);
        assert_eq!(TensorInfo { len: LARGE_TENSOR_BYTES, ..tensor() }.align(), PAGE_ALIGN);
        assert_eq!(TensorInfo { layout: TensorLayout::RowRecords, ..tensor() }.align(), PAGE_ALIGN);
    }
}

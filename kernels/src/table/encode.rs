//! Encoding of weights.

use super::Kernels;
use crate::layout::DType;
use crate::quant::{self, ErrorSums, GroupEncoders, ScaleOverflow};

impl Kernels {
    /// Encodes 1 to 16 rows of `cols` values, row-major, as one block row of an interleaved matrix.
    ///
    /// `out` takes `matrix_bytes(dtype, 16, cols)` bytes; rows that are not there become padding.
    /// Float types store `value / tensor_scale`. `importance` are factors of the squared errors in
    /// each column, `[cols]`; without, all are 1. They decide between scales of Int4n. Only their
    /// ratios within a group count.
    ///
    /// # Errors
    /// If a value is not finite, or too large for the dtype and `tensor_scale`. `out` is
    /// unspecified then.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows up to 16, `importance` or `out` has another length,
    /// or `tensor_scale` is no positive power of two.
    pub fn encode_block_row(
        &self,
        dtype: DType,
        rows: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
        tensor_scale: f32,
        out: &mut [u8],
    ) -> Result<ErrorSums, ScaleOverflow> {
        quant::encode_block_row(self.group_encoders(), dtype, rows, cols, importance, tensor_scale, out)
    }

    /// Encodes one record.
    ///
    /// `out` takes `record_bytes(dtype, values.len())` bytes. Float types store `value /
    /// tensor_scale`. `importance` are factors of the squared error of each value, as for
    /// [`encode_block_row`](Self::encode_block_row).
    ///
    /// # Errors
    /// If a value is not finite, or too large for the dtype and `tensor_scale`. `out` is
    /// unspecified then.
    ///
    /// # Panics
    /// If `values` is empty, `importance` or `out` has another length, or `tensor_scale` is no
    /// positive power of two.
    pub fn encode_record(
        &self,
        dtype: DType,
        values: &[f32],
        importance: Option<&[f32]>,
        tensor_scale: f32,
        out: &mut [u8],
    ) -> Result<ErrorSums, ScaleOverflow> {
        quant::encode_record(self.group_encoders(), dtype, values, importance, tensor_scale, out)
    }

    pub(super) fn group_encoders(&self) -> GroupEncoders {
        GroupEncoders { int8: self.encode_int8, int4: self.encode_int4, int4n: self.encode_int4n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::layout::GROUP_SIZE;
    use crate::quant::{encode_int4, encode_int4n, encode_int8};

    /// Pseudo-random groups of many magnitudes, some with values that are not finite.
    fn groups() -> impl Iterator<Item = [f32; GROUP_SIZE]> {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        (0..if cfg!(miri) { 10 } else { 5000 }).map(move |i| {
            let magnitude = f32::from_bits((60 + next() % 100) << 23);
            let mut group: [f32; GROUP_SIZE] =
                core::array::from_fn(|_| (next() as f32 / 8_388_608.0 - 1.0) * magnitude);
            if i % 50 == 0 {
                group[i % GROUP_SIZE] = [f32::NAN, f32::INFINITY, 0.0][i / 50 % 3];
            }
            if i % 7 == 0 {
                group.iter_mut().step_by(3).for_each(|value| *value *= 1e-20);
            }
            group
        })
    }

    #[test]
    fn groups_encode_alike_on_every_level() {
        for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
            for (i, values) in groups().enumerate() {
                let importance = core::array::from_fn(|j| [1.0, 0.25, 0.01, 0.0, 1e-38][i * j % 5]);
                let pairs = [
                    (encode_int8(&values), (kernels.encode_int8)(&values)),
                    (encode_int4(&values), (kernels.encode_int4)(&values)),
                    (
                        encode_int4n(&values, &importance, 1 + i % GROUP_SIZE),
                        (kernels.encode_int4n)(&values, &importance, 1 + i % GROUP_SIZE),
                    ),
                ];
                for (wanted, got) in pairs {
                    let [wanted, got] = [wanted, got].map(|group| {
                        group.map(|g| (g.scale, g.codes, g.sums)).map_err(|e| e.largest.to_bits())
                    });
                    assert_eq!(wanted, got, "{} {values:?}", kernels.isa());
                }
            }
        }
    }
}

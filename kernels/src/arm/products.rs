//! Products with dense vectors.

use super::neon::{self, Rows, stay_normal};
use super::vfp::Vfp4;
use crate::layout::{Activation, DType, GROUP_SIZE, Matrix, ROW_INTERLEAVE, Records, record_scale_bytes};
use crate::scalar::matvec;
use crate::scalar::record::{self, DOT_LANES, add_groups, dot_of_lanes};

pub(super) fn matvec_int4(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    if stay_normal(x.scales) {
        by_block_rows(out, w, first_row, |blocks| neon::int4_rows(blocks, x));
    } else {
        matvec::matvec_int4::<Vfp4>(out, w, first_row, x);
    }
}

pub(super) fn matvec_int4n(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    if stay_normal(x.scales) {
        by_block_rows(out, w, first_row, |blocks| neon::int4n_rows(blocks, x));
    } else {
        matvec::matvec_int4n::<Vfp4>(out, w, first_row, x);
    }
}

pub(super) fn matvec_int8(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    if stay_normal(x.scales) {
        by_block_rows(out, w, first_row, |blocks| neon::int8_rows(blocks, x));
    } else {
        matvec::matvec_int8::<Vfp4>(out, w, first_row, x);
    }
}

pub(super) fn matvec_f32(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_block_rows(out, w, first_row, |blocks| neon::f32_rows(blocks, x.values));
}

pub(super) fn matvec_f16(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
    by_block_rows(out, w, first_row, |blocks| neon::f16_rows(blocks, x.values));
}

fn by_block_rows(out: &mut [f32], w: &Matrix<'_>, first_row: usize, rows: impl Fn(&[u8]) -> Rows) {
    for (i, out) in out.chunks_mut(ROW_INTERLEAVE).enumerate() {
        let acc = rows(w.block_row(first_row / ROW_INTERLEAVE + i));
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = acc * w.scale();
        }
    }
}

pub(super) fn record_dots(out: &mut [f32], w: &Records<'_>, indices: &[u32], x: Activation<'_>) {
    if !stay_normal(x.scales) {
        return record::record_dots::<Vfp4>(out, w, indices, x);
    }
    // Whole sets of groups. The groups that are left have scalar code.
    let sets = w.record_len().div_ceil(GROUP_SIZE) / DOT_LANES;
    for (out, &index) in out.iter_mut().zip(indices) {
        let record = w.record(index as usize);
        let (scales, runs) = record.split_at(record_scale_bytes(DType::Int4, w.record_len()));
        let mut lanes = neon::record_dot(sets, scales, runs, x);
        add_groups::<Vfp4>(&mut lanes, w, record, DOT_LANES * sets, x);
        *out = dot_of_lanes(lanes) * w.scale();
    }
}

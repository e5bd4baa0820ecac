//! A group of outputs of column records, with error feedback from record to record.

use super::{FactorView, FedSums, Feedback, Outputs};
use crate::fp16;
use crate::layout::{DType, GROUP_SIZE, INT4N_TABLE, int4n_shift, record_bytes, record_scale_bytes};
use crate::quant::{Group, ScaleOverflow, check_scale, relative, store_run};

/// Bytes of one group of a record: its scale, then its codes.
pub const fn output_bytes(dtype: DType) -> usize {
    2 + run_bytes(dtype)
}

const fn run_bytes(dtype: DType) -> usize {
    if matches!(dtype, DType::Int8) { GROUP_SIZE } else { GROUP_SIZE / 2 }
}

/// As [`Kernels::encode_outputs_fed`](crate::Kernels::encode_outputs_fed).
pub(crate) fn encode_outputs(
    feedback: Feedback,
    dtype: DType,
    values: &[f32],
    factor: FactorView<'_>,
    tensor_scale: f32,
    scratch: &mut [f32],
    out: &mut [u8],
) -> Result<FedSums, ScaleOverflow> {
    assert!(dtype.is_quantized(), "feedback for {dtype}");
    let (cols, positions) = (factor.columns(), factor.positions());
    assert!(cols > 0 && values.len().is_multiple_of(cols), "{} values are not rows of {cols}", values.len());
    let outputs = values.len() / cols;
    assert!((1..=GROUP_SIZE).contains(&outputs), "{outputs} outputs do not make a group");
    assert!(out.len() == cols * output_bytes(dtype), "{} bytes of output", out.len());
    let floats = 2 * GROUP_SIZE * positions;
    assert!(scratch.len() >= floats, "{} floats of scratch, expected {floats}", scratch.len());
    check_scale(tensor_scale);
    let (weights, targets) = scratch[..floats].as_chunks_mut().0.split_at_mut(positions);
    factor.load(values, 1.0 / tensor_scale, weights);
    targets.copy_from_slice(weights);
    let mut sums = FedSums::default();
    for g in 0..positions / GROUP_SIZE {
        let group = factor.group(g);
        let mut errors = [[0.0; GROUP_SIZE]; GROUP_SIZE];
        let (targets, later) = targets[GROUP_SIZE * g..].split_at_mut(GROUP_SIZE);
        for (i, &column) in group.order.iter().enumerate().filter(|&(_, &column)| (column as usize) < cols) {
            (feedback.table.carry_outputs)(&mut targets[i..][..1], &errors, &group.own[i..][..1]);
            let weights: &Outputs = &weights[GROUP_SIZE * g + i];
            let encoded = encode(feedback, dtype, &targets[i], outputs)?;
            let rounded = decode(dtype, &encoded);
            let mut loss = 0.0;
            for r in 0..outputs {
                let miss = f64::from(targets[i][r] - rounded[r]);
                loss += miss * miss;
                errors[i][r] = weights[r] - rounded[r];
                sums.add_weight(weights[r], errors[i][r]);
            }
            sums.outputs += f64::from(group.d[i]) * loss;
            store(dtype, &encoded, &mut out[column as usize * output_bytes(dtype)..][..output_bytes(dtype)]);
        }
        (feedback.table.carry_outputs)(later, &errors, group.later);
    }
    Ok(sums.scaled(tensor_scale))
}

fn encode(feedback: Feedback, dtype: DType, values: &Outputs, len: usize) -> Result<Group, ScaleOverflow> {
    match dtype {
        DType::Int4n => (feedback.encoders.int4n)(values, &relative(None, len), len),
        DType::Int8 => (feedback.encoders.int8)(values),
        _ => (feedback.encoders.int4)(values),
    }
}

/// The weights of an encoded group, in units of the tensor scale.
fn decode(dtype: DType, group: &Group) -> Outputs {
    let scale = fp16::to_f32(group.scale);
    group.codes.map(|code| match dtype {
        DType::Int4n => {
            (i32::from(INT4N_TABLE[(code + 8) as usize]) + int4n_shift(group.scale)) as f32 * scale
        }
        _ => f32::from(code) * scale,
    })
}

fn store(dtype: DType, group: &Group, out: &mut [u8]) {
    let (scale, run) = out.split_at_mut(2);
    scale.copy_from_slice(&group.scale.to_le_bytes());
    store_run(dtype, &group.codes, run);
}

/// Puts group `g` of each of a number of records of `len` values to its place. `groups` has
/// [`output_bytes`] for each record, as
/// [`Kernels::encode_outputs_fed`](crate::Kernels::encode_outputs_fed) makes them. Records begin as
/// zeros.
///
/// # Panics
/// If the lengths do not fit together.
pub fn store_outputs(dtype: DType, len: usize, g: usize, groups: &[u8], records: &mut [u8]) {
    let bytes = record_bytes(dtype, len).expect("a length of records");
    let (run, start) = (run_bytes(dtype), record_scale_bytes(dtype, len));
    let groups = groups.chunks_exact(output_bytes(dtype));
    assert!(records.len() == groups.len() * bytes && GROUP_SIZE * g < len, "group {g} of {len} values");
    for (record, group) in records.chunks_exact_mut(bytes).zip(groups) {
        record[2 * g..][..2].copy_from_slice(&group[..2]);
        record[start + run * g..][..run].copy_from_slice(&group[2..]);
    }
}

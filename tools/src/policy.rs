//! Which precision and layout each tensor gets.
//!
//! The codes of int4 are those of a table, [`DType::Int4n`], or linear, [`DType::Int4`]. Both planes of
//! a head are linear: the second one has the rounding errors of the first.
//!
//! | role | int4 | int8 | f16 | f32 | layout |
//! |---|---|---|---|---|---|
//! | vectors (norms, mixes, decays, bonus), tuned states | f32 | f32 | f32 | f32 | vector |
//! | projections | int4 | int8 | f16 | f32 | interleaved |
//! | `att.output` of layer 0 | f16 | f16 | f16 | f32 | interleaved |
//! | `ffn.value` | int4 | int8 | f16 | f32 | column records |
//! | low-rank factors (RWKV-6, 7) | int8 | int8 | f16 | f32 | interleaved |
//! | head | int4 | int4 | f16 | f32 | interleaved |
//! | its residual | int4 | int4 | - | - | row records |
//! | a plain head, if asked for | int8 | int8 | f16 | f32 | interleaved |
//! | embedding, tables of DeepEmbed (RWKV-7a) | int8 | int8 | f16 | f32 | row records |
//!
//! - Vectors are below 0.1 % of the bytes, have large outliers, and feed the recurrence.
//! - The head decides between tokens directly. Both of its planes together are as precise as int8.
//! - A token reads one row of the embedding only, and one row of each table of DeepEmbed.
//! - In released RWKV-7 models, one channel of the input of `att.output` in layer 0 is thousands of
//!   times as large as usual. Quantized weights of that channel add an error that outweighs all
//!   other channels. Quantized inputs round the channels beside it to zero. One matrix of f16 adds
//!   0.3 to 0.6 % to an int4 file. RWKV-4 has no such channel; there, f16 lowers the KL divergence
//!   of int4 by 2 %.

use rwkv_edge::format::{TensorLayout, WriteSpec};
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names::{ModelTensor, OptionalTensors, Role};

/// The requested quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantSpec {
    /// Type of the projections.
    pub dtype: DType,
    /// Keep a quantized head in one plane.
    pub plain_head: bool,
    /// Quantize `att.output` of layer 0 like every other projection: to measure what f16 saves.
    #[doc(hidden)]
    pub quantize_first_output: bool,
}

impl QuantSpec {
    /// Projections of type `dtype`, and the default types that go with them.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, plain_head: false, quantize_first_output: false }
    }

    /// The optional tensors of a model with this quantization, with or without a tuned state.
    pub fn optional_tensors(self, tuned_state: bool) -> OptionalTensors {
        OptionalTensors {
            tuned_state,
            nested_head: self.nested_head(),
            value_bound: self.dtype.is_quantized(),
        }
    }

    /// Whether the head has two planes.
    pub fn nested_head(self) -> bool {
        self.dtype.is_quantized() && !self.plain_head
    }
}

/// Element type of a tensor with `role`.
pub fn dtype(role: Role, quant: QuantSpec) -> DType {
    match role {
        Role::Vector | Role::State | Role::ScaleBound | Role::HeadBound => DType::F32,
        Role::HeadResidual => DType::Int4,
        Role::Head if quant.nested_head() => DType::Int4,
        Role::LowRank | Role::Head | Role::Embedding | Role::DeepEmbedding
            if matches!(quant.dtype, DType::Int4 | DType::Int4n) =>
        {
            DType::Int8
        }
        Role::FirstOutput if quant.dtype.is_quantized() && !quant.quantize_first_output => DType::F16,
        Role::Matrix
        | Role::FirstOutput
        | Role::SparseMatrix
        | Role::LowRank
        | Role::Head
        | Role::Embedding
        | Role::DeepEmbedding => quant.dtype,
    }
}

/// How the bytes of a tensor with `role` are arranged.
pub fn layout(role: Role) -> TensorLayout {
    match role {
        Role::Vector | Role::State | Role::ScaleBound | Role::HeadBound => TensorLayout::Vector,
        Role::Matrix | Role::FirstOutput | Role::LowRank | Role::Head => TensorLayout::Interleaved,
        Role::SparseMatrix => TensorLayout::ColumnRecords,
        Role::HeadResidual | Role::Embedding | Role::DeepEmbedding => TensorLayout::RowRecords,
    }
}

/// Type, layout and shape that the file gives `tensor`.
pub fn spec(tensor: &ModelTensor, quant: QuantSpec) -> WriteSpec {
    let dtype = dtype(tensor.role, quant);
    let spec = WriteSpec::weight(&tensor.name, dtype, layout(tensor.role), tensor.shape);
    let checked_by_record = matches!(tensor.role, Role::Embedding | Role::DeepEmbedding);
    WriteSpec { checked_by_record, ..spec }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;
    use rwkv_edge::format::Version;
    use rwkv_edge::model::names;

    #[test]
    fn att_output_is_f16_in_layer_0_of_quantized_files_and_nowhere_else() {
        for (version, wanted) in Version::ALL.into_iter().flat_map(|v| DType::ALL.map(|dtype| (v, dtype))) {
            let quant = QuantSpec::new(wanted);
            let config = shapes::config(version, [3, 128, 256]);
            let outputs = names::tensors(&config, quant.optional_tensors(false)).into_iter();
            let outputs = outputs.filter(|tensor| tensor.name.ends_with("att.output.weight"));
            let found: Vec<DType> = outputs.map(|tensor| dtype(tensor.role, quant)).collect();
            let first = if wanted.is_quantized() { DType::F16 } else { wanted };
            assert_eq!(found, [first, wanted, wanted], "{version} {wanted}");
        }
    }
}

//! Which precision and layout each tensor gets.
//!
//! | role | int4 | int8 | f16 | f32 | layout |
//! |---|---|---|---|---|---|
//! | vectors (norms, mixes, decays, bonus), tuned states | f32 | f32 | f32 | f32 | vector |
//! | projections | int4 | int8 | f16 | f32 | interleaved |
//! | `ffn.value` | int4 | int8 | f16 | f32 | column records |
//! | low-rank factors (RWKV-6, 7) | int8 | int8 | f16 | f32 | interleaved |
//! | head | int4 | int4 | f16 | f32 | interleaved |
//! | its residual | int4 | int4 | - | - | row records |
//! | a plain head, if asked for | int8 | int8 | f16 | f32 | interleaved |
//! | embedding | int8 | int8 | f16 | f32 | row records |
//!
//! Vectors are below 0.1 % of the bytes, have large outliers and feed the recurrence. The head decides between
//! tokens directly: both of its planes together are as precise as int8. Of the embedding only one row per token is
//! read.

use rwkv_edge::format::{TensorLayout, WriteSpec};
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names::{ModelTensor, OptionalTensors, Role};

/// The quantization that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantSpec {
    /// Type of the projections.
    pub dtype: DType,
    /// Keep a quantized head in one plane.
    pub plain_head: bool,
}

impl QuantSpec {
    /// The tensors that this adds to a model of tuned states or not.
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
        Role::LowRank | Role::Head | Role::Embedding if quant.dtype == DType::Int4 => DType::Int8,
        Role::Matrix | Role::SparseMatrix | Role::LowRank | Role::Head | Role::Embedding => quant.dtype,
    }
}

/// How the bytes of a tensor with `role` are arranged.
pub fn layout(role: Role) -> TensorLayout {
    match role {
        Role::Vector | Role::State | Role::ScaleBound | Role::HeadBound => TensorLayout::Vector,
        Role::Matrix | Role::LowRank | Role::Head => TensorLayout::Interleaved,
        Role::SparseMatrix => TensorLayout::ColumnRecords,
        Role::HeadResidual | Role::Embedding => TensorLayout::RowRecords,
    }
}

/// What the file stores for `tensor`.
pub fn spec(tensor: &ModelTensor, quant: QuantSpec) -> WriteSpec {
    let dtype = dtype(tensor.role, quant);
    let spec = WriteSpec::weight(&tensor.name, dtype, layout(tensor.role), tensor.shape);
    WriteSpec { checked_by_record: tensor.role == Role::Embedding, ..spec }
}

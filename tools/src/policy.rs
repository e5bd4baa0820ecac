//! Which precision and layout each tensor gets.
//!
//! | role | int4 | int8 | f16 | f32 | layout |
//! |---|---|---|---|---|---|
//! | vectors (norms, mixes, decays, bonus), tuned states | f32 | f32 | f32 | f32 | vector |
//! | projections | int4 | int8 | f16 | f32 | interleaved |
//! | `ffn.value` | int4 | int8 | f16 | f32 | column records |
//! | low-rank factors (RWKV-6, 7) | int8 | int8 | f16 | f32 | interleaved |
//! | head | int8 | int8 | f16 | f32 | interleaved |
//! | embedding | int8 | int8 | f16 | f32 | row records |
//!
//! Vectors are below 0.1 % of the bytes, have large outliers and feed the recurrence. The head decides between
//! tokens directly, and of the embedding only one row per token is read.

use rwkv_edge::format::{TensorLayout, WriteSpec};
use rwkv_edge::kernels::DType;
use rwkv_edge::model::names::{ModelTensor, Role};

/// Element type of a tensor with `role` in a file of type `wanted`.
pub fn dtype(role: Role, wanted: DType) -> DType {
    match role {
        Role::Vector | Role::State => DType::F32,
        Role::LowRank | Role::Head | Role::Embedding if wanted == DType::Int4 => DType::Int8,
        Role::Matrix | Role::SparseMatrix | Role::LowRank | Role::Head | Role::Embedding => wanted,
    }
}

/// How the bytes of a tensor with `role` are arranged.
pub fn layout(role: Role) -> TensorLayout {
    match role {
        Role::Vector | Role::State => TensorLayout::Vector,
        Role::Matrix | Role::LowRank | Role::Head => TensorLayout::Interleaved,
        Role::SparseMatrix => TensorLayout::ColumnRecords,
        Role::Embedding => TensorLayout::RowRecords,
    }
}

/// What the file stores for `tensor` when type `wanted` was asked for.
pub fn spec(tensor: &ModelTensor, wanted: DType) -> WriteSpec {
    WriteSpec::weight(&tensor.name, dtype(tensor.role, wanted), layout(tensor.role), tensor.shape)
}

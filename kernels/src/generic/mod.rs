//! Bodies that several levels of instructions share, written once.
//!
//! A body is a macro over names. The module that invokes it brings the intrinsics of its registers
//! into scope under the names that the macro lists. A generic function cannot do this: intrinsics
//! need the target features of the function that they stand in, and features are no type parameter.
//! Code that differs by more than names stands in the folder of its architecture.

mod block;
mod compact;
mod entries;
mod matmul;
mod read;
mod sparse_float;
mod wkv;

pub(crate) use block::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
pub(crate) use compact::compact;
pub(crate) use entries::entries;
#[cfg(target_arch = "aarch64")]
pub(crate) use matmul::IntColumns;
pub(crate) use matmul::{
    BYTE_PANEL, ByteBlock, FLOAT_PANEL, FloatBlock, RowSums, ShiftedBlock, by_panels, float_columns,
    int_columns, matmul, steps,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use matmul::{IntBlock, corrections};
pub(crate) use read::read;
pub(crate) use sparse_float::{read_f32, sparse_float};
pub(crate) use wkv::{by_strips, wkv};

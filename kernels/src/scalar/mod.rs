//! The reference: portable Rust, and the level that is always there.
//!
//! The `#[inline(always)]` bodies are also instantiated by the levels above, where the compiler may use more
//! instructions. It never fuses or reorders float operations, so they give the same bits there.

mod activation;
pub(crate) mod heads;
mod matvec;
mod norm;
mod read;
pub(crate) mod record;
pub(crate) mod search;
pub(crate) mod sparse;
mod wkv;

pub(crate) use activation::{ZERO_BELOW, add, lerp, nonzero, quantize, relu_squared, sigmoid_mul};
pub(crate) use heads::{decay6, decay7, dot3, l2_normalize, mul, sigmoid, silu_mul, tanh, wkv6, wkv7};
pub(crate) use norm::{layer_norm, softmax};
pub(crate) use record::{dequantize_record, record_dots};
pub(crate) use search::{max, reaching};
pub(crate) use sparse::largest_magnitude;
pub(crate) use wkv::wkv4;

use crate::isa::Isa;
use crate::quant;
use crate::table::Kernels;

pub(crate) const KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    quantize,
    matvec_f32: matvec::matvec_f32,
    matvec_f16: matvec::matvec_f16,
    matvec_int8: matvec::matvec_int8,
    matvec_int4: matvec::matvec_int4,
    nonzero,
    sparse_f32: sparse::sparse_f32,
    sparse_f16: sparse::sparse_f16,
    largest_magnitude,
    max,
    reaching,
    sparse_accumulate_int8: sparse::accumulate_int8,
    sparse_accumulate_int4: sparse::accumulate_int4,
    sparse_finish_int8: sparse::finish_int8,
    sparse_finish_int4: sparse::finish_int4,
    dequantize_record,
    record_dots,
    read: read::read,
    layer_norm,
    lerp,
    wkv4,
    sigmoid_mul,
    relu_squared,
    add,
    softmax,
    wkv6,
    wkv7,
    tanh,
    sigmoid,
    silu_mul,
    mul,
    decay6,
    decay7,
    l2_normalize,
    dot3,
    encode_int8: quant::encode_int8,
    encode_int4: quant::encode_int4,
};

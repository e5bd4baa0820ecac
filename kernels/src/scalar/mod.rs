//! The reference: portable Rust, and the level that is always there.
//!
//! Other levels instantiate the `#[inline(always)]` bodies again, with instructions of their own.
//! The compiler never fuses or reorders float operations, so the bits are the same there.

mod activation;
pub(crate) mod compact;
pub(crate) mod matvec;
mod norm;
mod read;
pub(crate) mod record;
mod shift;
pub(crate) mod sparse;
mod wkv;

pub(crate) use activation::{add, mul, quantize, relu_squared};
pub(crate) use compact::{max, nonzero, reaching};
pub(crate) use record::dequantize_record;
pub(crate) use sparse::largest_magnitude;

#[cfg(target_arch = "x86_64")]
pub(crate) use norm::Moments;
#[cfg(target_arch = "x86_64")]
pub(crate) use shift::ends;

use core::ops::Range;

use crate::isa::Isa;
use crate::layout::{Activation, Records};
use crate::math::{Fma, MulAdd};
use crate::quant;
use crate::table::{Kernels, SoftmaxStats};

pub(crate) const KERNELS: Kernels = kernels::<MulAdd>(Isa::Scalar);

/// A table of these bodies alone, with an `fma` that the processors of `isa` have.
pub(crate) const fn kernels<F: Fma>(isa: Isa) -> Kernels {
    Kernels {
        isa,
        quantize,
        matvec_f32: matvec::matvec_f32::<F>,
        matvec_f16: matvec::matvec_f16::<F>,
        matvec_int8: matvec::matvec_int8::<F>,
        matvec_int4: matvec::matvec_int4::<F>,
        matvec_int4n: matvec::matvec_int4n::<F>,
        tiles: None,
        nonzero,
        sparse_f32: sparse::sparse_f32::<F>,
        sparse_f16: sparse::sparse_f16::<F>,
        largest_magnitude,
        max,
        reaching,
        sparse_accumulate_int8: sparse::accumulate_int8,
        sparse_accumulate_int4: sparse::accumulate_int4,
        sparse_accumulate_int4n: sparse::accumulate_int4n,
        sparse_finish_int8: sparse::finish_int8,
        sparse_finish_int4: sparse::finish_int4,
        sparse_finish_int4n: sparse::finish_int4n,
        dequantize_record,
        record_dots: record::record_dots::<F>,
        prefetch: |_| (),
        read: read::read,
        multiply_accumulate: read::multiply_accumulate,
        layer_norm: norm::layer_norm::<F>,
        lerp: activation::lerp::<F>,
        norm_shift: shift::norm_shift::<F>,
        wkv4: wkv::wkv4::<F>,
        relu_squared,
        add,
        softmax: norm::softmax::<F>,
        wkv6: wkv::wkv6::<F>,
        wkv7: wkv::wkv7::<F>,
        tanh: activation::tanh::<F>,
        sigmoid: activation::sigmoid::<F>,
        silu_mul: activation::silu_mul::<F>,
        mul,
        decay6: activation::decay6::<F>,
        decay7: activation::decay7::<F>,
        l2_normalize: norm::l2_normalize::<F>,
        dot3: norm::dot3::<F>,
        encode_int8: quant::encode_int8,
        encode_int4: quant::encode_int4,
        encode_int4n: quant::encode_int4n,
    }
}

/// Bodies for levels whose `fma` comes from the target features of the caller that inlines them.
macro_rules! with_mul_add {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $module:ident;)*) => {
        $(#[inline(always)]
        #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
        #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 inlines all of them"))]
        pub(crate) fn $name($($arg: $type),*) $(-> $result)? {
            $module::$name::<MulAdd>($($arg),*)
        })*
    };
}

with_mul_add! {
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = norm;
    fn lerp(out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]) = activation;
    fn wkv4(
        y: &mut [f32], k: &[f32], v: &[f32], time_first: &[f32], time_decay: &[f32],
        aa: &mut [f32], bb: &mut [f32], pp: &mut [f32]
    ) = wkv;
    fn softmax(out: &mut [f32], x: &[f32]) -> SoftmaxStats = norm;
    fn wkv6_columns(
        columns: Range<usize>, y: &mut [f32], state: &mut [f32], r: &[f32], k: &[f32], v: &[f32], u: &[f32],
        w: &[f32]
    ) = wkv;
    fn wkv7_columns(
        columns: Range<usize>, y: &mut [f32], state: &mut [f32], r: &[f32], w: &[f32], k: &[f32], v: &[f32],
        kk: &[f32], a: &[f32]
    ) = wkv;
    fn tanh(x: &mut [f32]) = activation;
    fn sigmoid(x: &mut [f32]) = activation;
    fn silu_mul(out: &mut [f32], gate: &[f32], x: &[f32]) = activation;
    fn decay6(x: &mut [f32]) = activation;
    fn decay7(x: &mut [f32]) = activation;
    fn l2_normalize(x: &mut [f32]) = norm;
    fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 = norm;
    fn add_groups(
        lanes: &mut [f32; record::DOT_LANES], w: &Records<'_>, record: &[u8], first: usize, x: Activation<'_>
    ) = record;
}
